"""The linear layers that are adapted, by name and size, known without building a model: those of the image
encoders, and of the attention in the mask decoder.

So that a pattern that matches nothing, or a rank that is too large, is refused before anything is submitted.
Tests hold these names against the models themselves.
"""

from refsam.configuration.schema import ModelConfig
from refsam.models.families import HUGGING_FACE
from refsam.models.hub_cache import DECODER_CHANNELS, model_shape

# Inputs and outputs of each linear layer.
Layers = dict[str, tuple[int, int]]

ENCODER = "image_encoder"
# Depth and channels of segment_anything's encoders; of SlimSAM's, the channels of the MLP too.
VISION_TRANSFORMERS: dict[str, tuple[int, ...]] = {
    "vit_b": (12, 768),
    "vit_l": (24, 1024),
    "vit_h": (32, 1280),
    "slimsam_50": (12, 384, 1536),
    "slimsam_77": (12, 168, 696),
}
# Depth and channels of the stages of MobileSAM's TinyViT that attend; the stage before them convolves.
TINY_STAGES = ((2, 128), (6, 160), (2, 320))
TINY_HEAD = 1000  # outputs of its classifier, which is never asked
MLP_RATIO = 4
DECODER_DEPTH = 2  # of every mask decoder


def linear_layers(model: ModelConfig) -> Layers | None:
    """Names, inputs and outputs of these layers of `model`; None where nobody knows."""
    if model.architecture == "vit_t":
        return {**_tiny(), **_mask_decoder(DECODER_CHANNELS)}
    blocks = "layers" if model.family == HUGGING_FACE else "blocks"
    if model.custom is not None:
        custom = model.custom
        encoder = _vision_transformer(blocks, custom.depth, custom.embed_dim)
        return {**encoder, **_mask_decoder(custom.prompt_embed_dim)}
    if model.architecture in VISION_TRANSFORMERS:
        encoder = _vision_transformer(blocks, *VISION_TRANSFORMERS[model.architecture])
        return {**encoder, **_mask_decoder(DECODER_CHANNELS)}
    shape = model_shape(model) if model.family == HUGGING_FACE else None
    if shape is None:
        return None
    *of_encoder, channels = shape
    return {**_vision_transformer(blocks, *of_encoder), **_mask_decoder(channels)}


def _vision_transformer(blocks: str, depth: int, channels: int, hidden: int | None = None) -> Layers:
    hidden = MLP_RATIO * channels if hidden is None else hidden
    return {
        f"{ENCODER}.{blocks}.{block}.{name}": size
        for block in range(depth)
        for name, size in (
            ("attn.qkv", (channels, 3 * channels)),
            ("attn.proj", (channels, channels)),
            ("mlp.lin1", (channels, hidden)),
            ("mlp.lin2", (hidden, channels)),
        )
    }


def _mask_decoder(channels: int) -> Layers:
    """Attention between prompts and image works on half of the channels."""
    layers = [f"layers.{number}" for number in range(DECODER_DEPTH)]
    attentions = {
        **{f"{layer}.self_attn": channels for layer in layers},
        **{f"{layer}.cross_attn_token_to_image": channels // 2 for layer in layers},
        **{f"{layer}.cross_attn_image_to_token": channels // 2 for layer in layers},
        "final_attn_token_to_image": channels // 2,
    }
    return {
        f"mask_decoder.transformer.{attention}.{name}": size
        for attention, inner in attentions.items()
        for name, size in (
            *((f"{each}_proj", (channels, inner)) for each in "qkv"),
            ("out_proj", (inner, channels)),
        )
    }


def _tiny() -> Layers:
    layers = {
        f"{ENCODER}.layers.{stage}.blocks.{block}.{name}": size
        for stage, (depth, channels) in enumerate(TINY_STAGES, start=1)
        for block in range(depth)
        for name, size in (
            ("attn.qkv", (channels, 3 * channels)),
            ("attn.proj", (channels, channels)),
            ("mlp.fc1", (channels, MLP_RATIO * channels)),
            ("mlp.fc2", (MLP_RATIO * channels, channels)),
        )
    }
    return {**layers, f"{ENCODER}.head": (TINY_STAGES[-1][1], TINY_HEAD)}
