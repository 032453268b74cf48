"""What Slurm says about the jobs of a whole sweep: one squeue and one sacct, their answers kept some seconds.

Slurm is asked for what a record cannot know: pending, killed, out of memory, lost. No record is written here.
"""

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from refsam.errors import SlurmUnavailable
from refsam.orchestration.slurm import environment
from refsam.orchestration.slurm.identity import KnownJob, known_job, seconds
from refsam.records import endings
from refsam.records.attempts import requeued
from refsam.records.endings import Ending, failed
from refsam.records.paths import RunsFolder
from refsam.records.recovery import read_record
from refsam.records.status import OPEN, Reason, State, Status

# Slurm's "runaway jobs": the controller has lost them, and the accounting waits for their end for ever.
RUNAWAY_SECONDS = 3600.0
CACHE_SECONDS = 5.0
ANSWER_SECONDS = 30.0  # until a question is given up
GLANCE_SECONDS = 1.5  # the same, for a person who only looks
# What Slurm's commands say when the same call may succeed later.
MOMENTARY = (
    "temporarily",
    "timed out",
    "Unable to contact slurm controller",
    "Connection refused",
    "connect failure",
    "Transport endpoint is not connected",
    "nothing within",
)
_seconds = ContextVar("seconds that a command may take", default=ANSWER_SECONDS)
OUT_OF_MEMORY_SIGNAL = 125  # Slurm's own mark in an exit code such as 0:125

_ALIVE = {
    **dict.fromkeys(("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"), State.pending),
    **dict.fromkeys(("SPECIAL_EXIT", "RESV_DEL_HOLD"), State.pending),
    **dict.fromkeys(("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING"), State.running),
    **dict.fromkeys(("RESIZING", "STAGE_OUT"), State.running),
}


@dataclass(frozen=True)
class SlurmJob:
    """One array task, or a job that is no array, as Slurm sees it.

    Attributes:
        state: completed says only that the process ended without an error.
        words: Slurm's own state, and why a pending job waits.
        name: of the job, which tells it from another one that has had the same number.
        submitted: or requeued, in seconds since 1970.
        started: the same; of a job that waits, when it may start.
    """

    job_id: str
    state: State
    reason: Reason | None
    words: str
    node: str | None
    name: str
    submitted: float | None
    started: float | None


@dataclass(frozen=True)
class Answer:
    """What is known of some jobs.

    Attributes:
        jobs: by what the records know of them; those that Slurm does not know are not in it.
        queue: whether the controller answered: a job that is not in its queue has ended.
        accounting: whether sacct answered.
        problems: one sentence for each that did not.
        vanished: jobs that only the accounting has, as waiting or running.
    """

    jobs: dict[KnownJob, SlurmJob]
    queue: bool
    accounting: bool
    problems: tuple[str, ...]
    vanished: frozenset[KnownJob] = frozenset()


@dataclass
class SlurmQuery:
    """Asks for all jobs at once, and not again before CACHE_SECONDS have passed."""

    run: Callable[[Sequence[str]], str] = field(default_factory=lambda: run_command)
    _asked: frozenset[KnownJob] = frozenset()
    _answer: Answer | None = None
    _at: float = 0.0

    def ask(self, jobs: Iterable[KnownJob], ended: Iterable[KnownJob] = ()) -> Answer:
        """The state of each job that Slurm knows. Another job that has its number now is not the one.

        Args:
            ended: jobs that are looked for in the queue only, in the same call: somebody may have put them
                back into it. Where the queue does not answer this is no problem.
        """
        wanted = frozenset(jobs)
        everything = wanted.union(ended)
        if not everything:
            return Answer({}, queue=True, accounting=True, problems=())
        fresh = time.monotonic() - self._at < CACHE_SECONDS
        if self._answer is None or not fresh or not everything <= self._asked:
            self._answer = self._look(wanted, everything)
            self._asked, self._at = everything, time.monotonic()
        return self._answer

    def _look(self, wanted: frozenset[KnownJob], everything: frozenset[KnownJob]) -> Answer:
        problems = []
        queued: dict[KnownJob, SlurmJob] = {}
        accounted: dict[KnownJob, SlurmJob] = {}
        with ThreadPoolExecutor(2) as pool:  # either may take its time
            squeue = pool.submit(in_queue, everything, self.run)
            sacct = pool.submit(self.run, sacct_command(_numbers(wanted))) if wanted else None
        try:
            queued = squeue.result()
            queue = True
        except SlurmUnavailable as error:
            queue = False
            if wanted:
                problems.append(f"squeue does not answer ({error}): states of jobs may be out of date")
        try:
            if sacct is not None:
                accounted = _of(wanted, parse_sacct(sacct.result()))
            accounting = True
        except SlurmUnavailable as error:
            accounting = False
            problems.append(
                f"sacct does not answer ({error}): reasons are only from the queue and the records"
            )
        alive = {job for job, row in accounted.items() if row.state in OPEN}
        vanished = frozenset(alive - queued.keys()) if queue else frozenset()
        jobs = merge(queued, accounted, accounting)
        return Answer(jobs, queue, accounting, tuple(problems), vanished)


def in_queue(jobs: Iterable[KnownJob], run: Callable[[Sequence[str]], str]) -> dict[KnownJob, SlurmJob]:
    """Those of some jobs that the controller knows, with one squeue. Raises SlurmUnavailable."""
    wanted = frozenset(jobs)
    try:
        return _of(wanted, parse_squeue(run(squeue_command(_numbers(wanted)))))
    except SlurmUnavailable as error:
        # A single job that has left the queue is an error to squeue, several of them are none.
        if "Invalid job id" in str(error):
            return {}
        raise


def _numbers(jobs: Iterable[KnownJob]) -> str:
    return ",".join(sorted({job.job_id.partition("_")[0] for job in jobs}))


def _of(wanted: Iterable[KnownJob], known: dict[str, list[SlurmJob]]) -> dict[KnownJob, SlurmJob]:
    """The last start of each job."""
    found = {}
    for job in wanted:
        starts = [row for row in known.get(job.job_id, ()) if job.is_called(row.name, row.submitted)]
        if starts:
            found[job] = max(reversed(starts), key=lambda row: row.submitted or 0.0)
    return found


def statuses(
    folder: RunsFolder, run_ids: Sequence[str], query: SlurmQuery
) -> tuple[dict[str, Status], Answer]:
    """The status of each run by its id, from its record and from Slurm, and what Slurm answered."""
    records = {run_id: read_record(folder.run(run_id)) for run_id in run_ids}
    jobs = [(status, job) for status in records.values() if (job := known_job(status)) is not None]
    answer = query.ask(
        (job for status, job in jobs if status.state in OPEN),
        ended=(job for status, job in jobs if status.state is State.failed),
    )
    known = {}
    for run_id, record in records.items():
        status = with_slurm(record, answer)
        if record.state in OPEN and status.state not in OPEN:
            # The run may have written its last word between the two looks.
            status = with_slurm(read_record(folder.run(run_id)), answer)
        known[run_id] = status
    return known, answer


def is_momentary(words: str) -> bool:
    """Whether the same call may succeed later, by what a Slurm command has said."""
    return any(sign in words for sign in MOMENTARY)


def run_command(command: Sequence[str], seconds: float | None = None) -> str:
    """The standard output of a Slurm command. Raises SlurmUnavailable, at the latest after so many seconds.

    Args:
        seconds: None: as many as `answers_within` says, else ANSWER_SECONDS.
    """
    seconds = seconds or _seconds.get()
    surroundings = {**environment.clean(), "SLURM_TIME_FORMAT": "%s"}  # seconds since 1970
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, env=surroundings
        )
    except FileNotFoundError as error:
        raise SlurmUnavailable(f"there is no {command[0]} on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnavailable(f"nothing within {seconds:g} seconds") from error
    if done.returncode != 0:
        complaint = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise SlurmUnavailable(complaint.splitlines()[-1])
    return done.stdout


def glance(command: Sequence[str]) -> str:
    """As run_command, for a person who wants to see what the records say, and what Slurm says at once."""
    return run_command(command, GLANCE_SECONDS)


@contextmanager
def answers_within(seconds: float) -> Iterator[None]:
    """No Slurm command of this thread is waited for longer meanwhile, unless it says how long."""
    before = _seconds.set(seconds)
    try:
        yield
    finally:
        _seconds.reset(before)


def squeue_command(numbers: str) -> list[str]:
    """The jobs and array tasks of `numbers` (`123,456`) in the queue; ended ones while it knows them."""
    fields = "--format=%i|%T|%N|%r|%V|%S|%j"
    return ["squeue", "--noheader", "--array", "--states=all", f"--jobs={numbers}", fields]


def sacct_command(numbers: str) -> list[str]:
    """Every start of the jobs and array tasks of `numbers`, and their steps."""
    fields = "--format=JobID,State,ExitCode,NodeList,Submit,JobName"
    return ["sacct", "--noheader", "--parsable2", "--duplicates", f"--jobs={numbers}", fields]


def parse_squeue(text: str) -> dict[str, list[SlurmJob]]:
    """Jobs by id from lines of `id|state|node|why it waits|submitted|started|name`."""
    jobs = {}
    for line in text.splitlines():
        job_id, words, node, why, submitted, started, name = line.split("|", 6)
        job = replace(_job(job_id, words, "", node, submitted, name), started=_time(started))
        if job.state == State.pending and why not in ("", "None"):
            job = replace(job, words=f"{words}, {why}", node=None)
        jobs[job_id] = [job]
    return jobs


def parse_sacct(text: str) -> dict[str, list[SlurmJob]]:
    """The starts of each job by its id, from lines of `id|state|exit code|node|submitted|name`, among them
    lines of steps (`123_4.0`), which follow their job.

    The kernel kills a step, and the batch script around it goes on: a job that failed and has a step that ran
    out of memory ran out of memory itself.
    """
    jobs: dict[str, list[SlurmJob]] = {}
    for line in text.splitlines():
        number, words, exit_code, node, submitted, name = line.split("|", 5)
        job_id, is_step, _ = number.partition(".")
        for task_id in task_ids(job_id):
            job = _job(task_id, words, exit_code, node, submitted, name)
            starts = jobs.setdefault(task_id, [])
            if not is_step:
                starts.append(job)
            elif starts and job.reason == Reason.out_of_memory and starts[-1].reason == Reason.error:
                words = f"{starts[-1].words}, a step ran OUT_OF_MEMORY"
                starts[-1] = replace(starts[-1], reason=Reason.out_of_memory, words=words)
    return jobs


def merge(
    queued: dict[KnownJob, SlurmJob], accounted: dict[KnownJob, SlurmJob], accounting: bool
) -> dict[KnownJob, SlurmJob]:
    """What is known best of each job. The queue is never late; only the accounting knows steps.

    So a job that the queue calls failed, and the accounting not yet, is still ending: why is not known yet.
    """
    jobs = dict(accounted)
    for key, job in queued.items():
        known = accounted.get(key)
        if job.state in OPEN or not accounting:
            jobs[key] = job
        elif known is None or known.state in OPEN:
            ending = replace(job, state=State.running, reason=None, words="COMPLETING")
            jobs[key] = ending if job.reason == Reason.error else job
    return jobs


def task_ids(job_id: str) -> list[str]:
    """`123_[0-2,5%4]`, how sacct writes tasks that wait, as `123_0`, `123_1`, …; any other id as it is."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job_id)
    if match is None:
        return [job_id]
    numbers: list[int] = []
    for part in match[2].split(","):
        low, _, high = part.partition("-")
        numbers += range(int(low), int(high or low) + 1)
    return [f"{match[1]}_{number}" for number in numbers]


def with_slurm(status: Status, answer: Answer) -> Status:
    """The status of a run that Slurm was given: its record, and from Slurm what no record can know.

    A run that its record calls completed is so, whatever Slurm says. So is a failed one, unless its job has
    been put back into the queue since.
    """
    known = known_job(status)
    if known is None:
        return status
    job = answer.jobs.get(known)
    if status.state not in OPEN:
        return status if job is None else _begun_again(status, job)
    if job is None:
        return _unknown(status, answer)
    if known in answer.vanished and _is_old(status):
        return _ended(status, endings.RUNAWAY, job)
    if job.state == State.pending and not answer.queue and status.state == State.running:
        return status  # the accounting is late, and cannot tell a job that waits again
    if job.state == State.pending:  # requeued, if the record says that it was running
        return status.changed(state=State.pending, message=f"Slurm job {job.job_id}: {job.words}")
    if job.state == State.running:
        return status.changed(state=State.running, host=status.host or job.node)
    if job.state == State.completed:
        return _ended(status, endings.COMPLETED_WITHOUT_RESULT, job)
    return replace(_ended(status, endings.OTHER_STATE, job), reason=job.reason)


def _ended(status: Status, ending: Ending, job: SlurmJob) -> Status:
    """When, nobody knows here."""
    return replace(failed(status, ending, job=job.job_id, words=job.words), ended_at=status.ended_at)


def _begun_again(status: Status, job: SlurmJob) -> Status:
    """The status of a failed run: that of its job where an administrator, or Slurm, has requeued it.

    A job that has just written its last word runs, too, but it has begun before.
    """
    began = job.started if job.state is State.running else None
    again = began is not None and status.ended_at is not None and began > seconds(status.ended_at)
    if status.state is not State.failed or not (job.state is State.pending or again):
        return status
    words = f"Slurm job {job.job_id}: {job.words}; requeued after the run had failed"
    return requeued(status, words).changed(state=job.state, host=job.node)


def _is_old(status: Status) -> bool:
    """Whether a record was written so long ago that the accounting would know by now how its job ended."""
    written = status.updated_at or status.submitted_at
    return written is not None and time.time() - seconds(written) > RUNAWAY_SECONDS


def _unknown(status: Status, answer: Answer) -> Status:
    if not answer.queue:
        return status  # nobody who could know was there
    if answer.accounting and status.state == State.pending:
        # A task that is cancelled before it begins leaves no trace, neither in the queue nor in sacct.
        ending = endings.NEVER_BEGAN
    else:
        ending = endings.UNKNOWN_JOB if answer.accounting else endings.NO_ACCOUNTING
    return replace(failed(status, ending, job=status.job_id), ended_at=status.ended_at)


def _job(job_id: str, words: str, exit_code: str, node: str, submitted: str, name: str) -> SlurmJob:
    state, reason = _end(words.split()[0] if words.strip() else "UNKNOWN", exit_code)  # CANCELLED by 1000
    if exit_code not in ("", "0:0"):
        words = f"{words}, exit code {exit_code}"
    where = None if node in ("", "None assigned", "(null)") else node
    return SlurmJob(job_id, state, reason, words, where, name, _time(submitted), None)


def _time(text: str) -> float | None:
    return float(text) if text.isdigit() else None


def _end(state: str, exit_code: str) -> tuple[State, Reason | None]:
    """What Slurm's word for a state and an exit code mean."""
    signal = re.fullmatch(r"\d+:(\d+)", exit_code)
    if state in _ALIVE:
        return _ALIVE[state], None
    if signal is not None and int(signal[1]) == OUT_OF_MEMORY_SIGNAL:
        return State.failed, Reason.out_of_memory
    if state == "COMPLETED":
        return State.completed, None
    return State.failed, endings.SLURM_ENDINGS.get(state, endings.OTHER_STATE).reason
