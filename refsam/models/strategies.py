"""Which finetuning strategy goes with which model and which freezing; known without torch, for the plan.

STRATEGIES is the one table: what a value of peft.name means, what it takes, and what it does not go with. The
values themselves (rank, layers, share of blocks) are in conf/peft, with where they come from.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

from refsam.configuration.resources import folder
from refsam.configuration.schema import AUTO, ModelConfig, PeftConfig
from refsam.errors import nearest
from refsam.models.linear_layers import Layers, linear_layers
from refsam.system.files import read_yaml

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
HEADS = ("prompt_encoder", "mask_decoder")
DECODER = "decoder"  # the strategy that trains nothing of PARTS
UPDATE_MATRICES = ("q", "k", "v", "mlp")
QUANTIZATIONS = ("nf4", "fp4")
QUANTIZED_LAYERS = ("encoder", "all")
TRAIN, FREEZE, ADAPT = "train", "freeze", "adapt"  # of peft.decoder
# What ADAPT adds to peft.targets: queries and values of every attention.
DECODER_TARGETS = [r"mask_decoder\..*\.[qv]_proj"]
LEARNABLE = "learnable_scalar"
NO_SURGERY = "micro-sam operates on transformer blocks, and TinyViT has none of them"
OTHER_NAMES = "micro-sam looks for its layers under the names that segment_anything's classes give them"
IMAGES_FOR_OFT = "peft's OFT takes what has rows and columns for an image, as this encoder's attention has"


class Method(StrEnum):
    """Who changes the model: nobody (parts are frozen), micro-sam's surgery, or Hugging Face's peft."""

    parts = "parts"
    surgery = "surgery"
    peft = "peft"


@dataclass(frozen=True)
class Strategy:
    """What one value of peft.name means. Parts are those of PARTS, architectures those of ModelConfig.

    Attributes:
        trains: what of the image encoder, in words for the documentation.
        method: who changes the model.
        takes: fields of PeftConfig that it can be given besides name and freeze.
        needs: those of them that cannot be left out.
        kind: class of micro_sam.models.peft_sam, or of peft's configuration.
        arguments: of peft's configuration, what makes this strategy out of the class.
        named: how peft's configuration calls rank, alpha and dropout.
        must_freeze: parts.
        may_freeze: parts.
        quantized: whether the frozen weights of the encoder are kept in 4 bits.
        adapter: whether peft can open what was trained.
        weights: which share of the encoder's own weights is trained, roughly.
        mergeable: whether what was trained can be put into the weights of a plain model.
        excluded: families and architectures of models that it does not go with, and why.
    """

    trains: str
    method: Method = Method.parts
    takes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    kind: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    must_freeze: tuple[str, ...] = ()
    may_freeze: tuple[str, ...] = HEADS
    quantized: bool = False
    adapter: bool = False
    weights: float = 0.0
    mergeable: bool = True
    excluded: Mapping[str, str] = field(default_factory=dict)


def _surgery(
    trains: str,
    kind: str,
    *takes: str,
    needs: tuple[str, ...] = (),
    elsewhere: Mapping[str, str] | None = None,
    **values: Any,
) -> Strategy:
    """A strategy of micro_sam.models.peft_sam; `elsewhere` adds to the models that it does not go with."""
    return Strategy(
        trains,
        Method.surgery,
        takes=(*needs, *takes, "share"),
        needs=needs,
        kind=kind,
        excluded={"vit_t": NO_SURGERY, **(elsewhere or {})},
        **values,
    )


def _late(strategy: Strategy, trains: str) -> Strategy:
    return dataclasses.replace(strategy, trains=trains, needs=(*strategy.needs, "share"))


def _quantized(strategy: Strategy, trains: str) -> Strategy:
    """The same with the encoder's own weights in 4 bits."""
    return dataclasses.replace(
        strategy,
        trains=trains,
        takes=(*strategy.takes, "quantization", "double_quantization", "quantized_layers"),
        needs=(*strategy.needs, "quantization"),
        quantized=True,
    )


def _peft(trains: str, kind: str, named: Mapping[str, str], **arguments: Any) -> Strategy:
    """A strategy of Hugging Face's peft."""
    needs = ("rank", "targets") if "rank" in named else ("targets",)
    return Strategy(
        trains,
        Method.peft,
        takes=(*needs, *(name for name in named if name not in needs), "share", "options"),
        needs=needs,
        kind=kind,
        arguments=arguments,
        named=named,
        adapter=True,
    )


_LORA_NAMES = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
_LYCORIS_NAMES = {"rank": "r", "alpha": "alpha", "dropout": "rank_dropout"}
_MICRO_SAM_LORA = _surgery(
    "low-rank updates of queries, keys, values or the MLP",
    "LoRASurgery",
    needs=("rank", "update_matrices"),
    adapter=True,
)
_LORA = _peft("low-rank updates", "LoraConfig", _LORA_NAMES)
_DORA = _peft("low-rank updates of direction, and a magnitude per output", "LoraConfig", _LORA_NAMES)
_DORA = dataclasses.replace(_DORA, arguments={"use_dora": True})

STRATEGIES = {
    "full": Strategy("all parameters", weights=1.0),
    "freeze_encoder": Strategy("nothing", must_freeze=("image_encoder",), may_freeze=PARTS),
    DECODER: Strategy(
        "nothing; only the segmentation decoder is trained", must_freeze=PARTS, may_freeze=PARTS
    ),
    # What follows is put into the encoder, which then cannot be frozen as a whole: HEADS may be.
    "lora": _MICRO_SAM_LORA,
    "qlora": _quantized(_MICRO_SAM_LORA, "as lora, on a base in 4 bits"),
    "fact": _surgery(
        "factorized low-rank updates of queries and values",
        "FacTSurgery",
        "dropout",
        needs=("rank",),
        adapter=True,
    ),
    "adaptformer": _surgery(
        "a bottleneck beside each MLP",
        "AdaptFormer",
        "alpha",
        "dropout",
        needs=("projection",),
        mergeable=False,
    ),
    "ssf": _surgery("scale and shift after each layer", "SSFSurgery", elsewhere={"hf": OTHER_NAMES}),
    "attention": _surgery("the attention layers", "AttentionSurgery", weights=1 / 3),
    "bias": _surgery("the biases", "BiasSurgery"),
    "layernorm": _surgery("the normalization layers", "LayerNormSurgery"),
    "late_lora": _late(_MICRO_SAM_LORA, "as lora, in the last blocks"),
    "late_qlora": _late(
        _quantized(_MICRO_SAM_LORA, "as lora"), "as lora, in the last blocks, on a base in 4 bits"
    ),
    "late_ft": _late(_surgery("", "ClassicalSurgery", weights=1.0), "the last blocks"),
    "hf_lora": _LORA,
    "dora": _DORA,
    "hf_qlora": _quantized(_LORA, "as hf_lora, on a base in 4 bits"),
    "qdora": _quantized(_DORA, "as dora, on a base in 4 bits"),
    "rslora": _peft(
        "low-rank updates, scaled by the root of the rank", "LoraConfig", _LORA_NAMES, use_rslora=True
    ),
    "pissa": _peft(
        "low-rank updates, initialized with the weights' largest singular vectors",
        "LoraConfig",
        _LORA_NAMES,
        init_lora_weights="pissa",
    ),
    "loha": _peft("element-wise products of two low-rank updates", "LoHaConfig", _LYCORIS_NAMES),
    "lokr": _peft("Kronecker products with low-rank factors", "LoKrConfig", _LYCORIS_NAMES),
    "oft": dataclasses.replace(
        _peft("rotations of blocks of inputs", "OFTConfig", {"dropout": "module_dropout"}),
        excluded=dict.fromkeys(("vit_nano", "vit_b", "vit_l", "vit_h", "hf"), IMAGES_FOR_OFT),
    ),
    "hra": _peft("reflections of inputs", "HRAConfig", {"rank": "r"}),
    "ia3": _peft("a scale per output", "IA3Config", {}, feedforward_modules=[]),
}


def strategy_problem(model: ModelConfig, peft: PeftConfig) -> str | None:
    """Why `model` cannot be finetuned by `peft`, in one sentence, or None when it can.

    `auto` is no problem here: it stands for a strategy of the resource's file.
    """
    if peft.name == AUTO:
        return None
    strategy = STRATEGIES.get(peft.name)
    if strategy is None:
        allowed = (AUTO, *STRATEGIES)
        hint = nearest(peft.name, allowed)
        return f"peft.name={peft.name} is not a finetuning strategy, allowed: {', '.join(allowed)}{hint}"
    problem = (
        _model_problem(model, peft, strategy)
        or _freezing_problem(peft, strategy)
        or _settings_problem(peft, strategy)
        or _decoder_problem(peft, strategy)
    )
    layers = linear_layers(model)
    if problem is not None or layers is None:
        return problem
    return layers_problem(peft, layers)


def layers_problem(peft: PeftConfig, layers: Layers) -> str | None:
    """Why the settings of `peft` do not go with a model that has these linear layers; None where they do.

    Args:
        peft: a strategy whose settings are fine by themselves.
        layers: name, inputs and outputs of each.
    """
    strategy = STRATEGIES[peft.name]
    for pattern in peft.targets:
        if not any(re.fullmatch(pattern, name) for name in layers):
            there = ", ".join(dict.fromkeys(re.sub(r"\d+", "N", name) for name in layers))
            return f"peft.targets: {pattern} matches no linear layer; there are: {there} (N: numbers)"
    if strategy.method is Method.peft:
        adapted = adapted_layers(layers, peft)
    else:
        adapted = [name for name in layers if name.endswith((".qkv", ".lin1", ".lin2"))]
    if peft.rank is None or not adapted:
        return None
    narrowest = min(adapted, key=lambda name: min(layers[name]))
    if peft.rank > min(layers[narrowest]):
        inputs, outputs = layers[narrowest]
        return (
            f"peft.rank={peft.rank} is larger than the layer {narrowest} ({inputs} inputs, {outputs} "
            f"outputs), allowed: 1 to {min(layers[narrowest])}"
        )
    return None


def adapted_layers(names: Iterable[str], peft: PeftConfig) -> list[str]:
    """The linear layers into which a strategy of Hugging Face's peft puts its updates."""
    known = list(names)
    found = target_layers(known, peft.targets, peft.share)
    return found + (target_layers(known, DECODER_TARGETS, None) if peft.decoder == ADAPT else [])


def frozen_parts(peft: PeftConfig) -> list[str]:
    """The parts that stay as they are, in the order of PARTS."""
    beside = {TRAIN: (), FREEZE: HEADS, ADAPT: ("prompt_encoder",)}[peft.decoder]
    return [part for part in PARTS if part in (*peft.freeze, *beside)]


def target_layers(names: Iterable[str], targets: list[str], share: float | None) -> list[str]:
    """The linear layers that `targets` match, of the last `share` percent of the blocks that have such."""
    matching = [name for name in names if any(re.fullmatch(pattern, name) for pattern in targets)]
    # A block's layers are two levels below it: blocks.3.attn.qkv.
    blocks = list(dict.fromkeys(name.rsplit(".", 2)[0] for name in matching))
    kept = {blocks[index] for index in adapted_blocks(len(blocks), share)}
    return [name for name in matching if name.rsplit(".", 2)[0] in kept]


def adapted_blocks(depth: int, share: float | None) -> list[int]:
    """The last `share` percent of `depth` blocks, rounded, one at least; all for None."""
    number = depth if share is None else max(1, int(depth * share / 100 + 0.5))
    return list(range(depth - number, depth))


def is_quantized(peft: PeftConfig) -> bool:
    """Whether a strategy keeps the encoder's own weights in 4 bits."""
    return peft.name in STRATEGIES and STRATEGIES[peft.name].quantized


def strategy_label(peft: Mapping[str, Any]) -> str:
    """What tables call a strategy: its name, the share of blocks where it is not in all of them, and what
    differs from the settings of its file, as `late_lora 50 %, rank 8`: two of one name are two strategies.

    Args:
        peft: the values of a PeftConfig, also of one from before there were all of its fields.
    """
    name, share = str(peft["name"]), peft.get("share")
    usual = _settings_of_file(name)
    label = name if share is None else f"{name} {share:g} %"
    return ", ".join([label, *_unusual(peft, usual)])


def _unusual(peft: Mapping[str, Any], usual: Mapping[str, Any]) -> Iterator[str]:
    """The settings that differ from the usual ones, in words."""
    for item in dataclasses.fields(PeftConfig):
        value: Any = peft.get(item.name)
        default = item.default if item.name == "decoder" else None
        is_usual = item.name not in peft or (value or None) == (usual.get(item.name) or default)
        if item.name in ("name", "share") or is_usual:
            continue
        if item.name == "freeze":
            yield f"frozen {' '.join(part for part in PARTS if part in value)}"
        else:
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{item.name.replace('_', ' ')} {shown}"


@lru_cache
def _settings_of_file(name: str) -> dict[str, Any]:
    """The settings that conf/peft has for a strategy; none where it has no such file."""
    path = folder("conf") / "peft" / f"{name}.yaml"
    return dict(read_yaml(path)) if path.is_file() else {}


def trained_share(peft: PeftConfig) -> float:
    """Which share of the encoder's own weights a strategy trains, roughly; an adapter counts as none."""
    share = 100.0 if peft.share is None else peft.share
    return STRATEGIES[peft.name].weights * share / 100 if peft.name in STRATEGIES else 1.0


def _model_problem(model: ModelConfig, peft: PeftConfig, strategy: Strategy) -> str | None:
    for setting in ("family", "architecture"):
        value = getattr(model, setting)
        if value in strategy.excluded:
            allowed = [
                name
                for name, other in STRATEGIES.items()
                if not {model.family, model.architecture} & set(other.excluded)
            ]
            return (
                f"peft.name={peft.name} does not go with model.{setting}={value} "
                f"({strategy.excluded[value]}), allowed: {', '.join(allowed)}"
            )
    return None


def _freezing_problem(peft: PeftConfig, strategy: Strategy) -> str | None:
    given = f"peft.freeze={_listed(peft.freeze)}"
    unknown = [part for part in peft.freeze if part not in PARTS]
    if unknown:
        return f"{given} names an unknown part of the model: {unknown[0]}, allowed: {', '.join(PARTS)}"
    refused = [part for part in peft.freeze if part not in strategy.may_freeze]
    if refused:
        return (
            f"{given} does not go with peft.name={peft.name}, which trains in the image encoder: "
            f"{strategy.trains}; it can freeze: {', '.join(strategy.may_freeze)}"
        )
    missing = [part for part in strategy.must_freeze if part not in peft.freeze]
    if missing:
        return f"{given} does not go with peft.name={peft.name}, which has to freeze: {', '.join(missing)}"
    if set(frozen_parts(peft)) == set(PARTS) != set(strategy.must_freeze):
        given = f"{given}{'' if peft.decoder == TRAIN else f' with peft.decoder={peft.decoder}'}"
        return f"{given} leaves nothing of the model to train, allowed: at most {len(PARTS) - 1} of its parts"
    return None


def _decoder_problem(peft: PeftConfig, strategy: Strategy) -> str | None:
    """Why mask decoder and prompt encoder cannot be treated as peft.decoder says."""
    given = f"peft.decoder={peft.decoder}"
    if peft.decoder == ADAPT and strategy.method is not Method.peft:
        return (
            f"{given} does not go with peft.name={peft.name}, whose updates go into the image encoder only, "
            f"allowed: {TRAIN}, {FREEZE}"
        )
    if peft.decoder == ADAPT and "mask_decoder" in peft.freeze:
        return f"{given} does not go with peft.freeze={_listed(peft.freeze)}, allowed: {TRAIN}, {FREEZE}"
    if peft.quantized_layers == "all" and peft.decoder == TRAIN and "mask_decoder" not in peft.freeze:
        return (
            f"{given} does not go with peft.quantized_layers=all, because weights in 4 bits are not trained, "
            f"allowed: {FREEZE}, {ADAPT}"
        )
    return None


def _settings_problem(peft: PeftConfig, strategy: Strategy) -> str | None:
    """Why a setting cannot be given to a strategy, is missing, or has a value that cannot be."""
    for item in dataclasses.fields(peft):
        if item.name in ("name", "freeze", "decoder"):
            continue
        value = getattr(peft, item.name)
        shown = _listed(value) if isinstance(value, list) else value
        given = value is not None and value != [] and value != {}
        if given and item.name not in strategy.takes:
            allowed = ", ".join(strategy.takes) or "no settings"
            return f"peft.{item.name}={shown} does not go with peft.name={peft.name}, which takes: {allowed}"
        rule = _ALLOWED.get(item.name)
        if (not given and item.name in strategy.needs) or (given and rule is not None and not rule[0](value)):
            allowed = rule[1] if rule is not None else "a value"
            return f"peft.{item.name}={shown} does not go with peft.name={peft.name}, allowed: {allowed}"
    unknown = sorted(set(peft.options) & {*strategy.arguments, *strategy.named.values(), "target_modules"})
    if unknown:
        return (
            f"peft.options={{{unknown[0]}: …}} is what peft.name={peft.name} sets itself, allowed: other "
            f"arguments of peft's {strategy.kind}"
        )
    return None


def _patterns(values: list[str]) -> bool:
    try:
        for value in values:
            re.compile(value)
    except re.error:
        return False
    return bool(values)


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rank": (lambda value: value >= 1, "1 and more"),
    "update_matrices": (
        lambda value: bool(value) and set(value) <= set(UPDATE_MATRICES),
        f"one or more of {', '.join(UPDATE_MATRICES)}",
    ),
    "alpha": (
        lambda value: value == LEARNABLE or (isinstance(value, int | float) and value > 0),
        f"a number > 0, or {LEARNABLE} for adaptformer",
    ),
    "dropout": (lambda value: 0 <= value < 1, "a number from 0 to less than 1"),
    "projection": (lambda value: value >= 1, "1 and more channels"),
    "share": (lambda value: 0 < value <= 100, "a percentage above 0, up to 100"),
    "targets": (_patterns, "one or more regular expressions for the names of linear layers"),
    "quantization": (lambda value: value in QUANTIZATIONS, " or ".join(QUANTIZATIONS)),
    "quantized_layers": (lambda value: value in QUANTIZED_LAYERS, " or ".join(QUANTIZED_LAYERS)),
}


def _listed(names: list[str]) -> str:
    return f"[{','.join(names)}]"
