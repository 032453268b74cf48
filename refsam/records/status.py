"""status.json: where a run is, and why it is there. One writer at a time, the holder of the run's lock."""

import fcntl
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import psutil

from refsam.errors import RunFailed
from refsam.records.paths import RunPaths
from refsam.records.typed import Count, Seconds, Time, from_record
from refsam.system import files
from refsam.system.files import read_json, write_json
from refsam.system.own_job import LOCK_SECONDS


class State(StrEnum):
    """planned → pending → running → completed, or failed with a Reason.

    unreadable is never written: the record is there and cannot be read now, so nobody may act on the run.
    """

    planned = "planned"
    pending = "pending"
    running = "running"
    completed = "completed"
    failed = "failed"
    unreadable = "unreadable"


OPEN = (State.pending, State.running)  # the states of a run that waits or is executed
MOST_ATTEMPTS = 100_000  # of a run; a larger number is a mistake
TRAINED = "trained"  # the phase of a run that a job has trained, and another one evaluates


class Reason(StrEnum):
    """Why a run failed."""

    error = "error"
    out_of_memory = "out_of_memory"
    diverged = "diverged"
    timeout = "timeout"
    preempted = "preempted"
    cancelled = "cancelled"
    node_failure = "node_failure"
    lost = "lost"


@dataclass(frozen=True)
class Status:
    """What status.json holds. Times are UTC in ISO 8601, durations in seconds, losses and metrics
    unitless.
    """

    state: State = State.planned
    reason: Reason | None = None
    message: str | None = None  # one sentence for a person
    attempt: Count = 0
    job_id: str | None = None
    job_name: str | None = None  # tells the job from another one that gets the same number later
    evaluation_job_id: str | None = None  # of the job that evaluates the run once job_id has trained it
    host: str | None = None
    pid: Count | None = None
    device: str | None = None
    phase: str | None = None  # loading, training, evaluating, or TRAINED
    epoch: Count | None = None  # epochs finished
    epochs: Count | None = None  # epochs at most
    steps: Count | None = None  # training steps that latest.pt holds
    best_epoch: Count | None = None
    best_metric: float | None = None  # of the validation image, lower is better
    loss: float | None = None  # mean of the last epoch
    seconds_before: Seconds | None = None  # that earlier attempts took
    seconds_left: Seconds | None = None  # until epochs are done, an upper limit because of early stopping
    submitted_at: Time | None = None
    started_at: Time | None = None
    updated_at: Time | None = None
    ended_at: Time | None = None

    def changed(self, **changes: Any) -> "Status":
        return replace(self, updated_at=now(), **changes)

    def again(self, **changes: Any) -> "Status":
        """The status of the next attempt, which has what the training has said and how long it took."""
        return Status(
            **{name: getattr(self, name) for name in _OF_TRAINING},
            seconds_before=self.seconds_spent,
            updated_at=now(),
            **changes,
        )

    @property
    def seconds_spent(self) -> float | None:
        """What all attempts took, this one until it ended or last wrote; None where none has begun."""
        end = self.ended_at or self.updated_at
        if self.started_at is None or end is None:
            return self.seconds_before
        seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(self.started_at)).total_seconds()
        return (self.seconds_before or 0.0) + max(0.0, seconds)


_OF_TRAINING = ("epoch", "epochs", "steps", "best_epoch", "best_metric", "loss")


# Last words on a full disk: the run's, and the supervisor's about the attempt, the run and a failed requeue.
RESERVES = 4
RESERVE_BYTES = 16 * 1024
_FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length, process


class AlreadyRunning(RunFailed):
    """Another process holds the run's lock."""


def now() -> str:
    """The time as the records write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_status(paths: RunPaths) -> Status:
    """What status.json says; `planned` where there is none. records.recovery knows what else tells of a run.

    Raises OSError, and ValueError when the file is damaged.
    """
    try:
        values = read_json(paths.status)
    except FileNotFoundError:
        return Status()
    status = from_record(Status, values, paths.status)
    if "state" not in values or status.state is State.unreadable or status.attempt > MOST_ATTEMPTS:
        name = "attempt" if status.attempt > MOST_ATTEMPTS else "state"
        raise ValueError(f"{paths.status} is damaged: {name} has no value that a run can have")
    return status


def write_status(paths: RunPaths, status: Status, is_last_word: bool = False) -> None:
    """Replace status.json; a last word finds its room on a full disk too, where a reserve is held."""
    write_json(paths.status, asdict(status), paths.reserve if is_last_word else None)


def hold_reserve(paths: RunPaths) -> None:
    """Take some room on the disk, so that a run which fills it can still say so. Raises OSError."""
    files.hold_reserve(paths.reserve, RESERVES, RESERVE_BYTES)


def free_reserve(paths: RunPaths) -> None:
    """Give the room back, when the last word is written."""
    shutil.rmtree(paths.reserve, ignore_errors=True)


@contextmanager
def run_lock(
    paths: RunPaths,
    patience: float = 0.0,
    in_a_hurry: Callable[[], bool] = lambda: False,
    run_id: str | None = None,
) -> Iterator[None]:
    """Hold the run for this process; the kernel releases it however the process ends.

    A POSIX record lock, which NFS and Lustre know too. Raises AlreadyRunning when another process holds it,
    after `patience` seconds: whoever only corrects a record holds it for a moment.

    Args:
        in_a_hurry: whether LOCK_SECONDS must do, which may become true meanwhile.
        run_id: how the run is called; None: as the folder of the lock.
    """
    began = time.monotonic()
    descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError) as error:
                waited = time.monotonic() - began
                if waited >= patience or (waited >= LOCK_SECONDS and in_a_hurry()):
                    words = f"run {run_id or paths.run_id} is already running in {holder_words(paths)}"
                    raise AlreadyRunning(words) from error
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def claim(
    paths: RunPaths, patience: float = 0.0, in_a_hurry: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Hold the run for this process, from before it is pending to its last word, while a child computes it.

    The run's own lock is taken by the process that computes it, which loads its libraries first. Until then
    this other lock tells that somebody works on the run. Raises AlreadyRunning as `run_lock` does.
    """
    paths.attempts.mkdir(parents=True, exist_ok=True)
    with run_lock(RunPaths(paths.attempts), patience, in_a_hurry, paths.run_id):
        yield


def holder_words(paths: RunPaths) -> str:
    """`another process`, the one that holds the lock in `paths`: with its number if it is of this machine,
    and how to continue it if it is stopped.
    """
    number = lock_holder(paths)
    try:
        # A process of another machine has a number that may be any other one's here.
        process = psutil.Process(number or 0)
        if str(paths.lock.resolve()) not in [file.path for file in process.open_files()]:
            return "another process"
        is_stopped = process.status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return "another process"
    stopped = f", which is stopped; `kill -CONT {number}` lets it go on" if is_stopped else ""
    return f"another process (number {number}{stopped})"


def is_held(paths: RunPaths) -> bool:
    """Whether the process that computes a run lives, or one that has started it. Neither of them may ask."""
    return lock_holder(paths) is not None or claim_holder(paths) is not None


def claim_holder(paths: RunPaths) -> int | None:
    """The process that holds the run's claim, as `lock_holder` tells it."""
    return lock_holder(RunPaths(paths.attempts))


def lock_holder(paths: RunPaths) -> int | None:
    """The number of the process that holds the run, None when nobody does.

    The number is that of the holder's own machine, and 0 where it cannot be told. Asks without taking the
    lock, so that a run which starts at the same moment finds it free, and a folder of another person can be
    looked at. Not to be asked by the process that holds it.
    """
    try:
        descriptor = os.open(paths.lock, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    finally:
        os.close(descriptor)
    return None if answer[0] == fcntl.F_UNLCK else max(0, answer[-1])
