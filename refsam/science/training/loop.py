"""micro-sam's trainers with records: deterministic, resumable to the bit, writing the run directory.

What is computed in a step is micro-sam's. Added here is only what its trainers lack: atomic checkpoints that
hold nothing but tensors and plain values, a history, best metric and epoch that survive a resume, a limit on
steps, and randomness that depends on the seed and the epoch instead of on everything drawn before.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from micro_sam.training.joint_sam_trainer import JointSamLogger, JointSamTrainer
from micro_sam.training.sam_trainer import SamLogger, SamTrainer

from refsam import interruption
from refsam.records.paths import RunPaths
from refsam.science.hardware import resident_memory
from refsam.science.models import SAM_CONFIG
from refsam.science.randomness import seed_everything
from refsam.science.strategies.adapter_files import write_adapter
from refsam.science.strategies.state import Keeping
from refsam.science.training.checkpoints import write_best, write_latest
from refsam.science.training.history import EpochMeans, History
from refsam.science.training.losses import dice_focal_loss
from refsam.science.training.prompts import ChosenPrompts
from refsam.science.training.resume import Position, position, restore_random_states, running_statistics
from refsam.science.training.step import LowMemoryJointStep, LowMemoryStep
from refsam.science.training.summed import SummedJointStep

OUT_OF_MEMORY = (MemoryError, torch.cuda.OutOfMemoryError)
# Between two checkpoints in a long epoch, so that what cannot be told to stop costs no more than this.
SECONDS_BETWEEN_CHECKPOINTS = 600.0


class Diverged(RuntimeError):
    """The validation metric is no number any more."""


@dataclass(frozen=True)
class Progress:
    """How far a training is. Epochs are counted from 0, seconds_left is an upper limit (early stopping)."""

    phase: str
    epoch: int  # epochs finished
    epochs: int  # epochs at most
    iteration: int  # steps done
    saved: int  # of them, those that latest.pt holds
    steps_per_epoch: int
    loss: float | None  # mean of the last finished epoch, else of the steps so far
    best_epoch: int | None
    best_metric: float | None
    seconds_left: float | None


class RecordedTraining(ChosenPrompts):
    """Mixin in front of SamTrainer or JointSamTrainer.

    Args:
        paths: the run directory that is written.
        seed: of the run.
        epochs: at most, over all attempts.
        max_steps: optimizer steps at most, over all attempts; None for no limit.
        report: called after every step.
        keeping: which weights the checkpoints hold.
        loss: of predicted masks, a value of train.loss.
        kwargs: those of the micro-sam trainer.

    Attributes:
        halves: whether the optimizer steps twice in a step of the training, first for the interactive loss.
    """

    halves = False

    def __init__(
        self,
        *,
        paths: RunPaths,
        seed: int,
        epochs: int,
        max_steps: int | None,
        report: Callable[[Progress], None],
        keeping: Keeping,
        loss: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=paths.run_id, save_root=str(paths.root), **kwargs)
        self.paths = paths
        self.seed = seed
        self.report = report
        self.keeping = keeping
        self.loss_name = loss
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
        self.saved_iteration = 0
        self.step_seconds = 0.0
        self.base_memory_gib = 0.0
        self._loss: float | None = None
        self._started = self._epoch_started = self._step_started = self._saved = time.monotonic()
        self._first_iteration = 0
        self._position: Position | None = None  # to go back to; None while it must not be left
        self._resumed: dict[str, Any] | None = None  # the position in a latest.pt of the middle of an epoch
        self._losses: tuple[torch.Tensor, ...] = ()  # of the interactive half of this step
        self._stepped: tuple[torch.Tensor, ...] | None = (
            None  # such, if that half is not to be computed again
        )
        self._second_half = False
        self._statistics: list[torch.Tensor] = []
        self.optimizer.register_step_pre_hook(lambda *_: self._leave_position())

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
        done = self._iteration >= self.max_iteration and self._resumed is None
        return self.stopped_early or done

    def run(self, latest: dict[str, Any] | None) -> None:
        """Train to the end, from the values of a latest.pt or from the beginning."""
        if latest is not None:
            self.load_checkpoint(latest)
        self._started = time.monotonic()
        self._first_iteration = self._iteration
        self.base_memory_gib = resident_memory(self.device)
        if self.finished:
            return
        models = [self.model, self.unetr] if isinstance(self, JointSamTrainer) else [self.model]
        self._statistics = running_statistics(models)
        try:
            self.fit(epochs=self.max_epoch)
        except BaseException as error:
            if interruption.received() is not None or isinstance(error, OUT_OF_MEMORY):
                self._save_position()
            raise

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
        config = getattr(self.model.sam, "config", None)  # a model of family hf has its shape in one
        return {"run_id": self.paths.run_id, **({} if config is None else {SAM_CONFIG: config.to_dict()})}

    def _train_epoch_impl(self, progress: Any, forward_context: Any, backprop: Any) -> float:
        self._begin_epoch()
        if self.means.steps == self.steps_per_epoch or self._iteration >= self.max_iteration:
            return 0.0  # only the validation of this epoch is missing
        seconds_per_step: float = super()._train_epoch_impl(progress, forward_context, backprop)
        return seconds_per_step

    def _begin_epoch(self) -> None:
        """Begin an epoch, or go on in the middle of the one that was interrupted."""
        self.means, self._stepped = EpochMeans(), None
        seed_everything(self.seed, f"training, epoch {self._epoch}")
        self._epoch_started = time.monotonic()
        if self._resumed is not None:
            self.means = EpochMeans(**self._resumed["means"])
            self._epoch_started -= self._resumed["epoch_seconds"]
            if self._resumed["losses"] is not None:
                self._stepped = tuple(loss.to(self.device) for loss in self._resumed["losses"])
            restore_random_states(self._resumed["random"], self.device)
            self._resumed = None
        sampler = self.train_loader.sampler
        if hasattr(sampler, "epoch"):
            sampler.epoch = self._epoch
            sampler.first = self.means.steps * self.train_loader.batch_size
        self._step_started = time.monotonic()
        self._take_position(self._iteration, self._stepped)

    def _interactive_train_iteration(self, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, ...]:
        """micro-sam's, unless the run was interrupted after the optimizer's step for its loss."""
        self._second_half = False
        if self._stepped is not None:
            return (*self._stepped, y)  # the masks that follow the losses are for TensorBoard only
        interruption.check()
        result: tuple[Any, ...] = super()._interactive_train_iteration(x, y)
        self._losses = tuple(value.detach() for value in result[:4])
        return result

    def _instance_iteration(self, x: torch.Tensor, y: torch.Tensor, metric_for_val: bool = False) -> Any:
        self._second_half = not metric_for_val
        return super()._instance_iteration(x, y, metric_for_val)

    def _backprop(self, loss: torch.Tensor) -> None:
        if not self._passed_over():
            super()._backprop(loss)
            self._half_done()

    def _backprop_mixed(self, loss: torch.Tensor) -> None:
        if not self._passed_over():
            super()._backprop_mixed(loss)
            self._half_done()

    def _passed_over(self) -> bool:
        """Whether the optimizer has stepped for this loss before the run was interrupted."""
        over = self._stepped is not None
        self._stepped = None
        return over

    def _half_done(self) -> None:
        # There is a position still where the gradient scaler has left out the optimizer's step.
        if self.halves and not self._second_half and self._position is None:
            self._take_position(self._iteration, self._losses)

    def _leave_position(self) -> None:
        """From here on the training cannot go back; what asks it to stop waits for the next position."""
        interruption.hold()
        self._position = None

    def _take_position(self, iteration: int, losses: tuple[torch.Tensor, ...] | None) -> None:
        """The training can be interrupted from here on, and goes on from here then."""
        self._position = position(iteration, self.means, losses, self.device, self._statistics, self.scaler)
        interruption.release()

    def _save_position(self) -> None:
        """Write latest.pt in the middle of an epoch, unless it says the same already."""
        found = self._position
        if found is None or (found.iteration == self.saved_iteration and found.losses is None):
            return
        found.restore(self._statistics, self.scaler)
        now = time.monotonic()
        write_latest(
            self.paths,
            {
                **self._values(self.best_metric, self.train_time + now - self._started),
                "iteration": found.iteration,
                "epoch": self._epoch - 1,  # the last one that is finished
                "current_metric": self.best_metric,
                **self.keeping.latest(self.model),
                **self._optimization_state(),
                "position": found.to_values(epoch_seconds=now - self._epoch_started),
            },
        )
        self.saved_iteration = found.iteration
        self._saved = now
        self._report(iteration=found.iteration)

    def _compute_loss(self, batched_outputs: list[dict[str, Any]], y_one_hot: torch.Tensor) -> Any:
        if self.loss_name == "dice_focal":
            return dice_focal_loss(batched_outputs, y_one_hot)
        return super()._compute_loss(batched_outputs, y_one_hot)

    def _validate_impl(self, forward_context: Any) -> float:
        # The same objects and prompts in every epoch, so that the epochs can be compared.
        seed_everything(self.seed, "validation")
        metric: float = super()._validate_impl(forward_context)
        if not math.isfinite(metric):
            raise Diverged(f"the validation metric is {metric} after {self._iteration} steps")
        self._leave_position()  # until the schedule has stepped and the checkpoints are written
        return metric

    def step_logged(self, learning_rate: float, **values: torch.Tensor) -> None:
        """Called by the logger after every step with the losses of the step."""
        self.means.add(learning_rate, **values)
        now = time.monotonic()
        self.step_seconds += now - self._step_started
        self._step_started = now
        # The logger is called before the trainer counts the step.
        iteration = self._iteration + 1
        self._take_position(iteration, None)
        if now - self._saved > SECONDS_BETWEEN_CHECKPOINTS:
            self._save_position()
        else:
            self._report(iteration)

    def save_checkpoint(
        self, name: str, current_metric: float, best_metric: float, train_time: float = 0.0, **extra: Any
    ) -> None:
        """Write best.pt, or history.csv and latest.pt. torch-em calls it with `best` before `latest`."""
        self.best_metric = best_metric
        values = {**self._values(best_metric, train_time), "current_metric": current_metric}
        if name == "best":
            write_best(self.paths, {**values, **self.keeping.best(self.model)})
            if self.keeping.has_adapter:
                write_adapter(self.model.sam, self.keeping.peft, self.paths.adapter)
            return
        self.history.append(self._history_row(current_metric, train_time))
        write_latest(self.paths, {**values, **self.keeping.latest(self.model), **self._optimization_state()})
        self.saved_iteration = self._iteration
        self.epochs_finished = self._epoch + 1
        self._loss = self.means.mean("train_loss")
        self._saved = time.monotonic()
        self._report(iteration=self._iteration)
        interruption.release()

    def _values(self, best_metric: float, train_time: float) -> dict[str, Any]:
        """What both checkpoints hold beside the weights."""
        return {
            "iteration": self._iteration,
            "epoch": self._epoch,
            "best_epoch": self._best_epoch,
            "best_metric": best_metric,
            "train_time": train_time,
            "step_seconds": self.step_seconds,
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "init": self.init_data,
            **self._decoder_state(),
        }

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Take over the values of a latest.pt, and the rows of history.csv up to it."""
        restored = self.keeping.restored(self.model, checkpoint)
        values: dict[str, Any] = super().load_checkpoint(restored)
        self.epochs_finished = self._epoch
        self.saved_iteration = self._iteration
        self.step_seconds = values["step_seconds"]
        self._resumed = values.get("position")
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
                saved=self.saved_iteration,
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

    halves = True


class LowMemorySamTrainer(RecordedTraining, LowMemoryStep, SamTrainer):
    """Interactive segmentation only, our step."""


class LowMemoryJointSamTrainer(RecordedTraining, LowMemoryJointStep, JointSamTrainer):
    """Interactive segmentation and the automatic-segmentation decoder, our step."""

    halves = True


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
