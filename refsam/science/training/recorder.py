"""What a training leaves in its run directory, and where it can be interrupted.

One object holds the counters of a training. It writes history.csv, TensorBoard's logs and both checkpoints,
reports progress, and keeps the position to which an interrupted training goes back (resume.py).
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import torch
from tqdm import tqdm

from refsam.records.paths import RunPaths
from refsam.science.data import TorchLoader, begin_epoch
from refsam.science.micro_sam import JointSamLogger, SamLogger
from refsam.science.models import SAM_CONFIG
from refsam.science.randomness import seed_everything
from refsam.science.strategies.adapter_files import write_adapter
from refsam.science.strategies.state import CheckpointPolicy
from refsam.science.training import checkpoints
from refsam.science.training.history import EpochMeans, History
from refsam.science.training.learner import Learner
from refsam.science.training.losses import StepLosses
from refsam.science.training.resume import ResumeState, position, restore_random_states, running_statistics
from refsam.system import signals

# Between two checkpoints in a long epoch, so that what cannot be told to stop costs no more than this.
SECONDS_BETWEEN_CHECKPOINTS = 600.0
STEPS_BETWEEN_PICTURES = 100  # in TensorBoard


class Diverged(RuntimeError):
    """The validation metric is no number any more."""


@dataclass(frozen=True)
class Progress:
    """How far a training is. Epochs are counted from 0, seconds_left is an upper limit (early stopping)."""

    epoch: int  # epochs finished
    epochs: int  # epochs at most
    iteration: int  # steps done
    saved: int  # of them, those that latest.pt holds
    loss: float | None  # mean of the last finished epoch, else of the steps so far
    best_epoch: int | None
    best_metric: float | None
    seconds_left: float | None


@dataclass(frozen=True)
class TrainingLimits:
    """When a training ends, over all attempts.

    Attributes:
        steps_per_epoch: of the optimizer.
        steps: of the optimizer at most (a step of both losses counts as one).
        early_stopping: epochs without a better one, one more of which ends the training; None for no limit.
    """

    steps_per_epoch: int
    steps: int
    early_stopping: int | None

    @property
    def epochs(self) -> int:
        return math.ceil(self.steps / self.steps_per_epoch)


@dataclass(frozen=True)
class Validation:
    """Means over the batches of a validation.

    Attributes:
        metric: what train.stop_on says. Lower is better.
        losses: as in StepLosses.
        shown: images, ids of objects and targets of the last batch, for TensorBoard.
    """

    metric: float
    losses: dict[str, float]
    shown: tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Recorder:
    """Counters, records and the position of a training.

    Args:
        keeping: which weights the checkpoints hold.
        report: called after every step.

    Attributes:
        iteration: steps done.
        epoch: epochs finished, which is the number of the one at hand.
        best_epoch: that with the lowest metric.
        best_metric: of that epoch.
        train_time: seconds to the end of the last finished epoch, over all attempts.
        step_seconds: of all steps, over all attempts.
    """

    def __init__(
        self,
        paths: RunPaths,
        learner: Learner,
        keeping: CheckpointPolicy,
        limits: TrainingLimits,
        seed: int,
        report: Callable[[Progress], None],
    ) -> None:
        self.paths, self.learner, self.keeping, self.limits, self.seed = paths, learner, keeping, limits, seed
        self.report = report
        self.iteration = self.epoch = self.best_epoch = 0
        self.best_metric = math.inf
        self.train_time = self.step_seconds = 0.0
        self.history = History(paths.history)
        self.means = EpochMeans()
        self._saved_iteration = self._first_iteration = 0
        self._loss: float | None = None
        self._position: ResumeState | None = None  # to go back to; None while it must not be left
        self._resumed: dict[str, Any] | None = None  # the position in a latest.pt of the middle of an epoch
        learner.optimizer.register_step_pre_hook(lambda *_: self.leave_position())

    @property
    def stopped_early(self) -> bool:
        """Whether early stopping ends the training, by the rule of torch-em's DefaultTrainer.fit."""
        patience = self.limits.early_stopping
        return patience is not None and self.epoch > 0 and self.epoch - 1 - self.best_epoch > patience

    @property
    def finished(self) -> bool:
        return self.stopped_early or self.epoch >= self.limits.epochs

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take over the values of a latest.pt, and the rows of history.csv up to it."""
        self.learner.load(self.keeping.restored(self.learner.model, checkpoint))
        self.iteration = self._saved_iteration = self._first_iteration = checkpoint["iteration"]
        self.epoch = checkpoint["epoch"] + 1
        self.best_epoch, self.best_metric = checkpoint["best_epoch"], checkpoint["best_metric"]
        self.train_time, self.step_seconds = checkpoint["train_time"], checkpoint["step_seconds"]
        self._resumed = checkpoint.get("position")
        self.history.resume(self.epoch)

    def start(self) -> None:
        """Begin an attempt."""
        self._started = self._saved = time.monotonic()
        self._before = self.train_time
        self._statistics = running_statistics(self.learner.models)
        self._pictures = _tensorboard(self.paths, joint=self.learner.unetr is not None)
        self._bar = tqdm(total=self.limits.steps, initial=self.iteration, desc=f"Epoch {self.epoch}")

    def begin_epoch(self, loader: TorchLoader) -> StepLosses | None:
        """Begin an epoch, or go on in the middle of the one that was interrupted.

        Returns:
            The interactive losses of the next step, where it was interrupted after the optimizer's step for
            them: they are not computed again.
        """
        self.means = EpochMeans()
        stepped = None
        seed_everything(self.seed, f"training, epoch {self.epoch}")
        self._epoch_started = time.monotonic()
        if self._resumed is not None:
            self.means = EpochMeans(**self._resumed["means"])
            self._epoch_started -= self._resumed["epoch_seconds"]
            if self._resumed["losses"] is not None:
                stepped = StepLosses(*(loss.to(self._device) for loss in self._resumed["losses"]))
            restore_random_states(self._resumed["random"], self._device)
            self._resumed = None
        begin_epoch(loader, self.epoch, self.means.steps * self.learner.accumulate)
        self._step_started = time.monotonic()
        self._take_position(stepped)
        return stepped

    @property
    def steps_left(self) -> int:
        """Of the epoch at hand."""
        return min(self.limits.steps_per_epoch - self.means.steps, self.limits.steps - self.iteration)

    def leave_position(self) -> None:
        """From here on the training cannot go back; what asks it to stop waits for the next position."""
        signals.hold()
        self._position = None

    def half_done(self, losses: StepLosses) -> None:
        """The optimizer has stepped for the interactive losses, and will for the segmentation decoder's."""
        # There is a position still where the gradient scaler has left out the optimizer's step.
        if self._position is None:
            self._take_position(losses)

    def step(
        self, losses: StepLosses, rate: float, x: torch.Tensor, y: torch.Tensor, targets: torch.Tensor
    ) -> None:
        """A step is done.

        Args:
            x: (batch, 3, H, W) images of its last batch.
            y: (batch, 1 or 4, H, W) ids of their objects, and what the segmentation decoder learns.
            targets: (batch, objects, 1, H, W) the objects that were chosen.
        """
        shown = targets.float() if self.iteration % STEPS_BETWEEN_PICTURES == 0 else None
        values = [value for value in losses[1:] if value is not None]
        self._pictures.log_train(self.iteration, losses.loss, rate, x, y[:, :1], shown, *values)
        named = {"train_loss": losses.loss, **losses._asdict()}
        del named["loss"]
        self.means.add(rate, **{name: value for name, value in named.items() if value is not None})
        now = time.monotonic()
        self.step_seconds += now - self._step_started
        self._step_started = now
        self.iteration += 1
        self._bar.update(1)
        self._take_position(None)
        if now - self._saved > SECONDS_BETWEEN_CHECKPOINTS:
            self.save_position()
        else:
            self._report(self.iteration)

    def finish_epoch(self, validation: Validation) -> None:
        """Write best.pt where the epoch is the best so far, then history.csv and latest.pt."""
        metric, losses = validation.metric, validation.losses
        x, ids, targets = validation.shown
        means = [value for name, value in losses.items() if name != "loss"]
        self._pictures.log_validation(self.iteration, metric, losses["loss"], x, ids, targets.float(), *means)
        self.train_time = self._seconds()
        if metric < self.best_metric:
            self.best_metric, self.best_epoch = metric, self.epoch
            self.write_best(metric)
        self.history.append(self._history_row(metric, losses["loss"]))
        values = {**self._values(), "current_metric": metric, **self._continuation()}
        checkpoints.write_latest(self.paths, values)
        self._saved_iteration, self._saved = self.iteration, time.monotonic()
        self.epoch += 1
        self._loss = self.means.mean("train_loss")
        self._bar.set_description(f"Epoch {self.epoch}: metric {metric:.6f}, best {self.best_metric:.6f}")
        self._report(self.iteration)
        signals.release()

    def write_best(self, metric: float) -> None:
        """Write best.pt, and what peft opens."""
        values = {**self._values(), "current_metric": metric, **self.keeping.best(self.learner.model)}
        checkpoints.write_best(self.paths, values)
        if self.keeping.has_adapter:
            write_adapter(self.learner.model.sam, self.keeping.peft, self.paths.adapter)

    def save_position(self) -> None:
        """Write latest.pt in the middle of an epoch, unless it says the same already.

        A training that has diverged leaves the one that it was written before, from which another precision
        may go on.
        """
        found = self._position
        if found is None or (found.iteration == self._saved_iteration and found.losses is None):
            return
        if not self.learner.is_finite:
            return
        found.restore(self._statistics, self.learner.arithmetic.scaler)
        now = time.monotonic()
        checkpoints.write_latest(
            self.paths,
            {
                **self._values(),
                "iteration": found.iteration,
                "epoch": self.epoch - 1,  # the last one that is finished
                "train_time": self._seconds(),
                "current_metric": self.best_metric,
                **self._continuation(),
                "position": found.to_values(epoch_seconds=now - self._epoch_started),
            },
        )
        self._saved_iteration, self._saved = found.iteration, now
        self._report(found.iteration)

    def _take_position(self, losses: StepLosses | None) -> None:
        """The training can be interrupted from here on, and goes on from here then."""
        self._position = position(
            self.iteration,
            self.means,
            None if losses is None else tuple(value for value in losses if value is not None),
            self._device,
            self._statistics,
            self.learner.arithmetic.scaler,
        )
        signals.release()

    @property
    def _device(self) -> torch.device:
        return self.learner.arithmetic.device

    def _seconds(self) -> float:
        """Of the training, over all attempts."""
        return self._before + time.monotonic() - self._started

    def _values(self) -> dict[str, Any]:
        """What both checkpoints hold beside the weights of the model."""
        config = getattr(self.learner.model.sam, "config", None)  # a model of family hf has its shape in one
        return {
            "iteration": self.iteration,
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_metric": self.best_metric,
            "train_time": self.train_time,
            "step_seconds": self.step_seconds,
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "init": {
                "run_id": self.paths.run_id,
                **({} if config is None else {SAM_CONFIG: config.to_dict()}),
            },
            **self.learner.decoder_state(),
        }

    def _continuation(self) -> dict[str, Any]:
        """What only latest.pt holds: the weights as they are trained, and how they are trained further."""
        return {**self.keeping.latest(self.learner.model), **self.learner.optimization_state()}

    def _history_row(self, metric: float, loss: float) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "iteration": self.iteration,
            **{name: self.means.mean(name) for name in ("train_loss", "mask_loss", "iou_loss")},
            **{name: self.means.mean(name) for name in ("model_iou", "instance_loss")},
            "validation_metric": metric,
            "validation_loss": loss,
            "learning_rate": self.means.learning_rate,
            "seconds": time.monotonic() - self._epoch_started,
            "train_time": self.train_time,
            "best": int(self.best_epoch == self.epoch),
        }

    def _report(self, iteration: int) -> None:
        steps = iteration - self._first_iteration
        seconds_per_step = (time.monotonic() - self._started) / max(steps, 1)
        known = math.isfinite(self.best_metric)
        self.report(
            Progress(
                epoch=self.epoch,
                epochs=self.limits.epochs,
                iteration=iteration,
                saved=self._saved_iteration,
                loss=self._loss if self._loss is not None else self.means.mean("train_loss"),
                best_epoch=self.best_epoch if known else None,
                best_metric=self.best_metric if known else None,
                seconds_left=seconds_per_step * (self.limits.steps - iteration),
            )
        )


def _tensorboard(paths: RunPaths, joint: bool) -> SamLogger | JointSamLogger:
    """micro-sam's logger, which wants a name and an interval of its trainer."""
    named = SimpleNamespace(name=paths.run_id, log_image_interval=STEPS_BETWEEN_PICTURES)
    return (JointSamLogger if joint else SamLogger)(named, str(paths.root))
