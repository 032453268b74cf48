"""A 3 x 3 convolution of an enlarged image from a quarter of the products, on a CPU.

The segmentation decoder doubles rows and columns bilinearly and convolves the result. Each of the nine taps
of a convolution is a product over channels and a shift; the product and the enlargement are both linear, one
acts on channels and one on positions, so the product can be done on the small image. What is left is to
enlarge, shift and add nine small results, which for rows and for columns is one banded matrix for each tap.

It saves three quarters of such a convolution's arithmetic, of its backward too, and the enlarged image that
it keeps for the backward (up to 256 MiB). It costs nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import interpolate, pad

TAPS = 3
# Small rows and columns that are enlarged together: their banded matrix is 2 * 16 x 18, most of it not zero.
TILE = 16
# Pixels of the small image, times channels, of one round: few enough to stay near the processor, enough for
# the products over channels to be large ones. With 2**18 or 2**22 most sizes were slower, by up to 0.8.
VALUES_AT_ONCE = 2**20


class LateConvolution(torch.autograd.Function):
    """`conv2d(interpolate(x, scale_factor=2, mode="bilinear"), weight, bias, padding=1)`, to rounding."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The convolution.

        Args:
            ctx: keeps what the backward needs.
            x: (n, channels, h, w).
            weight: (new channels, channels, 3, 3).
            bias: (new channels,).

        Returns:
            (n, new channels, 2 h, 2 w).
        """
        ctx.save_for_backward(x, weight)
        n, _, h, w = x.shape
        enlarged = x.new_empty(n, len(weight), 2 * h, 2 * w)
        for image, result in zip(x.flatten(2), enlarged, strict=True):
            for channels in _rounds(len(weight), h * w):
                small = (_by_tap(weight[channels]) @ image).view(TAPS, -1, w)
                wide = small.new_empty(small.shape[1], 2 * w)
                for tile in tiles(w, x.dtype):
                    out = wide[:, tile.large]
                    torch.mm(small[0, :, tile.small], tile.taps[0].T, out=out)
                    for tap in range(1, TAPS):
                        out.addmm_(small[tap, :, tile.small], tile.taps[tap].T)
                wide = wide.view(-1, TAPS, h, 2 * w)
                for source, target, offset in zip(wide, result[channels], bias[channels], strict=True):
                    for tile in tiles(h, x.dtype):
                        out = target[tile.large]
                        torch.addmm(offset, tile.taps[0], source[0, tile.small], out=out)
                        for tap in range(1, TAPS):
                            out.addmm_(tile.taps[tap], source[tap, tile.small])
        return enlarged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The transposed of every step of the forward, in reverse."""
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        _, _, h, w = x.shape
        of_x, of_weight = torch.zeros_like(x), torch.zeros_like(weight)
        for image, of_image, result in zip(x.flatten(2), of_x.flatten(2), gradient, strict=True):
            for channels in _rounds(len(weight), h * w):
                wide = x.new_zeros(len(weight[channels]), TAPS, h, 2 * w)
                for source, target in zip(wide, result[channels], strict=True):
                    for tile in tiles(h, x.dtype):
                        for tap in range(TAPS):
                            source[tap, tile.small].addmm_(tile.taps[tap].T, target[tile.large])
                wide = wide.view(-1, 2 * w)
                small = x.new_zeros(TAPS, len(wide), w)
                for tile in tiles(w, x.dtype):
                    for tap in range(TAPS):
                        small[tap, :, tile.small].addmm_(wide[:, tile.large], tile.taps[tap])
                products = small.view(-1, h * w)
                of_image.addmm_(_by_tap(weight[channels]).T, products)
                of_taps = (products @ image.T).view(TAPS, -1, TAPS, weight.shape[1])
                of_weight[channels] += of_taps.permute(1, 3, 2, 0)
        return of_x, of_weight, gradient.sum(dim=(0, 2, 3))


@dataclass(frozen=True)
class _Tile:
    """A part of one axis: where it is in the small image and in the large one.

    Attributes:
        small: what the part depends on.
        large: the part.
        taps: one matrix (large, small) for each tap: enlarge, and shift by one to either side.
    """

    small: slice
    large: slice
    taps: tuple[torch.Tensor, ...]


@lru_cache(maxsize=64)
def tiles(length: int, dtype: torch.dtype) -> tuple[_Tile, ...]:
    """One axis of the small image in parts, by enlarging its unit vectors with torch's own function."""
    with torch.no_grad():
        units = torch.eye(length, dtype=torch.float64)[None]
        enlarged = interpolate(units, scale_factor=2, mode="linear", align_corners=False)[0].T
        # A convolution sees zeros beyond the edge.
        shifted = pad(enlarged, (0, 0, 1, 1)).unfold(0, 2 * length, 1).transpose(1, 2).to(dtype)
    tiles = []
    for first in range(0, length, TILE):
        last = min(first + TILE, length)
        small, large = slice(max(0, first - 1), min(length, last + 1)), slice(2 * first, 2 * last)
        tiles.append(_Tile(small, large, tuple(tap[large, small].contiguous() for tap in shifted)))
    return tuple(tiles)


def _rounds(channels: int, pixels: int) -> Iterator[slice]:
    step = max(1, VALUES_AT_ONCE // pixels)
    return (slice(first, min(first + step, channels)) for first in range(0, channels, step))


def _by_tap(weight: torch.Tensor) -> torch.Tensor:
    """(new channels, channels, 3, 3) as (3 columns * new channels * 3 rows, channels)."""
    return weight.permute(3, 0, 2, 1).flatten(0, 2)
