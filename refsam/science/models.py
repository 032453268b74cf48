"""Segment Anything models: built or loaded, wrapped for training, opened for prediction.

The models are micro-sam's; only vit_nano, which no registry knows, is put together here, of the same classes.
Those of family hf are transformers', behind the interface of the others (hugging_face.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from segment_anything.utils.transforms import ResizeLongestSide
from torch_em.model import UNETR

from refsam.configuration.schema import ArchitectureConfig, ModelConfig
from refsam.errors import ConfigError
from refsam.models import hub_cache
from refsam.models.families import HUGGING_FACE
from refsam.models.weights_cache import missing_weights, published_files, weights_path, weights_present
from refsam.models.weights_file import is_safetensors, weights_problem
from refsam.science.checkpoint_layout import find_weights, misfit
from refsam.science.fetch import require_published
from refsam.science.micro_sam import DecoderAdapter, TrainableSAM, get_unetr, util
from refsam.science.safe_load import read_weights

StateDict = Mapping[str, torch.Tensor]
Built = TypeVar("Built")

PRETRAINED = "pretrained"
RANDOM = "random"
# micro_sam.inference.batched_inference puts prompts into this frame whatever size the encoder's input has.
PROMPT_FRAME = 1024
SAM_PREFIX = "sam."
SAM_CONFIG = "sam_config"  # in a checkpoint's `init`: the shape of a model of family hf


@dataclass(frozen=True)
class WeightsInfo:
    """Which weights a model started from: in words, and the hash of their file if they have one."""

    source: str
    hash: str | None


@dataclass(frozen=True)
class LoadedModel:
    """A model before finetuning; `decoder_state` is of its automatic-segmentation decoder, if it has one."""

    sam: Sam
    decoder_state: StateDict | None
    weights: WeightsInfo


class PromptFrame(ResizeLongestSide):
    """Takes images to the encoder's size, and prompts to PROMPT_FRAME pixels on the longest side."""

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, ...]) -> np.ndarray:
        return ResizeLongestSide(PROMPT_FRAME).apply_coords(coords, original_size)

    def apply_coords_torch(self, coords: torch.Tensor, original_size: tuple[int, ...]) -> torch.Tensor:
        return ResizeLongestSide(PROMPT_FRAME).apply_coords_torch(coords, original_size)


def load_model(model: ModelConfig, seed: int, device: torch.device | str) -> LoadedModel:
    """The model that a run starts from, on `device`, in evaluation mode.

    `model.weights` is `pretrained` (micro-sam's registry, by model.name), `random` (seeded by `seed`), or the
    path of a checkpoint in micro-sam's training format, of an exported model, or of a plain SAM state dict.
    For family hf, `pretrained` is what the hub's cache has of model.hub_id, and a path is a folder that
    save_pretrained has written, or a checkpoint of refsam.

    Raises:
        ConfigError: when the weights are not there or belong to another architecture.
    """
    weights = weights_info(model, seed)
    if model.family == HUGGING_FACE:
        return LoadedModel(_load_hugging_face(model, seed).to(device), None, weights)
    if model.weights == RANDOM:
        sam = _seeded(seed, partial(build_model, model))
        return LoadedModel(sam.to(device), None, weights)
    if model.weights == PRETRAINED:
        state_dict, decoder_state = _read_published(model.name)
    else:
        state_dict, decoder_state = read_checkpoint(Path(model.weights).expanduser())
    sam = build_model(model)
    if why := misfit(state_dict, sam, model.architecture):
        raise ConfigError(f"model.weights: {model.weights} {why}")
    sam.load_state_dict(state_dict)
    # vit_t keeps a copy of its attention biases from before the weights were loaded; eval renews it.
    return LoadedModel(sam.to(device).eval(), decoder_state, weights)


def weights_info(model: ModelConfig, seed: int) -> WeightsInfo:
    """Which weights load_model takes, without loading them.

    Raises:
        ConfigError: when they are not there.
    """
    if model.weights == RANDOM:
        return WeightsInfo(f"random, seed {seed}", None)
    if model.family == HUGGING_FACE:
        return _hugging_face_info(model)
    if model.weights == PRETRAINED:
        published = util.models().registry
        if model.name not in published:
            raise ConfigError(
                f"model.weights=pretrained: {model.name} has no published weights, allowed: random or a path"
            )
        return WeightsInfo(f"pretrained {model.name}", published[model.name])
    path = Path(model.weights).expanduser()
    if not path.is_file():
        raise ConfigError(f"model.weights={path} is not there, allowed: pretrained, random, or a checkpoint")
    if problem := weights_problem(path):
        raise ConfigError(problem)
    return WeightsInfo(path.name, util._compute_hash(path))


def _hugging_face_info(model: ModelConfig) -> WeightsInfo:
    if model.weights == PRETRAINED:
        # A snapshot is named by the hash of its commit.
        return WeightsInfo(f"pretrained {model.hub_id}", _cached(model).name)
    path = Path(model.weights).expanduser()
    if path.is_dir():
        hub_cache.require_model(path)
        return WeightsInfo(path.name, hub_cache.folder_hash(path))
    if not path.is_file():
        raise ConfigError(
            f"model.weights={model.weights} is neither a folder nor a file, allowed: pretrained (with "
            "model.hub_id), random, a folder of save_pretrained, or a checkpoint of refsam"
        )
    if problem := weights_problem(path):
        raise ConfigError(problem)
    return WeightsInfo(path.name, util._compute_hash(path))


def _cached(model: ModelConfig) -> Path:
    found = None if model.hub_id is None else hub_cache.snapshot(model.hub_id)
    if found is None:
        raise ConfigError(hub_cache.missing(model.name, model.hub_id))
    return found


def _load_hugging_face(model: ModelConfig, seed: int) -> Sam:
    from refsam.science import hugging_face  # transformers takes seconds, for this family only

    if model.weights == RANDOM:
        # transformers' own initialization leaves an encoder that answers nothing (a deviation of 1e-10).
        plain = _seeded(seed, partial(build_model, model))
        return hugging_face.HuggingFaceSam(hugging_face.from_segment_anything(plain), PROMPT_FRAME)
    if model.weights == PRETRAINED:
        return hugging_face.open_model(_cached(model), PROMPT_FRAME)
    path = Path(model.weights).expanduser()
    return hugging_face.open_model(path, PROMPT_FRAME) if path.is_dir() else _hugging_face_of_run(path)


def _hugging_face_of_run(checkpoint: Path) -> Sam:
    """The model of a checkpoint that refsam has written, which says itself what shape it has."""
    from refsam.science import hugging_face

    try:
        shape = read_weights(checkpoint)["init"][SAM_CONFIG]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"model.weights={checkpoint} is not a checkpoint of refsam with family hf; expected "
            "those and folders of save_pretrained"
        ) from error
    return hugging_face.build_model(shape, read_checkpoint(checkpoint)[0], PROMPT_FRAME)


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], StateDict | None]:
    """State dict of the SAM, LoRA updates merged, and of the decoder if there is one, on the CPU.

    Raises:
        ConfigError: for a file that cannot be read as weights, or holds none of a Segment Anything model.
    """
    with path.open("rb") as file:
        of_safetensors = is_safetensors(path, file.read(9))
    try:
        content = load_file(path) if of_safetensors else read_weights(path)
    except SafetensorError as error:
        raise ConfigError(f"model.weights: {path} is a damaged safetensors file ({error})") from error
    state, decoder_state = find_weights(content, f"model.weights: {path}")
    return merge_lora(state), decoder_state


def _read_published(name: str) -> tuple[dict[str, torch.Tensor], StateDict | None]:
    """The same of a model of micro-sam's registry, from its cache: a compute node has no internet."""
    for file in published_files(name):
        require_published(util.models(), file)
    if not weights_present(name):
        raise ConfigError(missing_weights(name))
    state, decoder_state = read_checkpoint(weights_path(name))
    for decoder in published_files(name)[1:]:
        decoder_state = read_weights(weights_path(decoder))
    return state, decoder_state


def prompt_frame(sam: Sam) -> tuple[int, int]:
    """Height and width in pixels of the frame in which `sam` takes prompts."""
    size = sam.prompt_encoder.input_image_size  # transformers has one number
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def trainable_sam(sam: Sam) -> TrainableSAM:
    """micro-sam's trainable wrapper, with prompts in the frame that `sam` expects."""
    trainable = TrainableSAM(sam)
    trainable.transform = PromptFrame(sam.image_encoder.img_size)
    return trainable


def build_unetr(
    sam: Sam, model: ModelConfig, decoder_state: StateDict | None, seed: int, device: torch.device | str
) -> UNETR:
    """The network of automatic instance segmentation: the encoder of `sam` and micro-sam's UNETR decoder.

    Maps images (batch, 3, H, W) of values 0 to 255 to foreground, center and boundary distances, of the same
    shape. Weights that `decoder_state` does not give are random, seeded by `seed`.
    """
    if model.custom is None:
        unetr = _seeded(seed, lambda: get_unetr(sam.image_encoder, decoder_state, device=device))
    else:
        unetr = _seeded(seed, partial(_build_custom_unetr, sam, model.custom))
        if decoder_state is not None:
            unetr.load_state_dict({**unetr.state_dict(), **decoder_state})
    # The range of the values is the data set's business; a dark patch is no error.
    unetr.perform_range_checks = False
    return unetr.to(device)


def segmentation_decoder(
    sam: Sam, model: ModelConfig, decoder_state: StateDict | None, device: torch.device | str
) -> DecoderAdapter | None:
    """The decoder of automatic segmentation, as micro-sam's generators take it; None without a state."""
    if decoder_state is None:
        return None
    # In training mode, as micro-sam leaves it: it normalizes an image by the image's own statistics.
    return DecoderAdapter(build_unetr(sam, model, decoder_state, 0, device)).train()


def merge_lora(model_state: StateDict) -> dict[str, torch.Tensor]:
    """Plain state dict with the low-rank updates of micro-sam's LoRASurgery added to the weights they update.

    W + B·A gives the same output as Wx + B(Ax). A state dict without updates comes back as it is.
    """
    merged = {
        name.replace(".qkv.qkv_proj.", ".qkv.").replace(".mlp.mlp_layer.", ".mlp."): value
        for name, value in model_state.items()
        if ".w_a_linear_" not in name and ".w_b_linear_" not in name
    }
    for name, down in model_state.items():
        if ".w_a_linear_" not in name:
            continue
        prefix, matrix = name.removesuffix(".weight").split(".w_a_linear_")
        update = model_state[f"{prefix}.w_b_linear_{matrix}.weight"] @ down
        if matrix in _QKV_BLOCKS:
            target = f"{prefix}.weight"
            width = update.shape[0]
            rows = slice(_QKV_BLOCKS[matrix] * width, (_QKV_BLOCKS[matrix] + 1) * width)
        else:
            target, rows = f"{prefix}.lin{matrix}.weight", slice(None)
        weight = merged[target].clone()
        weight[rows] += update
        merged[target] = weight
    return merged


_QKV_BLOCKS = {"q": 0, "k": 1, "v": 2}


def load_whole(
    checkpoint: Path, model: ModelConfig, device: torch.device | str
) -> tuple[Sam, StateDict | None]:
    """The model of a best.pt that holds all weights, and the state of its decoder if there is one."""
    state_dict, decoder_state = read_checkpoint(checkpoint)
    if model.family == HUGGING_FACE:
        sam = _hugging_face_of_run(checkpoint)
    else:
        sam = build_model(model)
        sam.load_state_dict(state_dict)
    return sam.to(device).eval(), decoder_state


def initial_predictor(
    model: ModelConfig, seed: int, device: torch.device | str
) -> tuple[SamPredictor, StateDict | None, WeightsInfo]:
    """The predictor of the model that a run starts from, for baselines."""
    loaded = load_model(model, seed, device)
    weights = loaded.weights
    return predictor_of(loaded.sam, model, weights.hash or weights.source), loaded.decoder_state, weights


def predictor_of(sam: Sam, model: ModelConfig, weights_hash: str) -> SamPredictor:
    """A predictor with the attributes that micro-sam's functions read."""
    sam.eval()
    predictor = util.SamPredictor(sam)
    predictor.transform = PromptFrame(sam.image_encoder.img_size)
    predictor.model_type = model.architecture
    predictor.model_name = model.name
    predictor._hash = weights_hash
    return predictor


def _seeded(seed: int, build: Callable[[], Built]) -> Built:
    """What `build` makes with torch's generator at `seed`; the generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def build_model(model: ModelConfig) -> Sam:
    """The model with weights that mean nothing yet."""
    if model.custom is None:
        return util.sam_model_registry[model.architecture]()
    return _build_custom(model.custom)


def _build_custom(shape: ArchitectureConfig) -> Sam:
    """A Segment Anything model with an encoder of any size."""
    embedding_size = shape.image_size // shape.patch_size
    prompt_encoder = PromptEncoder(
        embed_dim=shape.prompt_embed_dim,
        image_embedding_size=(embedding_size, embedding_size),
        input_image_size=(PROMPT_FRAME, PROMPT_FRAME),
        mask_in_chans=16,
    )
    prompt_encoder.pe_layer = PositionEmbeddingRandom(shape.prompt_embed_dim // 2, shape.position_scale)
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=shape.image_size,
            patch_size=shape.patch_size,
            embed_dim=shape.embed_dim,
            depth=shape.depth,
            num_heads=shape.num_heads,
            out_chans=shape.prompt_embed_dim,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=shape.window_size,
            global_attn_indexes=tuple(shape.global_attn_indexes),
        ),
        prompt_encoder=prompt_encoder,
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=shape.prompt_embed_dim,
                mlp_dim=shape.decoder_mlp_dim,
                num_heads=shape.decoder_num_heads,
            ),
            transformer_dim=shape.prompt_embed_dim,
            iou_head_depth=3,
            iou_head_hidden_dim=shape.prompt_embed_dim,
        ),
    )
    _align_positions(sam.mask_decoder.transformer)
    return sam.eval()


def _align_positions(transformer: TwoWayTransformer) -> None:
    """Let prompts and image attend to each other by position before anything is learned.

    Queries and keys of the cross-attentions start as the same projection, so that their product is largest
    where the positions agree. From independent random projections vit_nano still answered every prompt with
    the same mask after 300 steps; from these it starts to follow the prompts after about 120.
    """
    attentions = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    with torch.no_grad():
        for attention in attentions:
            torch.nn.init.orthogonal_(attention.q_proj.weight)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.q_proj.bias.zero_()
            attention.k_proj.bias.zero_()


def _build_custom_unetr(sam: Sam, shape: ArchitectureConfig) -> UNETR:
    """As micro_sam.instance_segmentation.get_unetr, with fewer features: its 64 outweigh vit_nano."""
    return UNETR(
        backbone="sam",
        encoder=sam.image_encoder,
        out_channels=3,
        use_sam_stats=True,
        final_activation="Sigmoid",
        use_skip_connection=False,
        resize_input=True,
        initial_features=shape.unetr_features,
    )
