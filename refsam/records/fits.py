"""What `refsam fit` measured: steps, and what fits where. One JSON file each; needs no torch.

A Measurement is one training step under a limit of memory. A Fit is what follows from several of them for a
model on a resource, and what other parts use: `object_chunk=auto` and the estimate of a run's time.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from refsam.configuration.resources import folder
from refsam.configuration.schema import AUTO, RefsamConfig
from refsam.models.families import HUGGING_FACE
from refsam.models.strategies import TRAIN
from refsam.records.paths import file_name
from refsam.system.files import read_json, write_json

Record = TypeVar("Record", bound="StepMeasurement | Fit")

# Of the memory: the rest is for what a step does not show (another patch, the evaluation, the system).
SAFETY_MARGIN = 0.1
# A fit with much less memory than there is may have saved where nothing needs to be saved.
LARGEST_RATIO = 2.0
# The controller rounds a limit to pages, and systems count their memory differently.
SAME_MEMORY = 1.02
# Fit.limited_by of what was counted on fake tensors and not measured.
FORECAST = "forecast"


class StepOutcome(StrEnum):
    """How a measured step ended."""

    fits = "fits"
    out_of_memory = "out_of_memory"
    failed = "failed"


@dataclass(frozen=True)
class Setup:
    """What the memory of a training step depends on, besides the number of objects and the savings."""

    architecture: str
    shape: str | None  # of a model of our own: a hash of its sizes
    strategy: str
    decoder: bool
    patch_shape: tuple[int, int]
    batch_size: int
    optimizer: str
    optimizer_in_backward: bool
    joint: str | None
    precision: str  # as asked for: `auto` is the same one on the same hardware
    attention: str
    device: str  # cpu or cuda

    @classmethod
    def of(cls, config: RefsamConfig, device: str) -> "Setup":
        """The setup of a run whose strategy is resolved, on `cpu` or `cuda`."""
        model, peft, train = config.model, config.peft, config.train
        shape = None if model.custom is None else _digest(asdict(model.custom))
        if model.family == HUGGING_FACE:  # the same architecture, computed by other code
            shape = f"{HUGGING_FACE} {shape or model.hub_id or model.name}"
        strategy = [peft.name, *peft.freeze, *([] if peft.decoder == TRAIN else [f"decoder {peft.decoder}"])]
        if peft.rank is not None:
            strategy += [f"rank {peft.rank}", *peft.update_matrices]
        strategy += [
            f"{name} {value}"
            for name, value in (
                ("projection", peft.projection),
                ("share", peft.share),
                ("targets", peft.targets),
                ("quantization", peft.quantization),
                ("quantized layers", peft.quantized_layers),
                ("options", peft.options),
            )
            if value
        ]
        rows, columns = train.patch_shape
        return cls(
            architecture=model.architecture,
            shape=shape,
            strategy=" ".join(strategy),
            decoder=train.decoder,
            patch_shape=(rows, columns),
            batch_size=train.batch_size,
            optimizer=train.optimizer
            if train.accumulate == 1
            else f"{train.optimizer} after {train.accumulate} batches",
            optimizer_in_backward=train.optimizer_in_backward,
            joint=train.joint if train.decoder else None,
            precision=str(train.precision),
            attention=train.attention,
            device=device,
        )


@dataclass(frozen=True)
class FitStep:
    """One training step: what is computed, and with which savings (None: micro-sam's step has none)."""

    engine: str
    n_objects: int
    n_sub_iterations: int
    object_chunk: int | None = None
    checkpoint_encoder: bool | None = None
    checkpoint_decoder: bool | None = None


@dataclass(frozen=True)
class StepMeasurement:
    """One step as it was measured.

    Memory in GiB is of the whole process without the pages of files, which the kernel can give back; on a
    GPU it is of torch's allocator.
    """

    setup: Setup
    step: FitStep
    hardware: str
    threads: int
    limit_gib: float
    limited_by: str  # cgroup, rlimit or cuda
    outcome: StepOutcome
    message: str | None = None
    seconds: float | None = None
    peak_gib: float | None = None
    base_gib: float | None = None  # before the first step
    precision: str | None = None  # what `auto` was
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Largest:
    """What one way to compute a step fits into the memory.

    `seconds` and `step_peak_gib` are of a step with the number of objects that the fit was asked for.
    """

    n_objects: int  # the largest number; 0: not even one
    complete: bool  # whether more were tried and did not fit, or were not asked for
    peak_gib: float | None = None  # with the largest number
    seconds: float | None = None
    step_peak_gib: float | None = None
    object_chunk: int | None = None
    checkpoint_encoder: bool | None = None
    checkpoint_decoder: bool | None = None


@dataclass(frozen=True)
class Fit:
    """What fits for a model and a strategy on a resource, or into a limit that stands for it."""

    resource: str
    model: str
    peft: str
    setup: Setup
    memory_gib: float
    simulated: bool  # a limit on another machine: the memory is real, the seconds are the other machine's
    limited_by: str
    hardware: str
    threads: int
    precision: str | None
    n_objects: int  # asked for
    n_sub_iterations: int
    most_objects: int  # more were not looked for
    micro_sam: Largest | None
    refsam: Largest | None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def is_forecast(self) -> bool:
        """Whether it was counted without taking a step, so that it knows no seconds."""
        return self.limited_by == FORECAST

    @property
    def name(self) -> str:
        """Of its file: readable parts, and a hash of the rest."""
        name = f"{self.resource}-{self.model}-{self.peft}-{self.memory_gib:g}gb-{_digest(self.identity)}"
        return file_name(name)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What distinguishes it from other fits, whatever was found."""
        asked = (self.n_objects, self.n_sub_iterations, self.most_objects)
        return (self.resource, self.setup, self.memory_gib, self.hardware, self.threads, *asked)

    def needed_gib(self, n_objects: int, engine: str) -> float | None:
        """GiB of memory that are enough for a step of `n_objects` objects; None where it does not say.

        Where it was measured to peak lower than the memory it was fitted into, less is enough.
        """
        way = self.micro_sam if engine == "micro_sam" else self.refsam
        if way is None or way.n_objects < max(1, n_objects):
            return None
        peaks = [way.peak_gib, way.step_peak_gib if n_objects <= self.n_objects else None]
        known = [peak / (1 - SAFETY_MARGIN) for peak in peaks if peak is not None]
        return min([self.memory_gib, *known])


class FitsFolder:
    """The files of one folder of fits: `runs/fits`, or those that refsam ships."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def measurements(self) -> Path:
        return self.root / "measurements"

    @property
    def table(self) -> Path:
        """The table without its ending: `.csv` and `.md`."""
        return self.root / "fits"

    def add_measurement(self, measurement: StepMeasurement) -> None:
        _write(self.measurements, _digest(asdict(measurement)), measurement)

    def add_fit(self, fit: Fit) -> Fit:
        """Write a fit in place of an earlier one of the same kind, which fills in what this one has not."""
        earlier = next((other for other in self.read_fits() if other.identity == fit.identity), None)
        if earlier is not None:
            fit = replace(
                fit,
                micro_sam=fit.micro_sam or earlier.micro_sam,
                refsam=fit.refsam or earlier.refsam,
                # Not known from steps of which none has fitted.
                precision=fit.precision or earlier.precision,
                versions=fit.versions or earlier.versions,
            )
        _write(self.root, fit.name, fit)
        return fit

    def read_measurements(self) -> list[StepMeasurement]:
        """All steps that were measured; a damaged file is as if it were not there, and is measured again."""
        return list(_read(self.measurements, _measurement))

    def read_fits(self) -> list[Fit]:
        """All fits; a damaged file is as if it were not there."""
        return list(_read(self.root, _fit))


def known_fits(runs: Path) -> list[Fit]:
    """Fits of the runs folder `runs`, then those that refsam ships and that were not made again.

    What was measured comes before what was only forecast.
    """
    own = FitsFolder(runs / "fits").read_fits()
    made = {fit.identity for fit in own}
    fits = [*own, *(fit for fit in FitsFolder(folder("fits")).read_fits() if fit.identity not in made)]
    return sorted(fits, key=lambda fit: fit.is_forecast)


def fit_for(
    fits: Iterable[Fit], setup: Setup, precision: str, memory_gib: float, n_objects: int
) -> Fit | None:
    """The fit whose savings a step of `n_objects` objects can take on a machine with `memory_gib`, or None.

    It has the same setup, was measured with at most this memory and more than half of it, and with at least
    as many objects. Of several a measured one, the one with the most memory, and then the first.

    Args:
        precision: the arithmetic that the step really has.
    """
    found = [
        fit
        for fit in fits
        if same_setup(fit, setup, precision)
        and fit.memory_gib <= memory_gib * SAME_MEMORY
        and fit.memory_gib * LARGEST_RATIO > memory_gib
        and fit.refsam is not None
        and fit.refsam.object_chunk is not None
        and fit.refsam.n_objects >= n_objects
    ]
    return max(found, key=lambda fit: (not fit.is_forecast, fit.memory_gib), default=None)


def seconds_per_step(fits: Iterable[Fit], config: RefsamConfig) -> float | None:
    """Seconds of one training step of a resolved run as `refsam fit` measured them on its own resource.

    None where nobody did: seconds of a simulated resource are those of another machine.
    """
    device = "cuda" if config.resource.device == "cuda" else "cpu"
    setup = Setup.of(config, device)
    for fit in fits:
        largest = fit.micro_sam if config.train.engine == "micro_sam" else fit.refsam
        if (
            not fit.simulated
            and fit.resource == config.resource.name
            and fit.setup == setup
            and (fit.n_objects, fit.n_sub_iterations) == (config.n_objects, config.train.n_sub_iterations)
            and largest is not None
            and largest.seconds is not None
        ):
            return largest.seconds
    return None


def same_setup(fit: Fit, setup: Setup, precision: str) -> bool:
    """Whether a fit is of this setup in this arithmetic, which may have been asked for as `auto`."""
    without = {"precision": AUTO}
    return fit.precision == precision and {**asdict(fit.setup), **without} == {**asdict(setup), **without}


def _write(root: Path, name: str, record: Any) -> None:
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / f"{name}.json", asdict(record))


def _read(root: Path, parse: Any) -> Iterable[Any]:
    for path in sorted(root.glob("*.json")):
        try:
            yield parse(read_json(path))
        except (AttributeError, KeyError, TypeError, ValueError):
            continue


def _measurement(values: dict[str, Any]) -> StepMeasurement:
    return StepMeasurement(
        **_known(StepMeasurement, values)
        | {"setup": _setup(values["setup"]), "step": FitStep(**values["step"])}
        | {"outcome": StepOutcome(values["outcome"])}
    )


def _fit(values: dict[str, Any]) -> Fit:
    ways = {
        name: None if values[name] is None else Largest(**values[name]) for name in ("micro_sam", "refsam")
    }
    return Fit(**_known(Fit, values) | {"setup": _setup(values["setup"])} | ways)


def _setup(values: dict[str, Any]) -> Setup:
    rows, columns = values["patch_shape"]
    return Setup(**values | {"patch_shape": (rows, columns)})


def _known(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    names = {item.name for item in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:10]
