"""The names of a Segment Anything model's parameters in segment_anything and in transformers.

Both implementations hold the same tensors; only the names differ, and transformers holds the frequencies of
the positional encoding twice. What is added to a name (an adapter's `.lora_A.default.weight`) stays.
"""

import re
from collections.abc import Mapping

import torch

StateDict = Mapping[str, torch.Tensor]

POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"
POSITIONS_AGAIN = "shared_image_embedding.positional_embedding"

# Segments of names, segment_anything's and transformers'. A number that a name counts with is N.
_SEGMENTS = (
    ("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection"),
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("image_encoder.blocks.N.norm1", "vision_encoder.layers.N.layer_norm1"),
    ("image_encoder.blocks.N.norm2", "vision_encoder.layers.N.layer_norm2"),
    ("image_encoder.blocks.N", "vision_encoder.layers.N"),
    ("image_encoder.neck.0", "vision_encoder.neck.conv1"),
    ("image_encoder.neck.1", "vision_encoder.neck.layer_norm1"),
    ("image_encoder.neck.2", "vision_encoder.neck.conv2"),
    ("image_encoder.neck.3", "vision_encoder.neck.layer_norm2"),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", POSITIONS),
    ("prompt_encoder.point_embeddings.N", "prompt_encoder.point_embed.N"),
    ("prompt_encoder.mask_downscaling.0", "prompt_encoder.mask_embed.conv1"),
    ("prompt_encoder.mask_downscaling.1", "prompt_encoder.mask_embed.layer_norm1"),
    ("prompt_encoder.mask_downscaling.3", "prompt_encoder.mask_embed.conv2"),
    ("prompt_encoder.mask_downscaling.4", "prompt_encoder.mask_embed.layer_norm2"),
    ("prompt_encoder.mask_downscaling.6", "prompt_encoder.mask_embed.conv3"),
    *(
        (f"mask_decoder.transformer.layers.N.norm{k}", f"mask_decoder.transformer.layers.N.layer_norm{k}")
        for k in (1, 2, 3, 4)
    ),
    ("mask_decoder.transformer.norm_final_attn", "mask_decoder.transformer.layer_norm_final_attn"),
    ("mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
    ("mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
    ("mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
    ("mask_decoder.output_hypernetworks_mlps.N.layers.0", "mask_decoder.output_hypernetworks_mlps.N.proj_in"),
    (
        "mask_decoder.output_hypernetworks_mlps.N.layers.1",
        "mask_decoder.output_hypernetworks_mlps.N.layers.0",
    ),
    (
        "mask_decoder.output_hypernetworks_mlps.N.layers.2",
        "mask_decoder.output_hypernetworks_mlps.N.proj_out",
    ),
    ("mask_decoder.iou_prediction_head.layers.0", "mask_decoder.iou_prediction_head.proj_in"),
    ("mask_decoder.iou_prediction_head.layers.1", "mask_decoder.iou_prediction_head.layers.0"),
    ("mask_decoder.iou_prediction_head.layers.2", "mask_decoder.iou_prediction_head.proj_out"),
)


def to_transformers(state: StateDict) -> dict[str, torch.Tensor]:
    """A segment_anything state dict under the names of transformers.SamModel."""
    renamed = {transformers_name(name): value for name, value in state.items()}
    if POSITIONS in renamed:
        renamed[POSITIONS_AGAIN] = renamed[POSITIONS]
    return renamed


def to_segment_anything(state: StateDict) -> dict[str, torch.Tensor]:
    """A state dict of transformers.SamModel, or of HuggingFaceSam, under the names of segment_anything."""
    return {segment_anything_name(name): value for name, value in state.items() if name != POSITIONS_AGAIN}


def transformers_name(name: str) -> str:
    """transformers' name of one of segment_anything's parameters; a name that both share comes back."""
    return _renamed(name, _TO_TRANSFORMERS)


def segment_anything_name(name: str) -> str:
    """segment_anything's name of one of transformers' or HuggingFaceSam's parameters."""
    return _renamed(transformers_part(name), _TO_SEGMENT_ANYTHING)


def adapter_name(name: str) -> str:
    """HuggingFaceSam's name of one of transformers' parameters: its parts are named as a Sam's."""
    return re.sub(r"^vision_encoder\.", "image_encoder.", name)


def transformers_part(name: str) -> str:
    """transformers' name of one of HuggingFaceSam's parameters or modules."""
    return re.sub(r"^image_encoder\.", "vision_encoder.", name)


def _pattern(segments: str) -> re.Pattern[str]:
    counted = re.escape(segments).replace("N", r"(\d+)")
    return re.compile(rf"^{counted}(?=\.|$)")


def _renamed(name: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in table:
        renamed, count = pattern.subn(replacement, name)
        if count:
            return renamed
    return name


_TO_TRANSFORMERS = tuple((_pattern(ours), theirs.replace("N", r"\1")) for ours, theirs in _SEGMENTS)
_TO_SEGMENT_ANYTHING = tuple((_pattern(theirs), ours.replace("N", r"\1")) for ours, theirs in _SEGMENTS)
