"""Runs with finetuning strategies: continued, kept as an adapter only, exported, with either loss."""

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from segment_anything.modeling import Sam
from training_runs import TINY, Killed, kill_at, rows, run_training, small_config
from transformers import SamModel

from refsam.cli import main
from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze
from refsam.configuration.schema import DatasetConfig, RefsamConfig
from refsam.records.paths import RunPaths
from refsam.science.models import build_model
from refsam.science.strategies.opening import finished_model, initial_model, predictor_and_decoder
from refsam.science.training.losses import dice_focal_loss, mask_loss_of

FRAME = 1024  # pixels of the square in which prompts are given
FOUR_BIT = ("peft=qdora", "peft.rank=2")
CASES = {
    "dora": ("peft=dora", "peft.rank=2"),
    "in 4 bits": FOUR_BIT,
    "adapter only": ("peft=pissa", "peft.rank=2", "train.save=adapter"),
    "with dropout": ("peft=fact", "peft.rank=2"),
    "not mergeable": ("peft=adaptformer", "peft.projection=2"),
    "late": ("peft=late_ft", "peft.freeze=[prompt_encoder]"),
}


def states(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["model_state"]
    assert state
    return state


def masks(sam: Sam) -> torch.Tensor:
    """(1, 3, h, w) logits for a box in an image of noise."""
    size = sam.image_encoder.img_size
    image = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        box = torch.tensor([[100.0, 120.0, 700.0, 800.0]])
        sparse, dense = sam.prompt_encoder(points=None, boxes=box, masks=None)
        logits, _ = sam.mask_decoder(
            image_embeddings=sam.image_encoder(image),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
    return logits


def finished(config: RefsamConfig, paths: RunPaths) -> torch.Tensor:
    return masks(finished_model(config, paths, "cpu").sam)


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_continues_with_every_kind_of_strategy(
    synthetic: DatasetConfig, tmp_path: Path, case: str
) -> None:
    config = small_config(synthetic, *CASES[case], "train.decoder=false")
    whole, summary = run_training(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run_training(config, tmp_path / "killed", kill_at(4))
    continued, _ = run_training(config, tmp_path / "killed")
    assert rows(continued) == rows(whole)
    for name in ("best", "latest"):
        expected = states(getattr(whole, name))
        given = states(getattr(continued, name))
        assert given.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in given.items())
    training = json.loads(whole.training.read_text())
    assert training["trainable_parameters"] < training["total_parameters"]
    # What is trained is kept in float32: four bytes for each value, and nothing else.
    assert training["saved_bytes"] == 4 * training["trainable_parameters"]
    assert training["weights_bytes"] <= 4 * training["total_parameters"]
    assert summary.weights_bytes == training["weights_bytes"]


def test_a_run_that_keeps_only_the_adapter_has_the_masks_of_one_that_keeps_all(
    synthetic: DatasetConfig, tmp_path: Path
) -> None:
    outcomes = []
    for saved in ("all", "adapter"):
        config = small_config(synthetic, *FOUR_BIT, "train.decoder=false", f"train.save={saved}")
        paths, _ = run_training(config, tmp_path / saved)
        outcomes.append((config, paths))
    (config, everything), (adapter_config, adapter) = outcomes
    torch.testing.assert_close(finished(adapter_config, adapter), finished(config, everything))
    plain = {f"sam.{name}" for name in build_model(config.model).state_dict()}
    assert states(everything.best).keys() == plain
    for path in (adapter.best, adapter.latest):
        names = states(path).keys()
        assert not any("base_layer" in name for name in names)
        assert {name for name in names if ".image_encoder." in name} == {
            name for name in names if "lora_" in name
        }
    assert adapter.best.stat().st_size < everything.best.stat().st_size
    predictor = predictor_and_decoder(adapter_config, adapter, "cpu")[0]
    torch.testing.assert_close(masks(predictor.model), finished(config, everything))


@pytest.mark.parametrize("saved", ["all", "adapter"])
def test_a_run_is_exported_for_every_program_with_the_same_masks(
    synthetic: DatasetConfig, tmp_path: Path, saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(synthetic, *CASES["dora"], f"train.save={saved}")
    paths, _ = run_training(config, tmp_path / "a-run")
    freeze(paths.config, config)
    expected = finished(config, paths)

    def export(target: str) -> Path:
        assert main(["export", "a-run", "--to", target, "--runs", str(tmp_path)]) == 0
        return Path(written_by(capsys))

    opened = peft.PeftModel.from_pretrained(initial_model(paths.root), export("adapter")).base_model.model
    torch.testing.assert_close(masks(opened.eval()), expected, rtol=0, atol=1e-4)

    model = SamModel.from_pretrained(export("hf"))
    model.prompt_encoder.input_image_size = FRAME
    torch.testing.assert_close(masks_of_transformers(model), expected, rtol=0, atol=1e-4)


def test_a_run_of_a_hugging_face_model_is_exported_for_transformers_and_peft(
    synthetic: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(synthetic, *CASES["dora"], model=("model=hf_tiny", *TINY[1:]))
    paths, _ = run_training(config, tmp_path / "a-run")
    freeze(paths.config, config)
    expected = finished(config, paths)
    command = ["export", "a-run", "--runs", str(tmp_path), "--to"]
    assert main([*command, "hf"]) == 0
    whole = SamModel.from_pretrained(written_by(capsys))
    whole.prompt_encoder.input_image_size = FRAME
    torch.testing.assert_close(masks_of_transformers(whole), expected, rtol=0, atol=1e-4)

    assert main([*command, "adapter"]) == 0
    fresh = initial_model(paths.root)
    fresh.prompt_encoder.input_image_size = FRAME
    adapter = peft.PeftModel.from_pretrained(fresh, written_by(capsys))
    torch.testing.assert_close(masks_of_transformers(adapter.base_model.model), expected, rtol=0, atol=1e-4)

    assert main([*command, "merged"]) == 2
    assert "do not build; allowed: hf, adapter, in Python refsam.load" in capsys.readouterr().err


def written_by(capsys: pytest.CaptureFixture[str]) -> str:
    """The path that refsam export prints, before the lines that load it."""
    return capsys.readouterr().out.splitlines()[-4]


def masks_of_transformers(model: SamModel) -> torch.Tensor:
    """What `masks` gives, of transformers' own model that takes prompts in the same frame."""
    model.eval()
    image = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(2))
    box = torch.tensor([[[100.0, 120.0, 700.0, 800.0]]])
    with torch.no_grad():
        return model(pixel_values=image, input_boxes=box).pred_masks[0]


def test_the_adapter_of_a_run_in_4_bits_opens_on_a_base_in_4_bits(
    synthetic: DatasetConfig, tmp_path: Path
) -> None:
    config = small_config(synthetic, *FOUR_BIT, "train.decoder=false")
    paths, _ = run_training(config, tmp_path / "run")
    freeze(paths.config, config)
    opened = peft.PeftModel.from_pretrained(initial_model(paths.root), paths.adapter).base_model.model
    torch.testing.assert_close(masks(opened.eval()), finished(config, paths), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "target", "parts"),
    [
        (CASES["not mergeable"], "merged", ["peft.name=adaptformer", "micro_sam"]),
        (CASES["not mergeable"], "adapter", ["peft.name=adaptformer", "lora"]),
        (("kind=baseline",), "merged", ["baseline"]),
        ((), "merged", ["vit_nano", "segment_anything and micro-sam do not build", "hf"]),
        (("model.architecture=vit_t",), "hf", ["vit_t", "TinyViT", "merged"]),
    ],
)
def test_what_a_format_cannot_hold_is_refused_in_one_sentence(
    synthetic: DatasetConfig,
    tmp_path: Path,
    overrides: tuple[str, ...],
    target: str,
    parts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = RunPaths(tmp_path / "a-run")
    paths.checkpoints.mkdir(parents=True)
    paths.best.touch()
    freeze(paths.config, small_config(synthetic, *overrides))
    assert main(["export", "a-run", "--to", target, "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(part in said for part in parts)


def test_nothing_is_exported_over_what_is_there(
    synthetic: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = RunPaths(tmp_path / "a-run")
    paths.checkpoints.mkdir(parents=True)
    freeze(paths.config, small_config(synthetic))
    arguments = ["export", "a-run", "--to", "merged", "--runs", str(tmp_path), "--output"]
    assert main([*arguments, str(tmp_path / "model.pt")]) == 2
    assert "has no best.pt yet" in capsys.readouterr().err
    paths.best.touch()
    assert main([*arguments, str(paths.config)]) == 2
    assert f"--output: {paths.config} exists already" in capsys.readouterr().err


@pytest.mark.parametrize(("alpha", "threshold"), [(None, 0.0), (None, 0.5), (0.25, 0.0)])
def test_the_other_studys_loss_is_dice_and_twenty_times_focal_and_the_error_of_the_iou(
    alpha: float | None, threshold: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((3, 2, 8, 8), generator=generator)
    ious = torch.rand((3, 2), generator=generator)
    targets = (torch.rand((1, 3, 1, 8, 8), generator=generator) > 0.5).float()
    outputs = [{"masks": logits, "iou_predictions": ious}]
    loss, mask_loss, iou_loss = dice_focal_loss(outputs, targets, alpha, threshold)
    best, errors = [], []
    for index in range(3):
        each = []
        for mask in range(2):
            target, p = targets[0, index, 0], logits[index, mask].sigmoid()
            right = torch.where(target == 1, p, 1 - p)
            share = 1 if alpha is None else torch.where(target == 1, alpha, 1 - alpha)
            focal = (-share * (1 - right) ** 2 * right.log()).mean()
            dice = 1 - 2 * (p * target).sum() / (p.square().sum() + target.sum())
            each.append(dice + 20 * focal)
            predicted = logits[index, mask] > threshold
            union = (predicted | (target == 1)).sum()
            errors.append((ious[index, mask] - (predicted & (target == 1)).sum() / union) ** 2)
        best.append(min(each))
    torch.testing.assert_close(mask_loss, torch.stack(best).mean())
    torch.testing.assert_close(iou_loss, torch.stack(errors).mean())
    torch.testing.assert_close(loss, mask_loss + iou_loss)


@pytest.mark.parametrize(("alpha", "expected"), [(None, 25.879438400268555), (0.25, 14.500053079790973)])
def test_the_loss_is_monai_s_and_its_iou_that_of_the_study(alpha: float | None, expected: float) -> None:
    """Of monai 1.3.2: DiceFocalLoss(sigmoid=True, squared_pred=True, reduction="mean", lambda_focal=20.0).

    With alpha, which is not the study's, by the definition in float64.
    """
    values = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32)
    logits = (4 * torch.sin(values)).view(2, 3, 1, 16, 16)
    logits[0, 0, 0, 0, 0] = 0.5  # is in the mask
    targets = (torch.sin(values / 7) > 0.3).float().view(2, 3, 1, 16, 16)
    settings = compose(["n_objects=25", "train=trashcan"]).train
    assert settings.focal_alpha is None
    settings = replace(settings, focal_alpha=alpha)
    outputs = [{"masks": of_image, "iou_predictions": torch.zeros(3, 1)} for of_image in logits]
    _, mask_loss, iou_loss = mask_loss_of(settings)(outputs, targets)
    assert mask_loss.item() == pytest.approx(expected, rel=1e-6)
    predicted = (logits >= 0.5).float()
    overlap = (predicted * targets).sum((3, 4))
    union = predicted.sum((3, 4)) + targets.sum((3, 4)) - overlap
    assert iou_loss.item() == pytest.approx((overlap / union).square().mean().item())


def test_either_engine_trains_with_the_other_studys_loss(synthetic: DatasetConfig, tmp_path: Path) -> None:
    histories = []
    for engine in ("refsam", "micro_sam"):
        config = small_config(
            synthetic,
            "train.loss=dice_focal",
            "train.decoder=false",
            f"train.engine={engine}",
            "train.object_chunk=1",
            "train.lr=1e-4",
            "train.max_steps=4",
        )
        paths, _ = run_training(config, tmp_path / engine)
        histories.append(rows(paths))
    ours, theirs = histories
    assert len(ours) == len(theirs) == 2
    for row, expected in zip(ours, theirs, strict=True):
        for name in ("train_loss", "mask_loss", "iou_loss", "validation_loss"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-3)
    assert float(ours[0]["mask_loss"]) > 1  # Dice alone is at most 1
