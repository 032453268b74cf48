"""Trainings of both families of models with every kind of prompt, and without any."""

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import TINY, Killed, kill_at, rows, run_training, small_config

from refsam.configuration.prompts import BOXES, MIXED, NONE, POINTS, PROMPTS
from refsam.configuration.schema import DatasetConfig
from refsam.records.paths import RunPaths
from refsam.science.data import training_loaders
from refsam.science.models import SAM_CONFIG, load_whole
from refsam.science.training import losses
from refsam.science.training.build import build_training

FAMILIES = {"micro_sam": TINY, "hf": ("model=hf_tiny", *TINY[1:])}
ALL = {"point_coords", "point_labels", "boxes"}
# Of two steps, what the first sub-iteration of each has been given.
FIRST = {
    MIXED: [{"point_coords", "point_labels"}, {"boxes"}],
    POINTS: [{"point_coords", "point_labels"}] * 2,
    BOXES: [{"boxes"}] * 2,
    NONE: [set(), set()],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompts", PROMPTS)
def test_the_model_is_given_the_prompts_that_were_chosen(
    prompts: str, family: str, synthetic: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(
        synthetic, f"train.prompts={prompts}", "train.decoder=false", model=FAMILIES[family]
    )
    paths = RunPaths(tmp_path)
    given: list[set[str]] = []
    targets: list[torch.Tensor] = []

    def listen(module: object, args: object, kwargs: dict[str, Any]) -> None:
        given.append(ALL & set(kwargs["batched_inputs"][0]))

    compute = losses.dice_loss

    def compute_and_keep(outputs: Any, y_one_hot: torch.Tensor) -> Any:
        targets.append(y_one_hot)
        return compute(outputs, y_one_hot)

    monkeypatch.setattr(losses, "dice_loss", compute_and_keep)
    training = build_training(config, paths, training_loaders(config), lambda progress: None)
    training.learner.model.register_forward_pre_hook(listen, with_kwargs=True)
    rounds = 1 if prompts == NONE else config.train.n_sub_iterations
    for step, (x, y) in enumerate(list(training.loaders[0])[:2]):
        given.clear()
        targets.clear()
        training.step.interactive(x, y, step)
        assert len(given) == rounds
        assert given[0] == FIRST[prompts][step]
        if prompts == NONE:
            torch.testing.assert_close(targets[0][:, 0], (y > 0).float())
            assert targets[0].shape[1] == 1
        else:
            assert targets[0].shape[1] == config.n_objects


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoder", [False, True], ids=["interactive", "joint"])
def test_training_without_prompts_learns_the_union(
    family: str, decoder: bool, synthetic: DatasetConfig, tmp_path: Path
) -> None:
    config = small_config(
        synthetic,
        *("train.prompts=none", f"train.decoder={decoder}", "train.epochs=4", "train.min_samples=6"),
        model=FAMILIES[family],
    )
    paths, summary = run_training(config, tmp_path / "run")
    losses = [float(row["mask_loss"]) for row in rows(paths)]
    assert summary.epochs == 4
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_without_prompts_our_step_is_micro_sams(
    family: str, synthetic: DatasetConfig, tmp_path: Path
) -> None:
    losses = []
    for engine in ("refsam", "micro_sam"):
        overrides = ("train.prompts=none", "train.decoder=false", f"train.engine={engine}")
        config = small_config(synthetic, *overrides, model=FAMILIES[family])
        paths, _ = run_training(config, tmp_path / engine)
        losses.append([float(row["train_loss"]) for row in rows(paths)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_killed_run_of_a_hugging_face_model_continues(synthetic: DatasetConfig, tmp_path: Path) -> None:
    config = small_config(synthetic, "train.epochs=3", model=FAMILIES["hf"])
    whole, _ = run_training(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run_training(config, tmp_path / "killed", kill_at(4))
    continued, summary = run_training(config, tmp_path / "killed")
    assert summary.savings["attention"] == "sdpa"
    assert rows(continued) == rows(whole)
    first, second = (load_whole(paths.best, config.model, "cpu") for paths in (whole, continued))
    states = [sam.state_dict() for sam, _ in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert first[1] is not None  # the segmentation decoder
    init = torch.load(whole.best, weights_only=True)["init"]
    assert init[SAM_CONFIG]["vision_config"]["image_size"] == 64


def test_a_frozen_encoder_of_a_hugging_face_model_is_cached(synthetic: DatasetConfig, tmp_path: Path) -> None:
    """The engine's features work on either family: here embeddings kept on the disk, against none kept."""
    histories = []
    for cache in ("off", "disk"):
        overrides = ("peft=freeze_encoder", f"train.embedding_cache={cache}", f"data={tmp_path / 'data'}")
        config = small_config(synthetic, *overrides, "train.decoder=false", model=FAMILIES["hf"])
        paths, _ = run_training(config, tmp_path / cache)
        histories.append(rows(paths))
    assert histories[0] == histories[1]
    assert list((tmp_path / "data" / "embeddings").rglob("*.pt"))
