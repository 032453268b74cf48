"""The image encoder's attention without its scores in memory, relative positions included.

Segment Anything adds to each score the product of the query with an embedding of the row distance and with
one of the column distance, and for that holds all scores (4096 x 4096 for each head) in memory, several times
over. Here they are never all there:

- On a GPU the sum is made one product: append to each query its products with the embeddings of all rows and
  columns (H + W numbers), and to each key the one-hot of its row and column. Then attention is plain, and
  scaled_dot_product_attention keeps no scores.
- A CPU would pay for the H + W columns (its kernel wants values as wide as keys, so 192 instead of 64 in
  every product). There, scores are computed for a block of queries at a time, and computed again in the
  backward: the method of FlashAttention (Dao et al. 2022, arXiv:2205.14135), with whole rows of scores.

It saves the scores of every block. It costs their second computation, less than writing and reading them.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import mobile_sam.modeling.image_encoder as mobile_sam
import segment_anything.modeling.image_encoder as segment_anything
import torch
from mobile_sam.modeling import TinyViT
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import one_hot, pad, scaled_dot_product_attention

# Bytes of the scores that are computed at a time: they are read some ten times and should stay in the cache.
BLOCK_BYTES = 16 * 2**20
COLUMNS = 8  # queries and keys have a multiple of these

# micro-sam builds the ViTs with mobile_sam's copy of the classes where that is installed.
ATTENTIONS = (segment_anything.Attention, mobile_sam.Attention)

Block = tuple[slice, slice]


class FusedAttention(segment_anything.Attention):
    """segment_anything's attention with the same parameters, and the same result to rounding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, H, W, channels) to the same shape."""
        return fused_attention(self, x, self.num_heads)


def fused_attention(attention: Any, x: torch.Tensor, heads: int) -> torch.Tensor:
    """What an attention with decomposed relative positions computes from x, (batch, H, W, channels).

    Args:
        attention: a module with qkv, proj, scale, rel_pos_h and rel_pos_w.
    """
    batch, height, width, _ = x.shape
    shape = (3, batch * heads, height * width, -1)
    qkv = attention.qkv(x).reshape(batch, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.reshape(shape).unbind(0)  # (batch * heads, H * W, channels per head)
    grid = query.unflatten(1, (height, width))
    rows, columns = _by_offset(height, attention.rel_pos_h), _by_offset(width, attention.rel_pos_w)
    by_row = torch.einsum("nhwc,hkc->nhwk", grid, rows).flatten(1, 2)
    by_column = torch.einsum("nhwc,wkc->nhwk", grid, columns).flatten(1, 2)
    attended = kernel_for(x.device)(query * attention.scale, key, value, by_row, by_column)
    heads_last = attended.view(batch, heads, height, width, -1).permute(0, 2, 3, 1, 4)
    projected: torch.Tensor = attention.proj(heads_last.reshape(batch, height, width, -1))
    return projected


def use_fused_attention(encoder: nn.Module) -> None:
    """Make the attention of an ImageEncoderViT fused, in place; parameters and their names stay.

    vit_t's encoder attends within windows of at most 14 x 14 with a learned bias, and is left as it is.

    Raises:
        TypeError: for an encoder in which there is no attention of Segment Anything.
    """
    if isinstance(encoder, TinyViT):
        return
    found = [module for module in encoder.modules() if type(module) in ATTENTIONS and module.use_rel_pos]
    if not found:
        raise TypeError(f"{type(encoder).__name__} has no attention that could be fused")
    for module in found:
        module.__class__ = FusedAttention


def _by_offset(size: int, embeddings: torch.Tensor) -> torch.Tensor:
    """The embedding of the offset of each query from each key, (size, size, channels).

    As get_rel_pos, which makes the index in main memory each time, so that a GPU waits for it.

    Args:
        size: of the grid in one direction.
        embeddings: of the offsets 1 - size … size - 1, (2 size - 1, channels).
    """
    if len(embeddings) != 2 * size - 1:
        return get_rel_pos(size, size, embeddings)
    return embeddings[offsets(size, embeddings.device)]


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # a training uses it after the evaluation that made it
def offsets(size: int, device: torch.device) -> torch.Tensor:
    """Which embedding that is, (size, size)."""
    places = torch.arange(size, device=device)
    return places[:, None] - places[None, :] + (size - 1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def positions(height: int, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The one-hot row and column of each position, (H * W, H + W)."""
    index = torch.arange(height * width, device=device)
    return torch.cat([one_hot(index // width, height), one_hot(index % width, width)], dim=-1).to(dtype)


def kernel_for(device: torch.device) -> Callable[..., torch.Tensor]:
    """What computes attention with relative positions on a device."""
    return _Blockwise.apply if device.type == "cpu" else with_one_product


def with_one_product(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, by_row: torch.Tensor, by_column: torch.Tensor
) -> torch.Tensor:
    """What _Blockwise computes, with one call of a kernel for queries and keys of H + W more columns.

    Columns of zeros make them as many as the memory-efficient kernel asks for: in half precision on tensor
    cores a multiple of 8 (PyTorch's sdp_utils.cpp). vit_b's windows have 64 + 14 + 14 = 92, vit_h's 108, and
    the kernel that is taken otherwise holds all scores.
    """
    height, width = by_row.shape[-1], by_column.shape[-1]
    position = positions(height, width, key.device, key.dtype)
    zeros = (0, -(query.shape[-1] + height + width) % COLUMNS)
    query = pad(torch.cat([query, by_row, by_column], dim=-1), zeros)
    key = pad(torch.cat([key, position.expand(len(key), -1, -1)], dim=-1), zeros)
    # The kernels that keep no scores ask for four dimensions.
    attended = scaled_dot_product_attention(query[None], key[None], value[None], scale=1.0)
    return attended[0]


class _Blockwise(torch.autograd.Function):
    """softmax(query keyᵀ + rows + columns) value for some queries at a time.

    Args of apply:
        query, key, value: (n, H * W, channels), the query scaled; n counts images, windows and heads.
        by_row: (n, H * W, H), what a query adds to its scores with the keys of each row.
        by_column: (n, H * W, W), the same for each column.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        by_row: torch.Tensor,
        by_column: torch.Tensor,
    ) -> torch.Tensor:
        attended = torch.empty_like(value)
        with torch.autocast(query.device.type, enabled=False):
            for block in _blocks(query):
                probabilities = _probabilities(query, key, by_row, by_column, block)
                attended[block] = probabilities @ value[block[0]]
        ctx.save_for_backward(query, key, value, by_row, by_column, attended)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, by_row, by_column, attended = ctx.saved_tensors
        gradients = [torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)]
        gradients += [torch.empty_like(by_row), torch.empty_like(by_column)]
        with torch.autocast(query.device.type, enabled=False):
            # What the softmax's backward subtracts: the mean of its gradient, weighted by the probabilities.
            means = (gradient * attended).sum(-1, keepdim=True)
            for block in _blocks(query):
                heads = block[0]
                probabilities = _probabilities(query, key, by_row, by_column, block)
                gradients[2][heads].baddbmm_(probabilities.mT, gradient[block])
                by_score = gradient[block] @ value[heads].mT
                by_score.sub_(means[block]).mul_(probabilities)
                gradients[0][block] = by_score @ key[heads]
                gradients[1][heads].baddbmm_(by_score.mT, query[block])
                grid = by_score.unflatten(-1, (by_row.shape[-1], by_column.shape[-1]))
                gradients[3][block] = grid.sum(-1)
                gradients[4][block] = grid.sum(-2)
        return tuple(gradients)


def _probabilities(
    query: torch.Tensor, key: torch.Tensor, by_row: torch.Tensor, by_column: torch.Tensor, block: Block
) -> torch.Tensor:
    """(heads of the block, queries of the block, H * W), in the type of the query."""
    scores = query[block] @ key[block[0]].mT
    grid = scores.unflatten(-1, (by_row.shape[-1], by_column.shape[-1]))
    grid += by_row[block].unsqueeze(-1)
    grid += by_column[block].unsqueeze(-2)
    return scores.softmax(-1)


def _blocks(query: torch.Tensor) -> Iterator[Block]:
    """Heads and queries whose scores take BLOCK_BYTES: many small windows, or a part of one large image."""
    n, length, _ = query.shape
    row_bytes = length * query.element_size()
    heads = max(1, BLOCK_BYTES // (length * row_bytes))
    rows = max(1, min(length, BLOCK_BYTES // row_bytes))
    for head in range(0, n, heads):
        for row in range(0, length, rows):
            yield slice(head, head + heads), slice(row, row + rows)
