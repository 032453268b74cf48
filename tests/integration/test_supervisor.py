"""The process around a run: attempts, their records, and what it does when the run dies or has to stop."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from holder import held

from refsam.errors import RunFailed
from refsam.orchestration import machine
from refsam.orchestration.in_job import supervisor
from refsam.orchestration.in_job.run_job import run_job
from refsam.orchestration.lifecycle.attempts import begin_attempt, end_of_attempt
from refsam.orchestration.slurm import inside_job
from refsam.records import status
from refsam.records.attempts import Attempt, read_attempt, write_attempt
from refsam.records.paths import RunPaths
from refsam.records.status import AlreadyRunning, Reason, State, Status, read_status, run_lock, write_status
from refsam.system import own_job
from refsam.system.files import write_json

HERE = Path(__file__).parent
PATIENCE = 60

specification = importlib.util.spec_from_file_location("fake_science", HERE / "fake_science.py")
science = importlib.util.module_from_spec(specification)
sys.modules["fake_science"] = science
specification.loader.exec_module(science)


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent.parent)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("SLURM_JOB_ID", "REFSAM_LOG"):
        monkeypatch.delenv(name, raising=False)
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    return paths


def job(paths, behaviour, entry_point=science.ENTRY_POINT):
    (paths.root / "behaviour.txt").write_text(behaviour)
    return partial(run_job, paths.root, entry_point)


def test_a_completed_attempt_has_a_record_and_is_not_repeated(paths):
    job(paths, "complete")()
    attempt = read_attempt(paths, 1)
    assert (attempt.state, attempt.reason, attempt.settings) == (State.completed, None, {})
    assert attempt.host == os.uname().nodename
    assert attempt.started_at <= attempt.ended_at
    assert 0 < attempt.peak_memory_gib < 10
    job(paths, "complete")()
    assert science.starts(paths.root.parent) == ["run"]


@pytest.mark.parametrize("evaluation", ["13_2", None], ids=["a job of Slurm", "a person's script"])
def test_a_run_that_another_job_evaluates_is_handed_over(paths, monkeypatch, evaluation):
    monkeypatch.setenv("REFSAM_TRAINS_ONLY", "")  # which the job changes
    for name, value in (("SLURM_JOB_ID", "9"), ("SLURM_ARRAY_JOB_ID", "7"), ("SLURM_ARRAY_TASK_ID", "2")):
        monkeypatch.setenv(name, value)
    waiting = Status(State.pending, attempt=1, job_id="7_2", evaluation_job_id=evaluation)
    write_status(paths, waiting)
    job(paths, "complete")(trains_only=True)
    status = read_status(paths)
    if evaluation is None:
        assert (status.state, status.attempt, status.job_id) == (State.planned, 1, None)
    else:
        assert (status.state, status.attempt, status.job_id) == (State.pending, 2, "13_2")
    first = read_attempt(paths, 1)
    assert (first.state, first.job_id) == (State.completed, "7_2")
    monkeypatch.setenv("REFSAM_TRAINS_ONLY", "")
    job(paths, "complete")()
    assert (read_status(paths).state, read_status(paths).attempt) == (State.completed, 2)
    assert len(science.starts(paths.root.parent)) == 2


@pytest.mark.parametrize(
    ("behaviour", "reason", "words"),
    [
        ("fail", Reason.error, "ValueError: the [bold]data[/bold] is not there"),
        ("fail silently", Reason.error, "ValueError: without a word; see "),
        ("crash", Reason.lost, "killed from outside, or its interpreter crashed (SIGKILL)"),
    ],
)
def test_a_failed_attempt_says_why_and_is_not_repeated_by_itself(paths, behaviour, reason, words):
    with pytest.raises(RunFailed):
        job(paths, behaviour)()
    status = read_status(paths)
    assert (status.state, status.reason, status.attempt) == (State.failed, reason, 1)
    assert words in status.message
    attempt = read_attempt(paths, 1)
    assert (attempt.reason, attempt.message, attempt.ended_at) == (reason, status.message, status.ended_at)
    with pytest.raises(RunFailed):
        job(paths, behaviour)()
    assert read_status(paths).attempt == 2


def test_a_science_that_cannot_be_imported_is_an_error_with_its_words(paths):
    with pytest.raises(RunFailed, match="No module named 'no_such_science'"):
        job(paths, "complete", "no_such_science:execute")()
    assert read_status(paths).reason is Reason.error


@pytest.fixture
def some_process_is_killed(paths, monkeypatch):
    """The kernel's counter, raised by one while the run is at work."""
    counter = lambda: 8 if science.starts(paths.root.parent) else 7  # noqa: E731
    monkeypatch.setattr(machine, "out_of_memory_kills", counter)


@pytest.mark.parametrize("behaviour", ["crash", "fail for want of a helper"])
def test_a_kill_for_lack_of_memory_is_told_from_other_kills(paths, some_process_is_killed, behaviour):
    with pytest.raises(RunFailed):
        job(paths, behaviour)()
    status = read_status(paths)
    assert (status.state, status.reason, status.attempt) == (State.failed, Reason.out_of_memory, 1)
    # Nothing is known that a next attempt could save.
    assert status.message == (
        "The kernel killed the run because memory was short. "
        "Not tried again: nothing is left that would save memory."
    )


@pytest.mark.parametrize(
    ("behaviour", "reason", "words"),
    [
        ("fail", Reason.error, "ValueError: the [bold]data[/bold] is not there"),
        ("fail silently", Reason.error, "ValueError: without a word; see "),
        ("crash by itself", Reason.lost, "its interpreter crashed (SIGSEGV)"),
    ],
)
def test_a_kill_of_another_process_is_not_why_a_run_fails(
    paths, some_process_is_killed, behaviour, reason, words
):
    with pytest.raises(RunFailed):
        job(paths, behaviour)()
    assert read_status(paths).reason is reason
    assert words in read_status(paths).message


def test_a_helper_that_somebody_killed_is_no_lack_of_memory(paths):
    with pytest.raises(RunFailed):
        job(paths, "fail for want of a helper")()
    assert read_status(paths).reason is Reason.lost


def test_the_next_attempt_takes_what_the_failed_one_has_taught(paths):
    used = {"train.object_chunk": 5, "train.checkpoint_encoder": None, "train.precision": "float32"}
    write_attempt(paths, 1, Attempt(used=used, state=State.failed, reason=Reason.out_of_memory, ended_at="x"))
    write_status(paths, Status(State.failed, reason=Reason.out_of_memory, attempt=1))
    assert begin_attempt(paths)
    assert read_attempt(paths, 2).settings == {"train.object_chunk": 2}
    assert read_status(paths).state is State.pending


def test_savings_of_an_earlier_attempt_are_not_taken_for_those_of_this_one(paths, monkeypatch):
    """It would be tried with the same chunk for ever."""
    paths.results.mkdir()
    write_json(paths.savings, {"object_chunk": 4, "checkpoint_every": None, "precision": "float32"})
    counter = lambda: len(science.starts(paths.root.parent))  # noqa: E731
    monkeypatch.setattr(machine, "out_of_memory_kills", counter)
    with pytest.raises(RunFailed):
        job(paths, "crash")()
    assert read_attempt(paths, 1).used == {}
    assert read_status(paths).attempt == 1


def test_an_attempt_that_died_with_its_supervisor_is_ended_by_the_next(paths):
    write_attempt(paths, 1, Attempt(started_at="2026-01-01T00:00:00+00:00"))
    write_status(paths, Status(State.running, attempt=1))
    job(paths, "complete")()
    assert (read_attempt(paths, 1).state, read_attempt(paths, 1).reason) == (State.failed, Reason.lost)
    assert (read_status(paths).state, read_status(paths).attempt) == (State.completed, 2)


def test_a_run_that_another_process_holds_is_left_alone(paths, monkeypatch):
    monkeypatch.setattr(own_job, "LOCK_SECONDS", 0.0)
    with held(paths.root) as holder:
        stopped = rf"\(number {holder.pid}, which is stopped; `kill -CONT {holder.pid}` lets it go on\)"
        with pytest.raises(AlreadyRunning, match=f"run run is already running in another process {stopped}"):
            job(paths, "complete")()
    assert not paths.status.exists()


@pytest.fixture
def slurm_job(paths, monkeypatch):
    """As in task 2 of array 7, whose run waits; what it asks of Slurm."""
    for name, value in (("SLURM_JOB_ID", "9"), ("SLURM_ARRAY_JOB_ID", "7"), ("SLURM_ARRAY_TASK_ID", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(own_job, "LOCK_SECONDS", 0.0)
    monkeypatch.setattr(status, "LOCK_SECONDS", 0.0)
    asked = []
    monkeypatch.setattr(inside_job, "requeue", lambda: asked.append("requeue"))
    write_status(paths, Status(State.pending, attempt=1, job_id="7_2"))
    return asked


def test_a_job_waits_for_a_process_that_is_stopped_while_it_holds_its_run(paths, slurm_job):
    with held(paths.root) as holder:
        timer = threading.Timer(1.0, holder.kill)
        timer.start()
        job(paths, "complete")()
        timer.join()
    assert (read_status(paths).state, read_status(paths).attempt) == (State.completed, 1)
    assert slurm_job == []


def test_a_job_that_has_waited_long_enough_goes_back_into_the_queue(paths, slurm_job, monkeypatch):
    monkeypatch.setattr(own_job, "JOB_LOCK_SECONDS", 0.0)
    before = read_status(paths)
    with held(paths.root), pytest.raises(SystemExit, match=r"stopped; .*; the run waits for it in the queue"):
        job(paths, "complete")()
    assert (slurm_job, read_status(paths)) == (["requeue"], before)
    write_status(paths, Status(State.running, attempt=1, job_id="6_2"))  # this one is not the run's job
    with held(paths.root), pytest.raises(AlreadyRunning):
        job(paths, "complete")()
    assert slurm_job == ["requeue"]


def test_a_job_that_waits_heeds_its_time_limit(paths, slurm_job, monkeypatch):
    monkeypatch.setattr(inside_job, "why_ended", lambda number: (Reason.timeout, False))
    with held(paths.root):
        threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGUSR2)).start()
        with pytest.raises(SystemExit, match="the run waits for it in the queue"):
            job(paths, "complete")()
    assert slurm_job == ["requeue"]


@pytest.mark.parametrize("where", ["Slurm", "here"])
def test_a_completed_run_whose_record_another_process_holds_has_ended(paths, slurm_job, monkeypatch, where):
    monkeypatch.setattr(own_job, "JOB_LOCK_SECONDS", 0.0)
    if where == "here":
        monkeypatch.delenv("SLURM_JOB_ID")
        monkeypatch.delenv("SLURM_ARRAY_JOB_ID")

    def end(*arguments):
        with held(paths.root):
            return end_of_attempt(*arguments)

    monkeypatch.setattr(supervisor, "end_of_attempt", end)
    job(paths, "complete")()
    attempt = read_attempt(paths, 1)
    assert (read_status(paths).state, attempt.state) == (State.completed, State.completed)
    assert attempt.ended_at == read_status(paths).ended_at
    assert attempt.peak_memory_gib > 0
    assert slurm_job == []


PROGRAM = """
import sys
from pathlib import Path
from refsam.orchestration.in_job.run_job import run_job
from refsam.orchestration.slurm import inside_job
from refsam.records import status
from refsam.system import own_job
run_job(Path(sys.argv[1]), sys.argv[2])
"""


def start(paths, behaviour):
    (paths.root / "behaviour.txt").write_text(behaviour)
    command = [sys.executable, "-c", PROGRAM, str(paths.root), science.ENTRY_POINT]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + PATIENCE
    while not (paths.root / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGTERM, Reason.cancelled),
        (signal.SIGINT, Reason.cancelled),
        (signal.SIGUSR1, Reason.timeout),
        (signal.SIGUSR2, Reason.timeout),
    ],
)
def test_a_signal_reaches_the_run_and_nothing_of_it_stays(paths, number, reason):
    process = start(paths, "wait")
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(PATIENCE) == 1
    status = read_status(paths)
    assert (status.state, status.reason, status.attempt) == (State.failed, reason, 1)
    assert read_attempt(paths, 1).reason is reason
    assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    with run_lock(paths):
        pass


def test_the_job_s_own_process_imports_nothing_heavy(paths):
    program = (
        "import sys, refsam.orchestration.in_job.job\n"
        "names = ('torch', 'torch_em', 'micro_sam', 'pandas', 'refsam.science')\n"
        "print([name for name in names if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
