"""Processes that load data end with the training that uses them, however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_runs import TINY, Killed, rows, run_training, small_config

from refsam.configuration.frozen import freeze
from refsam.configuration.schema import DatasetConfig, RefsamConfig
from refsam.records.paths import RunPaths
from refsam.records.status import Reason, State, read_status
from refsam.science import data
from refsam.science.training import loop

WORKERS = 2 + 1  # of training and of validation
HUGGING_FACE = ("model=hf_tiny", *TINY[1:])
ENDLESS = {"epochs": 10_000, "early_stopping": None}


@contextmanager
def started(config: RefsamConfig, root: Path) -> Iterator[tuple[subprocess.Popen[bytes], RunPaths]]:
    """The process of a run; whatever is left of it is killed at the end."""
    paths = RunPaths(root)
    root.mkdir()
    freeze(paths.config, config)
    command = [sys.executable, "-m", "refsam.science.run", str(root)]
    # A session of its own, in which its helpers are found when it has ended.
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            yield process, paths
        finally:
            for left in session(process):
                left.kill()
            process.kill()


def session(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of its session but itself, those that have ended excepted."""
    found = []
    for other in psutil.process_iter():
        try:
            is_of_it = other.pid != process.pid and os.getsid(other.pid) == process.pid
            if is_of_it and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("engine", "model"), [("refsam", TINY), ("micro_sam", TINY), ("refsam", HUGGING_FACE)]
)
def test_a_run_with_workers_completes_and_exits(
    synthetic: DatasetConfig, tmp_path: Path, engine: str, model: tuple[str, ...]
) -> None:
    options = ("train.workers=2", f"train.engine={engine}", "evaluate.max_images=1", "evaluate.modes=[box]")
    with started(small_config(synthetic, *options, model=model), tmp_path / "run") as (process, paths):
        until(lambda: len(session(process)) >= WORKERS, process)
        assert process.wait(300) == 0
        assert session(process) == []
    assert read_status(paths).state is State.completed


def test_a_run_with_workers_that_fails_exits(synthetic: DatasetConfig, tmp_path: Path) -> None:
    config = small_config(synthetic, "train.workers=2")
    diverging = replace(config, train=replace(config.train, lr=1e30, **ENDLESS))
    with started(diverging, tmp_path / "run") as (process, paths):
        assert process.wait(300) == 1
        assert session(process) == []
    status = read_status(paths)
    assert status.reason is Reason.diverged
    assert "validation metric" in (status.message or "")


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGINT, Reason.cancelled),
        (signal.SIGTERM, Reason.cancelled),
        (signal.SIGUSR2, Reason.timeout),
    ],
)
def test_a_run_with_workers_exits_when_a_signal_reaches_all_its_processes(
    synthetic: DatasetConfig, tmp_path: Path, number: signal.Signals, reason: Reason
) -> None:
    config = small_config(synthetic, "train.workers=2")
    endless = replace(config, train=replace(config.train, **ENDLESS))
    with started(endless, tmp_path / "run") as (process, paths):
        until(paths.history.exists, process)
        workers = session(process)
        assert len(workers) == WORKERS
        for worker in workers:
            worker.send_signal(number)
        epochs = len(rows(paths))
        until(lambda: len(rows(paths)) > epochs, process)
        assert session(process) == workers  # it is the run that answers
        process.send_signal(number)
        assert process.wait(300) != 0
        assert session(process) == []
    assert read_status(paths).reason is reason


def test_a_run_says_that_its_worker_was_killed(synthetic: DatasetConfig, tmp_path: Path) -> None:
    config = small_config(synthetic, "train.workers=2")
    endless = replace(config, train=replace(config.train, **ENDLESS))
    with started(endless, tmp_path / "run") as (process, paths):
        until(paths.history.exists, process)
        session(process)[0].kill()
        assert process.wait(300) == 1
        assert session(process) == []
    status = read_status(paths)
    assert status.reason is Reason.lost
    assert "A process that loads data was killed from outside" in (status.message or "")


def test_a_killed_run_leaves_no_worker(synthetic: DatasetConfig, tmp_path: Path) -> None:
    config = small_config(synthetic, "train.workers=2")
    endless = replace(config, train=replace(config.train, **ENDLESS))
    with started(endless, tmp_path / "run") as (process, paths):
        until(paths.history.exists, process)
        workers = session(process)
        process.kill()
        _, alive = psutil.wait_procs(workers, timeout=60)
    assert len(workers) == WORKERS
    assert not alive


def test_an_interruption_while_the_workers_start_leaves_none(
    synthetic: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = psutil.Process().children()
    seen: list[psutil.Process] = []

    def interrupted(*arguments: object) -> None:
        seen.extend(child for child in psutil.Process().children() if child not in others)
        raise Killed

    # What the loader's iterator does when all its workers are started.
    monkeypatch.setattr(data.torch.utils.data._utils.signal_handling, "_set_worker_pids", interrupted)
    with pytest.raises(Killed):
        run_training(small_config(synthetic, "train.workers=2"), tmp_path / "run")
    assert len(seen) == 2
    assert [child for child in psutil.Process().children() if child not in others] == []


def test_loaders_work_again_after_their_workers_have_ended(
    synthetic: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[data.TorchLoader] = []
    train = loop.train

    def keep_and_train(learner: Any, step: Any, loaders: tuple[Any, Any], *others: Any) -> None:
        kept.append(loaders[0])
        train(learner, step, loaders, *others)

    monkeypatch.setattr(loop, "train", keep_and_train)
    run_training(small_config(synthetic, "train.workers=2"), tmp_path / "run")
    with data.ending_workers(kept):
        assert len(list(kept[0])) == 3
