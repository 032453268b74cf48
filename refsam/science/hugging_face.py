"""transformers' SamModel behind the interface of segment_anything's Sam.

TrainableSAM, SamPredictor, micro-sam's inference and the engine ask a Sam for an image encoder, a prompt
encoder and a mask decoder, and call them in their own way. The classes here derive from transformers' parts
and translate only these calls; parameters, arithmetic and names stay transformers'.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import nn
from transformers import (
    SamConfig,
    SamImageProcessor,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.models.sam.modeling_sam import (
    SAM_VISION_ATTENTION_CLASSES,
    SamMaskDecoder,
    SamPromptEncoder,
    SamVisionAttention,
    SamVisionEncoder,
)

from refsam.errors import ConfigError
from refsam.models.families import KNOWN_SHAPES
from refsam.science.checkpoint_layout import misfit
from refsam.science.engine.attention import fused_attention
from refsam.science.state_names import (
    POSITIONS,
    POSITIONS_AGAIN,
    StateDict,
    to_segment_anything,
    to_transformers,
)

SDPA, EAGER, FUSED = "sdpa", "eager", "fused"
Points = tuple[torch.Tensor, torch.Tensor]


class HuggingFaceSam(Sam):
    """A transformers.SamModel as a Sam; preprocess, postprocess_masks and forward are segment_anything's.

    Its parts are those of `model`, which is not to be used any more. Parameters are named as in `model`, but
    for `image_encoder` in place of `vision_encoder`.

    Args:
        model: any SamModel with one size of image, whatever its encoder.
        prompt_frame: pixels of the square in which prompts are given.
    """

    def __init__(self, model: SamModel, prompt_frame: int) -> None:
        encoder, prompts, decoder = model.vision_encoder, model.prompt_encoder, model.mask_decoder
        encoder.__class__, prompts.__class__, decoder.__class__ = ImageEncoder, PromptEncoder, MaskDecoder
        super().__init__(encoder, prompts, decoder)
        self.config: SamConfig = model.config
        # transformers divides coordinates by this; a Sam's prompts come in micro-sam's frame.
        prompts.input_image_size = prompt_frame
        # transformers keeps the random frequencies as a parameter. They are no weights: nothing is to train
        # them, and segment_anything has them as a buffer of the same place in the state dict.
        positions = prompts.shared_embedding
        frequencies = positions.positional_embedding.detach().clone()
        del positions.positional_embedding
        positions.register_buffer("positional_embedding", frequencies)
        self.use_attention(SDPA)

    def use_attention(self, kind: str) -> None:
        """Compute the attention of image encoder and mask decoder in another way, in place.

        Args:
            kind: `sdpa` and `eager` are transformers' own; `fused` is the engine's for the image encoder, and
                `sdpa` for the mask decoder, whose attention has no positions.
        """
        for module in self.image_encoder.modules():
            if isinstance(module, SamVisionAttention):
                module.__class__ = ATTENTIONS[kind]
        # All attentions of the mask decoder look into this one configuration.
        self.mask_decoder.config._attn_implementation = EAGER if kind == EAGER else SDPA


class ImageEncoder(SamVisionEncoder):
    """Called as segment_anything's ImageEncoderViT."""

    in_chans = 3

    @property
    def img_size(self) -> int:
        """Side of the square input, in pixels."""
        size = self.config.image_size
        assert isinstance(size, int)
        return size

    @property
    def embed_dim(self) -> int:
        """Channels of the output, for which UNETR asks."""
        channels: int = self.config.output_channels
        return channels

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layers

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, 3, H, W) to (batch, channels, rows, columns)."""
        embeddings: torch.Tensor = super().forward(pixel_values).last_hidden_state
        return embeddings


class PromptEncoder(SamPromptEncoder):
    """Called as segment_anything's PromptEncoder: objects come first, where transformers has images."""

    @property
    def embed_dim(self) -> int:
        channels: int = self.hidden_size
        return channels

    @property
    def mask_input_size(self) -> tuple[int, int]:
        """Rows and columns of a mask that is given as a prompt."""
        rows, columns = self.image_embedding_size
        return 4 * rows, 4 * columns

    def forward(
        self, points: Points | None, boxes: torch.Tensor | None, masks: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sparse (objects, prompts, channels) and dense (objects, channels, rows, columns) embeddings.

        Args:
            points: (objects, points, 2) x, y and (objects, points) labels.
            boxes: (objects, 4).
            masks: (objects, 1, h, w).
        """
        coordinates, labels = points or (None, None)
        sparse, dense = super().forward(
            None if coordinates is None else coordinates.unsqueeze(1),
            None if labels is None else labels.unsqueeze(1),
            None if boxes is None else boxes.reshape(-1, 1, 4),
            masks,
        )
        if sparse is None:
            return dense.new_empty((len(dense), 0, self.embed_dim)), dense
        return sparse.squeeze(1), dense

    def get_dense_pe(self) -> torch.Tensor:
        """(1, channels, rows, columns): the encoding of the centers of the embedding's cells."""
        frequencies = self.shared_embedding.positional_embedding
        rows, columns = (
            (torch.arange(size, device=frequencies.device) + 0.5) / size for size in self.image_embedding_size
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        encoded: torch.Tensor = self.shared_embedding(torch.stack([x, y], dim=-1).to(frequencies.dtype))
        return encoded.permute(2, 0, 1).unsqueeze(0)


class MaskDecoder(SamMaskDecoder):
    """Called as segment_anything's MaskDecoder."""

    def forward(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (objects, masks, h, w) and predicted IoU (objects, masks) for the prompts of one image.

        Args:
            image_embeddings: (1, channels, rows, columns).
            image_pe: the same shape.
            sparse_prompt_embeddings: (objects, prompts, channels).
            dense_prompt_embeddings: (objects, channels, rows, columns).
            multimask_output: whether there are several masks for an object.
        """
        objects = len(sparse_prompt_embeddings)
        # transformers adds a mask prompt to the embedding of an image, so each object is an image here.
        logits, ious = super().forward(
            image_embeddings.expand(objects, -1, -1, -1),
            image_pe.expand(objects, -1, -1, -1),
            sparse_prompt_embeddings.unsqueeze(1),
            dense_prompt_embeddings,
            multimask_output,
        )
        return logits.squeeze(1), ious.squeeze(1)


class FusedVisionAttention(SamVisionAttention):
    """The engine's attention without scores in memory, with transformers' parameters."""

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool | None = None
    ) -> tuple[torch.Tensor, None]:
        return fused_attention(self, hidden_states, self.num_attention_heads), None


ATTENTIONS: dict[str, type[SamVisionAttention]] = {
    SDPA: SAM_VISION_ATTENTION_CLASSES[SDPA],
    EAGER: SAM_VISION_ATTENTION_CLASSES[EAGER],
    FUSED: FusedVisionAttention,
}


def open_model(source: str | Path, prompt_frame: int) -> HuggingFaceSam:
    """The Sam in a folder as save_pretrained writes it, or of a hub id that is in the cache. Never downloads.

    Raises:
        ConfigError: when it is not there, or holds something else than a SamModel.
    """
    model: SamModel
    loaded: dict[str, Any]
    try:
        model, loaded = SamModel.from_pretrained(
            source, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except UnpicklingError as error:
        raise ConfigError(
            f"model.weights: {source} has a .bin file that holds other objects than tensors, which are never "
            "loaded; expected a .bin file of tensors alone, and safetensors"
        ) from error
    # What is missing is an OSError, another model a ValueError or a RuntimeError about its tensors.
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(
            f"model.weights: {source} cannot be opened as a SamModel of transformers: {' '.join(lines[:1])}"
        ) from error
    # transformers would give what is missing random values, and say so in a warning.
    lacking = sorted({str(name) for name in loaded["missing_keys"]} - {POSITIONS, POSITIONS_AGAIN})
    if lacking:
        raise ConfigError(
            f"model.weights: {source} lacks {len(lacking)} of the weights that its configuration asks for, "
            f"such as {lacking[0]}"
        )
    if not isinstance(model.vision_encoder.config.image_size, int):
        raise ConfigError(f"model.weights: {source} takes images that are not square; expected square images")
    return HuggingFaceSam(model.eval(), prompt_frame)


def build_model(config: dict[str, Any], state: StateDict, prompt_frame: int) -> HuggingFaceSam:
    """The Sam of a configuration (SamConfig.to_dict) with the weights of a HuggingFaceSam's state dict.

    Raises:
        ConfigError: when the weights belong to another configuration.
    """
    sam = HuggingFaceSam(SamModel(SamConfig.from_dict(config)).eval(), prompt_frame)
    if why := misfit(state, sam, "its own configuration"):
        raise ConfigError(f"model.weights: the checkpoint {why}")
    sam.load_state_dict(state)
    return sam


def from_segment_anything(sam: Sam) -> SamModel:
    """transformers' model of the same shape with the same weights, and so with the same masks."""
    model = SamModel(SamConfig.from_dict(describe(sam))).eval()
    model.load_state_dict(to_transformers(sam.state_dict()))
    return model


def to_transformers_model(sam: HuggingFaceSam) -> SamModel:
    """transformers' own model with the weights of `sam`."""
    model = SamModel._from_config(SamConfig.from_dict(sam.config.to_dict()))
    model.load_state_dict(state_for_transformers(sam.state_dict()))
    return model.eval()


def describe(sam: Sam) -> dict[str, Any]:
    """The SamConfig of a segment_anything model with a ViT, as plain values."""
    encoder, prompts, decoder = sam.image_encoder, sam.prompt_encoder, sam.mask_decoder
    size, (patch, _) = encoder.img_size, encoder.patch_embed.proj.kernel_size
    channels = prompts.embed_dim
    windows = [block.window_size for block in encoder.blocks]
    first = decoder.transformer.layers[0]
    vision = SamVisionConfig(
        hidden_size=encoder.pos_embed.shape[-1],
        output_channels=channels,
        num_hidden_layers=len(windows),
        num_attention_heads=encoder.blocks[0].attn.num_heads,
        image_size=size,
        patch_size=patch,
        window_size=max(windows),
        global_attn_indexes=[index for index, window in enumerate(windows) if window == 0],
        num_pos_feats=channels // 2,
        mlp_dim=encoder.blocks[0].mlp.lin1.out_features,
        initializer_range=0.02,
    )
    of_prompts = SamPromptEncoderConfig(
        hidden_size=channels,
        image_size=size,
        patch_size=patch,
        mask_input_channels=prompts.mask_downscaling[3].out_channels,
    )
    of_masks = SamMaskDecoderConfig(
        hidden_size=channels,
        mlp_dim=first.mlp.lin1.out_features,
        num_hidden_layers=len(decoder.transformer.layers),
        num_attention_heads=first.self_attn.num_heads,
        num_multimask_outputs=decoder.num_multimask_outputs,
        iou_head_depth=decoder.iou_prediction_head.num_layers,
        iou_head_hidden_dim=decoder.iou_prediction_head.layers[0].out_features,
        # transformers' default is 1e-6, segment_anything's layers have torch's.
        layer_norm_eps=first.norm1.eps,
    )
    values: dict[str, Any] = SamConfig(
        vision_config=vision, prompt_encoder_config=of_prompts, mask_decoder_config=of_masks
    ).to_dict()
    return values


def published_shape(config: SamConfig) -> str | None:
    """Which architecture of segment_anything has the same parameters; None where none has."""
    with torch.device("meta"):  # without memory for values
        given = _shapes(to_segment_anything(SamModel(config).state_dict()))
        known = {name: _shapes(sam_model_registry[name]().state_dict()) for name in KNOWN_SHAPES}
    return next((name for name, shapes in known.items() if shapes == given), None)


def _shapes(state: StateDict) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def image_processor(size: int) -> SamImageProcessor:
    """What transformers prepares images with for a model that takes squares of `size` pixels."""
    mask = size // 4  # of which size the mask decoder's output is, and masks as prompts
    return SamImageProcessor(
        size={"longest_edge": size},
        pad_size={"height": size, "width": size},
        mask_size={"longest_edge": mask},
        mask_pad_size={"height": mask, "width": mask},
    )


def state_for_transformers(state: StateDict) -> dict[str, torch.Tensor]:
    """A HuggingFaceSam's state dict under the names of transformers.SamModel."""
    renamed = {name.replace("image_encoder.", "vision_encoder.", 1): value for name, value in state.items()}
    return {**renamed, POSITIONS_AGAIN: renamed[POSITIONS]}
