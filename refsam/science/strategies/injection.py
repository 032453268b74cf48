"""A finetuning strategy put into a model: what is frozen, and what is added to the image encoder."""

import dataclasses
from typing import Any, TypeVar

import peft as hugging_face
from torch import nn

from refsam.configuration.schema import PeftConfig
from refsam.errors import ConfigError
from refsam.models.strategies import (
    LEARNABLE,
    PARTS,
    STRATEGIES,
    Method,
    Strategy,
    adapted_blocks,
    adapted_layers,
    frozen_parts,
    layers_problem,
)
from refsam.science.micro_sam import peft_sam
from refsam.science.strategies.parts import (
    keep_mode,
    keep_statistics,
    linear_layers,
    part,
    part_name,
    part_of,
)
from refsam.science.strategies.quantization import quantize

ADAPTER = "default"
Model = TypeVar("Model", bound=nn.Module)


def apply_strategy(model: Model, peft: PeftConfig) -> Model:
    """Freeze parts of `model` and put updates into its layers, in place, as `peft` says.

    Whatever is put into a part, its own weights are frozen, with the running statistics of batch
    normalization; the parts beside it are trained unless `peft.freeze` or `peft.decoder` says otherwise.
    Frozen parts also stay in evaluation mode, so that the batch statistics of vit_t's encoder do not move.

    Raises:
        ConfigError: when the strategy does not go with the model's layers, or an extra is not installed.
    """
    strategy = STRATEGIES[peft.name]
    if strategy.method is not Method.parts:
        problem = layers_problem(peft, _sizes(model))
        if problem is not None:
            raise ConfigError(problem)
        if strategy.quantized:
            quantize(model, peft)
        if strategy.method is Method.surgery:
            _operate(model, peft, strategy)
        else:
            _inject(model, peft, strategy)
    for name in frozen_parts(peft):
        frozen = part(model, name)
        frozen.requires_grad_(False)
        keep_mode(frozen, training=False)
    return model


def _sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    encoder = part_name(model, "image_encoder")
    # The encoder's first: they are what a sentence about a pattern should name.
    layers = linear_layers(model)
    names = sorted(layers, key=lambda name: not name.startswith(encoder))
    return {name: (layers[name].in_features, layers[name].out_features) for name in names}


def _operate(model: nn.Module, peft: PeftConfig, strategy: Strategy) -> None:
    """micro-sam's surgery; it freezes the encoder and knows nothing of the other parts."""
    assert strategy.kind is not None
    depth = len(part(model, "image_encoder").blocks)  # type: ignore[arg-type]
    peft_sam.PEFT_Sam(model, peft_module=getattr(peft_sam, strategy.kind), **surgery_arguments(peft, depth))


def surgery_arguments(peft: PeftConfig, depth: int) -> dict[str, Any]:
    """What micro-sam's PEFT_Sam takes beside the model and the module.

    Args:
        depth: blocks of the image encoder.
    """
    given = {
        "update_matrices": list(peft.update_matrices) or None,
        "dropout": peft.dropout,
        "alpha": peft.alpha if peft.alpha == LEARNABLE or peft.alpha is None else float(peft.alpha),
        "projection_size": peft.projection,
    }
    return {
        "rank": peft.rank,
        "attention_layers_to_update": adapted_blocks(depth, peft.share),
        **{name: value for name, value in given.items() if value is not None},
    }


def _inject(model: nn.Module, peft: PeftConfig, strategy: Strategy) -> None:
    """peft's adapters; it freezes the whole model, and what is beside the adapted parts is freed again."""
    names = adapted_layers(linear_layers(model), peft)
    adapted = {part_of(model, name) for name in names}
    trained = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    if strategy.quantized:
        model.is_loaded_in_4bit = True  # type: ignore[assignment]  # what peft asks
    hugging_face.inject_adapter_in_model(peft_config(peft, names), model, adapter_name=ADAPTER)
    for name, parameter in model.named_parameters():
        if id(parameter) in trained and part_of(model, name) not in adapted:
            parameter.requires_grad_(trained[id(parameter)])
    for name in PARTS:
        if name in adapted:
            keep_statistics(part(model, name))
    if strategy.arguments.get("init_lora_weights") == "pissa":
        for name in names:
            _remember_update(model.get_submodule(name))


def _remember_update(layer: nn.Module) -> None:
    """PiSSA takes what its update begins as out of the layer's weight; an adapter has to know it."""
    down, up = (getattr(layer, matrix)[ADAPTER].weight.detach().clone() for matrix in ("lora_A", "lora_B"))
    layer.__dict__["initial_update"] = down, up


def peft_config(peft: PeftConfig, names: list[str]) -> hugging_face.PeftConfig:
    """peft's configuration of a strategy for the layers that are called `names`."""
    strategy = STRATEGIES[peft.name]
    assert strategy.kind is not None
    given = {their: getattr(peft, our) for our, their in strategy.named.items()}
    arguments: dict[str, Any] = {
        **strategy.arguments,
        **{name: value for name, value in given.items() if value is not None},
        **peft.options,
        "target_modules": names,
    }
    config_class = getattr(hugging_face, strategy.kind)
    known = {item.name for item in dataclasses.fields(config_class)}
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ConfigError(
            f"peft.options={{{unknown[0]}: …}} is not an argument of peft's {strategy.kind}, allowed: "
            f"{', '.join(sorted(known))}"
        )
    config: hugging_face.PeftConfig = config_class(**arguments)
    return config
