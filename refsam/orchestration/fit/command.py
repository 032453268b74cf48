"""`refsam fit`: every combination in turn, what was found written at once, and the table at the end."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from refsam.configuration.schema import AUTO, RefsamConfig
from refsam.errors import ConfigError
from refsam.models.strategies import DECODER
from refsam.orchestration.fit.forecast import NO_MACHINE, Counter, Forecaster, forecast_requests
from refsam.orchestration.fit.limits import CUDA
from refsam.orchestration.fit.measure import Measurer, Say
from refsam.orchestration.fit.requests import FitRequest, LeftOut, place
from refsam.orchestration.fit.search import Goal, search_micro_sam, search_refsam
from refsam.records.fits import FORECAST, Fit, FitsFolder, Largest, StepOutcome
from refsam.system.signals import handling

MICRO_SAM, REFSAM = "micro_sam", "refsam"
ENGINES = (REFSAM, MICRO_SAM)
PATCH_PIXELS = 512 * 512


@dataclass(frozen=True)
class Options:
    """What the command line says besides the overrides."""

    limit_gib: float | None = None
    most_objects: int = 45
    minutes: float | None = None
    engines: tuple[str, ...] = ENGINES
    again: bool = False  # measure also what was measured before
    forecast: bool = False  # count on fake tensors in place of measuring


def requests_of(
    combinations: Sequence[tuple[tuple[str, ...], RefsamConfig]], options: Options, on_the_resource: bool
) -> tuple[list[FitRequest], list[LeftOut]]:
    """What can be fitted on this machine, and what cannot. Raises ConfigError where that is everything."""
    possible = [each for each in combinations if _engines(each[1], options)]
    left_out = [
        LeftOut(each[0], "--engine must be refsam with peft=decoder, got 'micro_sam'")
        for each in combinations
        if each not in possible
    ]
    if options.forecast:
        requests, without = forecast_requests(possible, options.limit_gib)
    else:
        placed = [place(*each, options.limit_gib, on_the_resource) for each in possible]
        requests = [item for item in placed if isinstance(item, FitRequest)]
        without = [item for item in placed if isinstance(item, LeftOut)]
    left_out += without
    if not requests:
        more = f" (and {len(left_out) - 1} more combinations)" if len(left_out) > 1 else ""
        raise ConfigError(left_out[0].reason + more)
    return requests, left_out


def fit_all(requests: Sequence[FitRequest], options: Options, folder: FitsFolder, say: Say) -> list[Fit]:
    """The fits of all requests, each written when it is known.

    Raises KeyboardInterrupt on Ctrl-C, SIGTERM and a closed terminal, with every process and cgroup gone and
    every finished measurement kept; and RunFailed as Measurer does.
    """
    deadline = float("inf") if options.minutes is None else time.monotonic() + 60 * options.minutes
    known = [] if options.again or options.forecast else folder.read_measurements()
    fits = []
    stops = (signal.SIGTERM, signal.SIGHUP)
    with handling(stops, _interrupt), Counter(folder, options.again) as counter:
        for request in requests:
            if options.forecast:
                measure: Measurer | Forecaster = Forecaster(request, counter, say)
            else:
                measure = Measurer(request, known, folder, say, deadline)
            fits.append(folder.add_fit(_fit(request, options, measure)))
    return fits


def _fit(request: FitRequest, options: Options, measure: Measurer | Forecaster) -> Fit:
    config = request.config
    rows, columns = config.train.patch_shape
    goal = Goal(
        n_objects=config.n_objects,
        most_objects=max(options.most_objects, config.n_objects),
        n_sub_iterations=config.train.n_sub_iterations,
        usable_gib=request.usable_gib,
        area=config.train.batch_size * rows * columns / PATCH_PIXELS,
        architecture=config.model.architecture,
        trains_encoder="image_encoder" not in config.peft.freeze,
        has_decoder=config.train.decoder,
        on_cpu=request.setup.device != CUDA,
        object_chunk=None if config.train.object_chunk == AUTO else int(config.train.object_chunk),
        has_seconds=not options.forecast,
    )
    found: dict[str, Largest] = {}
    for engine, search in ((REFSAM, search_refsam), (MICRO_SAM, search_micro_sam)):
        if engine in _engines(config, options):
            found[engine] = search(goal, measure)
    one = next((item for item in measure.used if item.outcome is StepOutcome.fits), None)
    limited_by = one.limited_by if one else "cgroup"
    if request.setup.device == CUDA:
        limited_by = CUDA
    if options.forecast:
        limited_by = FORECAST
    return Fit(
        resource=config.resource.name,
        model=config.model.name,
        peft=config.peft.name,
        setup=request.setup,
        memory_gib=request.memory_gib,
        simulated=request.simulated,
        limited_by=limited_by,
        hardware=request.hardware,
        threads=measure.threads,
        precision=request.setup.precision if options.forecast else one.precision if one else None,
        n_objects=goal.n_objects,
        n_sub_iterations=goal.n_sub_iterations,
        most_objects=goal.most_objects,
        micro_sam=found.get(MICRO_SAM),
        refsam=found.get(REFSAM),
        versions=one.versions if one else {},
    )


def _engines(config: RefsamConfig, options: Options) -> list[str]:
    """Those that are asked for; micro-sam's step does not train the segmentation decoder alone."""
    return [each for each in options.engines if each == REFSAM or config.peft.name != DECODER]


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM and a closed terminal end the fit as Ctrl-C does: with its process and its cgroup."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def plan_lines(requests: Sequence[FitRequest], left_out: Sequence[LeftOut], folder: FitsFolder) -> list[str]:
    """What a fit would do, for a dry run."""
    known = len(folder.read_measurements())
    lines = [f"{known} steps are measured already in {folder.measurements}"]
    for request in requests:
        how = f"{'simulated by a limit on' if request.simulated else 'on'} {request.hardware}"
        if request.hardware == NO_MACHINE:
            how = f"forecast in {request.setup.precision}"
        asked = f"{request.config.n_objects} objects asked for"
        lines.append(f"{request.label}: {request.memory_gib:g} GiB, {how}; {asked}")
    return [*lines, *(f"left out: {item.reason}" for item in left_out)]


def folder_of(runs: Path) -> FitsFolder:
    return FitsFolder(runs / "fits")
