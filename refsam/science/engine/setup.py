"""Which savings a run uses, and putting them into its model.

`auto` follows the size of the machine, not the memory that happens to be free: the same run on the same
resource computes its sums in the same order every time. What `refsam fit` has measured wins; without it there
are estimates of what autograd keeps, deliberately rough. `train.object_chunk`, `train.checkpoint_encoder` and
`train.checkpoint_decoder` take exact values from whoever knows better.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mobile_sam.modeling import TinyViT
from segment_anything.modeling import Sam
from torch_em.model import UNETR

from refsam.configuration.patch_pool import encoder_is_frozen
from refsam.configuration.schema import AUTO, Precision, RefsamConfig
from refsam.models.families import HUGGING_FACE, attention_of
from refsam.records.fits import Setup, fit_for, known_fits
from refsam.science.engine.allocator import keep_freed_memory
from refsam.science.engine.attention import use_fused_attention
from refsam.science.engine.checkpointing import checkpoint_encoder, encoder_blocks
from refsam.science.engine.decoder import checkpoint_decoder, use_late_upsampling
from refsam.science.engine.mask_decoder import use_lean_mask_decoder
from refsam.science.engine.masks import use_linear_resizing
from refsam.science.hardware import GIB, choose_precision
from refsam.system import cgroups
from refsam.system.own_job import LOCAL_QUEUE

FLOAT_BYTES = 4
# Of the memory that is there: the rest is for the allocator, the data loader and the system.
USABLE_SHARE = 0.8
# What a process holds with Python, torch and micro-sam imported, on the CPU.
PROCESS_GIB = 1.0
# Weight, gradient, and the two moments of Adam.
COPIES_TRAINED = 4
# Tensors of (tokens, channels) that a block of an ImageEncoderViT with fused attention keeps for its
# backward: vit_b's encoder peaked at 3.7 GiB above its weights, 12 blocks of 4096 tokens with 768 channels.
TENSORS_PER_BLOCK = 26
# Attention with its scores in memory keeps them, and works on more: vit_b's encoder peaked 4.2 GB higher than
# with fused attention, and all of its scores are 3.6 GB.
SCORES_KEPT = 1.2
# What vit_t's encoder keeps for one image: an estimate from whole steps, not measured by itself.
TINY_VIT_GIB = 2.6
# Tensors of (embedding tokens, channels) per object that mask decoder, masks and losses hold at a time: for a
# patch of 512 x 512, autograd keeps 68 to 84 MiB, 21 of them, and 103 to 118 MiB where the decoder is not the
# lean one; the rest is an allowance for what is computed on the way.
TENSORS_PER_OBJECT = 50
# Tensors of the segmentation decoder's finest level (1024 x 1024 with 64 channels, 256 MiB each) that its
# forward and backward hold at a time, and when its parts are checkpointed: they peaked at 4.8 and 3.2 GiB.
DECODER_TENSORS, DECODER_TENSORS_CHECKPOINTED = 19.4, 12.8
# Of float32's bytes what autocast to 16 bits holds: normalizations, softmax and losses stay in float32, and
# products keep their inputs in 16 bits. On a GPU that is not there (tests/gpu/test_estimates_on_gpu.py) that
# is 0.60 for vit_t and for a ViT with fused attention, 0.72 for the segmentation decoder and 1 where its
# parts are checkpointed, 0.80 for an object. A score has its softmax and a copy in 16 bits.
HALF_ENCODER, HALF_SCORES, HALF_DECODER, HALF_OBJECT = 0.65, 1.5, 0.75, 0.85
# Copies of the weights that autocast makes for a forward.
HALF_COPIES = 0.5
# Embedding tokens that are decoded at a time. On a CPU two objects of vit_b: on two cores they took 0.9 times
# the time per object that one took, and five no less. A GPU wants more of them.
TOKENS_AT_ONCE = {"cpu": 8192, "cuda": 32768}
# Of what the weights leave, for embeddings: 300 patches of 4 MiB where that is 12 GiB.
CACHE_SHARE = 0.1
# How much larger than its peak a process may get whose large freed tensors stay on the heap.
GAPS = 1.5


@dataclass(frozen=True)
class Savings:
    """What a step does to need less. `checkpoint_every` is None where nothing is checkpointed."""

    object_chunk: int
    checkpoint_every: int | None
    attention: str  # fused, sdpa or eager
    checkpoint_decoder: bool = False  # the segmentation decoder
    cache_gib: float = 0.0  # memory for the embeddings of a frozen encoder
    keep_large_tensors: bool = False  # in main memory, for the next ones: faster, but it leaves gaps
    auto_from: str = "estimate"  # what chose for `auto`: the estimate, or which fit or forecast


def choose_savings(
    config: RefsamConfig, sam: Sam, device: torch.device, unetr: UNETR | None = None
) -> Savings:
    """The savings that the configuration asks for; `auto` by a fit, or else by the memory of the machine."""
    estimated = _estimate(config, sam, device, unetr)
    settings = config.train
    if settings.object_chunk != AUTO:
        return estimated
    setup = Setup.of(config, device.type)
    precision = choose_precision(settings.precision, device).value
    memory = memory_gib(config, device)
    fit = fit_for(known_fits(Path(config.runs)), setup, precision, memory, config.n_objects)
    if fit is None or fit.refsam is None or fit.refsam.object_chunk is None:
        return estimated
    changes: dict[str, Any] = {"object_chunk": min(fit.refsam.object_chunk, config.n_objects)}
    if settings.checkpoint_encoder == AUTO:
        changes["checkpoint_every"] = 1 if fit.refsam.checkpoint_encoder else None
    if settings.checkpoint_decoder == AUTO:
        changes["checkpoint_decoder"] = bool(fit.refsam.checkpoint_decoder)
    kind = "forecast" if fit.is_forecast else "fit"
    return replace(estimated, **changes, auto_from=f"{kind} {fit.name}")


def _estimate(config: RefsamConfig, sam: Sam, device: torch.device, unetr: UNETR | None) -> Savings:
    """`auto` by the memory of the machine.

    As few blocks are checkpointed as bring the encoder's activations under half of what the weights leave,
    and beside those of the segmentation decoder, whose parts are checkpointed where they would not fit beside
    what the encoder keeps. Of the objects, TOKENS_AT_ONCE are decoded at a time, and fewer where the rest
    does not hold them. Fused attention saves always.
    """
    settings = config.train
    half = choose_precision(settings.precision, device) is not Precision.float32
    left = usable_memory(config, device) - _weights_gib(sam, half)
    trained = any(parameter.requires_grad for parameter in sam.image_encoder.parameters())
    attention = attention_of(config.model, settings.attention)
    blocks_gib = [settings.batch_size * gib for gib in _blocks_gib(sam, attention, half)] if trained else []
    decoder_gib, frugal_decoder_gib = _decoder_gib(unetr, settings.batch_size, half)
    every = _checkpoint_every(settings.checkpoint_encoder)
    if settings.checkpoint_encoder == AUTO and trained:
        room = min(left / 2, left - frugal_decoder_gib)
        ways = (None, *range(len(blocks_gib), 0, -1))
        every = next((way for way in ways if _held_gib(blocks_gib, way) <= room), 1)
    encoder_gib = _held_gib(blocks_gib, every)
    cache_gib = 0.0 if trained or settings.embedding_cache != "memory" else CACHE_SHARE * left
    chunk = settings.object_chunk
    if chunk == AUTO:
        fitting = int((left - encoder_gib - cache_gib) / (settings.batch_size * _object_gib(sam, half)))
        rows, columns = sam.prompt_encoder.image_embedding_size
        chunk = max(1, min(fitting, TOKENS_AT_ONCE[device.type] // (rows * columns), config.n_objects))
    no_room = encoder_gib + decoder_gib + cache_gib > left
    checkpoints_decoder = _is_on(settings.checkpoint_decoder, needed=unetr is not None and no_room)
    held = encoder_gib + (frugal_decoder_gib if checkpoints_decoder else decoder_gib)
    has_room = GAPS * (held + chunk * settings.batch_size * _object_gib(sam, half)) + cache_gib < left
    # Without the segmentation decoder most tensors are small enough to be kept without gaps.
    keeps_large = device.type == "cpu" and unetr is not None and has_room
    return Savings(
        object_chunk=chunk,
        checkpoint_every=every,
        attention=attention,
        checkpoint_decoder=checkpoints_decoder,
        cache_gib=cache_gib,
        keep_large_tensors=keeps_large,
    )


def describe_savings(config: RefsamConfig, savings: Savings | None) -> dict[str, Any]:
    """What results/savings.json and the summary say about how a run is trained; None for micro-sam's step.

    What does not apply to a run is None.
    """
    settings = config.train
    plain_attention = "sdpa" if config.model.family == HUGGING_FACE else "eager"
    cached = savings is not None and encoder_is_frozen(config.peft)
    return {
        "engine": settings.engine,
        "object_chunk": savings and savings.object_chunk,
        "checkpoint_every": savings and savings.checkpoint_every,
        "checkpoint_decoder": savings and savings.checkpoint_decoder if settings.decoder else None,
        "attention": savings.attention if savings else plain_attention,
        "auto_from": savings and savings.auto_from,
        "embedding_cache": settings.embedding_cache if cached else None,
        "embedding_dtype": settings.embedding_dtype if cached else None,
        "joint": settings.joint if settings.decoder else None,
        "optimizer": settings.optimizer,
        "optimizer_in_backward": settings.optimizer_in_backward,
    }


def apply_savings(sam: Sam, savings: Savings, unetr: UNETR | None = None) -> None:
    """Put the savings that concern the model into it, in place. What it computes stays the same."""
    use_linear_resizing(sam)
    use_lean_mask_decoder(sam)
    if next(sam.parameters()).device.type == "cpu":
        keep_freed_memory(large=savings.keep_large_tensors)
    _use_attention(sam, savings.attention)
    if savings.checkpoint_every is not None:
        checkpoint_encoder(sam.image_encoder, savings.checkpoint_every)
    if unetr is not None:
        use_late_upsampling(unetr)
        if savings.checkpoint_decoder:
            checkpoint_decoder(unetr)


def _use_attention(sam: Sam, kind: str) -> None:
    switch = getattr(sam, "use_attention", None)  # a model of family hf has three ways itself
    if switch is not None:
        switch(kind)
    elif kind == "fused":
        use_fused_attention(sam.image_encoder)


def usable_memory(config: RefsamConfig, device: torch.device) -> float:
    """What a step may take of the memory, in GiB."""
    usable = USABLE_SHARE * memory_gib(config, device)
    return usable if device.type == "cuda" else usable - PROCESS_GIB


def memory_gib(config: RefsamConfig, device: torch.device) -> float:
    """The memory that a run has, in GiB: of the GPU, or main memory by request, cgroup and size.

    Where the request says none, it is the machine's, shared by the runs that a queue executes at a time.
    """
    if device.type == "cuda":
        fraction = torch.cuda.get_per_process_memory_fraction(device)
        return fraction * torch.cuda.get_device_properties(device).total_memory / GIB
    there = cgroups.memory_gib()
    asked = config.resource.request.memory_gb
    return there / int(os.environ.get(LOCAL_QUEUE, "1")) if asked is None else min(asked, there)


def _checkpoint_every(setting: str | bool | int) -> int | None:
    if setting in (AUTO, "off", "on", False, True):
        return 1 if _is_on(setting, needed=False) else None
    return int(setting)


def _held_gib(blocks_gib: Sequence[float], every: int | None) -> float:
    """What the encoder holds at its peak, where every `every`-th block keeps its input only.

    One of those blocks at a time is computed again.
    """
    again = blocks_gib[::every] if every and blocks_gib else [0.0]
    return sum(blocks_gib) - (sum(again) - max(again)) * (1 - 1 / TENSORS_PER_BLOCK)


def _is_on(setting: str | bool | int, needed: bool) -> bool:
    return needed if setting == AUTO else setting in ("on", True)


def _weights_gib(sam: Sam, half: bool) -> float:
    # By what they take: frozen weights may lie there in 4 bits.
    of_autocast = HALF_COPIES if half else 0.0
    copies = ((COPIES_TRAINED if value.requires_grad else 1) + of_autocast for value in sam.parameters())
    return sum(number * value.nbytes for number, value in zip(copies, sam.parameters(), strict=True)) / GIB


def _blocks_gib(sam: Sam, attention: str, half: bool) -> list[float]:
    """What each block of the encoder keeps for one image when nothing is checkpointed."""
    encoder = sam.image_encoder
    share = HALF_ENCODER if half else 1.0
    if isinstance(encoder, TinyViT):
        n_blocks = len(encoder_blocks(encoder))
        return [share * TINY_VIT_GIB / n_blocks] * n_blocks
    _, rows, columns, channels = encoder.pos_embed.shape
    kept = share * TENSORS_PER_BLOCK * rows * columns * channels
    scores = 0.0 if attention == "fused" else SCORES_KEPT * (HALF_SCORES if half else 1.0)
    return [(kept + scores * _scores(block, rows, columns)) * FLOAT_BYTES / GIB for block in encoder.blocks]


def _scores(block: Any, rows: int, columns: int) -> int:
    """How many scores the attention of one block has for one image."""
    heads = getattr(block.attn, "num_heads", None) or block.attn.num_attention_heads
    if block.window_size == 0:
        return int(heads * (rows * columns) ** 2)
    windows = math.ceil(rows / block.window_size) * math.ceil(columns / block.window_size)
    return int(heads * windows * block.window_size**4)


def _decoder_gib(unetr: UNETR | None, batch_size: int, half: bool) -> tuple[float, float]:
    """What a forward and backward of the segmentation decoder hold, and when it is checkpointed."""
    if unetr is None:
        return 0.0, 0.0
    finest = unetr.decoder_head.block[1].out_channels * unetr.encoder.img_size**2 * FLOAT_BYTES / GIB
    held = DECODER_TENSORS * (HALF_DECODER if half else 1.0)
    return batch_size * held * finest, batch_size * DECODER_TENSORS_CHECKPOINTED * finest


def _object_gib(sam: Sam, half: bool) -> float:
    """What the mask decoder and the loss keep for one object."""
    rows, columns = sam.prompt_encoder.image_embedding_size
    values = TENSORS_PER_OBJECT * rows * columns * sam.prompt_encoder.embed_dim
    return values * FLOAT_BYTES * (HALF_OBJECT if half else 1.0) / GIB
