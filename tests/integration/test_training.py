"""Training a run: what it computes, when it ends, and what it records."""

import json
import math
import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import Killed, kill_at, rows, run_training, small_config

from refsam.configuration.schema import DatasetConfig, Precision
from refsam.errors import ConfigError
from refsam.records.paths import RunPaths
from refsam.science.hardware import choose_precision, resident_memory
from refsam.science.models import load_model
from refsam.science.training import build
from refsam.science.training.recorder import Progress


def states(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model_state"]


def test_two_runs_with_the_same_seed_give_the_same_numbers(synthetic: DatasetConfig, tmp_path: Path) -> None:
    config = small_config(synthetic)
    first, _ = run_training(config, tmp_path / "first")
    torch.rand(5)
    second, _ = run_training(config, tmp_path / "second")
    other, _ = run_training(small_config(synthetic, "seed=1"), tmp_path / "other")
    assert rows(first) == rows(second)
    assert rows(first) != rows(other)
    for name, value in states(first.latest).items():
        assert torch.equal(value, states(second.latest)[name]), name


@pytest.mark.parametrize("killed_at", [4, 7], ids=["in the second epoch", "in the third epoch"])
def test_a_killed_run_continues_as_if_nothing_had_happened(
    synthetic: DatasetConfig, tmp_path: Path, killed_at: int
) -> None:
    config = small_config(synthetic, "train.epochs=4")
    whole, summary = run_training(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run_training(config, tmp_path / "killed", kill_at(killed_at))
    assert not (tmp_path / "killed" / "results" / "training.json").exists()
    assert json.loads((tmp_path / "killed" / "results" / "savings.json").read_text())["object_chunk"] == 2
    continued, resumed = run_training(config, tmp_path / "killed")
    assert rows(continued) == rows(whole)
    assert (resumed.best_epoch, resumed.best_metric) == (summary.best_epoch, summary.best_metric)
    assert (resumed.epochs, resumed.iterations) == (4, 12)
    for path in ("best", "latest"):
        expected = states(getattr(whole, path))
        assert all(
            torch.equal(value, expected[name]) for name, value in states(getattr(continued, path)).items()
        )
    times = [float(line.split(",")[11]) for line in continued.history.read_text().splitlines()[1:]]
    assert times == sorted(times)
    assert resumed.seconds_total == pytest.approx(times[-1])


def test_a_finished_training_is_not_trained_again(synthetic: DatasetConfig, tmp_path: Path) -> None:
    config = small_config(synthetic)
    paths, first = run_training(config, tmp_path / "run")
    before = paths.latest.read_bytes()
    steps: list[Progress] = []
    _, again = run_training(config, tmp_path / "run", steps.append)
    assert steps == []
    assert paths.latest.read_bytes() == before
    assert (again.best_metric, again.epochs, again.seconds_total) == (
        first.best_metric,
        first.epochs,
        first.seconds_total,
    )


@pytest.mark.parametrize("epochs", ["2", "null"])
def test_max_steps_ends_the_training_with_a_validation(
    synthetic: DatasetConfig, tmp_path: Path, epochs: str
) -> None:
    config = small_config(synthetic, "train.max_steps=4", f"train.epochs={epochs}")
    paths, summary = run_training(config, tmp_path / "run")
    assert (summary.iterations, summary.epochs) == (4, 2)
    assert [row["iteration"] for row in rows(paths)] == ["3", "4"]
    assert math.isfinite(float(rows(paths)[-1]["validation_metric"]))


def test_the_history_has_the_rate_of_the_last_step_of_each_epoch(
    synthetic: DatasetConfig, tmp_path: Path
) -> None:
    chosen = ("train.scheduler=cosine", "train.warmup=0.5", "train.epochs=2", "train.lr=1e-3")
    paths, _ = run_training(small_config(synthetic, *chosen), tmp_path / "run")
    # Of 6 steps, 3 rise (0, 1/3, 2/3), and 3 fall by half a cosine (1, 3/4, 1/4).
    assert [float(row["learning_rate"]) for row in rows(paths)] == pytest.approx([2e-3 / 3, 0.25e-3])


def test_the_mean_iou_of_the_validation_may_decide_which_epoch_is_best(
    synthetic: DatasetConfig, tmp_path: Path
) -> None:
    # A learning rate of this size leaves the IoU where it is, so no epoch is better than the first.
    still = ("train.stop_on=mIoU", "train.early_stopping=1", "train.lr=1e-30", "train.epochs=9")
    paths, summary = run_training(small_config(synthetic, *still), tmp_path / "still")
    assert (summary.early_stopped, summary.best_epoch, summary.epochs) == (True, 0, 3)
    by_loss, _ = run_training(small_config(synthetic, "train.lr=1e-30", "train.epochs=1"), tmp_path / "loss")
    metrics = {float(row["validation_metric"]) for row in rows(paths)}
    assert len(metrics) == 1
    assert 0 < metrics.pop() < 1
    assert rows(by_loss)[0]["validation_loss"] == rows(paths)[0]["validation_loss"]
    assert rows(by_loss)[0]["validation_metric"] != rows(paths)[0]["validation_metric"]


def test_early_stopping_ends_the_training_and_holds_after_a_resume(
    synthetic: DatasetConfig, tmp_path: Path
) -> None:
    # A learning rate of this size leaves the metric where it is, so no epoch is better than the first.
    config = small_config(synthetic, "train.epochs=9", "train.early_stopping=1", "train.lr=1e-30")
    paths, summary = run_training(config, tmp_path / "run")
    assert summary.early_stopped
    assert (summary.best_epoch, summary.epochs) == (0, 3)
    _, again = run_training(config, tmp_path / "run")
    assert (again.early_stopped, again.epochs, len(rows(paths))) == (True, 3, 3)


@pytest.mark.parametrize("peft", ["freeze_encoder", "lora"])
@pytest.mark.parametrize("decoder", ["true", "false"])
def test_what_is_frozen_does_not_move(
    synthetic: DatasetConfig, tmp_path: Path, peft: str, decoder: str
) -> None:
    config = small_config(synthetic, f"peft={peft}", f"train.decoder={decoder}", "train.epochs=1")
    paths, summary = run_training(config, tmp_path / "run")
    initial = load_model(config.model, config.seed, "cpu").sam.state_dict()
    trained = {
        name.removeprefix("sam.").replace("qkv_proj.", ""): value
        for name, value in states(paths.latest).items()
    }
    encoder = [name for name in initial if name.startswith("image_encoder")]
    assert all(torch.equal(trained[name], initial[name]) for name in encoder)
    moved = {name for name in initial if not torch.equal(trained[name], initial[name])}
    assert any(name.startswith("mask_decoder") for name in moved)
    updates = [value for name, value in trained.items() if "w_b_linear" in name]
    assert (len(updates) > 0) == (peft == "lora")
    assert all(update.abs().max() > 0 for update in updates)
    assert summary.trainable_parameters < summary.total_parameters


def test_without_the_decoder_there_is_no_instance_loss(synthetic: DatasetConfig, tmp_path: Path) -> None:
    config = small_config(synthetic, "train.decoder=false", "train.epochs=1")
    paths, _ = run_training(config, tmp_path / "run")
    assert rows(paths)[0]["instance_loss"] == ""
    assert "decoder_state" not in torch.load(paths.best, weights_only=True)


def test_training_lowers_its_loss(synthetic: DatasetConfig, tmp_path: Path) -> None:
    config = small_config(synthetic, "train.epochs=6", "train.min_samples=8", "train.lr=3e-3")
    paths, _ = run_training(config, tmp_path / "run")
    first, *_, last = rows(paths)
    assert float(last["train_loss"]) < float(first["train_loss"]) - 0.03
    assert float(last["instance_loss"]) < 0.9 * float(first["instance_loss"])


def test_a_peak_counted_some_pages_short_is_no_less_than_what_stood_before(
    synthetic: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(device: torch.device) -> float:
        return resident_memory(device) / 2

    monkeypatch.setattr("refsam.science.training.build.peak_memory", short)
    _, summary = run_training(small_config(synthetic, "train.epochs=1"), tmp_path / "run")
    assert summary.peak_memory_gib == summary.base_memory_gib


def test_history_and_summary_agree(synthetic: DatasetConfig, tmp_path: Path) -> None:
    reports: list[Progress] = []
    paths, summary = run_training(small_config(synthetic, "train.epochs=3"), tmp_path / "run", reports.append)
    history = rows(paths)
    metrics = [float(row["validation_metric"]) for row in history]
    assert summary.best_metric == min(metrics)
    assert summary.best_epoch == metrics.index(min(metrics))
    best = torch.load(paths.best, weights_only=True)
    assert (best["epoch"], best["best_metric"]) == (summary.best_epoch, summary.best_metric)
    assert [row["best"] == "1" for row in history] == [
        metric == min(metrics[: index + 1]) for index, metric in enumerate(metrics)
    ]
    assert 0 < summary.seconds_to_best <= summary.seconds_total
    assert summary.peak_memory_gib >= summary.base_memory_gib > 0
    assert json.loads(paths.training.read_text())["best_metric"] == summary.best_metric
    assert json.loads(paths.savings.read_text()) == summary.savings
    events = EventAccumulator(str(paths.tensorboard / paths.run_id)).Reload()
    assert len(events.Scalars("train/loss")) == 9
    assert [each.value for each in events.Scalars("validation/metric")] == pytest.approx(metrics)
    # A report after each of the 9 steps and each of the 3 epochs.
    assert [report.iteration for report in reports] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]
    assert [report.epoch for report in reports] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert reports[-1].seconds_left == 0


def test_mixed_precision_trains_and_continues(synthetic: DatasetConfig, tmp_path: Path) -> None:
    config = small_config(synthetic, "train.precision=bfloat16")
    with pytest.raises(Killed):
        run_training(config, tmp_path / "run", kill_at(4))
    paths, summary = run_training(config, tmp_path / "run")
    assert summary.precision == "bfloat16"
    assert len(rows(paths)) == 2


def test_an_unknown_optimizer_is_refused(synthetic: DatasetConfig, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"train\.optimizer=sgd, allowed: adam, adamw, lion, adam8bit, paged_adam8bit, lion8bit",
    ):
        run_training(small_config(synthetic, "train.optimizer=sgd"), tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 avx512f", "float32"), ("fpu avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16")],
)
def test_precision_on_a_cpu_follows_its_instructions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, expected: str
) -> None:
    information = tmp_path / "cpuinfo"
    information.write_text(f"processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {flags}\n")
    monkeypatch.setattr("refsam.science.hardware.CPU_INFORMATION", information)
    assert choose_precision(Precision.auto, torch.device("cpu")) == expected
    assert choose_precision(Precision.float16, torch.device("cpu")) == Precision.float16
    assert choose_precision(Precision.mixed, torch.device("cpu")) == Precision.bfloat16


def test_the_peak_memory_is_that_of_the_process_and_not_of_who_started_it() -> None:
    measure = "from refsam.science.hardware import peak_memory; print(peak_memory(torch.device('cpu')))"
    child = f"import torch; {measure}"
    parent = (
        "import subprocess, sys; held = b'x' * (2 * 2**30); "
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 0.1 < float(done.stdout) < 1.5


@pytest.mark.parametrize(
    ("message", "saved"),
    [("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 4), ("a bug", 3)],
)
def test_a_library_s_word_for_short_memory_saves_the_steps_of_the_epoch(
    synthetic: DatasetConfig, tmp_path: Path, message: str, saved: int
) -> None:
    def report(progress: Progress) -> None:
        if progress.iteration == 4:
            raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=re.escape(message)):
        run_training(small_config(synthetic, "train.epochs=3"), tmp_path / "run", report)
    latest = torch.load(RunPaths(tmp_path / "run").latest, weights_only=True)
    assert latest["iteration"] == saved


def test_a_training_that_has_diverged_keeps_the_position_before(
    synthetic: DatasetConfig, tmp_path: Path
) -> None:
    def short_of_memory(progress: Progress) -> None:
        if progress.iteration == 2:
            raise MemoryError

    for lr, is_kept in (("1e-3", True), ("1e30", False)):
        config = small_config(synthetic, f"train.lr={lr}")
        with pytest.raises(MemoryError):
            run_training(config, tmp_path / lr, short_of_memory)
        assert RunPaths(tmp_path / lr).latest.exists() == is_kept


def test_a_checkpoint_is_not_kept_in_memory_by_the_training_that_goes_on(
    synthetic: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(synthetic)
    with pytest.raises(Killed):
        run_training(config, tmp_path / "run", kill_at(4))
    opened: list[weakref.ref[torch.Tensor]] = []
    read = build.read_latest

    def watched(paths: RunPaths) -> dict[str, Any] | None:
        values = read(paths)
        assert values is not None
        opened.extend(weakref.ref(value) for value in values["model_state"].values())
        return values

    def look(progress: Progress) -> None:
        assert opened
        assert all(reference() is None for reference in opened)

    monkeypatch.setattr(build, "read_latest", watched)
    run_training(config, tmp_path / "run", look)
