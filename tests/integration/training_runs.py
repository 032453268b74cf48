"""Small real trainings for the tests: a model of a few thousand parameters on the images of discs."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from refsam.configuration.compose import compose
from refsam.configuration.schema import DatasetConfig, RefsamConfig
from refsam.records.paths import RunPaths
from refsam.science.data import training_loaders
from refsam.science.training.build import TrainingSummary, train
from refsam.science.training.recorder import Progress

TINY = (
    "model=vit_nano",
    "model.custom.image_size=64",
    "model.custom.patch_size=8",
    "model.custom.embed_dim=16",
    "model.custom.depth=2",
    "model.custom.num_heads=2",
    "model.custom.global_attn_indexes=[1]",
    "model.custom.window_size=4",
    "model.custom.prompt_embed_dim=16",
    "model.custom.decoder_mlp_dim=16",
    "model.custom.decoder_num_heads=2",
    "model.custom.unetr_features=2",
)
SHORT = (
    "peft=full",
    "resource=local",
    "resource.device=cpu",
    "n_objects=2",
    "n_images=1",
    "train.patch_shape=[160,160]",
    "train.min_samples=3",
    "train.validation_samples=2",
    "train.n_sub_iterations=2",
    "train.lr=1e-3",
    "train.epochs=2",
    "train.precision=float32",
)


# More threads than free cores make tiny layers a hundred times slower, and no test needs more than one.
torch.set_num_threads(1)


class Killed(Exception):
    """Stands for whatever ends a process in the middle of an epoch."""


def small_config(dataset: DatasetConfig, *overrides: str, model: tuple[str, ...] = TINY) -> RefsamConfig:
    return replace(compose([*model, *SHORT, *overrides]), dataset=dataset)


def run_training(
    config: RefsamConfig, root: Path, report: Callable[[Progress], None] = lambda progress: None
) -> tuple[RunPaths, TrainingSummary]:
    paths = RunPaths(root)
    paths.root.mkdir(exist_ok=True)
    return paths, train(config, paths, training_loaders(config), report)


def kill_at(iteration: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.iteration == iteration:
            raise Killed

    return report


def rows(paths: RunPaths, *dropped: str) -> list[dict[str, Any]]:
    """history.csv without the columns that tell the time, and those in `dropped`."""
    with paths.history.open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key not in ("seconds", "train_time", *dropped)}
            for row in csv.DictReader(file)
        ]
