"""The study of parameter-efficient finetuning with transformers (QLoRA-SAM): each row of its recipe."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from training_runs import rows, run_training

from refsam.configuration.compose import compose_sweep
from refsam.configuration.schema import DatasetConfig, Kind, RefsamConfig
from refsam.orchestration.planning.checks import check_values, combination_problem
from refsam.records.paths import RunPaths
from refsam.science.data import training_loaders
from refsam.science.training.build import Training, build_training

STRATEGIES = {"hf_lora_trashcan": "hf_lora", "dora_trashcan": "dora"}
QUANTIZED = {"hf_qlora_trashcan": "hf_qlora", "qdora_trashcan": "qdora"}
PREFIX = "sam."  # of the parameters of the model that is trained


def recipes() -> list[RefsamConfig]:
    runs = compose_sweep([], config_name="peft_trashcan")
    return [config for config in runs if config.kind is Kind.finetuning]


def test_the_sweep_is_the_study_s() -> None:
    found = recipes()
    assert {(config.model.name, config.peft.name, config.seed) for config in found} == {
        (model, strategy, seed)
        for model in ("sam_vit_base", "slimsam_77")
        for strategy in (*STRATEGIES.values(), *QUANTIZED.values())
        for seed in (0, 1, 2)
    }
    for config in found:
        train, peft = config.train, config.peft
        assert (train.lr, train.epochs, train.batch_size, train.accumulate) == (2e-4, 8, 8, 2)
        assert (train.optimizer, train.betas, train.weight_decay) == ("lion8bit", [0.9, 0.999], 10)
        assert (train.max_grad_norm, train.scheduler, train.warmup) == (1, "cosine", 0.1)
        # One more evaluation than this without a better one ends the training: the study's patience is 2.
        assert (train.stop_on, train.early_stopping, train.precision) == ("mIoU", 1, "bfloat16")
        assert (train.loss, train.focal_alpha, train.mask_threshold) == ("dice_focal", None, 0.5)
        assert (train.prompts, train.box_distortion, train.n_sub_iterations) == ("boxes", 0, 1)
        assert (peft.rank, peft.alpha, peft.decoder) == (128, 256, "adapt")
        assert peft.quantized_layers == ("all" if peft.name in QUANTIZED.values() else None)
        assert (peft.quantization, peft.double_quantization) == (
            ("nf4", True) if peft.name in QUANTIZED.values() else (None, None)
        )
        check_values(config)
        assert combination_problem(config, 7212) is None


def small(dataset: DatasetConfig, strategy: str) -> RefsamConfig:
    """The recipe's small version, of two steps."""
    overrides = [
        *(f"peft={strategy}", "seed=0", "n_images=1", "n_objects=2", "resource.device=cpu"),
        *("train.min_samples=8", "train.epochs=null", "train.max_steps=2", "train.validation_samples=2"),
        "train.patch_shape=[160,160]",
    ]
    (config,) = compose_sweep(overrides, config_name="peft_trashcan_small")
    return replace(config, dataset=dataset)


def training_of(config: RefsamConfig, root: Path) -> Training:
    paths = RunPaths(root)
    for folder in (paths.checkpoints, paths.tensorboard, paths.results):
        folder.mkdir(parents=True)
    return build_training(config, paths, training_loaders(config), lambda progress: None)


@pytest.mark.parametrize("strategy", [*STRATEGIES, *QUANTIZED])
def test_what_is_trained_is_what_the_study_trains(
    synthetic: DatasetConfig, tmp_path: Path, strategy: str
) -> None:
    training = training_of(small(synthetic, strategy), tmp_path)
    learner = training.learner
    parameters = dict(learner.model.named_parameters())
    trained = {name: value for name, value in parameters.items() if value.requires_grad}
    update = r"\.lora_([AB]\.default\.weight|magnitude_vector\.default\.weight)"
    layers = {re.sub(update, "", name).removeprefix(PREFIX) for name in trained}
    assert len(layers) == 4 + 14  # qkv of four blocks; queries and values of seven attentions
    assert all(re.fullmatch(r"image_encoder\..*\.qkv|mask_decoder\..*\.[qv]_proj", name) for name in layers)
    # Rank 16: qkv of 96 channels; two attentions of 64 channels, and five between 64 and 32.
    updates = 4 * 16 * (96 + 3 * 96) + 4 * 16 * (64 + 64) + 10 * 16 * (64 + 32)
    magnitudes = 4 * 3 * 96 + 4 * 64 + 10 * 32 if "dora" in strategy else 0
    assert training.parameter_counts[0] == updates + magnitudes
    in_4_bits = {
        name.removesuffix(".weight").removesuffix(".base_layer")
        for name, value in parameters.items()
        if getattr(value, "quant_type", None) == "nf4"
    }
    assert any("mask_decoder" in name for name in in_4_bits) == (strategy in QUANTIZED)
    (group,) = learner.optimizer.param_groups
    assert type(learner.optimizer).__name__ == "Lion8bit"
    assert {id(value) for value in group["params"]} == {id(value) for value in trained.values()}
    assert (group["weight_decay"], tuple(group["betas"])) == (10, (0.9, 0.999))
    assert (learner.accumulate, learner.max_grad_norm) == (2, 1)


def test_two_steps_of_the_recipe_are_recorded(synthetic: DatasetConfig, tmp_path: Path) -> None:
    paths, summary = run_training(small(synthetic, "qdora_trashcan"), tmp_path / "run")
    (row,) = rows(paths)
    assert (row["iteration"], summary.iterations) == ("2", 2)
    # The first of two steps warms up from 0, the second has the whole learning rate.
    assert float(row["learning_rate"]) == pytest.approx(3e-3)
    assert 0 <= float(row["validation_metric"]) <= 1
    assert json.loads(paths.training.read_text())["savings"]["optimizer"] == "lion8bit"
    assert (paths.adapter / "adapter_config.json").exists()
