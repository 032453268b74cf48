"""Ending runs on purpose: one scancel for all of a sweep's jobs, SIGTERM for runs of this machine."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psutil

from refsam.errors import RunFailed, SlurmUnavailable
from refsam.orchestration.operating.sweep_state import RunState, SweepState
from refsam.orchestration.slurm.identity import KnownJob, known_jobs
from refsam.orchestration.slurm.patience import Say
from refsam.orchestration.slurm.questions import in_queue, is_momentary, run_command
from refsam.orchestration.submission.only_submitter import only_submitter
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.recovery import read_record
from refsam.records.status import OPEN, claim_holder, is_held, lock_holder

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)  # between the calls, while Slurm is away for a moment
SUBMITTER_SECONDS = 120.0  # for another process to have submitted what it was about to
STARTING_SECONDS = 30.0  # for a queue that is about to start a run to have a process for it
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Cancelled:
    """What became of the runs that were neither done nor failed.

    Attributes:
        runs: as they were before.
        jobs: ids of the runs whose Slurm jobs were cancelled.
        left: ids of the runs whose Slurm jobs are in the queue all the same.
        asked: ids of the runs of this machine that were asked to stop; they save what they have first.
        impossible: a sentence for each run that cannot be cancelled from here, and for what is left.
        notes: what could not be found out, in sentences.
    """

    runs: tuple[RunState, ...]
    jobs: tuple[str, ...]
    left: tuple[str, ...]
    asked: tuple[str, ...]
    impossible: tuple[str, ...]
    notes: tuple[str, ...]


def cancel(look: Callable[[], SweepState], folder: RunsFolder, whole_sweep: bool, say: Say) -> Cancelled:
    """End all runs that wait or run, when no other process submits some of them any more.

    Args:
        whole_sweep: also end the local queues that have started them, with what waits there for its turn.
        say: is told in one sentence that it waits.

    Raises:
        PermissionError: for a process of another person.
        SlurmUnavailable: when Slurm does not answer, however often it is asked.
    """
    with contextlib.ExitStack() as lock:
        submits = None
        try:
            lock.enter_context(only_submitter(folder, say, SUBMITTER_SECONDS))
        except RunFailed as error:
            submits = f"{error}; what it submits now is not cancelled"
        except PermissionError:
            pass  # another person's folder, where this one submits nothing
        done = _cancel(look(), folder, whole_sweep)
        return done if submits is None else replace(done, impossible=(*done.impossible, submits))


def _cancel(state: SweepState, folder: RunsFolder, whole_sweep: bool) -> Cancelled:
    alive = [run for run in state.runs if run.status.state in OPEN]
    on_slurm = [run for run in alive if run.status.job_id is not None]
    left, complaint = _scancel([job for run in on_slurm for job in known_jobs(run.status)])
    stayed = tuple(run.run_id for run in on_slurm if left & set(known_jobs(run.status)))
    asked, queues, impossible = [], set(), []
    for run in alive:
        paths, host = folder.run(run.run_id), run.status.host
        if run.status.job_id is not None:
            continue
        if host not in (None, os.uname().nodename):
            impossible.append(f"run {run.run_id} is a process on {host}; cancel it there")
        elif whole_sweep and (queue := claim_holder(paths)):
            queues.add(queue)
            asked.append(run.run_id)
        elif _stop_process(paths):
            asked.append(run.run_id)
        else:
            impossible.append(f"run {run.run_id} is being started; cancel it again in a moment")
    for queue in queues:
        _ask_to_stop(queue)
    if stayed:
        words = "1 run is" if len(stayed) == 1 else f"{len(stayed)} runs are"
        numbers = " ".join(task_ranges(sorted(job.job_id for job in left)))
        impossible.append(f"{words} still in Slurm's queue (job {numbers}): {complaint}")
    ended = tuple(run.run_id for run in on_slurm if run.run_id not in stayed)
    return Cancelled(state.runs, ended, stayed, tuple(asked), tuple(impossible), state.notes)


def _stop_process(paths: RunPaths) -> bool:
    """Ask the process of a run of this machine to stop; False where it has none yet, after some seconds."""
    deadline = time.monotonic() + STARTING_SECONDS
    while is_held(paths):
        if process := lock_holder(paths) or _starting_process(paths):
            _ask_to_stop(process)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True  # it has just ended, which is what was wanted


def _starting_process(paths: RunPaths) -> int | None:
    """The process that has begun the attempt, and loads what computes it: one that the claim's holder owns.

    The number alone may be another process's by now.
    """
    process, holder = read_record(paths).pid, claim_holder(paths)
    if not process or not holder:
        return None
    try:
        above = [parent.pid for parent in psutil.Process(process).parents()]
    except psutil.NoSuchProcess:
        return None
    return process if holder in (process, *above) else None


def _ask_to_stop(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended, which is what was wanted
        os.kill(process, signal.SIGTERM)


def task_ranges(job_ids: Sequence[str]) -> list[str]:
    """`7_0 7_1 7_2 7_5 9` as scancel takes them: `7_[0-2,5]`, `9`."""
    arrays: dict[str, list[int]] = {}
    single = []
    for job_id in job_ids:
        match = re.fullmatch(r"(\d+)_(\d+)", job_id)
        if match is None:
            single.append(job_id)
        else:
            arrays.setdefault(match[1], []).append(int(match[2]))
    return [f"{number}_[{_ranges(sorted(tasks))}]" for number, tasks in arrays.items()] + single


def _ranges(tasks: Sequence[int]) -> str:
    parts: list[list[int]] = []
    for task in tasks:
        if parts and task == parts[-1][-1] + 1:
            parts[-1][1:] = [task]
        else:
            parts.append([task])
    return ",".join("-".join(map(str, part)) for part in parts)


def _scancel(jobs: Sequence[KnownJob]) -> tuple[set[KnownJob], str]:
    """Cancel those of the jobs that are in the queue; what has their numbers now may be another's.

    Returns:
        What is in the queue all the same, and why.
    """
    left: set[KnownJob] = set()
    for delay in (*RETRY_SECONDS, None):
        try:
            left, complaint = _in_queue(jobs), "scancel has not ended it"
            if not left:
                return left, ""
            try:  # quiet: a job that has just ended is no error
                run_command(["scancel", "--quiet", *task_ranges([job.job_id for job in left])])
            except SlurmUnavailable as error:
                if is_momentary(str(error)):
                    raise
                complaint = str(error).removeprefix("scancel: error: ")
            left = _in_queue(jobs)
        except SlurmUnavailable as error:
            if delay is None or not is_momentary(str(error)):
                raise
        else:
            if delay is None or not left or "permission denied" in complaint:
                return left, complaint
        time.sleep(delay)
    raise AssertionError("the last call returns or raises")


def _in_queue(jobs: Sequence[KnownJob]) -> set[KnownJob]:
    """Those of the jobs that wait or run, and do not end just now."""
    known = in_queue(jobs, run_command) if jobs else {}
    return {job for job, row in known.items() if row.state in OPEN and row.words != "COMPLETING"}
