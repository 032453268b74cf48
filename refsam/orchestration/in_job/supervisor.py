"""The job's own process: executes the attempts of a run, each in a child process, until nothing more follows.

It is small, so when memory is short the kernel kills the child and not it. It can then begin the next attempt
in the same allocation, and it sends a job that was interrupted back into Slurm's queue.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from refsam.errors import RunFailed, SlurmUnavailable
from refsam.orchestration import machine
from refsam.orchestration.lifecycle.attempts import ProcessEnd, begin_attempt, end_of_attempt, not_requeued
from refsam.orchestration.slurm import inside_job
from refsam.records.paths import RunPaths
from refsam.records.recovery import read_record
from refsam.records.status import OPEN, AlreadyRunning, Reason, State, Status, claim, free_reserve
from refsam.system import own_job, signals

POLL_SECONDS = 0.1
# For a run to save what it has, once it was asked to: less than lies between Slurm's signal and its limit.
STOP_SECONDS = 75.0
KIB_PER_GIB = 1024**2
# The child finds modules where this process does, whatever folder it is started in.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from refsam.orchestration.in_job.child import main; main(*sys.argv[2:])"
)


def supervise(paths: RunPaths, entry_point: str) -> None:
    """Attempt a run, again where the table of retries says so.

    Raises:
        RunFailed: when it has failed.
        AlreadyRunning: when another process holds the run.
        SystemExit: when it was asked to stop, or waits for another process that holds the run, whether it
            goes on in a later job or not.
    """
    child = _Child(paths, entry_point)

    def in_a_hurry() -> bool:
        """Whether nothing is gained by waiting long for another process that holds the run."""
        status = read_record(paths)
        is_elsewhere = status.state in OPEN and status.job_id != own_job.job_id()
        return child.asked is not None or is_elsewhere

    with signals.handling(signals.SIGNALS, child.ask):
        try:
            with ExitStack() as held:
                if own_job.LOCAL_QUEUE not in os.environ:  # which holds the run itself
                    # While the child starts, and between its last word and this process's own.
                    held.enter_context(claim(paths, own_job.lock_seconds(), in_a_hurry))
                held.callback(free_reserve, paths)  # when the last word about the run is written
                _attempt(paths, child, in_a_hurry)
        except AlreadyRunning as error:
            _come_again(paths, child.asked, error)


def _attempt(paths: RunPaths, child: "_Child", in_a_hurry: Callable[[], bool]) -> None:
    while begin_attempt(paths, in_a_hurry):
        outcome, requeued_by_slurm = child.execute()
        status = end_of_attempt(paths, outcome, in_a_hurry)
        handed_over = outcome.exit_status == 0 and status.state in (State.pending, State.planned)
        if status.state is State.completed or handed_over:
            return
        if outcome.stopped is not None:
            _leave(paths, status, requeued_by_slurm)
        if status.state is State.failed:
            raise RunFailed(status.message)
        print(f"refsam: {status.message}", flush=True)


def _come_again(paths: RunPaths, asked: signal.Signals | None, error: AlreadyRunning) -> NoReturn:
    """Send this job back into the queue, where it waits for another process that holds the run.

    Only if the record says that this job is to work on the run: it stays as it is.
    """
    status = read_record(paths)
    if own_job.job_id() is None or status.job_id != own_job.job_id() or status.state not in OPEN:
        raise error
    if asked is not None and inside_job.why_ended(asked) != (Reason.timeout, False):
        sys.exit(f"refsam: {error}")
    try:
        inside_job.requeue()
    except SlurmUnavailable as silence:
        raise RunFailed(f"{error}; Slurm did not requeue the job: {silence}") from error
    sys.exit(f"refsam: {error}; the run waits for it in the queue")


def _leave(paths: RunPaths, status: Status, requeued_by_slurm: bool) -> None:
    """End this process, and see to it that the job comes again if the run is to go on."""
    if status.state is State.pending and not requeued_by_slurm:
        try:
            inside_job.requeue()
        except SlurmUnavailable as error:
            status = not_requeued(paths, status, str(error))
    sys.exit(f"refsam: {status.message or f'the run is {status.state}'}")


class _Child:
    """The process of one attempt at a time, and the signals that are meant for it."""

    def __init__(self, paths: RunPaths, entry_point: str) -> None:
        self._paths = paths
        arguments = (json.dumps(sys.path), entry_point, str(paths.root))
        self._command = [sys.executable, "-u", "-c", START, *arguments]
        self._number: int | None = None  # of the living process
        self.asked: signal.Signals | None = None
        self._asked_at = float("inf")

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on, and stop after this attempt."""
        if self.asked is None:
            self.asked = signal.Signals(number)
            self._asked_at = time.monotonic()
        self._pass_on(number)

    def execute(self) -> tuple[ProcessEnd, bool]:
        """Execute the run to the process's end; the second value as inside_job.why_ended has it."""
        kills = machine.out_of_memory_kills()
        savings = _version(self._paths.savings)
        # Blocked until it listens: else a signal that comes while it starts would kill it, or be lost.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, set(signals.SIGNALS) - {signal.SIGINT})
        try:
            process = subprocess.Popen(self._command, process_group=0 if own_job.job_id() else None)
            self._number = process.pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self.asked is not None:
            self._pass_on(self.asked)
        exit_status, peak = self._wait(process)
        stopped, requeued_by_slurm = (None, False) if self.asked is None else inside_job.why_ended(self.asked)
        kills = machine.out_of_memory_kills() - kills
        trained = _version(self._paths.savings) != savings
        return ProcessEnd(exit_status, kills, peak / KIB_PER_GIB, stopped, trained), requeued_by_slurm

    def _pass_on(self, number: int) -> None:
        # Not through Popen, which would look for the exit status that os.wait4 is to find.
        if self._number is not None:
            with suppress(ProcessLookupError):
                os.kill(self._number, number)

    def _wait(self, process: "subprocess.Popen[bytes]") -> tuple[int, int]:
        """Exit status and peak resident memory in KiB, when the process has ended."""
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            if time.monotonic() - self._asked_at > STOP_SECONDS:
                self._pass_on(signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        self._number = None
        process.returncode = os.waitstatus_to_exitcode(status)
        if own_job.job_id():  # helpers that have outlived it, and their memory
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, usage.ru_maxrss


def _version(path: Path) -> tuple[int, int] | None:
    """What changes whenever a file is replaced."""
    with suppress(FileNotFoundError):
        facts = path.stat()
        return facts.st_ino, facts.st_mtime_ns
    return None
