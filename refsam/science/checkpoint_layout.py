"""Where the weights are in a loaded checkpoint, whoever wrote it, and why they do not fit a model."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from refsam.errors import ConfigError
from refsam.models.weights_file import encoder_in

StateDict = Mapping[str, torch.Tensor]

# Where trainers keep the weights (torch-em and micro-sam, Lightning, others), which are looked at first.
_WRAPPINGS = ("model_state", "model_state_dict", "state_dict", "model", "module", "network", "net", "weights")
_DEEPEST = 4  # wrappings inside one another
_DECODER = "decoder_state"  # of micro-sam's automatic segmentation
_ENCODER = re.compile(r"^(.*?)(?:image|vision)_encoder\.")
_SHOWN = 3  # names of each kind in a sentence


def find_weights(content: Any, where: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """State dict of the SAM in a checkpoint, and of micro-sam's segmentation decoder if there is one.

    What DistributedDataParallel, torch.compile, trainers and Lightning put around names and dictionaries is
    taken off; parameters of other modules of such a trainer are left out.

    Raises:
        ConfigError: when there is none; the sentence begins with `where`.
    """
    for state in _state_dicts(content, _DEEPEST):
        name = next(filter(_ENCODER.match, state))
        match = _ENCODER.match(name)
        assert match is not None
        return _without_prefix(state, match[1]), _decoder(content)
    raise ConfigError(f"{where} holds {_described(content)}, and no state dict of a Segment Anything model")


def misfit(state: StateDict, module: nn.Module, wanted: str) -> str | None:
    """Why a state dict is not of a module, the end of a sentence; None where it is.

    Args:
        wanted: what the module is called, vit_b for example.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    other = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    parts = [
        f"{kind} {len(names)} ({_some(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if other:
        sizes = f"{tuple(state[other[0]].shape)} instead of {tuple(expected[other[0]].shape)}"
        parts.append(f"of another shape {len(other)} ({_some(other)}; the first is {sizes})")
    if not parts:
        return None
    return f"looks like {_looks_like(state)} and does not fit {wanted}: of its tensors are {', '.join(parts)}"


def _state_dicts(content: Any, depth: int) -> Iterator[dict[str, torch.Tensor]]:
    """The state dicts with an image encoder in nested mappings, the outermost first."""
    if not isinstance(content, Mapping):
        return
    tensors = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if any(map(_ENCODER.match, tensors)):
        yield tensors
    elif depth:
        for name in (*_WRAPPINGS, *(name for name in content if name not in _WRAPPINGS)):
            yield from _state_dicts(content.get(name), depth - 1)


def _decoder(content: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
    state = content.get(_DECODER)
    if not isinstance(state, Mapping):
        return None
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _without_prefix(state: StateDict, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _looks_like(state: StateDict) -> str:
    encoder = encoder_in("\n".join(state)) or "another model"
    positions = next((value for name, value in state.items() if name.endswith("encoder.pos_embed")), None)
    return encoder if positions is None else f"{encoder} ({positions.shape[-1]} channels)"


def _described(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return f"a dictionary of {_some([str(name) for name in content])}" if content else "an empty dictionary"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
