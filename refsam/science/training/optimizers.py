"""The optimizers of a run, and the optimizer step in the middle of the backward.

- `adam` and `adamw` are torch's; the resource study took Adam.
- `adam8bit` and `paged_adam8bit` are those of bitsandbytes (the extra `refsam[8bit]`): the two moments of
  every weight in 8 instead of 32 bits; the paged one, on GPUs only, also moves them to main memory where the
  GPU's is full. They save three quarters of what Adam keeps (3.6 of 4.8 GiB for vit_h). They are not exact.
- `train.optimizer_in_backward` steps each of the encoder's parameters as soon as its gradient is complete,
  and frees the gradient. It saves the encoder's gradients (2.4 GiB for vit_h). It costs many small steps in
  place of a large one; the weights are the same.
"""

import importlib
from collections.abc import Iterable
from typing import Any

import torch

from refsam.configuration.schema import TrainConfig
from refsam.errors import BadInput

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
EIGHT_BIT = {"adam8bit": "Adam8bit", "paged_adam8bit": "PagedAdam8bit"}


def build_optimizer(
    settings: TrainConfig, parameters: Iterable[torch.nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of `train.optimizer` for those of the parameters that are trained.

    Raises:
        BadInput: when it is unknown, not installed, or does not work on the device.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if settings.optimizer in OPTIMIZERS:
        return OPTIMIZERS[settings.optimizer](trained, lr=settings.lr)
    if settings.optimizer not in EIGHT_BIT:
        allowed = ", ".join((*OPTIMIZERS, *EIGHT_BIT))
        raise BadInput(f"train.optimizer={settings.optimizer}, allowed: {allowed}")
    return _eight_bit(settings, trained, device)


class StepInBackward:
    """Steps a parameter of an optimizer when its gradient is complete, and frees the gradient.

    The state stays the optimizer's own: what is saved and resumed does not know of it. It is for parameters
    whose gradient is complete after one backward; the encoder's are, whose backward is called once per
    optimizer step. Not for a GradScaler, which looks at all gradients before it allows a step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._groups = {
            id(parameter): index
            for index, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
        }
        for parameter in parameters:
            if id(parameter) in self._groups:
                parameter.register_post_accumulate_grad_hook(self._step)

    def _step(self, parameter: torch.Tensor) -> None:
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        alone = {**groups[self._groups[id(parameter)]], "params": [parameter]}
        self._optimizer.param_groups = [alone]
        try:
            self._optimizer.step()
        finally:
            self._optimizer.param_groups = groups
        parameter.grad = None


def _eight_bit(
    settings: TrainConfig, parameters: list[torch.nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    if settings.optimizer == "paged_adam8bit" and device.type != "cuda":
        raise BadInput(
            f"train.optimizer=paged_adam8bit needs a GPU, and the run is on {device.type}, allowed there: "
            "adam, adamw, adam8bit"
        )
    try:
        library = importlib.import_module("bitsandbytes.optim")
    except ImportError as error:
        raise BadInput(
            f"train.optimizer={settings.optimizer} needs bitsandbytes, which is not installed here: "
            "pip install 'refsam[8bit]'"
        ) from error
    optimizer_class = getattr(library, EIGHT_BIT[settings.optimizer])
    optimizer: torch.optim.Optimizer = optimizer_class(parameters, lr=settings.lr)
    return optimizer
