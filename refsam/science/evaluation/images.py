"""Test images as they are measured, and their embeddings: computed once for all modes, and for other runs."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from bioimage_cpp.segmentation import relabel_sequential
from micro_sam.util import precompute_image_embeddings, set_precomputed
from numpy.typing import NDArray
from segment_anything import SamPredictor

from refsam.configuration.patch_pool import encoder_is_frozen
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.datasets.listing import Pair
from refsam.datasets.pairs import read_pair_labels
from refsam.datasets.reading import read_image, to_8bit
from refsam.records.paths import RunPaths
from refsam.science.engine.cache import DiskStore, pixel_hash, shared_store


def load_image(config: RefsamConfig, pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """An image, (H, W) or (H, W, channels), and its labels, (H, W) numbered 1 … objects.

    Where `evaluate.crop` says so, the middle of them, which is all that is measured then.
    """
    image = to_8bit(read_image(pair.image, config.dataset.image_key), config.dataset.normalize)
    labels = read_pair_labels(pair, config.dataset).astype("uint32")
    center = center_of(image.shape, config.evaluate.crop)
    return image[center], relabel_sequential(labels[center])[0]


def center_of(shape: tuple[int, ...], crop: Sequence[int] | None) -> tuple[slice, slice]:
    """The central `crop` (H, W) of an image of this shape, all of it along an axis that is not longer."""
    height, width = shape[:2]
    if crop is not None:
        height, width = min(height, crop[0]), min(width, crop[1])
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    return slice(top, top + height), slice(left, left + width)


def embed(predictor: SamPredictor, image: NDArray[Any], store: DiskStore | None = None) -> float:
    """Set the embedding of an image, (H, W) or (H, W, channels) uint8, in the predictor.

    Args:
        store: where embeddings of the predictor's encoder are kept.

    Returns:
        Seconds that it took to compute, also where that was done by another run.
    """
    key = pixel_hash(torch.tensor(image))
    kept = None if store is None else store.read(key)
    if kept is None:
        start = time.perf_counter()
        computed = precompute_image_embeddings(predictor, image, ndim=2, verbose=False)
        kept = {
            "features": torch.from_numpy(computed["features"]),
            "input_size": list(computed["input_size"]),
            "original_size": list(computed["original_size"]),
            "seconds": time.perf_counter() - start,
        }
        if store is not None:
            store.write(key, kept)
    set_precomputed(predictor, kept)
    predictor.original_size, predictor.input_size = tuple(kept["original_size"]), tuple(kept["input_size"])
    return float(kept["seconds"])


def shared_embeddings(config: RefsamConfig, predictor: SamPredictor, paths: RunPaths) -> DiskStore | None:
    """Where test images' embeddings are kept; None where no other run has the same encoder."""
    is_initial = config.kind is Kind.baseline or encoder_is_frozen(config.peft)
    if config.train.embedding_cache != "disk" or not is_initial:
        return None
    encoder = predictor.model.image_encoder
    return shared_store(config, paths, encoder, predictor.device, "float32, images")
