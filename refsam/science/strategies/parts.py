"""The parts of a Segment Anything model under one name each, whoever has written its classes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from refsam.models.strategies import PARTS

# Hugging Face's name of what segment_anything calls image_encoder.
OTHER_NAMES = {"image_encoder": "vision_encoder"}


def part(model: nn.Module, name: str) -> nn.Module:
    """The part of `model` that PARTS calls `name`."""
    return model.get_submodule(part_name(model, name))


def part_name(model: nn.Module, name: str) -> str:
    """What `model` calls the part."""
    return name if hasattr(model, name) else OTHER_NAMES[name]


def part_of(model: nn.Module, name: str) -> str | None:
    """Which of PARTS the parameter or module `name` of `model` belongs to; None for no part."""
    first = name.partition(".")[0]
    return next((known for known in PARTS if part_name(model, known) == first), None)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of `model` by their full names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` into the place of the one that is called `name`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def keep_mode(module: nn.Module, training: bool) -> None:
    """Make `module` ignore the switches of the mode that reach it from the modules it is part of."""
    module.train(training)
    module.__dict__["train"] = lambda mode=True: module


def keep_statistics(module: nn.Module) -> None:
    """Batch normalization in `module` uses the statistics that it has, and leaves them as they are."""
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            keep_mode(child, training=False)


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """`module` without dropout and gradients, in full precision, and in its own mode again afterwards."""
    modes = {child: child.training for child in module.modules()}
    device = next(module.parameters()).device.type
    module.eval()
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        for child, training in modes.items():
            child.training = training


def count_parameters(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """Numbers of trainable and of all parameters; those in 4 bits count by their values."""
    sizes = [(_values(parameter), parameter.requires_grad) for parameter in parameters]
    return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)


def _values(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())
