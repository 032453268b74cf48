"""Handing runs to Slurm: one job array for all runs with the same request.

Where runs are evaluated on another resource than they are trained on, a second array follows the first, task
by task.

An array is submitted on hold and released when the record of every run of it names its job. So no run starts
that its record does not know, whatever interrupts the submission, and what was interrupted can be taken back
unseen. Whoever submits into a runs folder holds its lock, so two shells never submit the same run.

Slurm keeps a copy of an array's script, which says all that its tasks do. So nobody who may write into the
runs folder can change what they execute.
"""

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path

from refsam.configuration.schema import ClusterConfig, RequestConfig
from refsam.errors import RunFailed, SlurmUnavailable
from refsam.orchestration.in_job.job import SCIENCE
from refsam.orchestration.lifecycle.reconcile import reconcile
from refsam.orchestration.slurm import environment, patience, site
from refsam.orchestration.slurm.identity import EVALUATION, PREFIX
from refsam.orchestration.slurm.patience import Say, patiently
from refsam.orchestration.slurm.questions import SlurmQuery, is_momentary, run_command
from refsam.orchestration.slurm.requests import Jobs, by_jobs, jobs_of, jobs_text
from refsam.orchestration.submission.job_scripts import script_text
from refsam.orchestration.submission.only_submitter import only_submitter
from refsam.orchestration.submission.slurm_script import check_folder, follow, parameters
from refsam.orchestration.submission.snapshot import take_snapshot
from refsam.records.attempts import free_number
from refsam.records.paths import RunPaths, RunsFolder, SweepPaths
from refsam.records.recovery import read_record
from refsam.records.run import Run
from refsam.records.status import OPEN, AlreadyRunning, State, Status, is_held, now, run_lock, write_status
from refsam.system.files import read_json, write_json, write_text
from refsam.system.names import counted
from refsam.system.own_job import LOCK_SECONDS

LATE_SECONDS = 900.0  # until a call of sbatch without an answer is sure not to go through any more
WRITERS = 16  # records at a time
IMPOSSIBLE = "Requested node configuration is not available"
NAMED_NODES = 4  # in a sentence, at most
REFUSED = "Batch job submission failed"
# In the names of all limits on jobs in the queue: AssocMaxSubmitJobLimit, AssocGrpSubmitJobsLimit, …
FULL = "SubmitJob"


class SubmissionFailed(RuntimeError):
    """An array was not submitted, and nothing of it will run. The message says what Slurm said."""


class SbatchFailed(RuntimeError):
    """What sbatch has said, when it did not say a number."""


class QueueFull(SubmissionFailed):
    """An array was not submitted because the site allows no so many jobs in the queue at present."""


@dataclass(frozen=True)
class Order:
    """Where runs are submitted and how.

    Attributes:
        say: is told each step in one sentence.
        entry_point: what a job executes, see run_job.
        snapshot: the code that jobs run; None: what is there when they start.
    """

    folder: RunsFolder
    sweep: SweepPaths
    cluster: ClusterConfig
    say: Say
    entry_point: str = SCIENCE
    snapshot: Path | None = None


@dataclass(frozen=True)
class _Task:
    """One task of an array: its id, the array's script, and where its log will be."""

    job_id: str
    script: Path
    log: Path


@dataclass(frozen=True)
class _Submission:
    """One call of sbatch: its folder, with script and logs, and the record of how far it came.

    The job's name is known before the job is, so that it is found again when the answer of sbatch was lost.
    """

    folder: Path
    sweep: str

    @property
    def job_name(self) -> str:
        return f"{PREFIX}{self.sweep}-{self.folder.name}"

    @property
    def record(self) -> Path:
        return self.folder / "submission.json"

    def write(self, runs: Sequence[str], job_ids: Sequence[str], done: bool) -> None:
        jobs = dict(zip(runs, job_ids, strict=True)) if job_ids else dict.fromkeys(runs)
        write_json(self.record, {"job_name": self.job_name, "done": done, "time": now(), "jobs": jobs})

    def take_back(self, refused: bool = False) -> None:
        """Cancel what is on hold under this name, and forget it. Raises SlurmUnavailable, and can be called
        again.

        What was released already runs as its records say, and stays. A call of sbatch whose answer was lost
        may go through after this look, so it is looked for again until some time has passed.

        Args:
            refused: sbatch has said that there is no job.
        """
        command = ["squeue", "--noheader", "--states=all", f"--name={self.job_name}", "--format=%F|%T|%r"]
        tasks = [line.split("|", 2) for line in run_command(command).splitlines()]
        rows = [(number, why) for number, state, why in tasks if state == "PENDING"]
        # Somebody may hold a task of an array that was released: another one has begun then, or may.
        released = {number for number, state, _ in tasks if state not in ("PENDING", "CANCELLED")}
        released |= {number for number, why in rows if why != "JobHeldUser"}
        held = {number for number, _ in rows} - released
        if held:
            run_command(["scancel", *sorted(held)])
        if held or (not rows and (refused or self._seconds_ago() > LATE_SECONDS)):
            write_json(self.record, {"job_name": self.job_name, "done": True, "taken_back": sorted(held)})

    def _seconds_ago(self) -> float:
        """The age of the record; endless where it is damaged."""
        try:
            began = datetime.fromisoformat(read_json(self.record)["time"])
        except (KeyError, ValueError):
            return float("inf")
        return (datetime.now(UTC) - began).total_seconds()


def submit_to_slurm(
    runs: Sequence[Run],
    folder: RunsFolder,
    sweep: SweepPaths,
    cluster: ClusterConfig,
    say: Say,
    entry_point: str = SCIENCE,
) -> int:
    """Submit all runs that are neither done nor in the queue, and return; nothing is waited for.

    Where the site allows fewer jobs, the first ones are submitted. Returns how many runs are left, for the
    same call again when others have ended.

    Args:
        runs: with their directories and frozen configurations in place.
        say: is told each step in one sentence.
        entry_point: what a job executes, see run_job.

    Raises:
        ConfigError: before anything is submitted, when the configuration cannot be made a job script.
        RunFailed: when some arrays could not be submitted. The others were; the same command does the rest.
    """
    check_submission(runs, folder, sweep, cluster)
    with only_submitter(folder, say):
        sweep.jobs.mkdir(parents=True, exist_ok=True)
        try:
            _take_back_unfinished(sweep, say)
            waiting = _not_in_the_queue(runs, folder, say)
            if not waiting:
                return 0
            limits = site.limits(cluster, say)
            now_allowed = _now_allowed(waiting, folder, limits, say)
        except SlurmUnavailable as error:
            raise RunFailed(f"Slurm does not answer, so nothing was submitted: {error}") from error
        snapshot = take_snapshot(folder) if cluster.snapshot else None
        order = Order(folder, sweep, cluster, say, entry_point, snapshot)
        submitted, failures = _submit_arrays(now_allowed, limits.array, order)
        # What has gone through late; where Slurm is silent the next command looks again.
        with contextlib.suppress(SlurmUnavailable):
            _take_back_unfinished(sweep, say)
    if failures:
        raise RunFailed(f"{failures[0]}; the same command submits what was not")
    left = len(waiting) - submitted
    if left:
        runs_left = counted(left, "run")
        say(f"{runs_left} not submitted yet, because the job limit of your account is reached")
    return left


def _now_allowed(waiting: list[Run], folder: RunsFolder, limits: site.QueueLimits, say: Say) -> list[Run]:
    """The first of the waiting runs, as many as the site still takes the jobs of. Raises SlurmUnavailable."""
    if limits.jobs is None:
        return waiting
    room = limits.jobs - site.jobs_in_queue(say)
    needed = accumulate(len(jobs_of(run.config, folder.run(run.run_id)).requests) for run in waiting)
    return [run for run, jobs in zip(waiting, needed, strict=True) if jobs <= room]


def _submit_arrays(runs: Sequence[Run], largest: int, order: Order) -> tuple[int, list[str]]:
    """Submit the runs in arrays of at most `largest`; how many were submitted, and why others were not."""
    submitted, failures = 0, []
    for jobs, group in by_jobs(runs, order.folder):
        text = jobs_text(jobs)
        parts = [group[start : start + largest] for start in range(0, len(group), largest)]
        while parts:
            part = parts.pop(0)
            try:
                numbers, left_out = _submit_array(jobs, part, order)
            except QueueFull:
                # How many more the site takes is not said, so it is tried.
                if len(part) == 1:
                    break
                half = len(part) // 2
                parts[:0] = [part[:half], part[half:]]
            except (SubmissionFailed, OSError) as error:  # a full disk is one
                failures.append(str(error))
                order.say(f"Not submitted ({text}): {error}")
            else:
                submitted += len(part)
                for sentence in left_out:
                    order.say(f"Left out: {sentence}")
                if len(part) > len(left_out):
                    kept = counted(len(part) - len(left_out), "run")
                    order.say(f"Job {' and '.join(numbers)}: {kept}, {text}")
    return submitted, failures


def check_submission(
    runs: Sequence[Run], folder: RunsFolder, sweep: SweepPaths, cluster: ClusterConfig
) -> None:
    """Raise ConfigError when the configuration cannot be made a job script. Writes nothing, asks nobody."""
    check_folder(folder.root)
    for jobs, group in by_jobs(runs, folder):
        for request in jobs.requests:
            parameters(request, cluster, group, sweep.name, sweep.name)


def _submit_array(jobs: Jobs, runs: Sequence[Run], order: Order) -> tuple[list[str], list[str]]:
    """Submit one array, and the one that follows it where the jobs say so, write its runs' records and
    release it. Raises SubmissionFailed.

    Returns:
        The numbers of the arrays, and a sentence for each run that was left out, since a process holds it.
    """
    say = order.say
    for delay in (*patience.delays(), None):
        submission = _Submission(order.sweep.jobs / secrets.token_hex(4), order.sweep.name)
        submission.folder.mkdir()
        submission.write([run.run_id for run in runs], [], done=False)
        try:
            first = _sbatch(jobs, runs, order, submission)
            number = first[0].job_id.partition("_")[0]
            # Cancelled with the first one, whatever becomes of this submission.
            then = None if jobs.then is None else _sbatch(jobs, runs, order, submission, after=number)
            break
        except (SbatchFailed, OSError) as error:
            # The call may have gone through all the same. Its array is on hold, and is taken back now, or by
            # the next command where Slurm does not answer; it never starts.
            refused = REFUSED in str(error) and not is_momentary(str(error))
            with contextlib.suppress(SlurmUnavailable, OSError):
                submission.take_back(refused)
            words = (str(error).strip().splitlines() or ["sbatch failed"])[-1]
            if FULL in str(error):
                raise QueueFull(words) from error
            if delay is None or not is_momentary(str(error)):
                raise SubmissionFailed(words) from error
            say(f"{words}; trying again in {delay:.0f} s")
            time.sleep(delay)
    numbers = [number] if then is None else [number, then[0].job_id.partition("_")[0]]
    evaluations = [None] * len(runs) if then is None else [job.job_id for job in then]
    written: list[tuple[RunPaths, Status]] = []

    left_out: dict[str, str] = {}
    deadline = time.monotonic() + LOCK_SECONDS

    def begin(run: Run, job: _Task, evaluation: str | None) -> None:
        paths, seconds = order.folder.run(run.run_id), deadline - time.monotonic()
        try:
            written.append(_write_pending(paths, job, evaluation, submission.job_name, seconds))
        except AlreadyRunning as error:
            left_out[run.run_id] = str(error)

    try:
        for request, array in zip(jobs.requests, (first, then), strict=False):
            if array:
                _check_possible(request, array[0].script, say)
        with ThreadPoolExecutor(WRITERS) as pool:  # most of the time goes into waiting for the disk
            list(pool.map(begin, runs, first, evaluations))
        if left_out:
            places = [place for place, run in enumerate(runs) if run.run_id in left_out]
            tasks = [array[place].job_id for array in (first, then or []) if array for place in places]
            patiently(lambda: run_command(["scancel", *tasks]), say)
        kept = {
            run.run_id: job.job_id for run, job in zip(runs, first, strict=True) if run.run_id not in left_out
        }
        submission.write(list(kept), list(kept.values()), done=False)
        if kept:
            patiently(lambda: run_command(["scontrol", "release", number]), say)
    except BaseException as error:
        try:
            run_command(["scancel", *numbers])
        except SlurmUnavailable as silence:
            # Released or not, the records name the job; the next command finds out.
            raise SubmissionFailed(f"job {number} is in the queue, perhaps on hold: {silence}") from error
        for paths, before in written:
            write_status(paths, before)
        with contextlib.suppress(OSError):  # a full disk may be what went wrong
            submission.write([run.run_id for run in runs], [], done=True)
        if isinstance(error, SubmissionFailed | OSError | SlurmUnavailable):
            raise SubmissionFailed(f"job {number} was cancelled again: {error}") from error
        raise
    submission.write(list(kept), list(kept.values()), done=True)
    return numbers, list(left_out.values())


def _sbatch(
    jobs_of_run: Jobs, runs: Sequence[Run], order: Order, submission: _Submission, after: str | None = None
) -> list[_Task]:
    """The tasks of an array, in the order of `runs`. Raises SbatchFailed, and OSError.

    Args:
        after: the number of the first array, for the one that follows it.
    """
    request, name = jobs_of_run.first, submission.job_name
    if after is not None:
        assert jobs_of_run.then is not None
        request, name = jobs_of_run.then, f"{name}{EVALUATION}"
    values = parameters(request, order.cluster, runs, submission.sweep, name, order.snapshot)
    if after is not None:
        follow(values, after)
    arguments = ["--train"] if jobs_of_run.then is not None and after is None else []
    folder = submission.folder.absolute()
    script = folder / ("train.sh" if after is None else "evaluate.sh")
    write_text(script, script_text(request, values, runs, order.folder, folder, order.entry_point, arguments))
    hold = ["--hold"] if after is None else []
    command = ["sbatch", "--parsable", *hold, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment.clean())
    number = done.stdout.strip().partition(";")[0]
    if done.returncode != 0 or not number.isdigit():
        raise SbatchFailed(done.stderr.strip() or done.stdout.strip() or f"sbatch: {done.returncode}")
    return [
        _Task(f"{number}_{place}", script, folder / f"{number}_{place}.out") for place in range(len(runs))
    ]


def _check_possible(request: RequestConfig, script: Path, say: Say) -> None:
    """Raise SubmissionFailed when no node can ever run the job; sbatch does not ask that of a job on hold.

    Its --test-only calls a job impossible also while all nodes that could run it are drained, down, or not
    known yet to a controller that has just started. Such a job is submitted: it waits for them.
    """
    problem = _impossible(script, say)
    if problem is None:
        return
    partitions, nodes = patiently(lambda: (site.partitions(), site.nodes()), say)
    waiting_for = site.out_of_service(request, partitions, nodes)
    if waiting_for:
        names = ", ".join(f"{node.name} {node.state.lower()}" for node in waiting_for[:NAMED_NODES])
        more = f" and {len(waiting_for) - NAMED_NODES} more" if len(waiting_for) > NAMED_NODES else ""
        say(f"No suitable node is in service ({names}{more}): the runs wait until one is")
    elif again := _impossible(script, say):  # the nodes may have come back between the two looks
        raise SubmissionFailed(again)


def _impossible(script: Path, say: Say) -> str | None:
    """What Slurm says where it has no node for the job; None where it has, or says something else."""
    try:
        patiently(lambda: run_command(["sbatch", "--test-only", str(script)]), say)
    except SlurmUnavailable as error:
        return str(error) if IMPOSSIBLE in str(error) else None
    return None


def _write_pending(
    paths: RunPaths, job: _Task, evaluation: str | None, name: str, patience: float
) -> tuple[RunPaths, Status]:
    """Begin an attempt: status `pending` with the job's id, a link to its log. Returns the status before.

    Raises AlreadyRunning when another process holds the run, after `patience` seconds.
    """
    with run_lock(paths, patience):
        before = read_record(paths)
        number = free_number(paths, before.attempt + 1)
        attempt = paths.attempt(number)
        attempt.mkdir(parents=True, exist_ok=True)
        log = attempt / job.log.name
        log.unlink(missing_ok=True)
        log.symlink_to(os.path.relpath(job.log, attempt.absolute()))
        status = before.again(
            state=State.pending,
            attempt=number,
            job_id=job.job_id,
            job_name=name,
            evaluation_job_id=evaluation,
            submitted_at=now(),
        )
        write_status(paths, status)
    return paths, before


def _not_in_the_queue(runs: Sequence[Run], folder: RunsFolder, say: Say) -> list[Run]:
    """The runs that no job and no process works on. Raises SlurmUnavailable when that cannot be known."""
    known = patiently(lambda: _ask(folder, runs), say)
    waiting, queued = [], 0
    for run in runs:
        paths, status = folder.run(run.run_id), known[run.run_id]
        by_slurm = status.job_id is not None and status.state in OPEN
        if by_slurm or is_held(paths):
            queued += 1
        elif status.state not in (State.completed, State.unreadable):
            waiting.append(run)
    if queued:
        say(f"{counted(queued, 'run')} in the queue or running already")
    return waiting


def _ask(folder: RunsFolder, runs: Sequence[Run]) -> dict[str, Status]:
    """The statuses of the runs by their ids. Raises SlurmUnavailable when the queue does not answer."""
    known, answer = reconcile(folder, [run.run_id for run in runs], SlurmQuery())
    if not answer.queue:
        raise SlurmUnavailable(next(iter(answer.problems), "squeue does not answer"))
    return known


def _take_back_unfinished(sweep: SweepPaths, say: Say) -> None:
    """Cancel what an earlier submission has left on hold when it was killed. Raises SlurmUnavailable."""
    for record in sorted(sweep.jobs.glob("*/submission.json")):
        try:
            done = read_json(record)["done"]
        except ValueError:
            done = False
        if not done:
            patiently(_Submission(record.parent, sweep.name).take_back, say)
