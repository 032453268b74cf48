"""best.pt and latest.pt: opened by micro-sam as they are, and safe against crashes."""

import os
import shutil
from pathlib import Path

import micro_sam.util
import numpy as np
import pytest
import torch
from micro_sam.instance_segmentation import DecoderAdapter
from training_runs import Killed, kill_at, rows, run_training, small_config

from refsam.configuration.schema import DatasetConfig, RefsamConfig
from refsam.records.paths import RunPaths
from refsam.science.data import training_loaders
from refsam.science.models import build_unetr, initial_predictor, load_whole, predictor_of
from refsam.science.training.build import build_training
from refsam.science.training.checkpoints import previous_latest, read_latest, write_latest


@pytest.fixture(scope="module")
def config(synthetic: DatasetConfig) -> RefsamConfig:
    return small_config(synthetic, "train.epochs=3")


@pytest.fixture(scope="module")
def interrupted(config: RefsamConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its third epoch."""
    root = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(Killed):
        run_training(config, root, kill_at(8))
    return root


@pytest.fixture
def damaged(interrupted: Path, tmp_path: Path) -> RunPaths:
    """A copy of the interrupted run whose latest.pt was cut in half."""
    shutil.copytree(interrupted, tmp_path / "run")
    paths = RunPaths(tmp_path / "run")
    os.truncate(paths.latest, paths.latest.stat().st_size // 2)
    return paths


def test_a_damaged_latest_costs_one_epoch(
    config: RefsamConfig, damaged: RunPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latest = read_latest(damaged)
    assert latest is not None
    assert latest["epoch"] == 0
    assert f"{damaged.latest} is damaged" in capsys.readouterr().err
    whole, _ = run_training(config, tmp_path / "whole")
    continued, _ = run_training(config, damaged.root)
    assert rows(continued) == rows(whole)


@pytest.mark.parametrize("part", [0.0, 1e-5, 1e-4, 0.01, 0.25, 0.5, 0.9, 0.99999])
def test_wherever_latest_is_cut_off_the_previous_one_is_used(
    damaged: RunPaths, interrupted: Path, part: float
) -> None:
    whole = RunPaths(interrupted).latest.read_bytes()
    damaged.latest.write_bytes(whole[: int(part * len(whole))])
    latest = read_latest(damaged)
    assert latest is not None
    assert latest["epoch"] == 0


@pytest.mark.parametrize("size", [1, 3000, 100_000])
def test_garbage_is_no_checkpoint(damaged: RunPaths, size: int) -> None:
    damaged.latest.write_bytes(np.random.default_rng(0).bytes(size))
    latest = read_latest(damaged)
    assert latest is not None
    assert latest["epoch"] == 0


def test_a_single_wrong_byte_in_the_weights_is_noticed(damaged: RunPaths, interrupted: Path) -> None:
    content = bytearray(RunPaths(interrupted).latest.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.latest.write_bytes(content)
    assert torch.load(damaged.latest, weights_only=True)["epoch"] == 1  # torch does not see it
    latest = read_latest(damaged)
    assert latest is not None
    assert latest["epoch"] == 0


def test_a_checkpoint_that_cannot_be_read_now_is_not_given_up(damaged: RunPaths) -> None:
    damaged.latest.unlink()
    damaged.latest.symlink_to(damaged.root)  # in place of a disk that does not answer
    with pytest.raises(OSError, match="directory"):
        read_latest(damaged)


def test_with_both_damaged_the_training_starts_anew(config: RefsamConfig, damaged: RunPaths) -> None:
    previous_latest(damaged).write_bytes(b"")
    assert read_latest(damaged) is None
    paths, summary = run_training(config, damaged.root)
    assert (summary.epochs, len(rows(paths))) == (3, 3)


def test_a_failed_write_leaves_something_to_continue_from(interrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    paths = RunPaths(tmp_path / "run")
    with pytest.raises(AttributeError):  # nothing that is local to a function can be pickled
        write_latest(paths, {"not to be pickled": lambda: None})
    latest = read_latest(paths)
    assert latest is not None
    assert latest["epoch"] == 1
    assert sorted(path.name for path in paths.checkpoints.iterdir()) == ["best.pt", "latest.previous.pt"]


def test_a_finished_training_leaves_two_checkpoints(config: RefsamConfig, tmp_path: Path) -> None:
    paths, _ = run_training(config, tmp_path / "run")
    assert sorted(path.name for path in paths.checkpoints.iterdir()) == ["best.pt", "latest.pt"]


@pytest.mark.parametrize("peft", ["full", "lora"])
def test_checkpoints_hold_tensors_and_plain_values_only(
    synthetic: DatasetConfig, tmp_path: Path, peft: str
) -> None:
    paths, _ = run_training(small_config(synthetic, f"peft={peft}", "train.epochs=1"), tmp_path / "run")
    best = torch.load(paths.best, weights_only=True)
    latest = torch.load(paths.latest, weights_only=True)
    assert all(name.startswith("sam.") for name in best["model_state"])
    assert not any("linear_q" in name for name in best["model_state"])
    assert any("linear_q" in name for name in latest["model_state"]) == (peft == "lora")
    assert {"optimizer_state", "scheduler_state", "train_time"} <= set(latest)


def test_the_best_checkpoint_has_the_decoder_that_was_trained(config: RefsamConfig, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.checkpoints.mkdir()
    training = build_training(config, paths, training_loaders(config), lambda progress: None)
    training.recorder.write_best(1.0)
    sam, decoder_state = load_whole(paths.best, config.model, "cpu")
    predictor = predictor_of(sam, config.model, "")
    unetr = build_unetr(sam, config.model, decoder_state, 1, "cpu").eval()
    predictor.set_image(np.full((64, 64, 3), 90, dtype=np.uint8))
    image = torch.full((1, 3, 64, 64), 90.0)
    with torch.no_grad():
        sizes = predictor.input_size, predictor.original_size
        from_embedding = DecoderAdapter(unetr)(predictor.features, *sizes)
        expected = training.learner.unetr.eval()(image)
    torch.testing.assert_close(from_embedding, expected, rtol=1e-4, atol=1e-5)


def test_micro_sam_opens_the_best_checkpoint_of_a_vit_t(synthetic: DatasetConfig, tmp_path: Path) -> None:
    config = small_config(synthetic, model=("model=vit_t", "model.weights=random"))
    paths = RunPaths(tmp_path)
    paths.checkpoints.mkdir()
    training = build_training(config, paths, training_loaders(config), lambda progress: None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # in place of a training step, which takes a minute
        for parameter in training.learner.model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    training.recorder.write_best(1.0)

    theirs, state = micro_sam.util.get_sam_model(
        model_type="vit_t", checkpoint_path=paths.best, device="cpu", return_state=True
    )
    theirs.model.eval()  # else MobileSAM's attention has the biases from before the weights were loaded
    sam, decoder_state = load_whole(paths.best, config.model, "cpu")
    ours = predictor_of(sam, config.model, "")
    assert set(state["decoder_state"]) == set(decoder_state or {})
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    masks = []
    for predictor in (theirs, ours, initial_predictor(config.model, config.seed, "cpu")[0]):
        predictor.set_image(image)
        masks.append(predictor.predict(box=np.array([10, 10, 40, 40]), return_logits=True)[0])
    np.testing.assert_array_equal(masks[0], masks[1])
    assert np.abs(masks[0] - masks[2]).max() > 1e-3
    trained = training.learner.model.state_dict()
    assert all(torch.equal(value, trained[f"sam.{name}"]) for name, value in sam.state_dict().items())
