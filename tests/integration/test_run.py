"""One run from its frozen configuration to its last status."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import rows, run_training, small_config

from refsam.configuration.frozen import freeze
from refsam.configuration.schema import DatasetConfig, Kind, RefsamConfig
from refsam.errors import ConfigError
from refsam.records.attempts import Attempt, write_attempt
from refsam.records.metrics import read_metrics
from refsam.records.paths import RunPaths
from refsam.records.status import AlreadyRunning, Reason, State, Status, read_status, run_lock, write_status
from refsam.science import execution
from refsam.science.hardware import processor_name
from refsam.science.training.recorder import Diverged


@pytest.fixture
def config(synthetic: DatasetConfig) -> RefsamConfig:
    return small_config(synthetic, "evaluate.max_images=1", "evaluate.modes=[box]", "train.epochs=1")


@pytest.fixture
def paths(config: RefsamConfig, tmp_path: Path) -> RunPaths:
    """The directory of a run that a submitter has made."""
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    freeze(paths.config, config)
    write_status(paths, Status(State.pending, attempt=3, submitted_at="2026-01-01T00:00:00+00:00"))
    return paths


def test_a_run_is_trained_evaluated_and_completed(paths: RunPaths) -> None:
    execution.execute(paths.root)
    status = read_status(paths)
    assert (status.state, status.reason, status.attempt) == (State.completed, None, 3)
    assert (status.device, status.pid, status.phase) == ("cpu", os.getpid(), None)
    assert status.submitted_at == "2026-01-01T00:00:00+00:00"
    assert [row["mode"] for row in read_metrics(paths.metrics)] == ["box"]
    environment = json.loads(paths.environment.read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert environment["weights"] == {"source": "random, seed 0", "hash": None}
    assert environment["data"] is None  # it was not fetched
    assert environment["precision"] == "float32"
    assert environment["cores"] >= 1


def test_a_run_that_another_job_evaluates_stops_when_it_is_trained(
    paths: RunPaths, config: RefsamConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation's device is that of the resource that `evaluate.where` names."""

    def evaluated_on(device: str) -> None:
        place = replace(config.resource, device=device)
        freeze(paths.config, replace(config, evaluate=replace(config.evaluate, resource=place)))

    evaluated_on("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("REFSAM_TRAINS_ONLY", "1")
    execution.execute(paths.root)
    status = read_status(paths)
    assert (status.state, status.phase, status.device) == (State.running, "trained", "cpu")
    assert paths.training.exists()
    assert not paths.metrics.exists()
    monkeypatch.delenv("REFSAM_TRAINS_ONLY")
    with pytest.raises(ConfigError, match=r"resource\.device=cuda"):
        execution.execute(paths.root)
    evaluated_on("cpu")
    execution.execute(paths.root)
    assert read_status(paths).state is State.completed
    (row,) = read_metrics(paths.metrics)
    assert row["hardware"] == processor_name(torch.device("cpu"))


def test_a_run_by_hand_in_somebody_s_interactive_job_does_not_own_that_job(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    write_status(paths, Status(State.failed, Reason.timeout, attempt=1, job_id="7_0"))
    with run_lock(paths):
        execution.StatusWriter(paths)
    status = read_status(paths)
    assert (status.state, status.attempt, status.job_id) == (State.running, 2, None)


def test_only_what_is_missing_is_done(
    paths: RunPaths, config: RefsamConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_training(config, paths.root)

    def not_again(*arguments: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(execution, "train", not_again)
    execution.execute(paths.root)
    assert [row["mode"] for row in read_metrics(paths.metrics)] == ["box"]
    monkeypatch.setattr(execution, "evaluate", not_again)
    execution.execute(paths.root)
    assert read_status(paths).attempt == 4


def test_an_attempt_trains_in_the_precision_that_it_was_given(paths: RunPaths) -> None:
    write_attempt(paths, 1, Attempt(settings={"train.precision": "bfloat16"}))
    write_status(paths, Status(State.pending, attempt=1))
    execution.execute(paths.root)
    assert read_status(paths).state is State.completed
    assert json.loads(paths.training.read_text())["precision"] == "bfloat16"


def test_an_attempt_keeps_what_those_before_it_have_said(paths: RunPaths) -> None:
    said = {"epoch": 9, "epochs": 10, "best_epoch": 7, "best_metric": 0.25, "loss": 0.5, "steps": 90}
    write_status(paths, Status(State.pending, attempt=2, seconds_before=60.0, **said))
    execution.StatusWriter(paths)
    status = read_status(paths)
    assert (status.state, status.attempt, status.seconds_before) == (State.running, 2, 60.0)
    assert {name: getattr(status, name) for name in said} == said


def test_a_baseline_is_only_evaluated(paths: RunPaths, config: RefsamConfig) -> None:
    freeze(paths.config, replace(config, kind=Kind.baseline))
    execution.execute(paths.root)
    assert read_status(paths).state is State.completed
    assert paths.metrics.exists()
    assert not paths.checkpoints.exists()


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (ConfigError("n_images is 12"), Reason.error, "n_images is 12"),
        (Diverged("the metric is nan"), Reason.diverged, "The training diverged: the metric"),
        (ValueError("first line\nsecond line"), Reason.error, "ValueError: first line"),
        (MemoryError(), Reason.out_of_memory, "The memory did not suffice"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), Reason.out_of_memory, "CUDA out of memory."),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory"),
            Reason.out_of_memory,
            "can't allocate memory",
        ),
        (KeyboardInterrupt("SIGTERM"), Reason.cancelled, "The run was stopped"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_failure_is_recorded_with_its_reason_and_raised(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, error: BaseException, reason: Reason, message: str
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(execution, "train", fail)
    with pytest.raises(type(error)):
        execution.execute(paths.root)
    status = read_status(paths)
    assert (status.state, status.reason) == (State.failed, reason)
    assert message in (status.message or "")
    assert "\n" not in (status.message or "")
    assert status.ended_at is not None


def test_a_run_that_another_process_holds_is_left_alone(paths: RunPaths) -> None:
    program = (
        "import sys; from pathlib import Path; from refsam.records.paths import RunPaths\n"
        "from refsam.records.status import run_lock\n"
        "with run_lock(RunPaths(Path(sys.argv[1]))): print('held', flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", program, str(paths.root)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunning):
            execution.execute(paths.root)
        assert read_status(paths).state is State.pending
        holder.communicate("")
    with run_lock(paths):
        pass


def test_a_terminated_run_says_so_and_goes_on_where_it_was(paths: RunPaths, config: RefsamConfig) -> None:
    longer = replace(config, train=replace(config.train, epochs=1000, early_stopping=None))
    freeze(paths.config, longer)
    process = subprocess.Popen([sys.executable, "-m", "refsam.science.run", str(paths.root)])
    deadline = time.monotonic() + 300
    while not paths.latest.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    status = read_status(paths)
    assert (status.state, status.reason) == (State.failed, Reason.cancelled)
    trained = len(rows(paths))
    freeze(paths.config, replace(config, train=replace(config.train, epochs=trained + 1)))
    execution.execute(paths.root)
    assert len(rows(paths)) == trained + 1
    assert (read_status(paths).state, read_status(paths).attempt) == (State.completed, 4)
