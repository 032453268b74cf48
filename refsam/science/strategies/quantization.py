"""Frozen weights in 4 bits (bitsandbytes): half a byte and a share of a constant instead of four bytes each.

nf4 has its 16 values where a normal distribution has its sixteenths (QLoRA, Dettmers et al. 2023,
arXiv:2305.14314); each block of 64 weights has one constant, which double quantization keeps in 8 bits. It
saves seven eighths of the linear layers' weights. It costs the way back to 32 bits at each use, and the
weights are rounded: this is another model, and results name it by its strategy. Products are computed in the
precision of the run: autocast takes the 32 bits to bfloat16 as everywhere else.
"""

import importlib
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import nn

from refsam.configuration.schema import PeftConfig
from refsam.errors import ConfigError
from refsam.science.strategies.parts import keep_mode, linear_layers, part, replace_module


def quantize(model: nn.Module, peft: PeftConfig) -> None:
    """Put the linear layers of the image encoder, or all of the model, into 4 bits, in place.

    Raises:
        ConfigError: when bitsandbytes is not installed.
    """
    library = _library(peft)
    chosen = model if peft.quantized_layers == "all" else part(model, "image_encoder")
    for name, layer in linear_layers(chosen).items():
        replace_module(chosen, name, _quantized(library, layer, peft))


def is_quantized_layer(module: nn.Module) -> bool:
    """Whether a layer's weight is in 4 bits."""
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def dequantized(layer: nn.Module) -> torch.Tensor:
    """The weight (outputs, inputs) of a layer in 4 bits, float32."""
    library = importlib.import_module("bitsandbytes.functional")
    weight: Any = layer.weight
    values: torch.Tensor = library.dequantize_4bit(weight.data, weight.quant_state)
    return values.float()


def weights_bytes(model: nn.Module) -> int:
    """Bytes that the parameters of `model` take in memory, constants of their quantization included."""
    return sum(_bytes(parameter) for parameter in model.parameters())


def _bytes(parameter: nn.Parameter) -> int:
    size = parameter.untyped_storage().nbytes()
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return size
    tensors = [value for value in state.as_dict(packed=True).values() if isinstance(value, torch.Tensor)]
    return size + sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def _quantized(library: ModuleType, layer: nn.Linear, peft: PeftConfig) -> nn.Module:
    device = layer.weight.device
    quantized: nn.Module = _layer_class(library)(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compress_statistics=bool(peft.double_quantization),
        quant_type=peft.quantization,
        device="meta",
    )
    quantized.weight = library.nn.Params4bit(
        layer.weight.data,
        requires_grad=False,
        compress_statistics=bool(peft.double_quantization),
        quant_type=peft.quantization,
        module=quantized,
    )
    quantized.bias = layer.bias
    quantized.to(device)  # this is what quantizes
    # In evaluation mode it would keep another layout on processors with bfloat16, and round once more.
    keep_mode(quantized, training=True)
    return quantized


@cache
def _layer_class(library: ModuleType) -> type[nn.Module]:
    class Linear4bit(library.nn.Linear4bit):  # type: ignore[name-defined]
        """A linear layer in 4 bits that computes in autocast's type, and in float32 without autocast.

        bitsandbytes' own stays with the type of the first input that it gets, and rounds its bias to it for
        good.
        """

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kind = x.device.type
            mixed = torch.is_autocast_enabled(kind)
            dtype = torch.get_autocast_dtype(kind) if mixed else torch.float32
            bias = None if self.bias is None else self.bias.to(dtype)
            state = self.weight.quant_state
            output = library.matmul_4bit(x.to(dtype), self.weight, bias=bias, quant_state=state)
            return output if mixed else output.to(x.dtype)

    return Linear4bit


def _library(peft: PeftConfig) -> ModuleType:
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ConfigError(
            f"peft.name={peft.name} keeps weights in 4 bits and needs bitsandbytes, which is not installed "
            "here: pip install 'refsam[quantized]'"
        ) from error
