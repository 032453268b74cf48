"""The local queue with real processes: its limit, its failures, its stops, and nothing left behind."""

import importlib.util
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from refsam.orchestration.submission.live_table import Location, Row
from refsam.orchestration.submission.local import run_locally
from refsam.records.paths import RunsFolder
from refsam.records.status import Reason, State, Status, read_status, write_status

HERE = Path(__file__).parent
PATIENCE = 60  # seconds until a wait is given up; no assertion depends on it

specification = importlib.util.spec_from_file_location("fake_science", HERE / "fake_science.py")
science = importlib.util.module_from_spec(specification)
sys.modules["fake_science"] = science
specification.loader.exec_module(science)


class Recorder:
    """A display that remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[list[Row]] = []
        self.said: list[str] = []

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        return None

    def show(self, rows: Sequence[Row], parallel: int) -> None:
        self.shown.append(list(rows))

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.fixture
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunsFolder:
    """A runs folder with a blank in its name, and the stand-in where the jobs find it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent.parent)]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    root = tmp_path / "my runs"
    root.mkdir()
    return RunsFolder(root)


def add_runs(folder: RunsFolder, **behaviours: str) -> list:
    for run_id, behaviour in behaviours.items():
        folder.run(run_id).root.mkdir()
        (folder.run(run_id).root / "behaviour.txt").write_text(behaviour)
    return [science.FakeRun(run_id) for run_id in behaviours]


def execute(folder: RunsFolder, runs: list, parallel: int = 2) -> tuple[list[Status], Recorder]:
    recorder = Recorder()
    statuses = run_locally(runs, folder, parallel, 3, recorder, science.ENTRY_POINT)
    assert statuses == [read_status(folder.run(run.run_id)) for run in runs]
    return statuses, recorder


def start_queue(folder: RunsFolder, *run_ids: str, parallel: int = 2, grace: float = 20) -> subprocess.Popen:
    """The queue in a process group of its own, as a shell starts it."""
    command = [
        sys.executable,
        str(HERE / "fake_science.py"),
        str(folder.root),
        str(parallel),
        str(grace),
        *run_ids,
    ]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def ready(folder: RunsFolder, *run_ids: str) -> bool:
    return all((folder.run(run_id).root / "ready").exists() for run_id in run_ids)


def below(queue: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(queue.pid).children(recursive=True)


def names_of_living(processes: list[psutil.Process]) -> list[list[str]]:
    return [p.cmdline() for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_no_more_runs_at_a_time_than_asked_for(runs_folder):
    runs = add_runs(runs_folder, a="meet", b="meet", c="meet", d="meet")
    statuses, recorder = execute(runs_folder, runs, parallel=2)
    assert [status.state for status in statuses] == [State.completed] * 4
    at_work = most = 0
    for event in science.events(runs_folder.root):
        at_work += 1 if event[0] == "start" else -1
        most = max(most, at_work)
    assert most == 2
    assert max(sum(row.place is Location.here for row in rows) for rows in recorder.shown) == 2
    assert {row.place for row in recorder.shown[-1]} == {Location.ended}


def test_a_run_gets_its_threads_and_a_log_that_others_may_read(runs_folder):
    runs = add_runs(runs_folder, a="complete")
    _, recorder = execute(runs_folder, runs)
    assert science.events(runs_folder.root)[0][:3] == ["start", "a", "3"]
    attempt = runs_folder.run("a").attempt(1)
    log = recorder.shown[-1][0].log
    assert [stat.S_IMODE(path.stat().st_mode) & 0o044 for path in (attempt, log)] == [0o044, 0o044]
    assert not list(runs_folder.root.rglob("*.pkl"))
    assert log.parent == attempt
    assert "behaviour: complete" in log.read_text()


def test_failures_are_recorded_with_their_reason_and_stop_no_other_run(runs_folder):
    runs = add_runs(runs_folder, a="fail", b="crash", c="fail silently", d="complete")
    (a, b, c, d), _ = execute(runs_folder, runs)
    assert (a.state, a.reason) == (State.failed, Reason.error)
    assert a.message == "ValueError: the [bold]data[/bold] is not there"  # what the run itself wrote
    assert (b.state, b.reason) == (State.failed, Reason.lost)
    assert str(runs_folder.run("b").attempt(1)) in b.message
    assert b.ended_at is not None
    assert (c.state, c.reason) == (State.failed, Reason.error)
    assert c.message.startswith("ValueError: without a word; see ")
    assert d.state is State.completed


def test_a_failed_run_is_tried_again_as_a_new_attempt_and_a_completed_one_is_not(runs_folder):
    runs = add_runs(runs_folder, a="fail", b="complete")
    execute(runs_folder, runs)
    (runs_folder.run("a").root / "behaviour.txt").write_text("complete")
    (a, b), _ = execute(runs_folder, runs)
    assert (a.state, a.attempt) == (State.completed, 2)
    assert (b.state, b.attempt) == (State.completed, 1)
    assert sorted(science.starts(runs_folder.root)) == ["a", "a", "b"]


def test_a_run_that_cannot_be_started_fails_alone(runs_folder):
    runs = add_runs(runs_folder, a="complete", b="complete")
    runs_folder.run("a").attempts.write_text("a file where a folder should be")
    recorder = Recorder()
    a, b = run_locally(runs, runs_folder, 2, 1, recorder, science.ENTRY_POINT)
    assert (a.state, a.reason) == (State.failed, Reason.error)
    assert str(runs_folder.run("a").attempts) in a.message
    assert b.state is State.completed


def test_a_run_that_another_process_holds_is_not_started(runs_folder):
    runs = add_runs(runs_folder, a="wait", b="complete")
    program = "import sys, pathlib, fake_science as s; s.execute(pathlib.Path(sys.argv[1]))"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    other = subprocess.Popen([sys.executable, "-c", program, str(runs_folder.run("a").root)], env=environment)
    try:
        wait_until(lambda: ready(runs_folder, "a"))
        (a, b), recorder = execute(runs_folder, runs)
        assert (a.state, b.state) == (State.running, State.completed)
        assert [row.place for row in recorder.shown[-1]] == [Location.elsewhere, Location.ended]
        assert sorted(science.starts(runs_folder.root)) == ["a", "b"]
    finally:
        (runs_folder.root / "go").touch()
        other.wait(PATIENCE)


def test_two_queues_at_once_execute_each_run_once(runs_folder):
    names = [f"run{number}" for number in range(4)]
    add_runs(runs_folder, **dict.fromkeys(names, "complete"))
    # The other queue takes them from the far end, so that both have something to do.
    queues = [start_queue(runs_folder, *names), start_queue(runs_folder, *reversed(names))]
    outputs = [queue.communicate(timeout=PATIENCE)[0] for queue in queues]
    assert [queue.returncode for queue in queues] == [0, 0], outputs
    assert sorted(science.starts(runs_folder.root)) == names
    for name in names:
        status = read_status(runs_folder.run(name))
        assert (status.state, status.attempt) == (State.completed, 1)


def test_a_run_that_another_queue_has_started_is_not_started_while_it_still_loads(runs_folder, monkeypatch):
    runs = add_runs(runs_folder, a="complete", b="complete")
    importing = runs_folder.root / "importing"
    with monkeypatch.context() as environment:
        environment.setenv("HANG_AT_IMPORT", str(importing))
        other = start_queue(runs_folder, "a")
    wait_until(importing.exists)  # and it holds no lock of its own yet
    try:
        (a, b), recorder = execute(runs_folder, runs)
        assert (a.state, a.attempt, b.state) == (State.pending, 1, State.completed)
        assert [row.place for row in recorder.shown[-1]] == [Location.elsewhere, Location.ended]
        assert science.starts(runs_folder.root) == ["b"]
    finally:
        other.terminate()
        other.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("how", ["Ctrl-C in the terminal", "SIGTERM to the queue"])
def test_a_stop_leaves_no_process_and_the_same_command_continues(runs_folder, how):
    add_runs(runs_folder, a="wait", b="wait", c="wait")
    queue = start_queue(runs_folder, "a", "b", "c")
    wait_until(lambda: ready(runs_folder, "a", "b"))
    processes = below(queue)
    assert len(processes) >= 6  # for each of two runs its wrapper, the run, and the run's own helper
    if how == "Ctrl-C in the terminal":
        os.killpg(queue.pid, signal.SIGINT)  # as a terminal: to everything in the foreground
    else:
        queue.terminate()
    output, _ = queue.communicate(timeout=PATIENCE)
    assert queue.returncode == 130
    assert names_of_living(processes) == []
    a, b, c = (read_status(runs_folder.run(name)) for name in "abc")
    for status in (a, b):
        # The run's own words: it was asked, not killed, and not by the terminal.
        assert (status.state, status.reason) == (State.failed, Reason.cancelled)
        assert status.message == "KeyboardInterrupt: SIGTERM"
        (log,) = runs_folder.run("a").attempt(1).glob("*.out")
        assert log.read_text().splitlines()[-2:] == [
            "behaviour: wait",
            f"refsam: {status.message}",
        ]  # no stack
    assert c.state is State.planned
    assert "3 of 3 runs are not completed" in output
    assert "The same command continues" in output

    (runs_folder.root / "go").touch()
    again = start_queue(runs_folder, "a", "b", "c")
    again.communicate(timeout=PATIENCE)
    assert again.returncode == 0
    statuses = [read_status(runs_folder.run(name)) for name in "abc"]
    assert [(status.state, status.attempt) for status in statuses] == [
        (State.completed, 2),
        (State.completed, 2),
        (State.completed, 1),
    ]


def test_a_run_that_does_not_stop_is_killed_with_its_helpers(runs_folder):
    add_runs(runs_folder, a="stubborn")
    queue = start_queue(runs_folder, "a", grace=1)
    wait_until(lambda: ready(runs_folder, "a"))
    processes = below(queue)
    queue.terminate()
    queue.communicate(timeout=PATIENCE)
    assert names_of_living(processes) == []
    status = read_status(runs_folder.run("a"))
    assert (status.state, status.reason) == (State.failed, Reason.cancelled)


def test_a_run_whose_process_has_not_begun_goes_back_to_planned(runs_folder, monkeypatch):
    add_runs(runs_folder, a="complete")
    importing = runs_folder.root / "importing"
    monkeypatch.setenv("HANG_AT_IMPORT", str(importing))
    queue = start_queue(runs_folder, "a")
    wait_until(importing.exists)
    assert read_status(runs_folder.run("a")).state is State.pending
    processes = below(queue)
    queue.terminate()
    queue.communicate(timeout=PATIENCE)
    assert queue.returncode == 130
    assert names_of_living(processes) == []
    assert read_status(runs_folder.run("a")).state is State.planned


def test_a_run_whose_wrapper_is_killed_does_not_go_on_unwatched(runs_folder):
    add_runs(runs_folder, a="wait", b="complete")
    queue = start_queue(runs_folder, "a", "b", parallel=1)
    wait_until(lambda: ready(runs_folder, "a"))
    time.sleep(1.5)  # the queue looks at its processes once a second
    processes = below(queue)
    (wrapper,) = psutil.Process(queue.pid).children()
    wrapper.kill()
    queue.communicate(timeout=PATIENCE)
    assert queue.returncode == 0
    assert names_of_living(processes) == []
    assert read_status(runs_folder.run("a")).state is State.failed
    assert read_status(runs_folder.run("b")).state is State.completed


def test_a_queue_that_was_killed_is_followed_by_the_next_without_starting_its_runs_twice(runs_folder):
    runs = add_runs(runs_folder, a="wait")
    queue = start_queue(runs_folder, "a")
    wait_until(lambda: ready(runs_folder, "a"))
    processes = below(queue)
    queue.kill()
    queue.wait(PATIENCE)
    try:
        (status,), recorder = execute(runs_folder, runs)
        assert status.state is State.running
        assert recorder.shown[-1][0].place is Location.elsewhere
    finally:
        (runs_folder.root / "go").touch()
        psutil.wait_procs(processes, timeout=PATIENCE)
        queue.stdout.close()
    (status,), _ = execute(runs_folder, runs)
    assert (status.state, status.attempt) == (State.completed, 1)


def test_a_run_that_was_lost_is_started_again(runs_folder):
    runs = add_runs(runs_folder, a="complete")
    write_status(runs_folder.run("a"), Status(State.running, attempt=3))  # and nobody holds it
    (status,), _ = execute(runs_folder, runs)
    assert (status.state, status.attempt) == (State.completed, 4)


def test_a_run_given_twice_is_refused(runs_folder):
    (run,) = add_runs(runs_folder, a="complete")
    with pytest.raises(ValueError, match="twice"):
        execute(runs_folder, [run, run])


def test_the_queue_imports_no_science():
    program = (
        "import sys, refsam.orchestration.submission.local, refsam.orchestration.in_job.job\n"
        "import refsam.orchestration.machine\n"
        "names = ('torch', 'torch_em', 'micro_sam', 'refsam.science')\n"
        "print([name for name in names if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
