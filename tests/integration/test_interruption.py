"""A training that is asked to stop at any moment goes on from there with the same numbers."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_sam.training.joint_sam_trainer import JointSamTrainer
from micro_sam.training.sam_trainer import SamTrainer
from training_runs import rows, run_training, small_config

from refsam.configuration.schema import DatasetConfig
from refsam.records.paths import RunPaths
from refsam.science.training import checkpoints, losses, recorder
from refsam.science.training.checkpoints import read_latest
from refsam.science.training.history import EpochMeans
from refsam.science.training.learner import Learner
from refsam.science.training.resume import position, random_states, restore_random_states, running_statistics
from refsam.science.training.step import Interactive, Segmentation
from refsam.system import signals

# torch.optim hides the module behind the class of the same name.
ADAM = sys.modules[torch.optim.Adam.__module__]


@dataclass
class Moment:
    """Sends the signal when `function` of `owner` is called for the n-th time, from within the call."""

    owner: Any
    function: str
    calls: int
    number: signal.Signals = signal.SIGTERM
    seen: int = field(default=0, init=False)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(self.owner, self.function)

        def called(*arguments: Any, **options: Any) -> Any:
            self.seen += 1
            if self.seen == self.calls:
                os.kill(os.getpid(), self.number)
            return original(*arguments, **options)

        monkeypatch.setattr(self.owner, self.function, called)


def everything(paths: RunPaths) -> dict[str, torch.Tensor]:
    """All weights, of both models, the optimizer's moments, and both checkpoints' counters, as tensors."""
    found = {}
    for path in (paths.best, paths.latest):
        values = torch.load(path, weights_only=True)
        for part in ("model_state", "decoder_state"):
            found |= {f"{path.name} {part} {key}": item for key, item in values.get(part, {}).items()}
        for key in ("iteration", "epoch", "best_epoch", "best_metric"):
            found[f"{path.name} {key}"] = torch.tensor(values[key])
    for number, state in values["optimizer_state"]["state"].items():
        in_bits = state.pop("__bnb_optimizer_quant_state__", {})  # of bitsandbytes
        found |= {
            f"optimizer {number} {key}": torch.as_tensor(item) for key, item in {**state, **in_bits}.items()
        }
    return found


def assert_same(one: RunPaths, other: RunPaths) -> None:
    assert rows(one) == rows(other)
    expected = everything(other)
    found = everything(one)
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def moments(engine: str, decoder: str) -> list[Moment]:
    """One for each kind of moment; two trainings of the same run never pass the same one."""
    theirs = engine == "micro_sam"
    loss = (JointSamTrainer, "_compute_loss") if theirs else (losses, "dice_loss")
    segmentation = (JointSamTrainer, "_instance_iteration") if theirs else (Segmentation, "measure")
    found = [
        Moment(*loss, 1),  # in the very first step
        Moment(*loss, 4),  # in a later step
        Moment(ADAM, "adam", 2),  # while parameters change
        Moment(Interactive, "validate", 2, signal.SIGUSR2),
        Moment(checkpoints, "write_best", 1),  # of the first epoch, which always is the best so far
        Moment(recorder.Recorder, "_report", 1),  # when a step is done
        Moment(checkpoints, "write_latest", 1, signal.SIGINT),
        Moment(*loss, 2),
    ]
    if decoder == "true":
        found += [
            Moment(*segmentation, 1),  # between the two steps of the optimizer
            Moment(*segmentation, 1),  # once more at the same place
            Moment(*segmentation, 3),
        ]
    return found[-4:] if theirs else found  # what differs is between the two steps


@pytest.mark.parametrize(
    ("engine", "decoder", "peft", "patches"),
    [
        ("refsam", "true", "full", "fixed"),
        ("refsam", "false", "lora", "new"),
        ("micro_sam", "true", "full", "fixed"),
    ],
)
def test_a_training_that_is_interrupted_at_every_kind_of_moment_is_the_same_training(
    synthetic: DatasetConfig, tmp_path: Path, engine: str, decoder: str, peft: str, patches: str
) -> None:
    config = small_config(
        synthetic,
        "train.epochs=5",
        f"train.engine={engine}",
        f"train.decoder={decoder}",
        f"peft={peft}",
        f"train.validation_patches={patches}",
    )
    whole, summary = run_training(config, tmp_path / "whole")
    for moment in moments(engine, decoder):
        before = read_latest(RunPaths(tmp_path / "stopped"))
        with pytest.MonkeyPatch.context() as monkeypatch, signals.listening():
            moment.install(monkeypatch)
            with pytest.raises(KeyboardInterrupt, match=moment.number.name):
                run_training(config, tmp_path / "stopped")
        assert moment.seen >= moment.calls
        latest = read_latest(RunPaths(tmp_path / "stopped"))
        if before is not None:
            assert latest is not None
            assert latest["iteration"] >= before["iteration"]
    continued, resumed = run_training(config, tmp_path / "stopped")
    assert_same(continued, whole)
    assert (resumed.best_epoch, resumed.best_metric) == (summary.best_epoch, summary.best_metric)
    assert (resumed.epochs, resumed.iterations) == (summary.epochs, summary.iterations)


@pytest.mark.parametrize(
    ("engine", "decoder", "optimizer"),
    [("refsam", "false", "lion8bit"), ("refsam", "true", "adamw"), ("micro_sam", "false", "adamw")],
)
def test_an_interruption_within_a_step_of_several_batches_leaves_the_training_the_same(
    synthetic: DatasetConfig, tmp_path: Path, engine: str, decoder: str, optimizer: str
) -> None:
    theirs = engine == "micro_sam"
    config = small_config(
        synthetic,
        "train.epochs=4",
        "train.min_samples=5",  # two steps of two batches, and one of what is left
        "train.accumulate=2",
        "train.scheduler=cosine",
        "train.warmup=0.3",
        "train.weight_decay=0.1",
        "train.max_grad_norm=1",
        f"train.optimizer={optimizer}",
        f"train.engine={engine}",
        f"train.decoder={decoder}",
        f"train.stop_on={'loss' if theirs else 'mIoU'}",
    )
    whole, summary = run_training(config, tmp_path / "whole")
    assert (summary.epochs, summary.iterations) == (4, 12)
    loss = (SamTrainer, "_compute_loss") if theirs else (losses, "dice_loss")
    found = [
        Moment(*loss, 3),  # in the second batch of the very first step, of two rounds of prompts each
        Moment(*loss, 7),  # in the second batch of the second step
        Moment(Learner, "after_step", 1),  # between the optimizer and the schedule
        Moment(Learner, "after_validation", 1, signal.SIGUSR2),
        Moment(checkpoints, "write_latest", 1, signal.SIGINT),
        Moment(*loss, 3),
    ]
    if decoder == "true":
        found.append(Moment(Segmentation, "measure", 2))  # in the second batch of a step's second half
    for moment in found:
        with pytest.MonkeyPatch.context() as monkeypatch, signals.listening():
            moment.install(monkeypatch)
            with pytest.raises(KeyboardInterrupt, match=moment.number.name):
                run_training(config, tmp_path / "stopped")
        assert moment.seen >= moment.calls
    continued, resumed = run_training(config, tmp_path / "stopped")
    assert_same(continued, whole)
    assert (resumed.best_epoch, resumed.best_metric) == (summary.best_epoch, summary.best_metric)
    states = [torch.load(paths.latest, weights_only=True)["scheduler_state"] for paths in (whole, continued)]
    assert states[0] == states[1]


def test_no_more_than_the_step_at_hand_is_computed_again(synthetic: DatasetConfig, tmp_path: Path) -> None:
    config = small_config(synthetic, "train.epochs=1", "train.min_samples=6")
    steps: list[int] = []

    def stop_at(iteration: int) -> Callable[[recorder.Progress], None]:
        def report(progress: recorder.Progress) -> None:
            if not steps or progress.iteration > steps[-1]:
                steps.append(progress.iteration)
            if progress.iteration == iteration and signals.received() is None:
                os.kill(os.getpid(), signal.SIGTERM)

        return report

    with signals.listening(), pytest.raises(KeyboardInterrupt):
        run_training(config, tmp_path / "run", stop_at(4))
    latest = read_latest(RunPaths(tmp_path / "run"))
    assert latest is not None
    assert (latest["iteration"], latest["epoch"]) == (4, -1)
    assert not (tmp_path / "run" / "history.csv").exists()
    run_training(config, tmp_path / "run", stop_at(99))
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_long_epoch_is_saved_on_the_way(
    synthetic: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    config = small_config(synthetic, "train.epochs=1")
    saved: list[int] = []
    run_training(config, tmp_path / "run", lambda progress: saved.append(progress.saved))
    assert saved == [1, 2, 3, 3]


def test_statistics_of_batch_normalization_go_back_to_the_position() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    statistics = running_statistics([model, model[1]])
    assert len(statistics) == 3  # mean, variance and number of batches, each once
    means = EpochMeans()
    scaler = torch.GradScaler("cpu", enabled=False)
    here = position(1, means, None, torch.device("cpu"), statistics, scaler)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.rand(2, 1, 8, 8))
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    here.restore(statistics, scaler)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_random_states_survive_a_checkpoint(tmp_path: Path) -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        return [random.gauss(0, 1), float(np.random.normal()), torch.randn(1).item()]

    draw()  # the second number of a pair is kept by two of the generators
    torch.save(random_states(torch.device("cpu")), tmp_path / "states.pt")
    expected = [draw() for _ in range(3)]
    restore_random_states(torch.load(tmp_path / "states.pt", weights_only=True), torch.device("cpu"))
    assert [draw() for _ in range(3)] == expected
