"""A frozen encoder's embeddings, computed once per patch and kept.

With a frozen encoder the embedding of a patch is a constant, which micro-sam computes at every step, and once
more for the segmentation decoder. Kept are the patches that come again: those of a pool (`train.patch_pool`),
those of the validation, and on the disk the test images too. `train.embedding_cache` says where:

- `memory`: as many as fit into a given memory, the first ones to come, since one that would push out another
  would in the end push out all;
- `disk`: all, in files below the data folder that are mapped into memory, for all runs on the same kind of
  hardware with the same weights;
- `off`: none but the latest batch, for the step's second branch.

It saves the encoder's forward for every patch that was seen before. It costs 4 MiB per patch (256 x 64 x 64),
half of that with `train.embedding_dtype=float16`, which is not exact: training and validation then see
embeddings of 11 bits, whether they come from the cache or not.
"""

import contextlib
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from refsam.configuration.schema import RefsamConfig
from refsam.records.paths import RunPaths
from refsam.science.hardware import GIB, processor_name
from refsam.system.files import write_atomically

Encode = Callable[[torch.Tensor], torch.Tensor]
# What torch.load raises for a file that is no whole checkpoint.
DAMAGED = (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError)
EMBEDDING = "embedding"


class MemoryStore:
    """Embeddings on the device that they were computed on, the first ones to come."""

    def __init__(self, gib: float) -> None:
        self._room = int(gib * GIB)
        self._kept: dict[str, torch.Tensor] = {}

    def get(self, key: str) -> torch.Tensor | None:
        return self._kept.get(key)

    def put(self, key: str, value: torch.Tensor) -> None:
        if key not in self._kept and self._room >= value.nbytes:
            # A row of a batch would keep the whole batch.
            self._kept[key] = value.clone()
            self._room -= value.nbytes


class DiskStore:
    """Files of tensors and plain values, mapped into memory when read.

    Each is written beside its place and renamed, so that processes that compute the same one at the same time
    replace each other's by an equal one. A file that cannot be read is computed again; where none can be
    written (a full disk), that is said once, and nothing is kept any more.

    Args:
        folder: of one encoder on one kind of hardware; it is made with the first file.
        limit_gib: of all files of all encoders, in `folder` and the folders beside it; beyond it those that
            were not used for longest are removed. None: no limit.
    """

    def __init__(self, folder: Path, limit_gib: float | None = None) -> None:
        self.folder = folder
        self._limit = None if limit_gib is None else int(limit_gib * GIB)
        self._unseen = self._limit or 0  # bytes written since the folder was looked at; at first, look
        self._writable = True

    def read(self, key: str) -> dict[str, Any] | None:
        """The values under a key; their tensors are on the CPU, in memory that the file backs."""
        path = self._path(key)
        try:
            os.utime(path)  # tells _make_room that it is in use
            values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except FileNotFoundError:
            return None
        except DAMAGED as error:
            print(f"{path} is damaged and is computed again: {error}", file=sys.stderr)
            return None
        return values

    def write(self, key: str, values: dict[str, Any]) -> None:
        """Keep tensors and plain values under a key."""
        if not self._writable:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(key), lambda file: torch.save(values, file))
            self._make_room(self._path(key))
        except OSError as error:
            self._writable = False
            print(f"{self.folder} takes no more embeddings: {error}", file=sys.stderr)

    def _make_room(self, written: Path) -> None:
        """Remove the files that were used longest ago while all take more than the limit.

        What another process has mapped into memory stays there for it; what it is about to read, it computes.
        The folder is looked at once for each hundredth of the limit that is written.
        """
        if self._limit is None:
            return
        self._unseen += written.stat().st_size
        if self._unseen < self._limit / 100:
            return
        self._unseen = 0
        files = []
        for path in self.folder.parent.glob("*/*.pt"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room as well
                facts = path.stat()
                files.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._limit:
                return
            path.unlink(missing_ok=True)
            total -= size

    def get(self, key: str) -> torch.Tensor | None:
        values = self.read(key)
        return None if values is None else values[EMBEDDING]

    def put(self, key: str, value: torch.Tensor) -> None:
        self.write(key, {EMBEDDING: value.cpu().clone()})

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.pt"


# Where embeddings (channels, rows, columns) are kept, by the hash of what they were computed from.
Store = MemoryStore | DiskStore


class EmbeddingCache:
    """The embeddings of one frozen encoder under one precision; the latest batch is always kept.

    Args:
        store: for the others.
        device: of the embeddings that are given.
        dtype: of the embeddings that are kept. With float16 all embeddings are rounded to it, and given as
            float32; with float32 they stay as they are computed.
    """

    def __init__(self, store: Store, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._store = store
        self._device = device
        self._rounded = dtype == torch.float16
        self._latest: dict[str, torch.Tensor] = {}

    def embed(self, images: torch.Tensor, encode: Encode, keep: bool = True) -> torch.Tensor:
        """The embeddings (batch, channels, rows, columns) of `images`, (batch, 3, H, W).

        Args:
            keep: whether these images will come again, later than in the next call.
        """
        keys = [pixel_hash(image) for image in images]
        known = {key: found for key in keys if (found := self._find(key)) is not None}
        unknown = [index for index, key in enumerate(keys) if key not in known]
        if unknown:
            with torch.no_grad():
                computed = encode(images[unknown])
            computed = computed.half() if self._rounded else computed
            known |= {keys[index]: value for index, value in zip(unknown, computed, strict=True)}
            if keep:
                for index in unknown:
                    self._store.put(keys[index], known[keys[index]])
        self._latest = known
        embeddings = torch.stack([known[key] for key in keys])
        return embeddings.float() if self._rounded else embeddings

    def _find(self, key: str) -> torch.Tensor | None:
        found = self._latest.get(key)
        found = self._store.get(key) if found is None else found
        return None if found is None else found.to(self._device)


def pixel_hash(image: torch.Tensor) -> str:
    """Hash of an image's values, shape and type."""
    digest = xxhash.xxh3_128(f"{image.dtype} {tuple(image.shape)}".encode())
    digest.update(_bytes(image))
    return digest.hexdigest()


def encoder_hash(encoder: nn.Module) -> str:
    """Hash of all that an encoder computes with: parameters and statistics, with their names."""
    digest = xxhash.xxh3_128()
    for name, value in encoder.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def shared_store(
    config: RefsamConfig, paths: RunPaths, encoder: nn.Module, device: torch.device, arithmetic: str
) -> DiskStore:
    """The store that all runs share whose embeddings would be the same to the bit.

    That takes the same weights, arithmetic, version of torch, and processor. It lies below the data folder,
    or in the run directory where that cannot be written.

    Args:
        arithmetic: precision, the type of what is kept, and what the images are, in words.
    """
    parts = (encoder_hash(encoder), arithmetic, torch.__version__, processor_name(device))
    name = f"{config.model.name}-{xxhash.xxh3_64_hexdigest(' '.join(parts).encode())}"
    shared = Path(config.data).expanduser() / "embeddings"
    existing = next(parent for parent in (shared, *shared.parents) if parent.exists())
    folder = (shared if os.access(existing, os.W_OK) else paths.embeddings) / name
    return DiskStore(folder, config.train.embedding_disk_gib)


def _bytes(value: torch.Tensor) -> memoryview:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
