"""A whole training with the engine, and what `auto` chooses."""

import csv
from pathlib import Path

import pytest
import torch
from steps import Case, model_of
from torch_em.model import UNETR

from refsam.configuration.compose import compose
from refsam.configuration.schema import DatasetConfig, RefsamConfig
from refsam.records.paths import RunPaths
from refsam.science.data import training_loaders
from refsam.science.engine.setup import Savings, choose_savings, usable_memory
from refsam.science.models import load_model
from refsam.science.training import train

CPU = torch.device("cpu")
SMALL = (
    "resource.device=cpu",
    "model=vit_nano",
    "model.custom.image_size=64",
    "model.custom.embed_dim=24",
    "model.custom.depth=2",
    "model.custom.global_attn_indexes=[1]",
    "model.custom.window_size=4",
    "model.custom.prompt_embed_dim=32",
    "model.custom.unetr_features=2",
    "n_objects=3",
    "n_images=1",
    "train.patch_shape=[64,64]",
    "train.min_samples=3",
    "train.validation_samples=2",
    "train.n_sub_iterations=3",
    "train.lr=1e-4",
    "train.epochs=2",
    "train.max_steps=4",  # later steps may differ by a prompt, where rounding moved a mask by a pixel
    "train.precision=float32",
)
SAVINGS = ("train.object_chunk=2", "train.checkpoint_encoder=on", "train.attention=fused")


def history(dataset: DatasetConfig, root: Path, *overrides: str) -> list[dict[str, float]]:
    config = compose([*SMALL, *overrides])
    config.dataset = dataset
    root.mkdir()
    paths = RunPaths(root)
    train(config, paths, training_loaders(config), lambda progress: None)
    with paths.history.open(newline="") as file:
        return [
            {
                key: float(value)
                for key, value in row.items()
                if value and key not in ("seconds", "train_time")
            }
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("peft", ["full", "freeze_encoder", "lora"])
@pytest.mark.parametrize("decoder", ["true", "false"])
def test_a_training_has_the_history_that_micro_sams_step_gives(
    synthetic: DatasetConfig, tmp_path: Path, peft: str, decoder: str
) -> None:
    chosen = (f"peft={peft}", f"train.decoder={decoder}")
    ours = history(synthetic, tmp_path / "ours", *chosen, *SAVINGS)
    theirs = history(synthetic, tmp_path / "theirs", *chosen, "train.engine=micro_sam")
    assert len(ours) == len(theirs) > 0
    for row, expected in zip(ours, theirs, strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


def configured(*overrides: str) -> RefsamConfig:
    return compose(["resource=medium_8g", "resource.device=cpu", "peft=full", "n_objects=10", *overrides])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("train.object_chunk=3", "train.checkpoint_encoder=off"), Savings(3, None, True)),
        (("train.object_chunk=3", "train.checkpoint_encoder=false"), Savings(3, None, True)),
        (("train.object_chunk=3", "train.checkpoint_encoder=on"), Savings(3, 1, True)),
        (
            ("train.object_chunk=3", "train.checkpoint_encoder=2", "train.attention=eager"),
            Savings(3, 2, False),
        ),
    ],
)
def test_what_is_configured_is_used(overrides: tuple[str, ...], expected: Savings) -> None:
    assert choose_savings(configured(*overrides), model_of(Case()), CPU) == expected


def test_auto_saves_only_where_the_memory_asks_for_it() -> None:
    small, large = configured(), configured("resource.request.memory_gb=16")
    nano = model_of(Case())
    assert choose_savings(small, nano, CPU) == Savings(10, None, True)
    with torch.device("meta"):
        vit_b = load_model(configured("model=vit_b", "model.weights=random").model, 0, "meta").sam
    assert choose_savings(small, vit_b, CPU).checkpoint_every == 1
    assert choose_savings(large, vit_b, CPU).checkpoint_every is None
    assert choose_savings(configured("resource.request.memory_gb=3"), vit_b, CPU).object_chunk == 1


def test_a_decoder_that_does_not_fit_is_computed_again() -> None:
    config = configured("model=vit_b", "model.weights=random")
    with torch.device("meta"):
        vit_b = load_model(config.model, 0, "meta").sam
        unetr = UNETR(encoder=vit_b.image_encoder, out_channels=3, use_skip_connection=False)
    savings = choose_savings(config, vit_b, CPU, unetr)
    assert (savings.checkpoint_every, savings.checkpoint_decoder) == (1, True)
    assert not choose_savings(
        configured("resource.request.memory_gb=16"), vit_b, CPU, unetr
    ).checkpoint_decoder
    forced = configured("resource.request.memory_gb=16", "train.checkpoint_decoder=on")
    assert choose_savings(forced, vit_b, CPU, unetr).checkpoint_decoder


def test_memory_is_the_smallest_of_the_limits() -> None:
    assert usable_memory(configured(), CPU) == pytest.approx(0.8 * 8 - 1)
    assert usable_memory(configured("resource.request.memory_gb=100000"), CPU) < 10000
