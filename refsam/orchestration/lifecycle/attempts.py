"""How an attempt begins and ends in the records, by the job's own process, which holds the run meanwhile."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from refsam.orchestration.lifecycle import retries
from refsam.orchestration.lifecycle.attempt_records import end_attempt, known_attempts
from refsam.orchestration.slurm import inside_job
from refsam.records import endings
from refsam.records.attempts import Attempt, free_number, read_attempt, requeued, write_attempt
from refsam.records.endings import failed
from refsam.records.paths import RunPaths
from refsam.records.recovery import read_record
from refsam.records.status import (
    OPEN,
    TRAINED,
    AlreadyRunning,
    Reason,
    State,
    Status,
    claim,
    free_reserve,
    now,
    run_lock,
    write_status,
)
from refsam.system import own_job, signals
from refsam.system.own_job import LOCK_SECONDS

LOG = "REFSAM_LOG"  # in the environment of a job: the path of its log


@dataclass(frozen=True)
class ProcessEnd:
    """How the process of an attempt ended, seen from outside.

    Attributes:
        exit_status: negative for a signal.
        memory_kills: of any processes of the cgroup or the machine by the kernel, meanwhile.
        peak_memory_gib: the largest resident main memory of one of its processes.
        stopped: why it was asked to stop, if it was.
        trained: whether it has written results/savings.json, so its training had begun.
    """

    exit_status: int
    memory_kills: int
    peak_memory_gib: float
    stopped: Reason | None
    trained: bool


def begin_attempt(paths: RunPaths, in_a_hurry: Callable[[], bool] = lambda: False) -> bool:
    """Write the record of the next attempt, with its settings; False when the run is completed already.

    Raises AlreadyRunning when another process holds the run, see `run_lock`.
    """
    with run_lock(paths, own_job.lock_seconds(), in_a_hurry):
        status = read_record(paths)
        if status.state is State.completed:
            return False
        # Who submits counts the attempt when it writes `pending`.
        number = free_number(paths, status.attempt + (status.state is not State.pending))
        _end_the_silent(paths, status, number - 1)
        attempt = Attempt(
            settings=retries.settings_of_next(known_attempts(paths, number - 1)),
            job_id=own_job.job_id(),
            job_name=own_job.job_name(),
            evaluation_job_id=status.evaluation_job_id,
            host=own_job.host(),
            started_at=now(),
        )
        write_attempt(paths, number, attempt)
        _link_log(paths, number)
        pending = status.again(
            state=State.pending,
            attempt=number,
            job_id=attempt.job_id,
            job_name=attempt.job_name,
            host=attempt.host,
            pid=os.getpid(),
            evaluation_job_id=status.evaluation_job_id,
            submitted_at=status.submitted_at,
        )
        write_status(paths, pending)
        return True


def end_of_attempt(
    paths: RunPaths, outcome: ProcessEnd, in_a_hurry: Callable[[], bool] = lambda: False
) -> Status:
    """Write how the attempt ended; the status is pending when another one follows by itself.

    So it is when the attempt has trained a run that another job evaluates: that job's attempt is the next.
    Where nobody knows that job, since a person submits it, the status is planned.

    What the process has written about itself wins, but for the reason of a stop, which only Slurm knows, and
    for helpers of it that were killed: whether for their memory, only the kernel knows.

    Raises AlreadyRunning when another process holds the run, see `run_lock`; not for a completed one, of
    which nobody but this process has anything left to write.
    """
    with ExitStack() as lock:
        try:
            lock.enter_context(run_lock(paths, own_job.lock_seconds(), in_a_hurry))
        except AlreadyRunning:
            if read_record(paths).state is not State.completed:
                raise
        before = read_record(paths)
        if before.phase == TRAINED and before.state is State.running and outcome.exit_status == 0:
            return _hand_over(paths, before, outcome)
        status = _last_word(paths, before, outcome)
        peak = round(outcome.peak_memory_gib, 3)
        end_attempt(paths, status, outcome.trained, peak_memory_gib=peak)
        if status.state is State.failed and status.reason in retries.TABLE:
            status = _after_failure(paths, status)
        if status is not before:
            write_status(paths, status, is_last_word=True)
        return status


def not_requeued(paths: RunPaths, status: Status, complaint: str) -> Status:
    """The last status of a run that Slurm did not take back into its queue."""
    with run_lock(paths, LOCK_SECONDS):
        number = status.attempt - 1
        attempt = read_attempt(paths, number)
        message = f"{attempt.message} Slurm did not requeue the job: {complaint}."
        status = status.changed(
            state=State.failed,
            reason=attempt.reason,
            message=message,
            attempt=number,
            ended_at=attempt.ended_at,
        )
        write_status(paths, status, is_last_word=True)
        return status


def attempt_here(paths: RunPaths, execute: Callable[[Path], None]) -> None:
    """Attempt a run in this process, once. Raises what `execute` raises, and AlreadyRunning."""
    with claim(paths), signals.listening():
        if not begin_attempt(paths):
            return
        try:
            execute(paths.root)
        finally:
            with run_lock(paths, LOCK_SECONDS):
                status = read_record(paths)
                if status.state in OPEN:  # stopped while it was still loading
                    reason, _ = inside_job.why_ended(signals.received() or signal.SIGINT)
                    status = failed(status, endings.ASKED[reason])
                    write_status(paths, status, is_last_word=True)
                end_attempt(paths, status)
                free_reserve(paths)


def _hand_over(paths: RunPaths, status: Status, outcome: ProcessEnd) -> Status:
    """End the attempt of a run that is trained; the next one is that of the job which evaluates it."""
    trained = status.changed(state=State.completed, ended_at=now())
    end_attempt(paths, trained, outcome.trained, peak_memory_gib=round(outcome.peak_memory_gib, 3))
    job_id = status.evaluation_job_id
    if job_id is None:
        after = status.again(state=State.planned, attempt=status.attempt)
    else:
        after = replace(requeued(status, f"Trained; job {job_id} evaluates it."), job_id=job_id)
    write_status(paths, after, is_last_word=True)
    return after


def _after_failure(paths: RunPaths, status: Status) -> Status:
    decision = retries.decide(known_attempts(paths, status.attempt))
    message = (status.message or "").rstrip(".")
    if not decision.again:
        return replace(status, message=f"{message}. Not tried again: {decision.words}.")
    # With other settings it is tried again here and now; everything else waits for a later job.
    if decision.settings is not None or own_job.job_id() is not None:
        return requeued(status, f"{message}. Next attempt: {decision.words}.")
    return status


def _last_word(paths: RunPaths, status: Status, outcome: ProcessEnd) -> Status:
    if status.state is State.completed:
        return status
    own = status.state is State.failed
    log = paths.attempt(status.attempt)
    if own and status.reason is outcome.stopped:
        return status
    if outcome.stopped is not None:
        return failed(status, endings.ASKED[outcome.stopped])
    if outcome.memory_kills > 0 and _was_killed(status, outcome):
        return failed(status, endings.KILLED_FOR_MEMORY)
    if own:
        return status
    if outcome.exit_status < 0:
        name = signal.Signals(-outcome.exit_status).name
        return failed(status, endings.KILLED, signal=name, log=log)
    return failed(status, endings.NO_RESULT, code=outcome.exit_status, log=log)


def _was_killed(status: Status, outcome: ProcessEnd) -> bool:
    """Whether something killed the run's process, or a helper of it, which the run says itself.

    Without this a kill of any other process of the machine would be taken for the reason of every failure.
    """
    if status.state is State.failed:
        return status.reason is Reason.lost
    return outcome.exit_status == -signal.SIGKILL


def _end_the_silent(paths: RunPaths, status: Status, number: int) -> None:
    """End an attempt whose process was killed together with the one that should have written that down."""
    attempt = read_attempt(paths, number)
    is_last = status.state is State.failed and status.attempt == number  # also of a damaged record
    if attempt.ended_at is not None or (attempt.started_at is None and not is_last):
        return
    last = replace(status, attempt=number)
    if is_last:
        last = last.changed(ended_at=now())
    else:
        last = failed(last, endings.REQUEUED if inside_job.restarts() > 0 else endings.SILENT)
    end_attempt(paths, last)


def _link_log(paths: RunPaths, number: int) -> None:
    """A link to the job's log in the folder of an attempt that the submitter did not make."""
    if LOG not in os.environ:
        return
    log = Path(os.environ[LOG])
    folder = paths.attempt(number).absolute()
    link = folder / log.name
    if log.parent != folder and not link.is_symlink():
        link.symlink_to(os.path.relpath(log, folder))
