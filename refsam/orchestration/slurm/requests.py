"""What Slurm is asked for: the runs grouped by it, its words for a person, its times in minutes."""

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from refsam.errors import BadInput

if TYPE_CHECKING:  # importing the schema imports Hydra, which those who only look at a sweep do without
    from refsam.configuration.schema import RefsamConfig, RequestConfig


class Run(Protocol):
    """What Slurm needs to know of a planned run."""

    @property
    def run_id(self) -> str: ...

    @property
    def config(self) -> "RefsamConfig": ...


SomeRun = TypeVar("SomeRun", bound=Run)


def by_request(runs: Sequence[SomeRun]) -> "list[tuple[RequestConfig, list[SomeRun]]]":
    """The runs grouped by what Slurm is asked for, in order of appearance."""
    groups: dict[tuple[object, ...], tuple[RequestConfig, list[SomeRun]]] = {}
    for run in runs:
        request = run.config.resource.request
        groups.setdefault(dataclasses.astuple(request), (request, []))[1].append(run)
    return list(groups.values())


class Request(Protocol):
    """What is told of a request."""

    partition: str | None
    gpu: str | None
    gpus: int
    cores: int
    memory_gb: int
    time: str


def request_text(request: Request) -> str:
    """`partition gpu, 1 × V100, 8 cores, 32 GiB, 2-00:00:00`."""
    parts = [] if request.partition is None else [f"partition {request.partition}"]
    parts.append("no GPU" if not request.gpus else f"{request.gpus} × {request.gpu or 'GPU'}")
    parts += [f"{request.cores} cores", f"{request.memory_gb} GiB", request.time]
    return ", ".join(parts)


def minutes(time: str) -> int:
    """Minutes, rounded up, of Slurm's M, M:S, H:M:S, D-H, D-H:M and D-H:M:S; BadInput for any other time."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if match is None:
        raise BadInput(f"resource.request.time: {time!r} was given, allowed is D-HH:MM:SS or a part of it")
    days, first, second, third = (None if part is None else int(part) for part in match.groups())
    if days is not None:
        seconds = ((days * 24 + (first or 0)) * 60 + (second or 0)) * 60 + (third or 0)
    elif third is not None:
        seconds = ((first or 0) * 60 + (second or 0)) * 60 + third
    else:
        seconds = (first or 0) * 60 + (second or 0)
    if seconds == 0:
        raise BadInput(f"resource.request.time: {time!r} was given, allowed is a time above 0")
    return -(-seconds // 60)
