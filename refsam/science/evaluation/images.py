"""Test images as they are measured, and their embeddings: computed once for all modes, and for other runs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zarr
from bioimage_cpp.segmentation import relabel_sequential
from bioimage_cpp.utils import Blocking
from numpy.typing import NDArray
from segment_anything import SamPredictor

from refsam.configuration.patch_pool import encoder_is_frozen
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.datasets.pair import Pair
from refsam.datasets.pairs import read_pair
from refsam.records.paths import RunPaths
from refsam.science.engine.cache import DiskStore, pixel_hash, shared_store
from refsam.science.micro_sam import precompute_image_embeddings, set_precomputed

Place = tuple[slice, slice]  # rows and columns of an image

# Larger images are embedded in tiles, since the encoder would see them reduced to 1024 x 1024 pixels. With
# its halo a tile has just that size.
LONGEST_SIDE = 1024
TILE_SHAPE = (768, 768)
TILE_HALO = (128, 128)


def load_image(config: RefsamConfig, pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """An image, (H, W) or (H, W, channels), and its labels, (H, W) numbered 1 … objects.

    Where `evaluate.crop` says so, the middle of them, which is all that is measured then.
    """
    image, labels = read_pair(pair, config.dataset)
    center = center_of(image.shape, config.evaluate.crop)
    return image[center], relabel_sequential(labels[center])[0]


def center_of(shape: tuple[int, ...], crop: Sequence[int] | None) -> tuple[slice, slice]:
    """The central `crop` (H, W) of an image of this shape, all of it along an axis that is not longer."""
    height, width = shape[:2]
    if crop is not None:
        height, width = min(height, crop[0]), min(width, crop[1])
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    return slice(top, top + height), slice(left, left + width)


@dataclass(frozen=True)
class Tile:
    """A part of an image that is embedded by itself.

    outer: its place in the image, (rows, columns); inner: the part of it that no other tile has as its inner
    part; embedding: as micro_sam.util.set_precomputed takes it.
    """

    outer: Place
    inner: Place
    embedding: dict[str, Any]

    def select(self, predictor: SamPredictor) -> None:
        """Set the embedding in the predictor."""
        set_precomputed(predictor, self.embedding)


@dataclass(frozen=True)
class EmbeddedImage:
    """An image, (H, W) or (H, W, channels) uint8, and its embedding, in one tile or in several.

    seconds: that the embedding took, also where that was in another run.
    """

    image: NDArray[np.uint8]
    tiles: tuple[Tile, ...]
    tiled: bool
    seconds: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    def for_micro_sam(self) -> Any:
        """The embedding as micro-sam's generators take it: those for tiles want a group of zarr."""
        if not self.tiled:
            return self.tiles[0].embedding
        features = zarr.group().create_group("features")
        shapes = {"shape": self.shape, "tile_shape": TILE_SHAPE, "halo": TILE_HALO}
        features.attrs.update({name: list(shape) for name, shape in shapes.items()})
        for number, tile in enumerate(self.tiles):
            values = tile.embedding["features"].numpy()
            array = features.create_array(
                str(number), shape=values.shape, chunks=values.shape, dtype=values.dtype
            )
            array[:] = values
            sizes = {name: list(tile.embedding[name]) for name in ("input_size", "original_size")}
            array.attrs.update(sizes)
        return {"features": features, "input_size": None, "original_size": None}


def embed(
    predictor: SamPredictor, image: NDArray[Any], store: DiskStore | None = None, longest: int = LONGEST_SIDE
) -> EmbeddedImage:
    """Embed an image, (H, W) or (H, W, channels) uint8; one with a longer side than `longest` in tiles.

    Args:
        store: where embeddings of the predictor's encoder are kept.
        longest: pixels.
    """
    tiled = max(image.shape[:2]) > longest
    key = pixel_hash(torch.tensor(image)) + ("-tiles" if tiled else "")
    kept = None if store is None else store.read(key)
    if kept is None:
        start = time.perf_counter()
        tiling = {"tile_shape": TILE_SHAPE, "halo": TILE_HALO} if tiled else {}
        computed = precompute_image_embeddings(predictor, image, ndim=2, verbose=False, **tiling)
        kept = _as_kept(computed, tiled) | {"seconds": time.perf_counter() - start}
        if store is not None:
            store.write(key, kept)
    places = tile_places(image.shape) if tiled else [(_whole(image.shape), _whole(image.shape))]
    tiles = (
        Tile(
            outer, inner, {"features": features, "input_size": tuple(size), "original_size": tuple(original)}
        )
        for (outer, inner), features, (size, original) in zip(
            places, kept["features"], kept["sizes"], strict=True
        )
    )
    return EmbeddedImage(image, tuple(tiles), tiled, float(kept["seconds"]))


def tile_places(shape: tuple[int, ...]) -> list[tuple[Place, Place]]:
    """Outer and inner place of each tile of an image of this shape, in micro-sam's order."""
    tiling = Blocking([0, 0], list(shape[:2]), list(TILE_SHAPE))
    places = []
    for number in range(tiling.number_of_blocks):
        block = tiling.get_block_with_halo(number, list(TILE_HALO))
        places.append((_place(block.outer_block), _place(block.inner_block)))
    return places


def _as_kept(computed: Any, tiled: bool) -> dict[str, Any]:
    """An embedding of micro-sam as tensors and plain values."""
    if not tiled:
        features, sizes = [computed["features"]], [(computed["input_size"], computed["original_size"])]
    else:
        number_of_tiles = sum(1 for _ in computed["features"].array_keys())
        arrays = [computed["features"][str(number)] for number in range(number_of_tiles)]
        features = [array[:] for array in arrays]
        sizes = [(array.attrs["input_size"], array.attrs["original_size"]) for array in arrays]
    return {
        "features": [torch.from_numpy(values) for values in features],
        "sizes": [[list(map(int, size)) for size in pair] for pair in sizes],
    }


def _whole(shape: tuple[int, ...]) -> Place:
    return slice(0, shape[0]), slice(0, shape[1])


def _place(block: Any) -> Place:
    rows, columns = (slice(int(begin), int(end)) for begin, end in zip(block.begin, block.end, strict=True))
    return rows, columns


def shared_embeddings(config: RefsamConfig, predictor: SamPredictor, paths: RunPaths) -> DiskStore | None:
    """Where test images' embeddings are kept; None where no other run would find them.

    Other runs have the encoder if it is that of the initial model. Their number is small and known, so they
    are kept on the disk also where those of the training are kept in memory.
    """
    is_initial = config.kind is Kind.baseline or encoder_is_frozen(config.peft)
    if config.train.embedding_cache == "off" or not is_initial:
        return None
    encoder = predictor.model.image_encoder
    store = shared_store(config, paths, encoder, predictor.device, "float32, images in tiles")
    return None if store.folder.is_relative_to(paths.root) else store
