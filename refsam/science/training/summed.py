"""The joint step as one: a single encoder forward and backward, a single optimizer step for both losses.

micro-sam trains interactive segmentation and the segmentation decoder one after the other within a step, each
with its own forward and backward of the encoder and its own optimizer step. With `train.joint=summed` both
losses are computed on one embedding, their gradients add up there, and the encoder goes backward once.

It saves one forward and one backward of the encoder. It is another training: the sum of the gradients of
micro-sam's two optimizer steps, at the weights before the first, in one. Results name it.
"""

from dataclasses import replace

import torch

from refsam.science.training.losses import StepLosses
from refsam.science.training.step import Interactive, Segmentation, Step, Targets, refsam_step


def summed_step(interactive: Interactive, segmentation: Segmentation) -> Step:
    """The step of `train.joint=summed`."""
    arithmetic = interactive.arithmetic

    def gradients(x: torch.Tensor, y: torch.Tensor, iteration: int) -> tuple[StepLosses, Targets]:
        choice = interactive.prompts.of_training(iteration)
        with arithmetic.forward():
            batch = interactive.encode(x, y, choice)
            losses = interactive.iterate(batch, multimask_output=choice[-1])
            outputs = segmentation.decode(x, batch.leaf)
            instance_loss = segmentation.loss(outputs, y[:, 1:].to(arithmetic.device))
            arithmetic.backward(instance_loss)
            del outputs  # before the encoder's backward, which takes the most memory
        interactive.encoder_backward(batch)
        return losses._replace(instance_loss=instance_loss.detach()), batch.targets

    return replace(refsam_step(interactive, segmentation), interactive=gradients, segmentation=None)
