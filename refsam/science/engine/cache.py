"""A frozen encoder's embeddings, computed once per patch and kept.

With a frozen encoder the embedding of a patch is a constant, which micro-sam computes at every step, and once
more for the segmentation decoder. Kept are as many as fit into a given memory, the first ones to come:
patches of a pool (`train.patch_pool`) and of the validation come again in every epoch, and one that would
push out another would in the end push out all. The latest batch is always kept, for the step's second branch.

It saves the encoder's forward for every patch that was seen before. It costs 4 MiB per patch (256 x 64 x 64).
"""

import hashlib
from collections.abc import Callable

import torch

from refsam.science.hardware import GIB

Encode = Callable[[torch.Tensor], torch.Tensor]


class EmbeddingCache:
    """Embeddings by the pixels of their patch, on the device that they were computed on.

    It belongs to one frozen encoder, in one process, under one precision: weights are no part of the key.

    Args:
        gib: how much memory the embeddings may take, besides those of the latest batch.
    """

    def __init__(self, gib: float) -> None:
        self._room = int(gib * GIB)
        self._kept: dict[bytes, torch.Tensor] = {}
        self._latest: dict[bytes, torch.Tensor] = {}

    def embed(self, images: torch.Tensor, encode: Encode) -> torch.Tensor:
        """The embeddings (batch, channels, rows, columns) of `images`, (batch, 3, H, W).

        Args:
            images: as they come from the loader.
            encode: computes the embeddings of a batch of images.
        """
        keys = [_key(image) for image in images]
        unknown = [index for index, key in enumerate(keys) if self._find(key) is None]
        known = {key: found for key in keys if (found := self._find(key)) is not None}
        if unknown:
            with torch.no_grad():
                computed = encode(images[unknown])
            known |= {keys[index]: value for index, value in zip(unknown, computed, strict=True)}
        self._latest = known
        for key, value in known.items():
            if key not in self._kept and self._room >= value.nbytes:
                # A row of a batch would keep the whole batch.
                self._kept[key] = value.clone()
                self._room -= value.nbytes
        return torch.stack([known[key] for key in keys])

    def _find(self, key: bytes) -> torch.Tensor | None:
        return self._kept.get(key, self._latest.get(key))


def _key(image: torch.Tensor) -> bytes:
    pixels = image.detach().cpu().contiguous().numpy()
    return hashlib.blake2b(f"{image.dtype} {tuple(image.shape)}".encode() + pixels.tobytes()).digest()
