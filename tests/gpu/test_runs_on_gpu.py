"""Training and evaluation of every family, strategy and memory optimization on a GPU that is not there."""

import json
from pathlib import Path

import pytest
import torch
from gpu_runs import HUGGING_FACE, execute, execute_on_gpu, quick_config
from pretended_gpu import gpu
from training_runs import rows, run_training

from refsam.configuration.schema import DatasetConfig, PeftConfig, RefsamConfig
from refsam.models.strategies import DECODER, STRATEGIES
from refsam.records.metrics import read_metrics
from refsam.records.paths import RunPaths
from refsam.records.status import State, read_status
from refsam.science import execution
from refsam.science.engine.prompts import BooleanPrompts
from refsam.science.strategies.quantization import dequantized, quantize
from refsam.science.training.build import TrainingSummary
from refsam.science.training.recorder import Progress

CONF = Path(__file__).parents[2] / "conf"
GTX_1080, V100, TURING, A100 = (6, 1), (7, 0), (7, 5), (8, 0)
ALL_MODES = ("evaluate.modes=[point,box,amg,ais,apg]", "evaluate.rounds=1", "evaluate.points_per_side=4")
PLAIN_MODES = ("evaluate.modes=[box,no_prompt,amg]", "evaluate.points_per_side=4", "evaluate.grid=defaults")
# Heads of 64, windows of 14 x 14 that reach over the edge of the grid, and a block that sees all of it.
VIT_B = (
    *("model.custom.image_size=256", "model.custom.patch_size=16", "model.custom.embed_dim=128"),
    *("model.custom.window_size=14", "train.n_sub_iterations=1"),
)
RUNS = {
    "in float32": (GTX_1080, ()),
    "in float16": (V100, ("train.precision=float16",)),
    "on Turing": (TURING, ("train.decoder=false",)),
    "in bfloat16": (A100, ("train.precision=auto",)),
    "blocks computed again": (
        A100,
        ("train.checkpoint_encoder=true", "train.checkpoint_decoder=true", "train.object_chunk=1"),
    ),
    "every second block computed again": (GTX_1080, ("train.checkpoint_encoder=2",)),
    "attention with scores": (V100, ("train.attention=eager",)),
    "both losses in one step": (A100, ("train.joint=summed",)),
    "optimizer in the backward": (GTX_1080, ("train.optimizer_in_backward=true",)),
    "AdamW": (A100, ("train.optimizer=adamw",)),
    "8-bit Adam": (A100, ("train.optimizer=adam8bit",)),
    "Lion": (A100, ("train.optimizer=lion",)),
    "8-bit Lion": (A100, ("train.optimizer=lion8bit",)),
    "heads and windows of vit_b": (A100, VIT_B),
    "micro-sam's step": (A100, ("train.engine=micro_sam",)),
    "micro-sam's step in float16": (V100, ("train.engine=micro_sam", "train.precision=float16")),
    "frozen, embeddings in memory": (A100, ("peft=freeze_encoder", "train.patch_pool=1")),
    "frozen, embeddings on the disk": (
        V100,
        ("peft=freeze_encoder", "train.patch_pool=1", "train.embedding_cache=disk"),
    ),
    "frozen, embeddings in float16": (
        GTX_1080,
        ("peft=freeze_encoder", "train.patch_pool=1", "train.embedding_dtype=float16"),
    ),
    "frozen, no embeddings kept": (A100, ("peft=freeze_encoder", "train.embedding_cache=off")),
    "other loss and prompts": (TURING, ("train.loss=dice_focal", "train.prompts=boxes")),
}


OTHERS = [
    name
    for name, strategy in STRATEGIES.items()
    if name not in ("full", "freeze_encoder") and "vit_nano" not in strategy.excluded
]


@pytest.mark.parametrize("case", RUNS)
def test_a_run_is_trained_and_evaluated(synthetic: DatasetConfig, tmp_path: Path, case: str) -> None:
    capability, overrides = RUNS[case]
    paths, device = execute_on_gpu(quick_config(synthetic, *overrides), tmp_path / "run", capability)
    training = json.loads(paths.training.read_text())
    assert 0 < training["peak_memory_gib"] <= device.total / 2**30
    expected = "bfloat16" if capability >= (8, 0) else "float32"
    assert training["savings"]["hardware_precision"] == expected
    assert training["precision"] == ("float16" if "train.precision=float16" in overrides else expected)


@pytest.mark.parametrize("strategy", OTHERS)
def test_every_strategy_is_trained_and_evaluated(
    synthetic: DatasetConfig, tmp_path: Path, strategy: str
) -> None:
    quick = (f"train.decoder={strategy == DECODER}", "train.n_sub_iterations=1", "train.min_samples=1")
    config = quick_config(synthetic, f"peft={strategy}", *quick, *small(strategy))
    execute_on_gpu(config, tmp_path / "run", A100)


def small(strategy: str) -> list[str]:
    """Settings of a strategy that layers of 16 inputs take."""
    settings = (CONF / "peft" / f"{strategy}.yaml").read_text(encoding="utf-8")
    return ["peft.rank=2"] if "\nrank:" in settings else []


@pytest.mark.parametrize("strategy", ["full", "dora", "qdora"])
def test_a_hugging_face_model_is_trained_and_evaluated(
    synthetic: DatasetConfig, tmp_path: Path, strategy: str
) -> None:
    config = quick_config(
        synthetic,
        *(f"peft={strategy}", *small(strategy), "train.decoder=false", *PLAIN_MODES),
        model=HUGGING_FACE,
    )
    execute_on_gpu(config, tmp_path / "run", A100)


def test_vit_t_is_trained_and_evaluated(synthetic: DatasetConfig, tmp_path: Path) -> None:
    short = ("train.decoder=false", "train.n_sub_iterations=1", "train.min_samples=1")
    config = quick_config(synthetic, *short, model=("model=vit_t", "model.weights=random"))
    execute_on_gpu(config, tmp_path / "run", GTX_1080)


def test_all_modes_of_evaluation_measure_what_they_measure_on_the_cpu(
    synthetic: DatasetConfig, tmp_path: Path
) -> None:
    modes = (*ALL_MODES, "evaluate.grid=small", "train.precision=float32")
    here = execute(quick_config(synthetic, *modes, on="cpu"), tmp_path / "here")
    there, _ = execute_on_gpu(quick_config(synthetic, *modes), tmp_path / "there", GTX_1080)
    measured = [
        [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in found]
        for found in (read_metrics(here.metrics), read_metrics(there.metrics))
    ]
    assert [row["mode"] for row in measured[0]]
    assert {row["mode"] for row in measured[0]} == {"point", "box", "amg", "ais", "apg"}
    for mine, other in zip(*measured, strict=True):
        assert mine["mode"] == other["mode"]
        assert mine["mSA"] == pytest.approx(other["mSA"], nan_ok=True)
        assert mine["mIoU"] == pytest.approx(other["mIoU"], nan_ok=True)


def test_a_training_on_the_gpu_draws_and_learns_what_it_does_on_the_cpu(
    synthetic: DatasetConfig, tmp_path: Path
) -> None:
    quick = ("train.precision=float32", "train.checkpoint_encoder=false", "train.object_chunk=2")
    here, _ = run_training(quick_config(synthetic, *quick, on="cpu"), tmp_path / "here")
    with gpu(GTX_1080):
        there, _ = run_training(quick_config(synthetic, *quick), tmp_path / "there")
    assert len(rows(here)) == 1
    for mine, other in zip(rows(here), rows(there), strict=True):
        for name, value in mine.items():  # Adam for many weights at a time rounds otherwise
            assert float(value) == pytest.approx(float(other[name]), rel=1e-4), name


@pytest.mark.parametrize(
    "overrides",
    [("train.precision=float32", "peft=fact", "peft.rank=2"), ("train.precision=float16",)],
    ids=["with dropout", "with a gradient scaler"],
)
def test_a_killed_run_goes_on_within_the_epoch(
    synthetic: DatasetConfig, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    config = quick_config(synthetic, *overrides, "train.min_samples=3", "train.epochs=2")
    with gpu(V100):
        whole, _ = run_training(config, tmp_path / "whole")
    with gpu(V100), pytest.raises(MemoryError):
        run_training(config, tmp_path / "killed", short_of_memory_at(5))
    assert torch.load(tmp_path / "killed" / "checkpoints" / "latest.pt", map_location="cpu")["position"][
        "means"
    ]
    with gpu(V100):
        continued, _ = run_training(config, tmp_path / "killed")
    assert rows(continued) == rows(whole)


def short_of_memory_at(iteration: int):
    """A report of a training that ends it there; it writes its position in the epoch."""

    def report(progress: Progress) -> None:
        if progress.iteration == iteration:
            raise MemoryError

    return report


@pytest.mark.parametrize("first", ["gpu", "cpu"])
def test_a_run_that_was_begun_elsewhere_goes_on(synthetic: DatasetConfig, tmp_path: Path, first: str) -> None:
    config = quick_config(synthetic, "train.precision=float32", "train.epochs=2", "resource.device=auto")
    places = ("gpu", "cpu") if first == "gpu" else ("cpu", "gpu")
    for place, killed in zip(places, (True, False), strict=True):
        if place == "gpu":
            with gpu(A100):
                summary = begun_or_ended(config, tmp_path / "run", killed)
        else:
            summary = begun_or_ended(config, tmp_path / "run", killed)
    assert summary.iterations == 6
    assert len(rows(RunPaths(tmp_path / "run"))) == 2


def begun_or_ended(config: RefsamConfig, root: Path, begun: bool) -> TrainingSummary | None:
    """A training that is left in its second epoch; or what it comes to in the end."""
    if not begun:
        return run_training(config, root)[1]
    with pytest.raises(MemoryError):
        run_training(config, root, short_of_memory_at(4))
    return None


@pytest.mark.parametrize("engine", ["refsam", "micro_sam"])
def test_workers_prepare_samples_in_pinned_memory_and_end(
    synthetic: DatasetConfig, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = []
    with gpu(A100):
        pin = torch.Tensor.pin_memory
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda *given: pinned.append(1) or pin(*given))
        config = quick_config(synthetic, "train.workers=1", f"train.engine={engine}")
        paths = execute(config, tmp_path / "run")
        monkeypatch.undo()
    assert read_status(paths).state is State.completed
    assert pinned


@pytest.mark.parametrize(("engine", "expected"), [("refsam", True), ("micro_sam", False)])
def test_micro_sams_step_is_not_slowed_by_deterministic_kernels(
    synthetic: DatasetConfig, tmp_path: Path, engine: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(*given: object) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        raise KeyboardInterrupt

    monkeypatch.setattr(execution, "train", look)
    with gpu(A100), pytest.raises(KeyboardInterrupt):
        execute(quick_config(synthetic, f"train.engine={engine}"), tmp_path / "run")
    assert seen == [expected]


def test_a_layer_in_4_bits_follows_autocast_and_keeps_its_bias() -> None:
    with gpu(A100):
        model = torch.nn.Module()
        model.image_encoder = torch.nn.Sequential(torch.nn.Linear(128, 64))
        model.to("cuda:0")
        quantize(model, PeftConfig(name="qlora", quantization="nf4", double_quantization=True))
        (layer,) = model.image_encoder
        x, bias = torch.rand(3, 128, device="cuda"), layer.bias.detach().clone()
        with torch.autocast("cuda", torch.bfloat16):
            assert layer(x).dtype == layer(x.bfloat16()).dtype == torch.bfloat16
        assert layer.bias.dtype == torch.float32
        assert torch.equal(layer.bias, bias)
        exact = torch.nn.functional.linear(x, dequantized(layer), bias)
        torch.testing.assert_close(layer(x).cpu(), exact.cpu())


def test_the_host_waits_for_a_gpu_as_often_for_many_objects_as_for_few() -> None:
    waits = []
    with gpu(A100) as device:
        for number in (2, 45):
            objects = torch.zeros(number, 1, 64, 64, dtype=torch.bool)
            objects[:, :, 20:40, 20:40] = True
            given, predicted = objects.to("cuda:0"), objects.roll(5, dims=2).to("cuda:0")
            device.waits.clear()
            BooleanPrompts()(given, predicted)
            waits.append(sum(device.waits.values()))
    assert waits == [7, 7]
