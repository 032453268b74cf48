"""How long the finished runs of a runs folder took: what the estimate of a plan is made from, if possible."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from refsam.configuration.schema import Kind, RefsamConfig
from refsam.records.metrics import read_metrics
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.recovery import read_record
from refsam.records.status import State
from refsam.records.training import read_training
from refsam.system.files import read_yaml_sections

RUNS_READ = 150  # at most, for all keys: a prompt answers at once, however many runs a folder has
RUNS_PER_KEY = 20

_TRAINING = ("patch_shape", "batch_size", "n_sub_iterations", "decoder", "engine")


@dataclass(frozen=True)
class Key:
    """What runs must have in common for the time of one to tell that of the other."""

    kind: str
    architecture: str
    strategy: str
    resource: str
    on_slurm: bool
    n_objects: str
    training: tuple[str, ...]

    @property
    def marks(self) -> tuple[str, ...]:
        """What the ids of such runs have in them."""
        if self.kind == Kind.baseline:
            return ("-initial-",)
        return tuple(
            "-" + re.sub(r"[^A-Za-z0-9_.]", "_", name) + "-" for name in (self.strategy, self.resource)
        )


@dataclass(frozen=True)
class FinishedRun:
    """What one completed run took.

    Attributes:
        n_images: it was trained with.
        seconds_per_step: of training, validation included; None for a baseline.
        steps_per_epoch: None for a baseline.
        best_epoch: counted from 0; None for a baseline.
        evaluation: seconds per image of each mode.
        n_test_images: that were evaluated.
        overhead: seconds that were neither training nor evaluation; None where several attempts were made.
    """

    n_images: int
    seconds_per_step: float | None
    steps_per_epoch: float | None
    best_epoch: int | None
    evaluation: dict[str, float]
    n_test_images: int
    overhead: float | None


def key_of(config: RefsamConfig, on_slurm: bool) -> Key:
    """The key of a run that is planned."""
    return _key(
        kind=config.kind,
        architecture=config.model.architecture,
        strategy=config.peft.name,
        resource=config.resource.name,
        on_slurm=on_slurm,
        n_objects=config.n_objects,
        training={name: getattr(config.train, name) for name in _TRAINING},
    )


def finished_runs(folder: RunsFolder, keys: Iterable[Key]) -> dict[Key, list[FinishedRun]]:
    """The completed runs for each key: of many, RUNS_PER_KEY. Damaged records are passed over."""
    found: dict[Key, list[FinishedRun]] = {key: [] for key in keys}
    read = 0
    for marks, run_ids in _candidates(folder, {key.marks for key in found}).items():
        wanted = [key for key in found if key.marks == marks]
        for run_id in run_ids:
            if read == RUNS_READ or all(len(found[key]) >= RUNS_PER_KEY for key in wanted):
                break
            read += 1
            known = _read(folder.run(run_id))
            if known is not None and known[0] in wanted:
                found[known[0]].append(known[1])
    return found


def _candidates(folder: RunsFolder, marks: set[tuple[str, ...]]) -> dict[tuple[str, ...], list[str]]:
    """The runs whose ids have the marks in them, so that not all of a large folder are read."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder.root))
    except FileNotFoundError:
        names = []
    return {each: [name for name in names if all(mark in name for mark in each)] for each in sorted(marks)}


def _read(paths: RunPaths) -> tuple[Key, FinishedRun] | None:
    try:
        status = read_record(paths)
        if status.state is not State.completed:
            return None
        sections = ("kind", "model", "peft", "resource", "train", "n_objects", "n_images")
        kind, model, peft, resource, train, n_objects, n_images = read_yaml_sections(paths.config, *sections)
        metrics = read_metrics(paths.metrics)
        training = None if kind == Kind.baseline else read_training(paths.training)
        key = _key(
            kind=kind,
            architecture=model["architecture"],
            strategy=peft["name"],
            resource=resource["name"],
            on_slurm=status.job_id is not None,
            n_objects=n_objects,
            training=train,
        )
        per_image: dict[str, float] = {}
        for row in metrics:
            if row["seconds_per_image"] is not None:
                per_image[row["mode"]] = per_image.get(row["mode"], 0.0) + float(row["seconds_per_image"])
        n_test_images = max((int(row["n_test_images"]) for row in metrics), default=0)
        spent = sum(per_image.values()) * n_test_images + (training["seconds_total"] if training else 0.0)
        overhead = None
        if status.attempt == 1 and status.started_at is not None and status.ended_at is not None:
            begin, end = datetime.fromisoformat(status.started_at), datetime.fromisoformat(status.ended_at)
            overhead = max(0.0, (end - begin).total_seconds() - spent)
        return key, FinishedRun(
            n_images=int(n_images),
            seconds_per_step=None if training is None else training["seconds_total"] / training["iterations"],
            steps_per_epoch=None if training is None else training["iterations"] / training["epochs"],
            best_epoch=None if training is None else int(training["best_epoch"]),
            evaluation=per_image,
            n_test_images=n_test_images,
            overhead=overhead,
        )
    except (AttributeError, KeyError, OSError, TypeError, ValueError, ZeroDivisionError):
        return (
            None  # what its records say of its time cannot be used; the results' table names what is damaged
        )


def _key(
    *,
    kind: str,
    architecture: str,
    strategy: str,
    resource: str,
    on_slurm: bool,
    n_objects: Any,
    training: dict[str, Any],
) -> Key:
    if kind == Kind.baseline:  # it trains nothing, whatever its configuration says of training
        return Key(str(kind), architecture, "", resource, on_slurm, "", ())
    values = tuple(str(training[name]) for name in _TRAINING)
    return Key(str(kind), architecture, strategy, resource, on_slurm, str(n_objects), values)
