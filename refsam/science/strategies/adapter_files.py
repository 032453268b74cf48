"""What a strategy has trained, in Hugging Face peft's format: adapter_config.json, adapter_model.safetensors.

`peft.PeftModel.from_pretrained(model, folder)` opens it on a model with the weights that the run has started
from. micro-sam's LoRA and FacT are low-rank updates of the rows of one layer, which are LoRA of that layer; a
prompt encoder and mask decoder that were trained are there as a whole (`modules_to_save`). The adapter of a
model of family hf is one of a transformers.SamModel.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft as hugging_face
import safetensors.torch
import torch
from torch import nn

from refsam.configuration.schema import PeftConfig
from refsam.models.strategies import HEADS, STRATEGIES, Method, adapted_layers
from refsam.science.hugging_face import HuggingFaceSam
from refsam.science.micro_sam import AttentionLoRA, FacTSurgery, MLPLoRA
from refsam.science.state_names import transformers_part
from refsam.science.strategies.injection import ADAPTER, peft_config
from refsam.science.strategies.parts import linear_layers, part, part_name, part_of
from refsam.system.files import write_atomically

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
# peft's own names begin so, for it wraps the model twice.
PREFIX = "base_model.model."
StateDict = dict[str, torch.Tensor]


def write_adapter(model: nn.Module, peft: PeftConfig, folder: Path) -> None:
    """Write what was trained of `model` to `folder`.

    Args:
        model: with the strategy in it, as apply_strategy returns it.
        peft: its strategy, one that peft can open (`adapter` in the table).
        folder: made if it is not there.
    """
    strategy = STRATEGIES[peft.name]
    if strategy.method is Method.peft:
        config, state = _of_peft(model, peft)
    else:
        config, state = _of_surgery(model)
    saved = [name for name in HEADS if _is_trained(model, name)]
    config.modules_to_save = [part_name(model, name) for name in saved] or None
    config.inference_mode = True
    for name in saved:
        prefix = part_name(model, name)
        state |= {f"{prefix}.{key}": value for key, value in part(model, name).state_dict().items()}
    if isinstance(model, HuggingFaceSam):
        config.target_modules = [transformers_part(name) for name in config.target_modules]
        state = {transformers_part(name): value for name, value in state.items()}
    config.target_modules = sorted(config.target_modules)
    tensors = {f"{PREFIX}{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(config.to_dict()), indent=2, sort_keys=True)
    write_atomically(folder / CONFIG_NAME, lambda file: file.write(text.encode()))
    content = safetensors.torch.save(tensors, metadata={"format": "pt"})
    write_atomically(folder / WEIGHTS_NAME, lambda file: file.write(content))


def _is_trained(model: nn.Module, name: str) -> bool:
    """Whether a part is trained as a whole, and not frozen or adapted."""
    return all(parameter.requires_grad for parameter in part(model, name).parameters())


def _of_peft(model: nn.Module, peft: PeftConfig) -> tuple[Any, StateDict]:
    adapted = [
        name.removesuffix(".base_layer") for name in linear_layers(model) if name.endswith(".base_layer")
    ]
    config: Any = peft_config(peft, adapted_layers(adapted, peft))
    state: StateDict = {
        name: value
        for name, value in hugging_face.get_peft_model_state_dict(model, adapter_name=ADAPTER).items()
        if part_of(model, name) is not None
    }
    if STRATEGIES[peft.name].arguments.get("init_lora_weights") != "pissa":
        return config, state
    # What PiSSA has taken out of the weights at the beginning is not in the weights that the adapter meets:
    # the update is the difference, of twice the rank.
    for name in config.target_modules:
        initial_down, initial_up = model.get_submodule(name).__dict__["initial_update"]
        down, up = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        state[down] = torch.cat([state[down], initial_down.to(state[down])])
        state[up] = torch.cat([state[up], -initial_up.to(state[up])], dim=1)
    config.r, config.lora_alpha, config.init_lora_weights = 2 * config.r, 2 * config.lora_alpha, True
    return config, state


def _of_surgery(model: nn.Module) -> tuple[Any, StateDict]:
    updates = {
        name: update for prefix, module in model.named_modules() for name, update in _updates(module, prefix)
    }
    # One rank for all layers; further rows and columns of zeros change nothing.
    rank = max(len(down) for down, _ in updates.values())
    state = {}
    for name, (down, up) in updates.items():
        missing = rank - len(down)
        state[f"{name}.lora_A.weight"] = nn.functional.pad(down, (0, 0, 0, missing))
        state[f"{name}.lora_B.weight"] = nn.functional.pad(up, (0, missing))
    return hugging_face.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(updates)), state


def _updates(module: nn.Module, prefix: str) -> Iterator[tuple[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Layers that micro-sam's module updates, with (rank, inputs) and (outputs, rank) of each."""
    if isinstance(module, AttentionLoRA):
        yield prefix, _rows_of_attention(module)
    elif isinstance(module, FacTSurgery):
        factors = (module.q_FacTs.weight, None, module.v_FacTs.weight)
        zero = torch.zeros_like(module.FacTv.weight)
        rows = [zero if factor is None else module.FacTv.weight @ factor for factor in factors]
        yield prefix, (module.FacTu.weight, torch.cat(rows))
    elif isinstance(module, MLPLoRA):
        for number in (1, 2):
            down, up = (getattr(module, f"w_{letter}_linear_{number}").weight for letter in "ab")
            yield f"{prefix}.lin{number}", (down, up)


def _rows_of_attention(module: AttentionLoRA) -> tuple[torch.Tensor, torch.Tensor]:
    """The updates of queries, keys and values, each of its own rows, as one update of all rows."""
    there = [matrix for matrix in "qkv" if hasattr(module, f"w_a_linear_{matrix}")]
    down = torch.cat([getattr(module, f"w_a_linear_{matrix}").weight for matrix in there])
    up = down.new_zeros(3 * module.dim, len(down))
    for index, matrix in enumerate(there):
        row = "qkv".index(matrix) * module.dim
        column = index * module.rank
        up[row : row + module.dim, column : column + module.rank] = getattr(
            module, f"w_b_linear_{matrix}"
        ).weight
    return down, up


def _plain(value: Any) -> Any:
    """Plain values that JSON has."""
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    if isinstance(value, set):
        return sorted(_plain(child) for child in value)
    return str(value.value) if hasattr(value, "value") else value
