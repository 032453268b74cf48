"""From overrides to what is to be fitted: every combination, where it is measured, and what cannot be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hydra import compose

from refsam.configuration.compose import combinations, hydra_session, without_hydra
from refsam.configuration.composition_errors import explained
from refsam.configuration.frozen import to_config
from refsam.configuration.schema import AUTO, RefsamConfig
from refsam.configuration.text_values import quote_text, split_override
from refsam.models.strategies import strategy_problem
from refsam.orchestration import machine
from refsam.orchestration.planning.checks import check_values, missing_setting
from refsam.records.fits import SAFETY_MARGIN, Setup
from refsam.system.cgroups import memory_gib

CPU, CUDA = "cpu", "cuda"
FREE_SHARE = 0.95  # of the memory that is free now; the rest is for who else is on the machine


@dataclass(frozen=True)
class FitRequest:
    """One row to be: a resolved configuration and the memory that it is fitted into, in GiB."""

    config: RefsamConfig
    overrides: tuple[str, ...]
    setup: Setup
    memory_gib: float
    simulated: bool
    hardware: str

    @property
    def label(self) -> str:
        config = self.config
        return f"{config.resource.name}, {config.model.name}, {config.peft.name}"

    @property
    def usable_gib(self) -> float:
        """The memory that a step may take."""
        return self.memory_gib * (1 - SAFETY_MARGIN)


@dataclass(frozen=True)
class LeftOut:
    """A combination that cannot be fitted here, and why in one sentence."""

    overrides: tuple[str, ...]
    reason: str


def resolve(overrides: Sequence[str]) -> list[tuple[tuple[str, ...], RefsamConfig]]:
    """Every combination of the values that are separated by commas, with `auto` strategies replaced.

    Raises ConfigError for what cannot be composed and for values that no run can have.
    """
    with explained(), hydra_session():
        return [(tuple(job), _with_strategy(job)) for job in combinations(overrides)]


def _with_strategy(job: list[str]) -> RefsamConfig:
    config = _compose(job)
    check_values(config)
    setting = config.resource.settings.get(config.model.architecture)
    if setting is not None and config.peft.name == AUTO:
        others = [override for override in job if split_override(override)[0] != "peft"]
        config = _compose([*others, f"peft={setting.peft}"])
    if setting is not None and config.n_objects == AUTO:
        config = replace(config, n_objects=setting.n_objects)
    # Memory and time do not depend on the weights, and those of a run may not be here.
    return replace(config, model=replace(config.model, weights="random"))


def _compose(job: list[str]) -> RefsamConfig:
    return to_config(without_hydra(compose("config", overrides=quote_text(job))))


def place(
    overrides: tuple[str, ...], config: RefsamConfig, limit_gib: float | None, on_the_resource: bool
) -> FitRequest | LeftOut:
    """Where a combination is measured on this machine.

    Args:
        limit_gib: in place of the resource's memory; None takes that.
        on_the_resource: whether this process is a job on the resource itself.
    """
    problem = problem_of(config)
    if problem is not None:
        return LeftOut(overrides, problem)
    gpus = machine.gpus() if config.resource.device != CPU else []
    device = CUDA if gpus else CPU
    if config.resource.device == CUDA and not gpus:
        return LeftOut(
            overrides,
            f"resource={config.resource.name}: memory of a GPU is measured on a GPU, and this machine has "
            "none; submit it with cluster=slurm, or measure on a machine with a larger one",
        )
    there = gpus[0].memory_gb if gpus else memory_gib()
    memory = limit_gib or stated_memory(config, device) or (there if gpus else free_memory(there))
    if memory > there * 1.02:
        return LeftOut(
            overrides,
            f"resource={config.resource.name}: {memory:g} GiB are to be fitted into, and this machine has "
            f"{there:.1f} GiB; a smaller machine cannot simulate a larger one",
        )
    return FitRequest(
        config=config,
        overrides=overrides,
        setup=Setup.of(config, device),
        memory_gib=float(memory),
        simulated=limit_gib is not None or not (on_the_resource or _is_this_machine(config)),
        hardware=gpus[0].name if gpus else machine.processor(),
    )


def problem_of(config: RefsamConfig) -> str | None:
    """Why no step of a combination can be taken anywhere, or None."""
    if AUTO in (config.peft.name, config.n_objects):
        return missing_setting(config)
    return strategy_problem(config.model, config.peft)


def free_memory(there: float) -> float:
    """Whole GiB of main memory whose usable part is free now, of the `there` GiB that the machine has.

    Nobody's laptop is empty: into all that it has, no step could be measured.
    """
    free = min(there, FREE_SHARE * machine.memory_available_gb() / (1 - SAFETY_MARGIN))
    return float(math.floor(free)) if free > 1 else free


def stated_memory(config: RefsamConfig, device: str) -> float | None:
    """GiB of the resource; None where it is whatever the machine has."""
    if device == CUDA:
        return config.resource.device_memory_gb
    return config.resource.request.memory_gb


def _is_this_machine(config: RefsamConfig) -> bool:
    """This machine as it is, or a GPU of the resource's type in it; a laptop is not another laptop."""
    resource = config.resource
    has_its_gpu = resource.request.gpu is not None and machine.matches(resource) is None
    return resource.name == "local" or has_its_gpu
