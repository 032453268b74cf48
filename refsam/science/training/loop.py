"""The training loop, from top to bottom: what is computed in which order, and when it ends."""

import math
from itertools import islice

import torch

from refsam.science.data import TorchLoader, begin_validation
from refsam.science.hardware import is_out_of_memory
from refsam.science.randomness import seed_everything
from refsam.science.training.learner import Learner
from refsam.science.training.recorder import Diverged, Recorder, Validation
from refsam.science.training.step import Step
from refsam.system import signals


def train(
    learner: Learner, step: Step, loaders: tuple[TorchLoader, TorchLoader], recorder: Recorder, seed: int
) -> None:
    """Train to the end, from where `recorder` stands.

    A step minimizes two losses one after the other, as micro-sam's: that of the interactive segmentation with
    iterative prompts, then that of the segmentation decoder, where there is one, each with its own gradients
    and its own step of the optimizer. An epoch ends with a validation, from whose metric the learning rate,
    best.pt and early stopping follow.

    Where the optimizer steps, the training can be interrupted before and after, not within: `recorder` keeps
    the position to which it goes back, and writes it when the interruption comes.

    Args:
        learner: the models and their optimizer.
        step: gradients of the losses.
        loaders: of training and validation: images (batch, 3, H, W) and labels (batch, 1 or 4, H, W).
        recorder: counts, writes and reports.
        seed: of the run.

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
            for x, y in islice(batches, recorder.steps_left):
                targets = ids = y[:, :1]
                optimizer.zero_grad()
                if losses is None:  # else the interruption came after this half of the step
                    signals.check()
                    losses, targets = step.interactive(x, y, recorder.iteration)
                    learner.step()
                    if step.segmentation is not None:
                        recorder.half_done(losses)
                if step.segmentation is not None:
                    optimizer.zero_grad()
                    losses = losses._replace(instance_loss=step.segmentation(x, y))
                    learner.step()
                recorder.step(losses, x, ids, targets)
                losses = None
            validation = validate(learner, step, held_out, seed, begin_validation(held_out, recorder.epoch))
            if not math.isfinite(validation.metric):
                raise Diverged(
                    f"the validation metric is {validation.metric} after {recorder.iteration} steps"
                )
            recorder.leave_position()  # until the schedule has stepped and the checkpoints are written
            learner.schedule.step(validation.metric)
            recorder.finish_epoch(validation)  # best.pt, history.csv, latest.pt
    except BaseException as error:
        if signals.received() is not None or is_out_of_memory(error):
            recorder.save_position()
        raise


def validate(
    learner: Learner, step: Step, held_out: TorchLoader, seed: int, epoch: int | None = None
) -> Validation:
    """The metric and the losses of the held-out batches.

    Args:
        epoch: whose objects and prompts are drawn; None for those that all epochs have in common.
    """
    seed_everything(seed, "validation" if epoch is None else f"validation, epoch {epoch}")
    learner.switch(training=False)
    metric, sums = 0.0, dict[str, float]()
    with torch.no_grad():
        for index, (x, y) in enumerate(held_out):
            losses, targets = step.validate(x, y, index)
            values = {name: value.item() for name, value in losses._asdict().items() if value is not None}
            metric += values["mask_loss"] + values.get("instance_loss", 0.0) / 3
            sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
    means = {name: total / len(held_out) for name, total in sums.items()}
    return Validation(metric / len(held_out), means, (x, y[:, :1], targets))
