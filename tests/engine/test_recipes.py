"""What the recipes of the studies train, with which optimizer and learning rate, and in which 4 bits."""

import re
from dataclasses import replace
from pathlib import Path

import micro_sam.models.peft_sam as micro_sam_peft
import pytest
import torch
from bitsandbytes.nn import Linear4bit

from refsam.configuration.compose import compose
from refsam.configuration.schema import DatasetConfig, Precision
from refsam.configuration.split import with_all_images
from refsam.records.paths import RunPaths
from refsam.science.data import training_loaders
from refsam.science.models import load_model
from refsam.science.strategies.injection import apply_strategy
from refsam.science.training.build import Training, build_training

TINY = (
    *("resource=local", "resource.device=cpu", "model=vit_nano", "model.custom.image_size=64"),
    *("model.custom.embed_dim=48", "model.custom.depth=2", "model.custom.global_attn_indexes=[1]"),
    *("model.custom.window_size=4", "model.custom.prompt_embed_dim=32", "model.custom.unetr_features=2"),
    *("n_objects=3", "train.patch_shape=[64,64]"),
)
# Names of what is trained of the encoder.
OF_ENCODER = {
    "full": r".*",
    "freeze_encoder": r"(?!)",
    "lora": r"blocks\.[01]\.attn\.qkv\.w_[ab]_linear_[qv]\.weight",
    "lora_32": r"blocks\.[01]\.attn\.qkv\.w_[ab]_linear_[qv]\.weight",
    "late_ft": r"blocks\.1\..*",
}


def training_of(recipe: str, dataset: DatasetConfig, folder: Path, *overrides: str) -> Training:
    """The training of a recipe before its first step, on small patches of drawn images."""
    config = compose([*TINY, *overrides], recipe)
    drawn = replace(dataset, normalize=config.dataset.normalize, n_validation=3)
    config = with_all_images(replace(config, dataset=drawn), 16, None)
    folder.mkdir(exist_ok=True)
    return build_training(config, RunPaths(folder), training_loaders(config), lambda progress: None)


@pytest.mark.parametrize(
    ("recipe", "overrides", "kind", "decay"),
    [
        ("covid_if", (), torch.optim.AdamW, 0.01),
        ("covid_if", ("protocol=text",), torch.optim.Adam, 0),
        ("peft_micro_sam", (), torch.optim.AdamW, 0.01),
    ],
)
def test_the_optimizer_of_a_study_has_one_group_of_all_that_is_trained(
    synthetic: DatasetConfig,
    tmp_path: Path,
    recipe: str,
    overrides: tuple[str, ...],
    kind: type[torch.optim.Optimizer],
    decay: float,
) -> None:
    training = training_of(recipe, synthetic, tmp_path, "peft=full", "n_images=2", *overrides)
    optimizer = training.learner.optimizer
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-5, decay, (0.9, 0.999))
    assert sum(value.numel() for value in group["params"]) == training.parameter_counts[0]
    assert training.learner.arithmetic.precision is Precision.bfloat16  # float16 on a GPU


@pytest.mark.parametrize(("recipe", "patience"), [("covid_if", 3), ("peft_micro_sam", 10)])
def test_the_learning_rate_of_a_study_falls_after_its_patience(
    synthetic: DatasetConfig, tmp_path: Path, recipe: str, patience: int
) -> None:
    learner = training_of(recipe, synthetic, tmp_path, "peft=full", "n_images=2").learner
    rates = []
    for _ in range(patience + 3):
        learner.schedule.step(1.0)  # the same in every epoch
        rates.append(learner.learning_rate)
    assert rates == pytest.approx([1e-5] * (patience + 1) + [0.9e-5] * 2)


@pytest.mark.parametrize(
    ("recipe", "strategy"),
    [
        *(("covid_if", name) for name in ("full", "freeze_encoder", "lora")),
        *(("peft_micro_sam", name) for name in ("full", "freeze_encoder", "lora_32", "late_ft")),
    ],
)
def test_a_recipe_trains_the_encoder_as_its_strategy_says_and_all_else(
    synthetic: DatasetConfig, tmp_path: Path, recipe: str, strategy: str
) -> None:
    training = training_of(recipe, synthetic, tmp_path, f"peft={strategy}", "n_images=2")
    trained = {name for name, value in training.learner.model.sam.named_parameters() if value.requires_grad}
    every = {name for name, _ in training.learner.model.sam.named_parameters()}
    encoder = {name for name in every if name.startswith("image_encoder.")}
    meant = re.compile(rf"image_encoder\.({OF_ENCODER[strategy]})")
    assert trained == {name for name in every if name not in encoder or meant.fullmatch(name)}
    assert training.learner.unetr is not None
    decoder = [
        value.requires_grad
        for name, value in training.learner.unetr.named_parameters()
        if not name.startswith("encoder")
    ]
    assert decoder
    assert all(decoder)


def test_a_recipes_lora_has_the_rank_of_its_study(synthetic: DatasetConfig, tmp_path: Path) -> None:
    ranks = {}
    for recipe, strategy in (("covid_if", "lora"), ("peft_micro_sam", "lora_32")):
        sam = training_of(recipe, synthetic, tmp_path, f"peft={strategy}", "n_images=2").learner.model.sam
        ranks[recipe] = {value.shape[0] for name, value in sam.named_parameters() if ".w_a_linear_" in name}
    assert ranks == {"covid_if": {4}, "peft_micro_sam": {32}}


def test_the_peft_studys_iterations_end_the_training_and_not_a_number_of_epochs(
    synthetic: DatasetConfig, tmp_path: Path
) -> None:
    training = training_of("peft_micro_sam", synthetic, tmp_path, "peft=full")
    assert training.recorder.limits.steps == 50_000
    assert training.recorder.limits.early_stopping is None
    # All images: 16 of 256 x 256 pixels, less 3 for validation and 4 for test; 16 patches of each, 2 a step.
    assert training.recorder.limits.steps_per_epoch == 9 * 16 // 2
    assert len(training.loaders[1]) == 3 * 16 // 2


def test_qlora_fp4_has_the_4_bits_of_micro_sams_quantize() -> None:
    config = compose([*TINY, "peft=qlora_fp4", "peft.rank=4"])
    ours = apply_strategy(load_model(config.model, 0, "cpu").sam, config.peft).to("cpu")
    theirs = load_model(config.model, 0, "cpu").sam
    micro_sam_peft.PEFT_Sam(theirs, rank=4, peft_module=micro_sam_peft.LoRASurgery, quantize=True)
    theirs.to("cpu")
    kinds = [
        {
            name: (layer.weight.quant_state.quant_type, layer.weight.quant_state.nested, layer.weight.data)
            for name, layer in sam.named_modules()
            if isinstance(layer, Linear4bit)
        }
        for sam in (ours, theirs)
    ]
    assert kinds[0].keys() == kinds[1].keys() != set()
    for name, (kind, nested, weight) in kinds[1].items():
        assert kinds[0][name][:2] == (kind, nested) == ("fp4", True)
        assert torch.equal(kinds[0][name][2], weight)
