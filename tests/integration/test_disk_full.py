"""A disk that is full while a run writes: a small one of its own, mounted for the test, and really filled."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from training_runs import rows, run_training, small_config

from refsam.configuration.frozen import freeze
from refsam.configuration.schema import DatasetConfig, RefsamConfig
from refsam.orchestration.lifecycle.attempts import ProcessEnd, begin_attempt, end_of_attempt
from refsam.records.attempts import read_attempt
from refsam.records.paths import RunPaths
from refsam.records.status import Reason, State, free_reserve, hold_reserve, read_status, write_status
from refsam.science import run
from refsam.science.evaluation import single_pass
from refsam.science.training import build, checkpoints
from refsam.science.training.checkpoints import read_latest

PAGE = 4096


class Disk:
    """A file system of 8 MiB."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._filling = root / "somebody else's data"

    def fill(self, room: int) -> None:
        """Leave `room` bytes, rounded to pages."""
        with self._filling.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * PAGE)
            except OSError:
                file.truncate(max(0, file.tell() - room))

    def take_the_rest(self) -> None:
        """Take what was given back since."""
        with self._filling.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * PAGE)

    def clear(self) -> None:
        self._filling.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(root)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let root mount a small disk")
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


@pytest.fixture(scope="module")
def config(synthetic: DatasetConfig) -> RefsamConfig:
    return small_config(synthetic, "evaluate.max_images=1", "evaluate.modes=[box]", "train.decoder=false")


@pytest.fixture(scope="module")
def whole(config: RefsamConfig, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """The training that nothing has disturbed."""
    return run_training(config, tmp_path_factory.mktemp("whole") / "run")[0]


@pytest.mark.parametrize(
    ("module", "function", "call", "room", "file"),
    [
        (checkpoints, "write_best", 1, 0, "best.pt"),
        (checkpoints, "write_latest", 2, 0, "latest.pt"),
        (checkpoints, "write_latest", 2, 100_000, "latest.pt"),
        (build, "write_json", 2, 0, "training.json"),
        (single_pass, "write_metrics", 1, 0, "metrics.json"),
    ],
    ids=["best", "latest, not a byte", "latest, a part of it", "summary", "metrics"],
)
def test_a_full_disk_is_the_reason_and_repeating_with_room_completes(
    config: RefsamConfig,
    whole: RunPaths,
    disk: Disk,
    module: Any,
    function: str,
    call: int,
    room: int,
    file: str,
) -> None:
    paths = RunPaths(disk.root / "run")
    paths.root.mkdir()
    freeze(paths.config, config)
    original, calls = getattr(module, function), []
    before: list[Any] = []

    def fill_and_write(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == call:
            before.append(read_latest(paths))
            disk.fill(room)
        original(*arguments)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, function, fill_and_write)
        with pytest.raises(OSError, match="No space left on device"):
            run.execute(paths.root)
    status = read_status(paths)
    assert (status.state, status.reason) == (State.failed, Reason.error)
    assert (status.message or "").startswith("The disk is full or a quota is used up: ")
    assert file in (status.message or "")
    assert not paths.metrics.exists()
    assert paths.training.exists() == (file == "metrics.json")
    if before[0] is not None:
        latest = read_latest(paths)
        assert latest is not None
        assert latest["iteration"] == before[0]["iteration"]
    assert list(paths.root.rglob(".*.tmp")) == []

    disk.clear()
    run.execute(paths.root)
    assert read_status(paths).state is State.completed
    assert paths.metrics.exists()
    assert rows(paths) == rows(whole)


def test_last_words_are_written_where_somebody_else_takes_every_byte_that_is_given_back(disk: Disk) -> None:
    """The run's own word, then its supervisor's about the attempt and the run, each into its reserve."""
    paths = RunPaths(disk.root / "run")
    paths.root.mkdir()
    begin_attempt(paths)
    hold_reserve(paths)
    disk.fill(0)
    status = read_status(paths)
    with pytest.raises(OSError, match="No space left on device"):
        write_status(paths, status.changed(state=State.running))
    write_status(
        paths, status.changed(state=State.failed, reason=Reason.lost, message="a"), is_last_word=True
    )
    disk.take_the_rest()
    end_of_attempt(paths, ProcessEnd(-9, 0, 1.0, None, False))
    disk.take_the_rest()
    assert (read_status(paths).state, read_status(paths).reason) == (State.failed, Reason.lost)
    assert read_attempt(paths, 1).reason is Reason.lost
    assert list(paths.root.rglob(".*.tmp")) == []
    free_reserve(paths)
    assert not paths.reserve.exists()
