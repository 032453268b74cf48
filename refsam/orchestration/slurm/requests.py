"""What Slurm is asked for: the jobs of a run, runs grouped by them, words for a person, times in minutes."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from refsam.errors import ConfigError
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.run import Run

if TYPE_CHECKING:  # importing the schema imports Hydra, which those who only look at a sweep do without
    from refsam.configuration.schema import RefsamConfig, RequestConfig


SomeRun = TypeVar("SomeRun", bound=Run)


@dataclass(frozen=True)
class Jobs:
    """What Slurm is asked for to complete a run.

    Attributes:
        first: of the job that does what is to be done next.
        then: of the job that evaluates the run when the first has trained it; None where the first one does.
    """

    first: "RequestConfig"
    then: "RequestConfig | None" = None

    @property
    def requests(self) -> "list[RequestConfig]":
        return [self.first] if self.then is None else [self.first, self.then]


def jobs_of(config: "RefsamConfig", paths: RunPaths) -> Jobs:
    """The jobs of a run, by `evaluate.where` and by whether it is trained already."""
    elsewhere = config.evaluate.resource
    if elsewhere is None:
        return Jobs(config.resource.request)
    if config.kind == "baseline" or paths.training.exists():
        return Jobs(elsewhere.request)
    return Jobs(config.resource.request, elsewhere.request)


def by_jobs(runs: Sequence[SomeRun], folder: RunsFolder) -> list[tuple[Jobs, list[SomeRun]]]:
    """The runs grouped by what Slurm is asked for, in order of appearance."""
    groups: dict[tuple[object, ...], tuple[Jobs, list[SomeRun]]] = {}
    for run in runs:
        jobs = jobs_of(run.config, folder.run(run.run_id))
        groups.setdefault(dataclasses.astuple(jobs), (jobs, []))[1].append(run)
    return list(groups.values())


def request_text(request: "RequestConfig") -> str:
    """`partition gpu, 1 × V100, 8 cores, 32 GiB, 2-00:00:00`."""
    parts = [] if request.partition is None else [f"partition {request.partition}"]
    parts.append("no GPU" if not request.gpus else f"{request.gpus} × {request.gpu or 'GPU'}")
    parts.append(f"{request.cores} cores")
    parts += [] if request.memory_gb is None else [f"{request.memory_gb} GiB"]
    parts.append(request.time)
    return ", ".join(parts)


def jobs_text(jobs: Jobs) -> str:
    """`partition gpu, 1 × V100, 8 cores, 32 GiB, 2-00:00:00; evaluated on partition medium, …`."""
    text = request_text(jobs.first)
    return text if jobs.then is None else f"{text}; evaluated on {request_text(jobs.then)}"


def slurm_time(minutes: int) -> str:
    """`2-00:00:00`, as a person reads it."""
    return f"{minutes // 1440}-{minutes // 60 % 24:02}:{minutes % 60:02}:00"


def minutes(time: str) -> int:
    """Minutes, rounded up, of Slurm's M, M:S, H:M:S, D-H, D-H:M and D-H:M:S; ConfigError for any other
    time.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if match is None:
        raise ConfigError(f"resource.request.time must be D-HH:MM:SS or a part of it, got {time!r}")
    days, first, second, third = (None if part is None else int(part) for part in match.groups())
    if days is not None:
        seconds = ((days * 24 + (first or 0)) * 60 + (second or 0)) * 60 + (third or 0)
    elif third is not None:
        seconds = ((first or 0) * 60 + (second or 0)) * 60 + third
    else:
        seconds = (first or 0) * 60 + (second or 0)
    if seconds == 0:
        raise ConfigError(f"resource.request.time must be a time above 0, got {time!r}")
    return -(-seconds // 60)
