"""The training loop, from top to bottom: what is computed in which order, and when it ends."""

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import torch

from refsam.science.data import TorchLoader, begin_validation
from refsam.science.hardware import is_out_of_memory
from refsam.science.randomness import seed_everything
from refsam.science.training.learner import Learner
from refsam.science.training.losses import mean_losses
from refsam.science.training.recorder import Diverged, Recorder, Validation
from refsam.science.training.step import Step
from refsam.system import signals

Batch = tuple[torch.Tensor, torch.Tensor]  # images and labels


def train(
    learner: Learner, step: Step, loaders: tuple[TorchLoader, TorchLoader], recorder: Recorder, seed: int
) -> None:
    """Train to the end, from where `recorder` stands.

    A step minimizes two losses one after the other, as micro-sam's: that of the interactive segmentation with
    iterative prompts, then that of the segmentation decoder, where there is one, each with its own gradients
    and its own step of the optimizer. With train.accumulate a step takes so many batches, and the mean of
    their gradients. An epoch ends with a validation, from whose metric best.pt, early stopping and, as the
    schedule is, the learning rate follow.

    Where the optimizer steps, the training can be interrupted before and after, not within: `recorder` keeps
    the position to which it goes back, and writes it when the interruption comes.

    Args:
        loaders: of training and validation: images (batch, 3, H, W) and labels (batch, 1 or 4, H, W).

    Raises:
        Diverged: when the validation metric is no number.
        KeyboardInterrupt: when the process was asked to stop; latest.pt holds the position.
    """
    optimizer = learner.optimizer
    batches, held_out = loaders
    recorder.start()
    try:
        while not recorder.finished:  # all epochs are done, or early stopping
            losses = recorder.begin_epoch(batches)
            learner.switch(training=True)
            for group in _groups(batches, learner.accumulate, recorder.steps_left):
                targets = group[-1][1][:, :1]
                optimizer.zero_grad()
                if losses is None:  # else the interruption came after this half of the step
                    signals.check()
                    found = [step.interactive(x, y, recorder.iteration) for x, y in group]
                    losses, targets = mean_losses([each for each, _ in found]), found[-1][1]
                    learner.step(len(group))
                    if step.segmentation is not None:
                        recorder.half_done(losses)
                if step.segmentation is not None:
                    optimizer.zero_grad()
                    instance_losses = [step.segmentation(x, y) for x, y in group]
                    losses = losses._replace(instance_loss=torch.stack(instance_losses).mean())
                    learner.step(len(group))
                rate = learner.learning_rate
                recorder.leave_position()  # until what the schedule has changed is counted as well
                learner.after_step()
                recorder.step(losses, rate, *group[-1], targets)
                losses = None
            validation = validate(learner, step, held_out, seed, begin_validation(held_out, recorder.epoch))
            if not math.isfinite(validation.metric):
                raise Diverged(
                    f"the validation metric is {validation.metric} after {recorder.iteration} steps"
                )
            recorder.leave_position()  # until the schedule has stepped and the checkpoints are written
            learner.after_validation(validation.metric)
            recorder.finish_epoch(validation)  # best.pt, history.csv, latest.pt
    except BaseException as error:
        if signals.received() is not None or is_out_of_memory(error):
            recorder.save_position()
        raise


def _groups(batches: Iterable[Batch], size: int, number: int) -> Iterator[list[Batch]]:
    """The first `number` groups of so many batches; the last of an epoch has what is left."""
    left = iter(batches)
    for _ in range(number):
        yield list(islice(left, size))


def validate(
    learner: Learner, step: Step, held_out: TorchLoader, seed: int, epoch: int | None = None
) -> Validation:
    """The metric and the losses of the held-out batches.

    The metric is 1 - mIoU where the step measures the mIoU (train.stop_on=mIoU), else micro-sam's: mask loss,
    and a third of the segmentation decoder's loss.

    Args:
        epoch: whose objects and prompts are drawn; None for those that all epochs have in common.
    """
    seed_everything(seed, "validation" if epoch is None else f"validation, epoch {epoch}")
    learner.switch(training=False)
    metric, sums = 0.0, dict[str, float]()
    with torch.no_grad():
        for index, (x, y) in enumerate(held_out):
            losses, targets, miou = step.validate(x, y, index)
            values = {name: value.item() for name, value in losses._asdict().items() if value is not None}
            if miou is None:
                metric += values["mask_loss"] + values.get("instance_loss", 0.0) / 3
            else:
                metric += 1 - miou.item()
            sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
    means = {name: total / len(held_out) for name, total in sums.items()}
    return Validation(metric / len(held_out), means, (x, y[:, :1], targets))
