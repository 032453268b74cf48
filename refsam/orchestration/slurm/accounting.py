"""results/slurm.json: what a run has cost, as Slurm's accounting says it. One sacct for a whole sweep."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from refsam.errors import SlurmUnavailable
from refsam.orchestration.slurm.identity import KnownJob
from refsam.orchestration.slurm.questions import run_command
from refsam.records.attempts import read_attempt
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.recovery import read_record
from refsam.records.status import State
from refsam.system.files import read_json, write_json

KIB_PER_GIB = 1024**2
SECONDS_PER_HOUR = 3600.0
_ENDED = (State.completed, State.failed)
_FIELDS = (
    *("JobID", "State", "ElapsedRaw", "Submit", "Start", "End", "MaxRSS", "AllocTRES", "NodeList"),
    "JobName",  # the last one, since it may have any character
)
_KIB = {"": 1 / 1024, "K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}


@dataclass(frozen=True)
class JobCost:
    """One start of a job: a job that was requeued has several. Seconds, hours and GiB.

    Attributes:
        submitted: or requeued, in seconds since 1970.
        state: Slurm's word for how it ended.
        queue_seconds: from its submission or requeue to its start; None: it never started.
        max_rss_gib: the largest that one of its steps had in memory when Slurm looked; misses the last spike.
    """

    job_id: str
    job_name: str
    submitted: float | None
    state: str
    node: str | None
    queue_seconds: float | None
    elapsed_seconds: float
    cpu_hours: float
    gpu_hours: float
    max_rss_gib: float | None


def record_costs(folder: RunsFolder, run_ids: Sequence[str]) -> str | None:
    """Write the costs of all ended runs that Slurm had and whose costs are not written yet.

    Returns:
        A sentence when sacct does not answer; nothing is written then, and the next call makes up for it.
    """
    wanted = {run_id: jobs for run_id in run_ids if (jobs := _missing(folder.run(run_id)))}
    if not wanted:
        return None
    numbers = sorted({job.job_id.partition("_")[0] for jobs in wanted.values() for job in jobs})
    try:
        costs = parse_costs(run_command(costs_command(",".join(numbers))))
    except SlurmUnavailable as error:
        return f"sacct does not answer ({error}): the cost of the runs is not known yet"
    for run_id, jobs in wanted.items():
        found = [
            cost
            for job in jobs
            for cost in costs.get(job.job_id, [])
            if job.is_called(cost.job_name, cost.submitted)
        ]
        # The accounting is some seconds late.
        all_known = {cost.job_id for cost in found} == {job.job_id for job in jobs}
        if all_known and all(_has_ended(cost) for cost in found):
            with contextlib.suppress(OSError):  # another person's run stays as it is
                _write(folder.run(run_id), found)
    return None


def costs_command(numbers: str) -> list[str]:
    """The jobs of `numbers` and their steps, every start of a job."""
    sacct = ["sacct", "--noheader", "--parsable2", "--duplicates", f"--jobs={numbers}"]
    return [*sacct, f"--format={','.join(_FIELDS)}"]


def parse_costs(text: str) -> dict[str, list[JobCost]]:
    """The starts of each job in their order, from lines of costs_command's fields, steps after their job."""
    costs: dict[str, list[JobCost]] = {}
    for line in text.splitlines():
        number, state, elapsed, submit, start, _, rss, tres, node, name = line.split("|", len(_FIELDS) - 1)
        job_id, is_step, _ = number.partition(".")
        if is_step:
            if job_id in costs:
                last = costs[job_id][-1]
                costs[job_id][-1] = replace(last, max_rss_gib=_larger(last.max_rss_gib, _gib(rss)))
            continue
        seconds = float(elapsed or 0)
        hours = seconds / SECONDS_PER_HOUR
        costs.setdefault(job_id, []).append(
            JobCost(
                job_id=job_id,
                job_name=name,
                submitted=float(submit) if submit.isdigit() else None,
                state=state.split()[0] if state else "UNKNOWN",
                node=None if node in ("", "None assigned") else node,
                queue_seconds=float(start) - float(submit) if start.isdigit() and submit.isdigit() else None,
                elapsed_seconds=seconds,
                cpu_hours=hours * _count(tres, "cpu"),
                gpu_hours=hours * _count(tres, "gres/gpu"),
                max_rss_gib=None,
            )
        )
    return costs


def _missing(paths: RunPaths) -> list[KnownJob]:
    """The jobs that have worked on an ended run, unless their costs are written."""
    status = read_record(paths)
    if status.state not in _ENDED:
        return []
    earlier = [read_attempt(paths, number) for number in range(1, status.attempt)]
    starts = [
        *((attempt.job_id, attempt.job_name, attempt.started_at) for attempt in earlier),
        (status.job_id, status.job_name, status.started_at),
    ]
    # Of a job that was cancelled before it began, the accounting may know nothing.
    names = {job: name for job, name, started in starts if job is not None and started is not None}
    jobs = [KnownJob(job, name, None) for job, name in names.items()]
    try:
        recorded = read_json(paths.costs)
        return [] if recorded["attempts"] == status.attempt else jobs
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return jobs


def _write(paths: RunPaths, costs: Sequence[JobCost]) -> None:
    values: dict[str, Any] = {
        "attempts": read_record(paths).attempt,
        "elapsed_seconds": sum(cost.elapsed_seconds for cost in costs),
        "queue_seconds": sum(cost.queue_seconds or 0.0 for cost in costs),
        "cpu_hours": sum(cost.cpu_hours for cost in costs),
        "gpu_hours": sum(cost.gpu_hours for cost in costs),
        "max_rss_gib": max(
            (cost.max_rss_gib for cost in costs if cost.max_rss_gib is not None), default=None
        ),
        "jobs": [asdict(cost) for cost in costs],
    }
    paths.results.mkdir(exist_ok=True)
    write_json(paths.costs, values)


def _has_ended(cost: JobCost) -> bool:
    return cost.state not in ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "UNKNOWN")


def _count(tres: str, name: str) -> int:
    """How many of a trackable resource; of GPUs also where only their type is counted."""
    exact = re.search(rf"(?:^|,){name}=(\d+)", tres)
    if exact is not None:
        return int(exact[1])
    return sum(int(number) for number in re.findall(rf"(?:^|,){name}:[^=,]+=(\d+)", tres))


def _gib(rss: str) -> float | None:
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", rss)
    return None if match is None else float(match[1]) * _KIB[match[2]] / KIB_PER_GIB


def _larger(one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return max(known) if known else None
