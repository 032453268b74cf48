"""The step of micro-sam's own trainer (train.engine=micro_sam), called by our loop.

It is what ours is compared with: the losses of all sub-iterations are summed and sent backward once, so that
all their graphs are in memory together. Only here are methods of micro-sam's trainers called.
"""

from typing import Any

import torch

from refsam.configuration.prompts import MIXED
from refsam.science.micro_sam import JointSamTrainer, SamTrainer
from refsam.science.training.learner import Learner
from refsam.science.training.losses import MaskLoss, StepLosses, dice_loss, instance_loss, squared_error
from refsam.science.training.prompts import Prompts
from refsam.science.training.step import Step, Targets


def micro_sam_step(learner: Learner, prompts: Prompts, loss: MaskLoss, n_sub_iterations: int) -> Step:
    """A step as Step describes it, of a trainer of micro-sam that has our prompts and loss."""
    trainer = _trainer(learner, prompts, n_sub_iterations)
    arithmetic, joint = learner.arithmetic, learner.unetr is not None
    # micro-sam's trainer knows one loss and one way to prompt, and asks these methods.
    if loss is not dice_loss:
        trainer._compute_loss = loss
    if prompts.kind != MIXED:
        trainer._get_prompt_and_multimasking_choices = prompts.of_training
        trainer._get_prompt_and_multimasking_choices_for_val = prompts.of_validation

    def interactive(x: torch.Tensor, y: torch.Tensor, iteration: int) -> tuple[StepLosses, Targets]:
        trainer._iteration = iteration
        with arithmetic.forward():
            *losses, targets = trainer._interactive_train_iteration(x, prompts.objects(y[:, :1]))
        arithmetic.backward(losses[0])
        return StepLosses(*(value.detach() for value in losses)), targets

    def segmentation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with arithmetic.forward():
            loss = trainer._instance_iteration(x, y[:, 1:])
        arithmetic.backward(loss)
        return loss.detach()

    def validate(x: torch.Tensor, y: torch.Tensor, index: int) -> tuple[StepLosses, Targets, None]:
        with arithmetic.forward():
            *losses, targets, _ = trainer._interactive_val_iteration(x, prompts.objects(y[:, :1]), index)
        if joint:
            with arithmetic.forward():
                losses.append(trainer._instance_iteration(x, y[:, 1:]))
        return StepLosses(*losses), targets, None

    return Step(interactive, segmentation if joint else None, validate)


def _trainer(learner: Learner, prompts: Prompts, n_sub_iterations: int) -> SamTrainer:
    """A trainer of micro-sam whose loop is never started."""
    arguments: dict[str, Any] = {
        "name": "micro_sam",
        "train_loader": None,
        "val_loader": None,
        "model": learner.model,
        "optimizer": None,
        "device": learner.arithmetic.device,
        "mixed_precision": False,
        "convert_inputs": lambda *given: prompts.convert(*given),
        "n_objects_per_batch": prompts.n_objects,
        "n_sub_iteration": n_sub_iterations,
        "mask_prob": prompts.mask_prob,
        "mse_loss": squared_error,
        "prompt_generator": lambda target, mask: prompts.generator(target, mask),
    }
    if learner.unetr is None:
        return SamTrainer(**arguments)
    loss = instance_loss()
    return JointSamTrainer(unetr=learner.unetr, instance_loss=loss, instance_metric=loss, **arguments)
