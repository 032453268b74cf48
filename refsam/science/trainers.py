"""micro-sam's trainers with records: deterministic, resumable to the bit, writing the run directory.

What is computed in a step is micro-sam's. Added here is only what its trainers lack: atomic checkpoints that
hold nothing but tensors and plain values, a history, best metric and epoch that survive a resume, a limit on
steps, and randomness that depends on the seed and the epoch instead of on everything drawn before.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from micro_sam.training.joint_sam_trainer import JointSamLogger, JointSamTrainer
from micro_sam.training.sam_trainer import SamLogger, SamTrainer

from refsam.records.paths import RunPaths
from refsam.science.checkpoints import write_best, write_latest
from refsam.science.engine.step import LowMemoryJointStep, LowMemoryStep
from refsam.science.engine.summed import SummedJointStep
from refsam.science.hardware import resident_memory
from refsam.science.history import History
from refsam.science.models import merge_lora
from refsam.science.randomness import seed_everything


class Diverged(RuntimeError):
    """The validation metric is no number any more."""


@dataclass(frozen=True)
class Progress:
    """How far a training is. Epochs are counted from 0, seconds_left is an upper limit (early stopping)."""

    phase: str
    epoch: int  # epochs finished
    epochs: int  # epochs at most
    iteration: int  # steps done
    steps_per_epoch: int
    loss: float | None  # mean of the last finished epoch, else of the steps so far
    best_epoch: int | None
    best_metric: float | None
    seconds_left: float | None


@dataclass
class EpochMeans:
    """Means over the training steps of one epoch, and the learning rate of the last one."""

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    learning_rate: float = math.nan

    def add(self, learning_rate: float, **values: torch.Tensor) -> None:
        self.steps += 1
        self.learning_rate = learning_rate
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item()

    def mean(self, name: str) -> float | None:
        return self.sums[name] / self.steps if name in self.sums else None


class RecordedTraining(SamTrainer):
    """Mixin in front of SamTrainer or JointSamTrainer.

    Args:
        paths: the run directory that is written.
        seed: of the run.
        epochs: at most, over all attempts.
        max_steps: optimizer steps at most, over all attempts; None for no limit.
        report: called after every step.
        kwargs: those of the micro-sam trainer.
    """

    def __init__(
        self,
        *,
        paths: RunPaths,
        seed: int,
        epochs: int,
        max_steps: int | None,
        report: Callable[[Progress], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(name=paths.run_id, save_root=str(paths.root), **kwargs)
        self.paths = paths
        self.seed = seed
        self.report = report
        self.steps_per_epoch = len(self.train_loader)
        self.max_iteration = epochs * self.steps_per_epoch
        if max_steps is not None:
            self.max_iteration = min(self.max_iteration, max_steps)
        self.max_epoch = math.ceil(self.max_iteration / self.steps_per_epoch)
        self.history = History(paths.history)
        self.means = EpochMeans()
        self.best_metric = math.inf
        self.validation_loss = math.nan
        self.epochs_finished = 0
        self.step_seconds = 0.0
        self.base_memory_gib = 0.0
        self._loss: float | None = None
        self._started = self._epoch_started = time.monotonic()
        self._first_iteration = 0

    @property
    def checkpoint_folder(self) -> str:
        return str(self.paths.checkpoints)

    @property
    def stopped_early(self) -> bool:
        """Whether early stopping ended the training, by the rule of torch-em's DefaultTrainer.fit."""
        waited = self.epochs_finished - 1 - self._best_epoch
        return self.early_stopping is not None and self.epochs_finished > 0 and waited > self.early_stopping

    @property
    def finished(self) -> bool:
        return self.stopped_early or self._iteration >= self.max_iteration

    def run(self, latest: dict[str, Any] | None) -> None:
        """Train to the end, from the values of a latest.pt or from the beginning."""
        if latest is not None:
            self.load_checkpoint(latest)
        self._started = time.monotonic()
        self._first_iteration = self._iteration
        self.base_memory_gib = resident_memory(self.device)
        if not self.finished:
            self.fit(epochs=self.max_epoch)

    def _initialize(
        self, iterations: int | None, load_from_checkpoint: Any, epochs: int | None = None
    ) -> float:
        # torch-em counts epochs and steps from the checkpoint and forgets its best metric.
        ends = self.max_iteration, self.max_epoch
        super()._initialize(iterations, load_from_checkpoint, epochs)
        self.max_iteration, self.max_epoch = ends
        return self.best_metric

    def _build_init(self) -> dict[str, Any]:
        # torch-em would pickle the data sets here; the run is described by its config.yaml.
        return {"run_id": self.paths.run_id}

    def _train_epoch_impl(self, progress: Any, forward_context: Any, backprop: Any) -> float:
        self.means = EpochMeans()
        self._epoch_started = time.monotonic()
        seed_everything(self.seed, f"training, epoch {self._epoch}")
        if hasattr(self.train_loader.sampler, "epoch"):
            self.train_loader.sampler.epoch = self._epoch
        seconds_per_step: float = super()._train_epoch_impl(progress, forward_context, backprop)
        self.step_seconds += seconds_per_step * self.means.steps
        return seconds_per_step

    def _validate_impl(self, forward_context: Any) -> float:
        # The same objects and prompts in every epoch, so that the epochs can be compared.
        seed_everything(self.seed, "validation")
        metric: float = super()._validate_impl(forward_context)
        if not math.isfinite(metric):
            raise Diverged(f"the validation metric is {metric} after {self._iteration} steps")
        return metric

    def step_logged(self, learning_rate: float, **values: torch.Tensor) -> None:
        """Called by the logger after every step with the losses of the step."""
        self.means.add(learning_rate, **values)
        # The logger is called before the trainer counts the step.
        self._report(iteration=self._iteration + 1)

    def save_checkpoint(
        self, name: str, current_metric: float, best_metric: float, train_time: float = 0.0, **extra: Any
    ) -> None:
        """Write best.pt, or history.csv and latest.pt. torch-em calls it with `best` before `latest`."""
        self.best_metric = best_metric
        values = {
            "iteration": self._iteration,
            "epoch": self._epoch,
            "best_epoch": self._best_epoch,
            "best_metric": best_metric,
            "current_metric": current_metric,
            "train_time": train_time,
            "step_seconds": self.step_seconds,
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "init": self.init_data,
            **self._decoder_state(),
        }
        model_state = self.model.state_dict()
        if name == "best":
            write_best(self.paths, {**values, "model_state": merge_lora(model_state)})
            return
        self.history.append(self._history_row(current_metric, train_time))
        write_latest(self.paths, {**values, "model_state": model_state, **self._optimization_state()})
        self.epochs_finished = self._epoch + 1
        self._loss = self.means.mean("train_loss")
        self._report(iteration=self._iteration)

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Take over the values of a latest.pt, and the rows of history.csv up to it."""
        values: dict[str, Any] = super().load_checkpoint(checkpoint)
        self.epochs_finished = self._epoch
        self.step_seconds = values["step_seconds"]
        self.history.resume(self.epochs_finished)
        return values

    def _decoder_state(self) -> dict[str, Any]:
        if not isinstance(self, JointSamTrainer):
            return {}
        state = self.unetr.state_dict()
        return {"decoder_state": {key: state[key] for key in state if not key.startswith("encoder")}}

    def _optimization_state(self) -> dict[str, Any]:
        state = {
            "optimizer_state": self.optimizer.state_dict(),
            "scheduler_state": self.lr_scheduler.state_dict(),
        }
        if self.scaler is not None:
            state["scaler_state"] = self.scaler.state_dict()
        return state

    def _history_row(self, metric: float, train_time: float) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "iteration": self._iteration,
            **{name: self.means.mean(name) for name in ("train_loss", "mask_loss", "iou_loss")},
            **{name: self.means.mean(name) for name in ("model_iou", "instance_loss")},
            "validation_metric": metric,
            "validation_loss": self.validation_loss,
            "learning_rate": self.means.learning_rate,
            "seconds": time.monotonic() - self._epoch_started,
            "train_time": train_time,
            "best": int(self._best_epoch == self._epoch),
        }

    def _report(self, iteration: int) -> None:
        steps = iteration - self._first_iteration
        seconds_per_step = (time.monotonic() - self._started) / max(steps, 1)
        known = math.isfinite(self.best_metric)
        self.report(
            Progress(
                phase="training",
                epoch=self.epochs_finished,
                epochs=self.max_epoch,
                iteration=iteration,
                steps_per_epoch=self.steps_per_epoch,
                loss=self._loss if self._loss is not None else self.means.mean("train_loss"),
                best_epoch=self._best_epoch if known else None,
                best_metric=self.best_metric if known else None,
                seconds_left=seconds_per_step * (self.max_iteration - iteration),
            )
        )


class RecordedSamTrainer(RecordedTraining, SamTrainer):
    """Interactive segmentation only, micro-sam's step."""


class RecordedJointSamTrainer(RecordedTraining, JointSamTrainer):
    """Interactive segmentation and the automatic-segmentation decoder, micro-sam's step."""


class LowMemorySamTrainer(RecordedTraining, LowMemoryStep, SamTrainer):
    """Interactive segmentation only, our step."""


class LowMemoryJointSamTrainer(RecordedTraining, LowMemoryJointStep, JointSamTrainer):
    """Interactive segmentation and the automatic-segmentation decoder, our step."""


class SummedJointSamTrainer(RecordedTraining, SummedJointStep, JointSamTrainer):
    """Interactive segmentation and the automatic-segmentation decoder, one step for both losses."""


class RecordedSamLogger(SamLogger):
    """TensorBoard, and the values for history.csv."""

    def log_train(  # type: ignore[no-untyped-def]
        self, step, loss, lr, x, y, samples, mask_loss, iou_loss, model_iou
    ):
        super().log_train(step, loss, lr, x, y, samples, mask_loss, iou_loss, model_iou)
        self.trainer.step_logged(
            lr, train_loss=loss, mask_loss=mask_loss, iou_loss=iou_loss, model_iou=model_iou
        )

    def log_validation(self, step: int, metric: float, loss: float, *values: Any) -> None:
        super().log_validation(step, metric, loss, *values)
        self.trainer.validation_loss = loss


class RecordedJointSamLogger(JointSamLogger):
    """TensorBoard, and the values for history.csv."""

    def log_train(  # type: ignore[no-untyped-def]
        self, step, loss, lr, x, y, samples, mask_loss, iou_loss, model_iou, instance_loss
    ):
        super().log_train(step, loss, lr, x, y, samples, mask_loss, iou_loss, model_iou, instance_loss)
        self.trainer.step_logged(
            lr,
            train_loss=loss,
            mask_loss=mask_loss,
            iou_loss=iou_loss,
            model_iou=model_iou,
            instance_loss=instance_loss,
        )

    def log_validation(self, step: int, metric: float, loss: float, *values: Any) -> None:
        super().log_validation(step, metric, loss, *values)
        self.trainer.validation_loss = loss
