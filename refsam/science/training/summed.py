"""The joint step as one: a single encoder forward and backward, a single optimizer step for both losses.

micro-sam trains interactive segmentation and the segmentation decoder one after the other within a step, each
with its own forward and backward of the encoder and its own optimizer step. With `train.joint=summed` both
losses are computed on one embedding, their gradients add up there, and the encoder goes backward once.

It saves one forward and one backward of the encoder. It is another training: the sum of the gradients of
micro-sam's two optimizer steps, at the weights before the first, in one. Results name it.
"""

import time
from typing import Any

import torch

from refsam.science.training.step import LowMemoryJointStep


class SummedJointStep(LowMemoryJointStep):
    """Mixin in front of JointSamTrainer."""

    def _encoder_backward(self, embeddings: torch.Tensor, leaf: torch.Tensor) -> None:
        # The gradient of the other loss is still to come.
        self._encoded = embeddings, leaf

    def _train_epoch_impl(self, progress: Any, forward_context: Any, backprop: Any) -> float:
        """An epoch, as micro-sam's JointSamTrainer goes through it; seconds per step."""
        self.model.train()
        self.unetr.train()
        input_checked = False
        steps = 0
        started = time.time()
        for x, y in self.train_loader:
            instances = y[:, :1]
            input_checked = self._check_input_normalization(x, input_checked)
            self.optimizer.zero_grad()
            with forward_context():
                *losses, sampled = self._interactive_train_iteration(x, instances)
                instance_loss = self._instance_loss(x, y[:, 1:])
                self._backward(instance_loss)
            embeddings, leaf = self._encoded
            del self._encoded
            super()._encoder_backward(embeddings, leaf)
            del embeddings, leaf
            backprop(losses[0])
            if self.logger is not None:
                loss, *parts = losses
                shown = sampled if self._iteration % self.log_image_interval == 0 else None
                rate = self.optimizer.param_groups[0]["lr"]
                self.logger.log_train(
                    self._iteration, loss, rate, x, instances, shown, *parts, instance_loss.detach()
                )
            self._iteration += 1
            steps += 1
            if self._iteration >= self.max_iteration:
                break
            progress.update(1)
        return (time.time() - started) / steps

    def _instance_loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Loss of the segmentation decoder on the embedding of the interactive branch."""
        _, leaf = self._encoded
        outputs = self.unetr.decode((leaf, None, None), self._input_size(x), tuple(x.shape[2:]))
        loss: torch.Tensor = self.instance_loss(outputs, y.to(self.device))
        return loss
