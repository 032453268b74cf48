"""A finetuned model as a plain one: what was put into its layers is added to their weights.

Whatever an adapter does inside a linear layer, without dropout the layer is a linear map again, and a linear
map is known by what it does to the unit vectors. So one rule merges them all: LoRA and its relatives,
micro-sam's surgeries, and layers in 4 bits, whose weights come back as 32 bits without a further rounding.
"""

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from refsam.science.micro_sam import AdaptFormer, AttentionLoRA, FacTSurgery, MLPLoRA, ScaleShiftLayer
from refsam.science.strategies.parts import in_evaluation_mode
from refsam.science.strategies.quantization import dequantized, is_quantized_layer

StateDict = dict[str, torch.Tensor]


def plain_state(model: nn.Module) -> StateDict:
    """State dict of `model` as it would be if no strategy had ever changed its modules.

    Names are those before the strategy, values those that give the same output in evaluation mode, in the
    precision of the computation. They are copies in main memory, made one by one: a GPU may have no room for
    a second model beside a training.

    Raises:
        TypeError: for AdaptFormer's bottleneck, which no plain model has.
    """
    with in_evaluation_mode(model):
        return {name: value.detach().to("cpu", copy=True) for name, value in _plain(model, "")}


def _plain(module: nn.Module, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(module, AdaptFormer):
        raise TypeError("AdaptFormer adds a nonlinear bottleneck, which cannot be merged into weights")
    if isinstance(module, MLPLoRA):
        yield from _plain_mlp(module, prefix)
    elif isinstance(module, ScaleShiftLayer):
        yield from _plain_scaled(module, prefix)
    elif isinstance(module, BaseTunerLayer):
        base: Any = module.get_base_layer()
        yield from _linear(module, base, prefix, (base.in_features,))
    elif isinstance(module, AttentionLoRA | FacTSurgery):
        # They take the axes of segment_anything: (batch, rows, columns, channels).
        yield from _linear(module, module.qkv_proj, prefix, (1, 1, module.dim))
    else:
        yield from _own(module, prefix)
        for name, child in module.named_children():
            yield from _plain(child, f"{prefix}{name}.")


def _own(module: nn.Module, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """What of a state dict is the module's own and not of its children."""
    for name, parameter in module.named_parameters(recurse=False):
        if name == "weight" and is_quantized_layer(module):
            yield f"{prefix}{name}", dequantized(module)
        else:
            yield f"{prefix}{name}", parameter
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield f"{prefix}{name}", buffer


def _linear(
    layer: nn.Module, base: nn.Module, prefix: str, shape: tuple[int, ...]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Weight and bias of the linear map that `layer` is, whose vectors have this shape."""
    bias = base.bias
    inputs = shape[-1]
    device = next(layer.parameters()).device
    units = torch.eye(inputs, device=device).reshape(inputs, *shape)
    offset = layer(torch.zeros(1, *shape, device=device)).flatten(1)
    columns = layer(units).flatten(1) - offset
    yield f"{prefix}weight", columns.T.contiguous()
    if bias is not None:
        yield f"{prefix}bias", offset[0]


def _plain_mlp(module: MLPLoRA, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for number in (1, 2):
        layer = getattr(module.mlp_layer, f"lin{number}")
        weight = dequantized(layer) if is_quantized_layer(layer) else layer.weight
        down, up = (getattr(module, f"w_{letter}_linear_{number}").weight for letter in "ab")
        yield f"{prefix}lin{number}.weight", weight + up @ down
        yield f"{prefix}lin{number}.bias", layer.bias


def _plain_scaled(module: ScaleShiftLayer, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """A scale and a shift of outputs go into the weight, by its first axis, and the bias before them."""
    inner = dict(_plain(module.layer, prefix))
    weight = inner[f"{prefix}weight"]
    yield f"{prefix}weight", module.scale.view(-1, *[1] * (weight.dim() - 1)) * weight
    yield f"{prefix}bias", module.scale * inner[f"{prefix}bias"] + module.shift
