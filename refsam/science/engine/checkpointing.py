"""Activation checkpointing: blocks of the image encoder keep their input only and are computed again.

It saves nearly all activations of the encoder, which is most of a step's memory once the step holds one graph
at a time. It costs a second forward of the blocks that are checkpointed.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from mobile_sam.modeling import TinyViT
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Forward = Callable[[torch.Tensor], torch.Tensor]


def checkpoint_encoder(encoder: nn.Module, every: int) -> None:
    """Checkpoint every `every`-th block of an ImageEncoderViT or TinyViT, in place; parameter names stay."""
    for block in encoder_blocks(encoder)[::every]:
        block.forward = partial(checkpointed, block, block.forward)


def encoder_blocks(encoder: nn.Module) -> list[nn.Module]:
    """The parts of an encoder that are computed one after the other, each from one tensor to one tensor."""
    if not isinstance(encoder, TinyViT):
        transformer_blocks = encoder.blocks
        assert isinstance(transformer_blocks, nn.ModuleList)
        return list(transformer_blocks)
    blocks = [encoder.patch_embed]
    for layer in encoder.layers:
        blocks += layer.blocks
        if layer.downsample is not None:
            blocks.append(layer.downsample)
    return blocks


def checkpointed(block: nn.Module, forward: Forward, x: torch.Tensor) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return forward(x)
    contexts = partial(_contexts, block)
    result: torch.Tensor = checkpoint(forward, x, use_reentrant=False, context_fn=contexts)
    return result


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch normalization takes its running statistics from a batch once, not again when recomputed."""
    modules = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    before = [(module.momentum, module.num_batches_tracked) for module in modules]
    try:
        for module in modules:
            module.momentum = 0.0
            module.num_batches_tracked = None
        yield
    finally:
        for module, (momentum, number) in zip(modules, before, strict=True):
            module.momentum, module.num_batches_tracked = momentum, number
