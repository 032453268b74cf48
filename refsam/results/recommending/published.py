"""What is known without own results: the study's times, the resources' tables, fits. No quality among it.

The study (micro-sam, finetuning/specialists/resource-efficient) published its quality as figures only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from refsam.configuration.early_stopping import epochs_until_stop
from refsam.configuration.resource_files import shipped_resources
from refsam.configuration.schema import ResourceConfig
from refsam.records.fits import Fit
from refsam.results.published import EARLY_STOPPING, EPOCHS, published_runs
from refsam.results.recommending.candidates import Candidate, Constraints, Memory, Time
from refsam.results.tables.wide import time_text

_MORE_EPOCHS = round(epochs_until_stop(-1, EARLY_STOPPING))  # after the best one
# Without published weights: nobody finetunes it for a result.
_TOY = "vit_nano"
PATCH, BATCH = (512, 512), 1  # of the study, and of what its table holds for

_Key = tuple[str, str]  # model and strategy


@dataclass(frozen=True)
class _Option:
    """One way to know that a model and a strategy fit."""

    memory: Memory
    n_objects: int
    resource: str | None  # None: from a fit
    timed: bool = False  # the study has published how long it took


def known_candidates(limits: Constraints, fits: Sequence[Fit]) -> list[Candidate]:
    """Settings of the limits' device, whether they keep the limits or not, in the order to be named in.

    As no quality is known, the order is: what has the most training images, then what is known to take the
    shortest time, then what needs the least memory.
    """
    resources = {
        name: resource
        for name, resource in shipped_resources().items()
        if resource.device == limits.device and resource.device_memory_gb is not None
    }
    times = published_runs()
    times = times[times["resource"].isin(resources)]
    options = _options(resources, times, fits, limits.device)
    found: list[Candidate] = []
    for (model, strategy), known in options.items():
        option = _best_option(known, limits)
        rows = times[(times["model"] == model) & (times["strategy"] == strategy)]
        found += _candidates(model, strategy, option, rows, resources, limits)
    return sorted(found, key=_order)


def table_memory(architecture: str, strategy: str, n_objects: int, device: str) -> Memory | None:
    """The least memory that a resource's file says is enough for so many objects; None where none does.

    It holds for the study's training: patches of 512 × 512 pixels, one at a time.
    """
    known = [
        Memory(float(memory), _of_table(resource, architecture))
        for resource in shipped_resources().values()
        if resource.device == device
        and (memory := resource.device_memory_gb) is not None
        and (setting := resource.settings.get(architecture)) is not None
        and setting.peft == strategy
        and n_objects <= setting.n_objects
    ]
    return min(known, key=lambda memory: memory.gib, default=None)


def fit_memory(fits: Iterable[Fit], n_objects: int, engine: str) -> Memory | None:
    """The least memory that one of the fits says is enough for so many objects; None where none does.

    What was measured is asked first, and forecasts only where it does not say.
    """
    known = [
        (fit.is_forecast, needed, _of_fit(fit))
        for fit in fits
        if (needed := fit.needed_gib(n_objects, engine)) is not None
    ]
    return Memory(*min(known)[1:]) if known else None


def _options(
    resources: Mapping[str, ResourceConfig], times: pd.DataFrame, fits: Sequence[Fit], device: str
) -> dict[_Key, list[_Option]]:
    found: dict[_Key, list[_Option]] = {}
    published = times[["resource", "model", "strategy"]].drop_duplicates()
    for name, model, strategy in published.itertuples(index=False, name=None):
        resource = resources[name]
        words = f"the study trained it on {name} ({resource.device_memory_gb} GB)"
        memory = Memory(float(resource.device_memory_gb or 0), words)
        option = _Option(memory, resource.settings["vit_b"].n_objects, name, timed=True)
        found.setdefault((model, strategy), []).append(option)
    for name, resource in resources.items():
        for architecture, setting in resource.settings.items():
            if architecture != _TOY and resource.device_memory_gb is not None:
                memory = Memory(float(resource.device_memory_gb), _of_table(resource, architecture))
                option = _Option(memory, setting.n_objects, name)
                found.setdefault((architecture, setting.peft), []).append(option)
    usable = [
        fit
        for fit in fits
        if (fit.setup.device, fit.setup.patch_shape, fit.setup.batch_size) == (device, PATCH, BATCH)
        and fit.setup.decoder
        and fit.setup.architecture != _TOY
    ]
    for key, same in _by_key(usable).items():
        # A generalist has the same layers as the model that it was trained from.
        keys = {key, *(other for other in found if other[1] == key[1] and other[0].startswith(f"{key[0]}_"))}
        for fit in _that_fit(same):
            assert fit.refsam is not None
            n_objects = min(fit.n_objects, fit.refsam.n_objects)
            needed = fit_memory([fit], n_objects, "refsam")
            if needed is not None:
                for each in keys:
                    found.setdefault(each, []).append(_Option(needed, n_objects, None))
    return found


def _that_fit(fits: Iterable[Fit]) -> list[Fit]:
    """Those with a step of ours that fits: the measured ones, and forecasts only where there are none."""
    fitting = [fit for fit in fits if fit.refsam is not None and fit.refsam.n_objects > 0]
    return [fit for fit in fitting if not fit.is_forecast] or fitting


def _by_key(fits: Iterable[Fit]) -> dict[_Key, list[Fit]]:
    found: dict[_Key, list[Fit]] = {}
    for fit in fits:
        found.setdefault((fit.model, fit.peft), []).append(fit)
    return found


def _best_option(options: Sequence[_Option], limits: Constraints) -> _Option:
    """Of those that fit what the study trained in the largest memory; of those that do not the smallest."""
    fitting = [option for option in options if option.memory.gib <= limits.memory_gib]
    if not fitting:
        return min(options, key=lambda option: option.memory.gib)
    return max(fitting, key=lambda option: (option.timed, option.resource is not None, option.memory.gib))


def _candidates(
    model: str,
    strategy: str,
    option: _Option,
    times: pd.DataFrame,
    resources: Mapping[str, ResourceConfig],
    limits: Constraints,
) -> list[Candidate]:
    """One for each published number of images; one without a time where nothing is published."""
    values: dict[str, Any] = {"dataset": None, "model": model, "weights": "pretrained"}
    values |= {"resource": option.resource, "strategy": strategy, "n_objects": option.n_objects}
    if times.empty:
        count = 10 if limits.n_images is None else min(10, limits.n_images)
        return [Candidate({**values, "n_images": count}, option.memory, None)]
    place = _timed_resource(option, set(times["resource"]), resources, limits)
    found = []
    for row in times[times["resource"] == place].to_dict("records"):
        if limits.n_images is not None and row["n_images"] > limits.n_images:
            continue
        best_epoch, best = float(row["best_epoch"]), float(row["seconds_to_best"])
        epochs = min(EPOCHS, epochs_until_stop(best_epoch, EARLY_STOPPING))
        in_all = best / (best_epoch + 1) * epochs
        words = (
            f"the study's {time_text(best)} to its best epoch on {place}, and {_MORE_EPOCHS} more epochs "
            "until early stopping; without the evaluation"
        )
        if option.resource is None:
            words += "; with micro-sam's step, which needs more memory"
        found.append(
            Candidate({**values, "n_images": int(row["n_images"])}, option.memory, Time(in_all, words))
        )
    return found


def _timed_resource(
    option: _Option, timed: set[str], resources: Mapping[str, ResourceConfig], limits: Constraints
) -> str:
    """Where the times come from: the resource that the option is of, else the one with the nearest memory."""
    if option.resource in timed:
        return str(option.resource)

    def memory(name: str) -> float:
        return float(resources[name].device_memory_gb or 0)

    smaller = [name for name in timed if memory(name) <= limits.memory_gib]
    return max(smaller, key=memory) if smaller else min(timed, key=memory)


def _order(candidate: Candidate) -> tuple[int, bool, float, float]:
    seconds = candidate.time.seconds if candidate.time is not None else 0.0
    gib = candidate.memory.gib if candidate.memory is not None else 0.0
    return -int(candidate.values["n_images"]), candidate.time is None, seconds, gib


def _of_table(resource: ResourceConfig, architecture: str) -> str:
    source = resource.settings[architecture].source
    return f"the table of {resource.name} ({resource.device_memory_gb} GB; {source})"


def _of_fit(fit: Fit) -> str:
    if fit.is_forecast:
        return f"refsam fit --forecast for {fit.memory_gib:g} GB, {fit.precision}, not measured"
    simulated = "under a limit of" if fit.simulated else "in"
    return f"refsam fit, {simulated} {fit.memory_gib:g} GB on {fit.hardware}, {fit.precision}"
