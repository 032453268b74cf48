"""Which weights of a model a run keeps: all, or only what is trained, beside what the run has started from.

Weights in 4 bits are never kept: they come from the initial weights, the same at every time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from refsam.configuration.schema import PeftConfig
from refsam.models.strategies import STRATEGIES
from refsam.science.strategies.merging import plain_state

StateDict = dict[str, torch.Tensor]
# What a checkpoint says of its weights. Without a word they are all there.
HOLDS = "holds"
TRAINED = "trained"


@dataclass(frozen=True)
class CheckpointPolicy:
    """What the checkpoints of a run hold: everything, or with `adapter_only` what is trained."""

    peft: PeftConfig
    adapter_only: bool = False

    @property
    def has_adapter(self) -> bool:
        """Whether peft can open what is trained."""
        return STRATEGIES[self.peft.name].adapter

    def best(self, model: nn.Module) -> dict[str, Any]:
        """Of best.pt: the weights of a plain model, which micro-sam opens, unless only the trained ones."""
        if self.adapter_only or not STRATEGIES[self.peft.name].mergeable:
            return {"model_state": trained_state(model), HOLDS: TRAINED}
        return {"model_state": plain_state(model)}

    def latest(self, model: nn.Module) -> dict[str, Any]:
        """Of latest.pt: the weights as they are trained."""
        if self.adapter_only or STRATEGIES[self.peft.name].quantized:
            return {"model_state": trained_state(model), HOLDS: TRAINED}
        return {"model_state": model.state_dict()}

    @staticmethod
    def restored(model: nn.Module, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint in which the weights that it does not hold are those of `model`."""
        if checkpoint.get(HOLDS) != TRAINED:
            return checkpoint
        return {**checkpoint, "model_state": {**_own_state(model), **checkpoint["model_state"]}}


def trained_state(model: nn.Module) -> StateDict:
    """What training changes in `model`: trained parameters, and statistics of normalization that move."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    names |= set(_moving_statistics(model))
    return {name: value for name, value in model.state_dict().items() if name in names}


def load_trained(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put into `model` what trained_state has taken out of one like it.

    Raises:
        RuntimeError: when something is missing or unknown.
    """
    model.load_state_dict({**_own_state(model), **state})


def state_bytes(state: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the values of a state dict."""
    return sum(value.numel() * value.element_size() for value in state.values())


def _own_state(model: nn.Module) -> StateDict:
    """The state dict without the constants of a quantization, which no model loads."""
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    return {name: value for name, value in model.state_dict().items() if name in names}


def _moving_statistics(model: nn.Module) -> Iterator[str]:
    for prefix, module in model.named_modules():
        # A module that keeps its mode whatever its parent is switched to has no moving statistics.
        if isinstance(module, _BatchNorm) and "train" not in module.__dict__:
            yield from (f"{prefix}.{name}" for name, _ in module.named_buffers(recurse=False))
