"""The two implementations of Segment Anything that a model can come in, and what each of them has."""

import math

from refsam.configuration.schema import AUTO, ArchitectureConfig, ModelConfig

MICRO_SAM = "micro_sam"  # segment_anything's and MobileSAM's classes, as micro-sam builds them
HUGGING_FACE = "hf"  # transformers.SamModel
FAMILIES = (MICRO_SAM, HUGGING_FACE)

# Architectures that can be built without a configuration from the hub.
KNOWN_SHAPES = ("vit_b", "vit_l", "vit_h")
MICRO_SAM_SHAPES = ("vit_t", *KNOWN_SHAPES)
# Segment Anything's mask decoder divides its channels by 8 and its attention halves them.
PROMPT_CHANNELS, HALVED = 8, 2
ATTENTIONS = {MICRO_SAM: ("fused", "eager"), HUGGING_FACE: ("sdpa", "fused", "eager")}


def attention_of(model: ModelConfig, given: str) -> str:
    """How attention is computed for a value of train.attention: for `auto`, the first that the family has."""
    return ATTENTIONS[model.family][0] if given == AUTO else given


def attention_problem(model: ModelConfig, given: str) -> str | None:
    """Why a value of train.attention does not go with a model; None where it does."""
    allowed = ATTENTIONS[model.family]
    if given in (AUTO, *allowed):
        return None
    choices = ", ".join((AUTO, *allowed))
    return f"train.attention={given} does not go with model.family={model.family}, allowed: {choices}"


def model_problem(model: ModelConfig) -> str | None:
    """Why the values of a model do not go together, in one sentence; None where they do."""
    if model.family == MICRO_SAM and model.hub_id is not None:
        return (
            f"model.hub_id={model.hub_id}, but model={model.name} is not of the Hugging Face hub; "
            "expected null, or model=hf"
        )
    if model.family == MICRO_SAM and model.custom is None and model.architecture not in MICRO_SAM_SHAPES:
        return (
            f"model.architecture must be one of {', '.join(MICRO_SAM_SHAPES)} (another needs "
            f"model.custom), got {model.architecture}"
        )
    if model.custom is not None and (problem := _shape_problem(model.custom)):
        return problem
    if model.weights == "pretrained":
        return _pretrained_problem(model)
    shape_is_known = model.custom is not None or model.architecture in KNOWN_SHAPES
    if model.weights == "random" and model.family == HUGGING_FACE and not shape_is_known:
        return (
            f"model.weights=random, but the shape of {model.name} is known only with its weights; "
            "expected pretrained or the path of a folder"
        )
    return None


def _shape_problem(shape: ArchitectureConfig) -> str | None:
    """Why the sizes of an own architecture, each fine for itself, make no model; None where they do."""
    of_decoder = math.lcm(PROMPT_CHANNELS, HALVED * shape.decoder_num_heads)
    for name, divisor, why in (
        ("image_size", shape.patch_size, "model.custom.patch_size"),
        ("embed_dim", shape.num_heads, "model.custom.num_heads"),
        ("prompt_embed_dim", of_decoder, f"for model.custom.decoder_num_heads={shape.decoder_num_heads}"),
    ):
        if (size := getattr(shape, name)) % divisor:
            return f"model.custom.{name} must be a multiple of {divisor} ({why}), got {size}"
    for index in shape.global_attn_indexes:
        if not 0 <= index < shape.depth:
            return (
                f"model.custom.global_attn_indexes must be blocks from 0 to {shape.depth - 1} "
                f"(model.custom.depth), got {index}"
            )
    return None


def _pretrained_problem(model: ModelConfig) -> str | None:
    if model.custom is not None:
        return (
            f"model.weights=pretrained, but no weights of {model.name} are published; "
            "expected random or the path of a checkpoint"
        )
    if model.family == HUGGING_FACE and model.hub_id is None:
        return (
            f"model.hub_id: nothing was given for model={model.name}; give the id of a model on the Hugging "
            "Face hub as model.hub_id=OWNER/NAME, or a folder as model.weights=FOLDER"
        )
    return None
