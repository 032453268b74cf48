"""Runs of this machine, operated from another shell: seen, watched, cancelled, tried again."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

from refsam import cli
from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze
from refsam.orchestration.operating import watch
from refsam.orchestration.operating.sweep_state import RunState, SweepState
from refsam.orchestration.slurm.questions import Answer
from refsam.orchestration.submission import local
from refsam.records.attempts import read_attempt
from refsam.records.paths import RunsFolder
from refsam.records.status import Reason, State, Status, read_status, write_status
from refsam.system.files import write_json

HERE = Path(__file__).parent
PATIENCE = 60  # seconds until a wait is given up; no assertion depends on it


@pytest.fixture
def folder(tmp_path, monkeypatch, synthetic):
    """A sweep `study` in a runs folder, and the stand-in for the science, which the commands execute, too."""
    monkeypatch.setenv("REFSAM_DATA", str(Path(synthetic.root).parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent.parent)]))
    monkeypatch.setattr(local.run_locally, "__defaults__", ("fake_science:execute",))
    folder = RunsFolder(tmp_path / "runs")
    folder.sweeps.mkdir(parents=True)
    return folder


def add_runs(folder, **behaviours):
    config = compose(["resource=local", "model=vit_nano", "cluster=local", "dataset=synthetic"])
    for name, behaviour in behaviours.items():
        paths = folder.run(f"{name}-0")
        paths.root.mkdir()
        (paths.root / "behaviour.txt").write_text(behaviour)
        freeze(paths.config, config)
    runs = [{"run_id": path.name, "overrides": {}} for path in sorted(folder.root.glob("*-0"))]
    folder.sweep("study").root.mkdir(exist_ok=True)
    write_json(folder.sweep("study").manifest, {"format": 1, "name": "study", "runs": runs, "skipped": []})


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def refsam(folder, capsys, *arguments, status=0):
    """The JSON document that a command prints."""
    capsys.readouterr()
    assert cli.main([*arguments, "--json", "--runs", str(folder.root)]) == status
    return json.loads(capsys.readouterr().out)


def state_of(folder, name):
    status = read_status(folder.run(f"{name}-0"))
    return status.state, status.reason


def test_a_run_and_then_its_whole_queue_are_cancelled_from_another_shell(folder, capsys):
    add_runs(folder, a="wait", b="wait", c="wait")
    command = [
        sys.executable,
        str(HERE / "fake_science.py"),
        str(folder.root),
        "1",
        "20",
        "a-0",
        "b-0",
        "c-0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as queue:
        wait_until((folder.run("a-0").root / "ready").exists)
        assert refsam(folder, capsys, "status")["states"] == {"running": 1, "planned": 2}
        assert len(refsam(folder, capsys, "cancel", "a-0")["cancelled"]) == 1
        wait_until((folder.run("b-0").root / "ready").exists)  # the queue goes on with the next one
        assert state_of(folder, "a") == (State.failed, Reason.cancelled)
        assert [run["run_id"] for run in refsam(folder, capsys, "cancel", "study")["cancelled"]] == ["b-0"]
        output, _ = queue.communicate(timeout=PATIENCE)
    assert queue.returncode == 130, output
    assert state_of(folder, "b") == (State.failed, Reason.cancelled)
    assert state_of(folder, "c") == (State.planned, None)


IN_THIS_PROCESS = """
import sys, pathlib
from refsam.orchestration.in_job import child
from refsam.orchestration.lifecycle.attempts import attempt_here
from refsam.records.paths import RunPaths
attempt_here(RunPaths(pathlib.Path(sys.argv[1])), lambda root: child.execute("fake_science:execute", root))
"""


@pytest.mark.parametrize("target", ["a-0", "study"])
def test_a_run_that_still_loads_its_libraries_is_starting_and_can_be_cancelled(
    folder, capsys, monkeypatch, target
):
    add_runs(folder, a="complete")
    importing = folder.root / "importing"
    with monkeypatch.context() as environment:
        environment.setenv("HANG_AT_IMPORT", str(importing))
        command = [sys.executable, "-c", IN_THIS_PROCESS, str(folder.run("a-0").root)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with process:
        wait_until(importing.exists)
        assert refsam(folder, capsys, "status")["states"] == {"pending": 1}
        assert cli.main(["status", "--runs", str(folder.root)]) == 0
        assert capsys.readouterr().out.splitlines()[2].split()[:2] == ["a", "starting"]
        again = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        assert "run a-0 is already running in another process" in again.stderr
        cancelled = refsam(folder, capsys, "cancel", target)["cancelled"]
        assert [run["run_id"] for run in cancelled] == ["a-0"]
        process.communicate(timeout=PATIENCE)
    status = read_status(folder.run("a-0"))
    assert (status.state, status.reason, status.attempt) == (State.failed, Reason.cancelled, 1)
    assert read_attempt(folder.run("a-0"), 1).reason is Reason.cancelled
    assert refsam(folder, capsys, "continue", "study")["states"] == {"completed": 1}


def test_one_run_of_a_queue_is_cancelled_while_it_starts_and_not_started_again(folder, capsys, monkeypatch):
    add_runs(folder, a="complete", b="complete")
    importing = folder.root / "importing"
    command = [sys.executable, str(HERE / "fake_science.py"), str(folder.root), "1", "20", "a-0", "b-0"]
    with monkeypatch.context() as environment:
        environment.setenv("HANG_AT_IMPORT", str(importing))
        queue = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with queue:
        wait_until(importing.exists)
        importing.unlink()
        assert len(refsam(folder, capsys, "cancel", "a-0")["cancelled"]) == 1
        wait_until(importing.exists)  # of b
        assert state_of(folder, "a") == (State.failed, Reason.cancelled)
        assert len(refsam(folder, capsys, "cancel", "study")["cancelled"]) == 1
        output, _ = queue.communicate(timeout=PATIENCE)
    assert queue.returncode == 130, output
    assert state_of(folder, "b") == (State.planned, None)


def test_a_process_of_another_machine_is_left_to_it(folder, capsys):
    add_runs(folder, a="wait")
    write_status(folder.run("a-0"), Status(State.running, attempt=1, host="elsewhere", pid=os.getpid()))
    done = refsam(folder, capsys, "cancel", "study", status=1)
    assert done["impossible"] == ["run a-0 is a process on elsewhere; cancel it there"]


def test_failed_runs_are_tried_again_here_and_the_rest_is_continued(folder, capsys):
    add_runs(folder, a="complete", b="complete", c="complete")
    write_status(folder.run("a-0"), Status(State.completed, attempt=1))
    write_status(folder.run("b-0"), Status(State.failed, Reason.error, "it went wrong", attempt=1))
    assert refsam(folder, capsys, "retry", "--reason", "out_of_memory,lost")["runs"] == []
    again = refsam(folder, capsys, "retry")
    assert [run["run_id"] for run in again["runs"]] == ["b-0"]
    assert again["states"] == {"completed": 1}
    assert [run["run_id"] for run in refsam(folder, capsys, "continue", "study")["runs"]] == ["c-0"]
    attempts = [read_status(folder.run(f"{name}-0")).attempt for name in "abc"]
    assert attempts == [1, 2, 1]
    assert refsam(folder, capsys, "continue", "study")["runs"] == []


def test_what_cannot_be_tried_again_is_one_sentence(folder, capsys, monkeypatch):
    add_runs(folder, a="complete")
    assert cli.main(["retry", "--reason", "out_of_memroy", "--runs", str(folder.root)]) == 2
    assert "got out_of_memroy (did you mean out_of_memory?)" in capsys.readouterr().err
    monkeypatch.setenv("REFSAM_DATA", str(folder.root / "nowhere"))
    add_runs(folder, b="complete")
    assert cli.main(["continue", "study", "--runs", str(folder.root)]) == 2
    assert "refsam prepare dataset=synthetic" in capsys.readouterr().err
    assert read_status(folder.run("a-0")) == read_status(folder.run("b-0")) == Status()
    folder.run("a-0").config.unlink()
    assert cli.main(["continue", "study", "--runs", str(folder.root)]) == 2
    assert "run a-0 is left out" in capsys.readouterr().err


def test_q_ends_the_watching_and_nothing_else(folder):
    add_runs(folder, a="wait")
    running = Status(State.running, attempt=1, host="elsewhere", phase="training", epoch=3, epochs=10)
    write_status(folder.run("a-0"), running)
    command = ["-m", "refsam.cli", "watch", "--runs", str(folder.root)]
    environment = {**os.environ, "TERM": "xterm"}
    shell = pexpect.spawn(sys.executable, command, env=environment, timeout=PATIENCE, dimensions=(12, 80))
    shell.expect("training\\) +3/10")
    shell.expect("q or Ctrl-C stops only the display")
    shell.send("q")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 0
    assert state_of(folder, "a") == (State.running, None)


def test_in_a_pipe_watching_is_a_line_for_every_change_until_the_end(folder, capsys, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS", 0.0)
    running = Status(State.running, phase="training", epoch=1, epochs=2)
    failed = Status(State.failed, Reason.timeout, "the time was up")
    steps = [Status(State.pending, job_id="7"), running, running, failed, failed, failed]

    def look():
        run = RunState("a-0", steps.pop(0), None, None, None, None)
        return SweepState("study", folder, (run,), Answer({}, True, True, ()), ())

    from rich.console import Console

    watch.watch(look, Console())
    assert capsys.readouterr().out.splitlines() == [
        "a-0: pending",
        "a-0: running (training)",
        "a-0: failed (timeout): the time was up",
        "Sweep study: 1 run, 1 failed",
    ]
