"""What the runs have cost: hours, GPU hours, core hours, and an estimate of their energy."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from refsam.records.attempts import read_attempts
from refsam.records.paths import RunPaths
from refsam.records.recovery import read_record
from refsam.results.report.sources import read_json_record
from refsam.system.files import read_yaml, read_yaml_sections

POWER = Path(__file__).with_name("power.yaml")
SOURCE = "https://doi.org/10.1002/advs.202100707"
_HOUR = 3600.0


@dataclass(frozen=True)
class Power:
    """What machines draw, in watts, and the data centre's power usage effectiveness.

    Attributes:
        gpus: parts of GPUs' names and their thermal design power; the first that fits counts.
    """

    watts_per_core: float
    watts_per_gib: float
    watts_per_gpu: float
    pue: float
    gpus: tuple[tuple[str, float], ...]

    def of_gpu(self, name: str | None) -> float:
        """Watts of a GPU by its name."""
        for part, watts in self.gpus:
            if re.search(rf"\b{re.escape(part)}\b", name or "", re.IGNORECASE):
                return watts
        return self.watts_per_gpu


@dataclass(frozen=True)
class Cost:
    """What some runs have cost: all their attempts, the failed ones, too. Hours, GiB × hours, kWh."""

    runs: int = 0
    hours: float = 0.0
    gpu_hours: float = 0.0
    core_hours: float = 0.0
    gib_hours: float = 0.0
    kwh: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(Cost)))


@dataclass(frozen=True)
class Costs:
    """Costs per resource and together, and the assumptions behind the energy.

    Attributes:
        gpus: names of the GPUs and the watts that each was taken to draw.
    """

    resources: list[tuple[str, Cost]]
    total: Cost
    power: Power
    gpus: list[tuple[str, float]]


def read_power(pue: float | None = None, gpu_watts: float | None = None) -> Power:
    """The figures of power.yaml, and instead of them what a person has measured."""
    values = read_yaml(POWER)
    gpus = tuple((str(name), float(watts)) for name, watts in values["gpus"])
    return Power(
        watts_per_core=values["watts_per_core"],
        watts_per_gib=values["watts_per_gib"],
        watts_per_gpu=values["watts_per_gpu"] if gpu_watts is None else gpu_watts,
        pue=values["pue"] if pue is None else pue,
        gpus=gpus if gpu_watts is None else (),
    )


def costs(frame: pd.DataFrame, runs: Mapping[str, RunPaths], power: Power) -> Costs:
    """What all runs of the table have cost.

    Slurm's accounting counts where there is one; else the times that the attempts wrote, with one GPU where a
    GPU was used, the threads of the run and the main memory that it had at most.
    """
    resources: dict[str, Cost] = {}
    gpus: dict[str, float] = {}
    columns = ["run_id", "resource", "device"]
    for row in frame.loc[frame["run_id"].notna(), columns].drop_duplicates("run_id").to_dict("records"):
        paths = runs[row["run_id"]]
        environment = read_json_record(paths.environment)
        name = environment.get("gpu")
        cost = _cost(paths, environment, power)
        if cost.gpu_hours > 0:
            gpus[str(name or "GPU, model not known")] = power.of_gpu(name)
        resource = "not known" if pd.isna(row["resource"]) else str(row["resource"])
        resources[resource] = resources.get(resource, Cost()) + cost
    return Costs(
        resources=sorted(resources.items()),
        total=sum(resources.values(), Cost()),
        power=power,
        gpus=sorted(gpus.items()),
    )


def _cost(paths: RunPaths, environment: dict[str, Any], power: Power) -> Cost:
    recorded = read_json_record(paths.costs)
    status = read_record(paths)
    attempts = read_attempts(paths, status.attempt)
    if recorded:
        hours = _number(recorded.get("elapsed_seconds")) / _HOUR
        gpu_hours, core_hours = _number(recorded.get("gpu_hours")), _number(recorded.get("cpu_hours"))
        gib_hours = hours * _number(_request(paths).get("memory_gb"))
    else:
        spans = [(each.started_at, each.ended_at or status.updated_at) for each in attempts]
        hours = sum(_hours(*span) for span in spans or [(status.started_at, status.ended_at)])
        device = str(environment.get("device") or status.device or "")
        gpu_hours = hours if device.startswith("cuda") else 0.0
        core_hours = hours * (_number(environment.get("threads")) or _number(_request(paths).get("cores")))
        gib_hours = hours * max((each.peak_memory_gib or 0.0 for each in attempts), default=0.0)
    watt_hours = gpu_hours * power.of_gpu(environment.get("gpu"))
    watt_hours += core_hours * power.watts_per_core + gib_hours * power.watts_per_gib
    return Cost(1, hours, gpu_hours, core_hours, gib_hours, watt_hours * power.pue / 1000)


def _hours(start: str | None, end: str | None) -> float:
    if start is None or end is None:
        return 0.0
    try:
        return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()) / _HOUR
    except (TypeError, ValueError):
        return 0.0


def _request(paths: RunPaths) -> Mapping[str, Any]:
    """What Slurm was asked for; nothing where the configuration cannot be read."""
    try:
        request = read_yaml_sections(paths.config, "resource")[0]["request"]
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return {}
    return request if isinstance(request, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
