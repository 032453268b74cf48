"""Forward, backward and the optimizer's step in the precision of a run."""

from contextlib import AbstractContextManager, nullcontext

import torch

from refsam.configuration.schema import Precision


class Arithmetic:
    """Mixed precision, or plain float32 (float64, where the model is).

    Args:
        precision: of the forward pass; float16 scales the gradients.

    Attributes:
        scaler: of the gradients; it does nothing unless the precision is float16.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.precision = precision
        self.device = device
        self.scaler = torch.GradScaler(device.type, enabled=precision == Precision.float16)

    def forward(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.precision == Precision.float32:
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.precision.value))

    def full_precision(self) -> AbstractContextManager[object]:
        """The context of a backward pass that is called inside of a forward pass's."""
        return torch.autocast(self.device.type, enabled=False)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of `loss`, scaled where there is a scaler, to those that are there."""
        with self.full_precision():
            self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, max_grad_norm: float | None = None) -> None:
        """The optimizer's step, which the scaler leaves out where a gradient is not a number.

        Args:
            max_grad_norm: norm of all gradients together, to which larger ones are scaled down.
        """
        if max_grad_norm is not None:
            self.scaler.unscale_(optimizer)
            parameters = [value for group in optimizer.param_groups for value in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        self.scaler.step(optimizer)
        self.scaler.update()
