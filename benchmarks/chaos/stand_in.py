"""What the jobs execute instead of the science: a counter that is saved and resumed as a training is.

Beside the runs folder each run has a journal, to which lines are only ever added, and a lock of its own: what
happened to a run is known without trusting its record.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from refsam.records.metrics import METRICS, write_metrics
from refsam.records.paths import RunPaths
from refsam.records.status import (
    Reason,
    State,
    Status,
    hold_reserve,
    now,
    read_status,
    run_lock,
    write_status,
)
from refsam.system import own_job, signals
from refsam.system.files import read_json, read_yaml, write_json, write_text

STEPS = 40
LOCK_SECONDS = 10.0  # for whoever corrects the record at this moment


@dataclass(frozen=True)
class Event:
    """One line of a journal: `start` and `saved` with the counter, `completed`, and `two` for a process that
    found another one at work in its run.
    """

    seconds: float
    kind: str
    count: int
    process: str


@dataclass(frozen=True)
class Journal:
    """What has happened to one run."""

    path: Path

    @classmethod
    def of(cls, run: Path) -> "Journal":
        """Two folders above that of the runs, which fills up and goes away."""
        return cls(run.parents[2] / "journals" / run.name)

    def add(self, kind: str, count: int = 0) -> None:
        line = f"{time.time():.2f} {kind} {count} {own_job.host()}:{os.getpid()}:{own_job.job_id()}\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def events(self) -> list[Event]:
        if not self.path.exists():
            return []
        rows = [line.split() for line in self.path.read_text(encoding="utf-8").splitlines()]
        return [Event(float(row[0]), row[1], int(row[2]), row[3]) for row in rows]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Prove that no other process executes the run. Raises RuntimeError where one does."""
        with self.path.with_suffix(".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.add("two")
                raise RuntimeError("another process executes this run") from None
            yield


def execute(root: Path) -> None:
    """Count to STEPS from where the run has come to, with a record kept as refsam.science.run keeps it."""
    paths, journal = RunPaths(root), Journal.of(root)
    with signals.listening(), run_lock(paths, LOCK_SECONDS), journal.alone():
        status = _begin(paths)
        try:
            hold_reserve(paths)
            read_yaml(paths.config)
            _count(paths, journal, status)
        except BaseException as error:
            reason, words = _why(error)
            failed = status.changed(state=State.failed, reason=reason, message=words, ended_at=now())
            write_status(paths, failed, is_last_word=True)
            raise
        done = status.changed(state=State.completed, steps=STEPS, ended_at=now())
        write_status(paths, done, is_last_word=True)
        journal.add("completed", STEPS)


def counted(paths: RunPaths) -> int:
    """The counter as it was saved last."""
    return int(paths.latest.read_text(encoding="utf-8")) if paths.latest.exists() else 0


def _begin(paths: RunPaths) -> Status:
    try:
        before = read_status(paths)
    except ValueError:
        before = Status()  # damaged, and about to be replaced
    status = before.changed(
        state=State.running,
        reason=None,
        message=None,
        attempt=before.attempt if before.state is State.pending else before.attempt + 1,
        job_id=own_job.job_id(),
        host=own_job.host(),
        pid=os.getpid(),
        phase="training",
        started_at=now(),
        ended_at=None,
    )
    write_status(paths, status)
    return status


def _count(paths: RunPaths, journal: Journal, status: Status) -> None:
    pause = float((journal.path.parent / "pause").read_text(encoding="utf-8"))
    count = counted(paths)
    journal.add("start", count)
    paths.checkpoints.mkdir(exist_ok=True)
    paths.results.mkdir(exist_ok=True)
    write_json(paths.savings, {"object_chunk": 1})
    while count < STEPS:
        time.sleep(pause)
        count += 1
        write_text(paths.latest, str(count))
        journal.add("saved", count)
        write_status(paths, status.changed(steps=count, epoch=count, epochs=STEPS))
    write_json(paths.training, {"best_epoch": STEPS, "seconds_total": STEPS * pause})
    values = {**dict.fromkeys(METRICS, 0.5), "SA50": score(paths.run_id), "seconds_per_image": pause}
    row = {"mode": "box", "round": 0, "mask_input": False, **values, "n_test_images": 1}
    write_metrics(paths.metrics, [row])


def score(run_id: str) -> float:
    """The result of a run, which no other run has."""
    return int.from_bytes(run_id.encode()) % 999_983 / 999_983


def measured(paths: RunPaths) -> float | None:
    """The result as the run directory has it."""
    return read_json(paths.metrics)["rows"][0]["SA50"] if paths.metrics.exists() else None


def _why(error: BaseException) -> tuple[Reason, str]:
    asked = signals.received()
    if asked in signals.SIGNALS[2:]:
        return Reason.timeout, "The time limit came."
    if asked is not None:
        return Reason.cancelled, "The run was stopped; the same command continues it."
    return Reason.error, f"{type(error).__name__}: {error}"
