"""A whole training with the engine, and what `auto` chooses."""

import csv
import sys
from pathlib import Path

import psutil
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from steps import Case, model_of
from torch_em.model import UNETR

from refsam.configuration.compose import compose
from refsam.configuration.schema import DatasetConfig, RefsamConfig
from refsam.errors import ConfigError
from refsam.records.paths import RunPaths
from refsam.science.data import training_loaders
from refsam.science.engine.cache import MemoryStore
from refsam.science.engine.setup import Savings, choose_savings, memory_gib, usable_memory
from refsam.science.models import load_model
from refsam.science.training.build import build_training, train
from refsam.system import cgroups
from refsam.system.own_job import LOCAL_QUEUE

CPU = torch.device("cpu")
SMALL = (
    "peft=full",
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
SAVINGS = (
    "train.object_chunk=2",
    "train.checkpoint_encoder=on",
    "train.checkpoint_decoder=on",
    "train.attention=fused",
)


def history(dataset: DatasetConfig, root: Path, *overrides: str) -> list[dict[str, float]]:
    config = compose([*SMALL, *overrides])
    config.dataset = dataset
    root.mkdir(exist_ok=True)
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("peft", ["freeze_encoder", "decoder"])
def test_where_embeddings_are_kept_changes_no_number(
    synthetic: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peft: str
) -> None:
    images = []
    forward = ImageEncoderViT.forward

    def counted(encoder: ImageEncoderViT, x: torch.Tensor) -> torch.Tensor:
        images.append(len(x))
        return forward(encoder, x)

    monkeypatch.setattr(ImageEncoderViT, "forward", counted)
    frozen = (f"peft={peft}", "train.patch_pool=3", f"data={tmp_path / 'data'}")
    rows, encoded = [], []
    for number, cache in enumerate(("off", "memory", "disk", "disk")):
        images.clear()
        rows.append(
            history(synthetic, tmp_path / str(number), *frozen, f"train.embedding_cache={cache}", *SAVINGS)
        )
        encoded.append(sum(images))
    assert rows[0] == rows[1] == rows[2] == rows[3]
    # 4 steps and a validation of 2 samples; 3 patches of the pool and 2 of the validation; none.
    assert encoded == [6, 5, 5, 0]


@pytest.mark.slow
def test_patches_that_do_not_come_again_are_not_kept(
    synthetic: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    monkeypatch.setattr(MemoryStore, "put", lambda store, key, value: kept.append(key))
    frozen = ("peft=freeze_encoder", "train.patch_pool=null")
    history(synthetic, tmp_path / "new", *frozen, "train.validation_patches=new")
    assert kept == []
    history(synthetic, tmp_path / "fixed", *frozen)
    assert len(set(kept)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["true", "false"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_stepping_in_the_backward_gives_the_same_weights(
    synthetic: DatasetConfig, tmp_path: Path, decoder: str, optimizer: str
) -> None:
    chosen = (
        f"train.optimizer={optimizer}",
        f"train.decoder={decoder}",
        "train.scheduler_patience=0",
        *SAVINGS,
    )
    states = []
    for in_backward in ("true", "false"):
        root = tmp_path / in_backward
        history(synthetic, root, *chosen, f"train.optimizer_in_backward={in_backward}")
        states.append(torch.load(RunPaths(root).latest, weights_only=True))
    for name, value in states[0]["model_state"].items():
        assert torch.equal(value, states[1]["model_state"][name]), name
    first, second = (state["optimizer_state"] for state in states)
    assert first["param_groups"] == second["param_groups"]
    assert first["state"].keys() == second["state"].keys()


def test_stepping_in_the_backward_leaves_no_gradients_of_the_encoder(
    synthetic: DatasetConfig, tmp_path: Path
) -> None:
    config = compose([*SMALL, "train.optimizer_in_backward=true"])
    config.dataset = synthetic
    loaders = training_loaders(config)
    training = build_training(config, RunPaths(tmp_path), loaders, lambda progress: None)
    training.step.interactive(*next(iter(loaders[0])), 0)
    with_gradient = {
        name for name, value in training.learner.model.named_parameters() if value.grad is not None
    }
    assert any("mask_decoder" in name for name in with_gradient)
    assert not any("image_encoder" in name for name in with_gradient)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam8bit", "lion8bit"])
def test_8_bit_optimizers_train_resume_and_step_in_the_backward(
    synthetic: DatasetConfig, tmp_path: Path, optimizer: str
) -> None:
    # Smaller tensors are kept in 32 bits by bitsandbytes.
    chosen = (f"train.optimizer={optimizer}", "model.custom.embed_dim=48", "train.optimizer_in_backward=true")
    root = tmp_path / "run"
    history(synthetic, root, *chosen, "train.max_steps=16")
    state = torch.load(RunPaths(root).latest, weights_only=True)["optimizer_state"]["state"]
    assert any("uint8" in str(values) for values in state.values())
    assert [row["iteration"] for row in history(synthetic, root, *chosen, "train.max_steps=17")] == [16, 17]


def test_a_paged_optimizer_is_refused_without_a_gpu(synthetic: DatasetConfig, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"paged_adam8bit needs a GPU, .* allowed there: adam, adamw, lion, adam8bit, lion8bit",
    ):
        history(synthetic, tmp_path / "run", "train.optimizer=paged_adam8bit")


def test_an_8_bit_optimizer_that_is_not_installed_is_refused(
    synthetic: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        ConfigError, match=r"adam8bit needs bitsandbytes, .*: pip install 'refsam\[quantized\]'"
    ):
        history(synthetic, tmp_path / "run", "train.optimizer=adam8bit")


def configured(*overrides: str) -> RefsamConfig:
    """Of a patch that no fit has measured: the estimate chooses."""
    machine = ["resource=medium_8g", "resource.device=cpu", "train.patch_shape=[510,510]"]
    return compose([*machine, "peft=full", "n_objects=10", "train.precision=float32", *overrides])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("train.object_chunk=3", "train.checkpoint_encoder=off"), Savings(3, None, "fused")),
        (("train.object_chunk=3", "train.checkpoint_encoder=false"), Savings(3, None, "fused")),
        (("train.object_chunk=3", "train.checkpoint_encoder=on"), Savings(3, 1, "fused")),
        (
            ("train.object_chunk=3", "train.checkpoint_encoder=2", "train.attention=eager"),
            Savings(3, 2, "eager"),
        ),
    ],
)
def test_what_is_configured_is_used(overrides: tuple[str, ...], expected: Savings) -> None:
    assert choose_savings(configured(*overrides), model_of(Case()), CPU) == expected


@pytest.mark.slow
def test_auto_saves_only_where_the_memory_asks_for_it() -> None:
    small, large = configured(), configured("resource.request.memory_gb=16")
    nano = model_of(Case())
    assert choose_savings(small, nano, CPU) == Savings(10, None, "fused")
    with torch.device("meta"):
        vit_b = load_model(configured("model=vit_b", "model.weights=random").model, 0, "meta").sam
    assert choose_savings(small, vit_b, CPU).checkpoint_every == 1
    assert choose_savings(large, vit_b, CPU).checkpoint_every is None
    assert choose_savings(configured("resource.request.memory_gb=3"), vit_b, CPU).object_chunk == 1
    # As few blocks as bring 12 of 0.3 GiB (0.2 in 16 bits) under half of what weights and process leave.
    for precision, expected in (("float32", [2, 3, 5, None]), ("bfloat16", [11, None, None, None])):
        every = [
            choose_savings(
                configured(f"resource.request.memory_gb={gb}", f"train.precision={precision}"), vit_b, CPU
            ).checkpoint_every
            for gb in (9, 10, 11, 13)
        ]
        assert every == expected


@pytest.mark.parametrize("limited", [True, False])
def test_the_machine_at_hand_is_shared_by_the_runs_at_a_time(
    limited: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a laptop, where no cgroup says anything, and as a container with a limit.
    monkeypatch.setattr(cgroups, "CGROUPS", tmp_path)
    monkeypatch.setattr(cgroups, "OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "memory.max").write_text(f"{4 * 2**30}\n" if limited else "max\n")
    alone = memory_gib(configured("resource=local"), CPU)
    assert alone == (4 if limited else psutil.virtual_memory().total / 2**30)
    monkeypatch.setenv(LOCAL_QUEUE, "3")
    assert memory_gib(configured("resource=local"), CPU) == pytest.approx(alone / 3)
    assert memory_gib(configured("resource=local", "resource.request.memory_gb=1"), CPU) == 1


@pytest.mark.parametrize(("attention", "every"), [("fused", None), ("eager", 2)])
def test_scores_that_are_kept_count_for_the_memory(attention: str, every: int | None) -> None:
    config = configured("model=vit_b", "resource.request.memory_gb=16", f"train.attention={attention}")
    with torch.device("meta"):
        vit_b = load_model(configured("model=vit_b", "model.weights=random").model, 0, "meta").sam
    assert choose_savings(config, vit_b, CPU).checkpoint_every == every


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


def test_large_tensors_are_kept_only_where_there_is_room_for_the_gaps() -> None:
    with torch.device("meta"):
        vit_b = load_model(configured("model=vit_b", "model.weights=random").model, 0, "meta").sam
        unetr = UNETR(encoder=vit_b.image_encoder, out_channels=3, use_skip_connection=False)
    vit_b.image_encoder.requires_grad_(False)

    def kept(memory_gb: int, decoder: UNETR | None) -> bool:
        config = configured(f"resource.request.memory_gb={memory_gb}", "peft=freeze_encoder")
        return choose_savings(config, vit_b, CPU, decoder).keep_large_tensors

    assert kept(16, unetr)
    assert not kept(8, unetr)
    assert not kept(16, None)


def test_memory_is_the_smallest_of_the_limits() -> None:
    assert usable_memory(configured(), CPU) == pytest.approx(0.8 * 8 - 1)
    assert usable_memory(configured("resource.request.memory_gb=100000"), CPU) < 10000


def test_the_limit_of_a_group_above_the_run_s_own_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refsam.system.cgroups.CGROUPS", tmp_path)
    monkeypatch.setattr("refsam.system.cgroups.OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("0::/job_7/step_0\n")
    (tmp_path / "job_7" / "step_0").mkdir(parents=True)
    (tmp_path / "job_7" / "memory.max").write_text(f"{2 * 2**30}\n")
    (tmp_path / "job_7" / "step_0" / "memory.max").write_text("max\n")
    assert memory_gib(configured(), CPU) == 2.0
