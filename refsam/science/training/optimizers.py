"""The optimizers and schedules of a run, and the optimizer step in the middle of the backward.

- `adam` and `adamw` are torch's; the resource study took Adam.
- `lion` is that of bitsandbytes (Chen et al. 2023, arXiv:2302.06675): steps of the sign of one running mean.
- `adam8bit`, `paged_adam8bit` and `lion8bit` are bitsandbytes' too (the extra `refsam[quantized]`): the
  running means of every weight in 8 instead of 32 bits; the paged one, on GPUs only, also moves them to main
  memory where the GPU's is full. They save three quarters of what Adam keeps (3.6 of 4.8 GiB for vit_h). They
  are not exact.
- `train.optimizer_in_backward` steps each of the encoder's parameters as soon as its gradient is complete,
  and frees the gradient. It saves the encoder's gradients (2.4 GiB for vit_h). It costs many small steps in
  place of a large one; the weights are the same.

Every trained parameter is in one group: weight decay takes from all of them, as in micro-sam.

- `plateau` lowers the learning rate after epochs without a better validation (torch's ReduceLROnPlateau).
- `cosine` changes it with every step: linearly from 0 in the warm-up, then by half a cosine down to 0
  (transformers', as the Hugging Face study has it).
"""

import importlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from refsam.configuration.optimizers import OPTIMIZERS
from refsam.configuration.schema import TrainConfig
from refsam.errors import ConfigError

Schedule = ReduceLROnPlateau | LambdaLR
MOMENTS = {"state1", "state2"}  # as bitsandbytes names them; Lion has one


def build_optimizer(
    settings: TrainConfig, parameters: Iterable[torch.nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of `train.optimizer` for those of the parameters that are trained.

    Raises:
        ConfigError: when it is unknown, not installed, or does not work on the device.
    """
    given = f"train.optimizer={settings.optimizer}"
    if settings.optimizer not in OPTIMIZERS:
        raise ConfigError(f"{given}, allowed: {', '.join(OPTIMIZERS)}")
    optimizer = OPTIMIZERS[settings.optimizer]
    if optimizer.needs_gpu and device.type != "cuda":
        others = ", ".join(name for name, other in OPTIMIZERS.items() if not other.needs_gpu)
        raise ConfigError(f"{given} needs a GPU, and the run is on {device.type}, allowed there: {others}")
    try:
        library = importlib.import_module(f"{optimizer.library}.optim")
    except ImportError as error:
        raise ConfigError(
            f"{given} needs bitsandbytes, which is not installed here: pip install 'refsam[quantized]'"
        ) from error
    decay = optimizer.weight_decay if settings.weight_decay is None else settings.weight_decay
    built: torch.optim.Optimizer = getattr(library, optimizer.kind)(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=settings.lr,
        weight_decay=decay,
        **({} if settings.betas is None else {"betas": tuple(settings.betas)}),
    )
    return built


def build_schedule(settings: TrainConfig, optimizer: torch.optim.Optimizer, steps: int) -> Schedule:
    """The schedule of `train.scheduler` for a training of so many steps of the optimizer."""
    if settings.scheduler == "cosine":
        from transformers import get_cosine_schedule_with_warmup

        return get_cosine_schedule_with_warmup(optimizer, math.ceil(settings.warmup * steps), steps)
    return ReduceLROnPlateau(
        optimizer, mode="min", factor=settings.scheduler_factor, patience=settings.scheduler_patience
    )


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over the state of an optimizer of the same kind.

    A paged one of bitsandbytes would have its moments on the GPU from then on: they are put into pages again.
    """
    optimizer.load_state_dict(state)
    if getattr(optimizer, "is_paged", False):
        paged: Any = optimizer
        for parameter, values in paged.state.items():
            for name in MOMENTS & values.keys():
                pages = paged.get_state_buffer(parameter, dtype=values[name].dtype)
                values[name] = pages.copy_(values[name])


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
