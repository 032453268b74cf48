"""A queue of runs on the machine at hand, each in a process of its own.

It is the process that a job of Slurm executes, too: it starts the one that computes the run, which writes
status.json while it lives. This queue writes it before and after: pending, and failed where the process ended
without a word.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from refsam.configuration.schema import RefsamConfig
from refsam.orchestration import machine
from refsam.orchestration.in_job.job import SCIENCE, thread_environment
from refsam.orchestration.lifecycle.attempts import LOG
from refsam.orchestration.submission.live_table import Display, Location, Row
from refsam.records import endings
from refsam.records.attempts import free_number
from refsam.records.endings import failed
from refsam.records.logs import log_end
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.recovery import read_record
from refsam.records.run import Run
from refsam.records.status import AlreadyRunning, Reason, State, Status, claim, now, run_lock, write_status
from refsam.system import own_job, signals

RUN_JOB = (sys.executable, "-u", "-m", "refsam.orchestration.in_job.run_job")
LOG_NAME = "run.out"
LOG_BYTES = 4096  # of its end, for the last line
POLL_SECONDS = 0.2  # between two looks at the processes
REFRESH_SECONDS = 1.0  # between two looks at the records
GRACE_SECONDS = 60.0  # for a run to save what it has, once it was asked to stop
KILL_SECONDS = 10.0  # for the kernel to take away what was killed
FINISHED = (State.completed, State.failed)
# What a terminal sends to everything in the foreground: Ctrl-C, Ctrl-\, and its own end.
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _Entry:
    """One run in the queue: where it is, and its status as last read."""

    run: Run
    paths: RunPaths
    place: Location
    status: Status
    log: Path | None = None

    def row(self) -> Row:
        return Row(self.run.label, self.place, self.status, self.log)


@dataclass
class _Child:
    """A run that this queue has started: its process, all processes seen below it, and what it holds."""

    entry: _Entry
    process: "subprocess.Popen[bytes]"
    wrapper: psutil.Process  # the same
    claim: ExitStack
    device: str | None
    kills_before: int  # of processes by the kernel for lack of memory, when the run started
    tasks: set[psutil.Process] = field(default_factory=set)  # the wrapper's children: one, the run's process
    processes: set[psutil.Process] = field(default_factory=set)
    asked: set[psutil.Process] = field(default_factory=set)
    ended_at: float | None = None  # when the wrapper was seen to have ended, time.monotonic

    def look(self) -> None:
        """Remember the processes below the wrapper: when it is killed they are no longer found there."""
        if _is_alive(self.wrapper):
            self.tasks.update(_children(self.wrapper, recursive=False))
            self.processes.update(_children(self.wrapper, recursive=True))
        else:
            for process in list(self.processes):
                self.processes.update(_children(process, recursive=True))

    def living(self) -> list[psutil.Process]:
        self.look()
        return [process for process in (self.wrapper, *self.processes) if _is_alive(process)]

    def wrapper_ended(self) -> bool:
        if self.ended_at is None and self.process.poll() is not None:
            self.ended_at = time.monotonic()
        return self.ended_at is not None

    def ask_to_stop(self) -> None:
        """SIGTERM, once, to the wrapper, which passes it on, or to what a killed one has left."""
        self.look()
        told = {self.wrapper} if _is_alive(self.wrapper) else self.tasks
        for process in told - self.asked:
            self.asked.add(process)
            _send(process, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to everything, again until nothing is left: a process may start another one meanwhile."""
        deadline = time.monotonic() + KILL_SECONDS
        while (living := self.living()) and time.monotonic() < deadline:
            for process in living:
                _send(process, signal.SIGKILL)
            psutil.wait_procs(living, timeout=1)


def run_locally(
    runs: Sequence[Run],
    runs_folder: RunsFolder,
    parallel: int,
    threads: int,
    display: Display,
    entry_point: str = SCIENCE,
) -> list[Status]:
    """Execute `runs`, at most `parallel` at a time, and return their last statuses in the same order.

    A run that is completed, or that another process executes or has executed meanwhile, is not started; its
    status is returned as it is. One failed run stops no other. Each run directory must hold its config.yaml.

    Args:
        entry_point: `module:function` that executes a run directory, see run_job.

    Raises:
        KeyboardInterrupt: after Ctrl-C, SIGTERM or a closed terminal, when every process that was started has
            ended and every status is written. A second Ctrl-C does not wait for the runs to write theirs.
        ValueError: when a run is given twice.
    """
    if len({run.run_id for run in runs}) < len(runs):
        raise ValueError("a run is given twice to the local queue")
    queue = _Queue(runs, runs_folder, parallel, threads, display, entry_point)
    with display, _stop_signals() as stop_signals:
        try:
            queue.work(stop_signals)
        except BaseException:
            queue.stop(hurry=lambda: True)  # an error of the queue itself must leave no process behind either
            raise
        if stop_signals:
            queue.stop(hurry=lambda: len(stop_signals) > 1)
            open_runs = sum(entry.status.state is not State.completed for entry in queue.entries)
            display.say(
                f"Stopped; {open_runs} of {len(runs)} runs are not completed. The same command continues."
            )
            raise KeyboardInterrupt
    return [entry.status for entry in queue.entries]


class _Queue:
    """Owns the processes of one `run_locally`."""

    def __init__(
        self,
        runs: Sequence[Run],
        runs_folder: RunsFolder,
        parallel: int,
        threads: int,
        display: Display,
        entry_point: str,
    ) -> None:
        self.entries: list[_Entry] = []
        for run in runs:
            paths = runs_folder.run(run.run_id)
            status = read_record(paths)
            place = Location.ended if status.state is State.completed else Location.waiting
            self.entries.append(_Entry(run, paths, place, status))
        self._children: list[_Child] = []
        self._parallel = parallel
        self._threads = threads
        self._display = display
        self._entry_point = entry_point
        self._devices = machine.usable_devices()
        self._shown_at = float("-inf")

    def work(self, stop_signals: Sequence[int]) -> None:
        """Start and watch until every run has ended or a signal says stop."""
        while not stop_signals:
            self._collect()
            while len(self._children) < self._parallel and not stop_signals:
                entry = next((entry for entry in self.entries if entry.place is Location.waiting), None)
                if entry is None:
                    break
                self._start(entry)
            self._show()
            if not self._children:
                return
            time.sleep(POLL_SECONDS)

    def stop(self, hurry: Callable[[], bool]) -> None:
        """Ask every run to stop, kill what has not ended after the grace period, and write the statuses."""
        if self._children:
            number = len(self._children)
            self._display.say(f"Stopping {number} running, at most {GRACE_SECONDS:.0f} seconds …")
        deadline = time.monotonic() + GRACE_SECONDS
        while self._children and time.monotonic() < deadline and not hurry():
            for child in self._children:
                child.ask_to_stop()
            self._collect(stopping=True)
            time.sleep(POLL_SECONDS)
        for child in list(self._children):
            child.kill()
            self._finish(child, stopping=True)
        self._show()

    def _start(self, entry: _Entry) -> None:
        """Hand a run to submitit, unless another process has it or had it since this queue began."""
        self._shown_at = float("-inf")
        with ExitStack() as held:
            try:
                held.enter_context(claim(entry.paths))
                if self._begin_attempt(entry):
                    self._submit(entry, held)
            except AlreadyRunning:
                entry.place, entry.status = Location.elsewhere, read_record(entry.paths)
            except (OSError, RuntimeError, ValueError, psutil.Error) as error:
                # A full disk, a missing permission, a damaged status: this run fails, the others go on.
                entry.place = Location.ended
                entry.status = failed(entry.status, endings.NOT_STARTED, problem=error)

    def _begin_attempt(self, entry: _Entry) -> bool:
        """Write the status `pending` with the attempt's number; False when there is nothing left to do."""
        with run_lock(entry.paths):
            status = read_record(entry.paths)
            failed_meanwhile = status.state is State.failed and status.attempt > entry.status.attempt
            if status.state in (State.completed, State.unreadable) or failed_meanwhile:
                entry.place, entry.status = Location.ended, status
                return False
            number = free_number(entry.paths, status.attempt + 1)
            entry.status = status.again(state=State.pending, attempt=number, submitted_at=now())
            write_status(entry.paths, entry.status)
            return True

    def _submit(self, entry: _Entry, held: ExitStack) -> None:
        try:
            folder = entry.paths.attempt(entry.status.attempt)
            folder.mkdir(exist_ok=True)
            log = folder.absolute() / LOG_NAME
            device = self._free_device(entry.run.config)
            environment = {
                **os.environ,
                **thread_environment(self._threads),
                **self._visible(entry.run.config, device),
                own_job.LOCAL_QUEUE: str(self._parallel),
                LOG: str(log),
            }
            kills = machine.out_of_memory_kills()
            with _shielded_children(), log.open("ab") as output:
                process = subprocess.Popen(
                    [*RUN_JOB, str(entry.paths.root.absolute()), self._entry_point],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            wrapper = psutil.Process(process.pid)
        except (OSError, RuntimeError, psutil.Error) as error:
            with run_lock(entry.paths):
                write_status(entry.paths, failed(entry.status, endings.NOT_STARTED, problem=error))
            raise
        entry.place, entry.log = Location.here, log
        self._children.append(_Child(entry, process, wrapper, held.pop_all(), device, kills))

    def _free_device(self, config: RefsamConfig) -> str | None:
        """The GPU with the fewest runs on it; None for a run on the CPU, or where there is no GPU."""
        if config.resource.device == "cpu" or not self._devices:
            return None
        taken = [child.device for child in self._children]
        return min(self._devices, key=taken.count)

    @staticmethod
    def _visible(config: RefsamConfig, device: str | None) -> dict[str, str]:
        """What the run may see; where nvidia-smi lists no GPU, whatever PyTorch finds."""
        if device is None:
            return {"CUDA_VISIBLE_DEVICES": ""} if config.resource.device == "cpu" else {}
        # nvidia-smi numbers GPUs by their slots; CUDA puts the fastest first where it isn't told.
        return {"CUDA_VISIBLE_DEVICES": device, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

    def _collect(self, stopping: bool = False) -> None:
        """Take the runs whose processes have ended out of the queue, with their last status on the disk."""
        for child in list(self._children):
            if not child.wrapper_ended():
                continue
            if child.living():
                # The wrapper was killed, and what it started goes on; or helpers of the run are about to end.
                child.ask_to_stop()
                if time.monotonic() - (child.ended_at or 0.0) < GRACE_SECONDS:
                    continue
                child.kill()
            self._finish(child, stopping)

    def _finish(self, child: _Child, stopping: bool) -> None:
        """Let go of a run whose processes have ended, with its last status on the disk."""
        self._shown_at = float("-inf")
        self._children.remove(child)
        entry = child.entry
        with child.claim:
            try:
                with run_lock(entry.paths):
                    before = read_record(entry.paths)
                    ended = before.state in FINISHED and not (stopping and _is_stopped_start(before))
                    entry.status = before if ended else self._unfinished(child, before, stopping)
                    if entry.status is not before:
                        write_status(entry.paths, entry.status)
                entry.place = Location.waiting if entry.status.state is State.planned else Location.ended
            except AlreadyRunning:
                # A process that no queue has started was faster to take the run.
                entry.place, entry.status = Location.elsewhere, read_record(entry.paths)
            except OSError as error:
                entry.place = Location.ended
                entry.status = failed(entry.status, endings.NOT_WRITTEN, problem=error)

    def _unfinished(self, child: _Child, status: Status, stopping: bool) -> Status:
        """The last status of a run whose process ended without writing one."""
        if stopping and status.state is not State.running:
            return status.again(state=State.planned, attempt=status.attempt)
        if stopping:
            return failed(status, endings.STOPPED)
        log = child.entry.log
        code = child.process.returncode
        if code >= 0:  # the last line of a traceback names the error
            last = log_end(log, 1, LOG_BYTES) if code and log is not None and log.exists() else ""
            if last:
                return failed(status, endings.LAST_LINE, problem=last, log=log)
            return failed(status, endings.NO_RESULT, code=code, log=log)
        if code == -signal.SIGKILL and machine.out_of_memory_kills() > child.kills_before:
            for other in self._children:
                other.kills_before += 1  # that kill is explained
            return failed(status, endings.KILLED_FOR_MEMORY)
        return failed(status, endings.KILLED, signal=signal.Signals(-code).name, log=log)

    def _show(self) -> None:
        """Once a second, and when a run has started or ended: read what is going on, and show all runs."""
        time_now = time.monotonic()
        if time_now - self._shown_at < REFRESH_SECONDS:
            return
        self._shown_at = time_now
        for child in self._children:
            child.look()
            child.entry.status = read_record(child.entry.paths)
        self._display.show([entry.row() for entry in self.entries], self._parallel)


def _is_stopped_start(status: Status) -> bool:
    """Whether a run was stopped before it computed anything, and so is as it was before its turn came."""
    return status.reason is Reason.cancelled and status.started_at is None


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect the signals that ask to stop instead of being interrupted by them in the middle of a record.

    Those that the shell has switched off (nohup, a background job) stay off.
    """
    received: list[int] = []
    on = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    with signals.handling(on, lambda number, frame: received.append(number)):
        yield received


@contextmanager
def _shielded_children() -> Iterator[None]:
    """Processes started here do not feel what a terminal sends to its whole foreground group.

    This process decides about them. A blocked signal is inherited, and one that arrives here meanwhile is not
    lost: it is delivered as soon as it is unblocked. Ctrl-Z still suspends all of them together.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _children(process: psutil.Process, recursive: bool) -> list[psutil.Process]:
    try:
        return process.children(recursive=recursive)
    except psutil.NoSuchProcess:
        return []


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):  # it has just ended, which is what was wanted
        process.send_signal(number)
