"""Measuring a model on the test images: one pass over them, all modes on the same image embedding.

Prompts, decoding and the assembling of the segmentation are micro-sam's own functions, so that a segmentation
is the one that micro_sam.evaluation.inference.run_inference_with_prompts writes. What is ours: the shared
embedding, the binary masks beside the segmentation, and the record that lets a killed evaluation go on.
"""

import csv
import hashlib
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from bioimage_cpp.segmentation import relabel_sequential
from micro_sam.evaluation.inference import _get_batched_prompts
from micro_sam.inference import batched_inference
from micro_sam.util import (
    _compute_hash,
    mask_data_to_segmentation,
    precompute_image_embeddings,
    set_precomputed,
)
from numpy.typing import NDArray
from segment_anything import SamPredictor

from refsam.configuration.patch_pool import encoder_is_frozen
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.datasets.listing import Pair
from refsam.datasets.pairs import read_pair_labels
from refsam.datasets.reading import read_image, to_8bit
from refsam.records.files import read_json, write_atomically, write_json, write_text
from refsam.records.paths import RunPaths
from refsam.science.engine.cache import DiskStore, pixel_hash, shared_store
from refsam.science.metrics import METRICS, mask_metrics, segmentation_metrics
from refsam.science.models import prompt_frame

COLUMNS = ("image", "mode", *METRICS, "n_objects", "seconds_embedding", "seconds_prompts", "weights")

_COLUMN_TYPES: dict[str, Callable[[str], Any]] = {"image": str, "mode": str, "n_objects": int, "weights": str}

# micro_sam.inference.batched_inference brings prompts to this frame, whatever the model's image size is.
_PROMPT_FRAME = (1024, 1024)

Row = dict[str, Any]


@dataclass(frozen=True)
class Prompts:
    """One point and one box per object, in pixels of the image.

    points: (objects, 1, 2) x, y; point_labels: (objects, 1); boxes: (objects, 4) x, y of either corner.
    """

    points: NDArray[Any]
    point_labels: NDArray[Any]
    boxes: NDArray[Any]


@dataclass(frozen=True)
class PromptedSegmentation:
    """masks: one (H, W) bool mask per prompt, which may overlap; segmentation: (H, W) uint32 of them."""

    masks: list[NDArray[np.bool_]]
    segmentation: NDArray[np.uint32]


def evaluate(
    config: RefsamConfig,
    predictor: SamPredictor,
    pairs: Sequence[Pair],
    paths: RunPaths,
    report: Callable[[str, int, int], None],
) -> None:
    """Measure `predictor` on `pairs` in the modes of `config.evaluate` that are not recorded yet.

    Writes results/per_image.csv after every image, results/metrics.json when a mode is complete, and with
    `save_predictions` results/predictions/<mode>/<name>.tif. Images that are in per_image.csv for the same
    weights are not computed again. An image without objects has no prompts: its row has no metrics and it is
    not in the means, and `n_images` counts the images that are.

    Args:
        predictor: The run's model, from refsam.science.models: load_predictor(paths.best, …), or
            initial_predictor for a baseline. Its `_hash` says which weights a row belongs to, as it does for
            micro-sam's embeddings.
        report: Called as report("evaluating", images done, images in all) before the first image and after
            each.

    Raises:
        ValueError: when a mode is unknown or metrics.json is damaged.
    """
    modes = missing_modes(config, paths)
    if not modes:
        return
    for mode in modes:
        _require_known(mode)
    predictor.model.eval()
    weights = str(predictor._hash)
    rows = {
        (row["image"], row["mode"]): row for row in _read_rows(paths.per_image) if row["weights"] == weights
    }
    paths.results.mkdir(parents=True, exist_ok=True)
    store = shared_embeddings(config, predictor, paths)

    report("evaluating", 0, len(pairs))
    for done, pair in enumerate(pairs, start=1):
        modes_left = [mode for mode in modes if (pair.name, mode) not in rows]
        if modes_left:
            for row in _evaluate_image(config, predictor, pair, modes_left, paths, store):
                rows[pair.name, row["mode"]] = {**row, "weights": weights}
            _write_rows(paths.per_image, list(rows.values()))
        report("evaluating", done, len(pairs))

    for mode in modes:
        means = _means([rows[pair.name, mode] for pair in pairs])
        recorded = _read_metrics(paths)
        write_json(paths.metrics, {**recorded, mode: {**means, "weights": weights}})


def missing_modes(config: RefsamConfig, paths: RunPaths) -> list[str]:
    """The modes of `config.evaluate` that metrics.json does not have for the run's present weights.

    Raises:
        ValueError: when metrics.json is damaged.
    """
    recorded = _read_metrics(paths)
    if config.kind is Kind.finetuning and paths.best.exists() and recorded:
        weights = _compute_hash(paths.best)
        recorded = {mode: values for mode, values in recorded.items() if values.get("weights") == weights}
    return [mode for mode in config.evaluate.modes if mode not in recorded]


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


def make_prompts(labels: NDArray[np.uint32], dilation: int) -> Prompts:
    """A point and a box for every object of `labels` ((H, W), numbered 1 … objects, at least one).

    As in micro-sam's evaluation, the point is the object's pixel that is farthest from its boundary.
    """
    object_ids = np.arange(1, labels.max() + 1)
    points, point_labels, boxes = _get_batched_prompts(
        labels, object_ids, use_points=True, use_boxes=True, n_positives=1, n_negatives=0, dilation=dilation
    )
    return Prompts(points, point_labels, boxes)


def segment(predictor: SamPredictor, prompts: Prompts, mode: str, batch_size: int) -> PromptedSegmentation:
    """Decode one prompt per object on the embedding that is set in the predictor.

    From a point, SAM proposes three masks and the one with the highest predicted IoU is taken; from a box,
    one. Masks become a segmentation as in micro-sam: larger ones first, connected components.

    Args:
        mode: point or box.
        batch_size: Prompts that are decoded at a time.

    Raises:
        ValueError: when the mode is unknown, or the model expects prompts in another frame than micro-sam's.
    """
    _require_known(mode)
    frame = prompt_frame(predictor.model)
    if frame != _PROMPT_FRAME:
        raise ValueError(
            f"the model takes prompts in {frame} pixels, micro-sam gives them in {_PROMPT_FRAME}"
        )
    points = mode == "point"
    decoded = batched_inference(
        predictor,
        image=None,
        batch_size=batch_size,
        points=prompts.points if points else None,
        point_labels=prompts.point_labels if points else None,
        boxes=None if points else prompts.boxes,
        multimasking=points,
        return_instance_segmentation=False,
    )
    masks = [item["segmentation"].cpu().numpy() for item in decoded]
    for item, mask in zip(decoded, masks, strict=True):
        item["segmentation"] = mask
    return PromptedSegmentation(masks, mask_data_to_segmentation(decoded, min_object_size=0))


def _require_known(mode: str) -> None:
    if mode not in ("point", "box"):
        raise ValueError(f"evaluate.modes has {mode!r}, allowed are point and box")


def _evaluate_image(
    config: RefsamConfig,
    predictor: SamPredictor,
    pair: Pair,
    modes: Sequence[str],
    paths: RunPaths,
    store: DiskStore | None,
) -> list[Row]:
    _seed(config.seed, pair.name)
    image = to_8bit(read_image(pair.image, config.dataset.image_key), config.dataset.normalize)
    labels = read_pair_labels(pair, config.dataset).astype("uint32")
    center = _center(image.shape, config.evaluate.crop)
    image, labels = image[center], relabel_sequential(labels[center])[0]
    n_objects = int(labels.max())
    if n_objects == 0:
        nothing = dict.fromkeys((*METRICS, "seconds_embedding", "seconds_prompts"), math.nan)
        return [{"image": pair.name, "mode": mode, **nothing, "n_objects": 0} for mode in modes]

    seconds_embedding = embed(predictor, image, store)
    prompts = make_prompts(labels, config.evaluate.dilation)

    rows = []
    for mode in modes:
        start = time.perf_counter()
        result = segment(predictor, prompts, mode, config.evaluate.batch_size)
        seconds_prompts = time.perf_counter() - start
        if config.evaluate.save_predictions:
            _write_prediction(
                paths.predictions(mode) / f"{pair.name.replace('/', '__')}.tif", result.segmentation
            )
        row: Row = {"image": pair.name, "mode": mode}
        row |= segmentation_metrics(result.segmentation, labels)
        row |= mask_metrics(result.masks, labels, range(1, n_objects + 1))
        row |= {
            "n_objects": n_objects,
            "seconds_embedding": seconds_embedding,
            "seconds_prompts": seconds_prompts,
        }
        rows.append(row)
    return rows


def _center(shape: tuple[int, ...], crop: Sequence[int] | None) -> tuple[slice, slice]:
    """The central `crop` (H, W) of an image of this shape, all of it along an axis that is not longer."""
    height, width = shape[:2]
    if crop is not None:
        height, width = min(height, crop[0]), min(width, crop[1])
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    return slice(top, top + height), slice(left, left + width)


def _seed(seed: int, name: str) -> None:
    """Seed by run and image, so that an evaluation that goes on draws what an uninterrupted one draws."""
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")
    np.random.seed(drawn)  # micro-sam's prompt generators draw from the global generators
    torch.manual_seed(drawn)


def _means(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over the images that have objects; None where there is no such image."""
    measured = [row for row in rows if row["n_objects"]]

    def mean(values: list[float]) -> float | None:
        return math.fsum(values) / len(values) if values else None

    means: dict[str, Any] = {name: mean([row[name] for row in measured]) for name in METRICS}
    seconds = [row["seconds_embedding"] + row["seconds_prompts"] for row in measured]
    return {**means, "n_images": len(measured), "seconds_per_image": mean(seconds)}


def _write_prediction(path: Path, segmentation: NDArray[np.uint32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = io.BytesIO()
    tifffile.imwrite(encoded, segmentation, compression="zlib")
    write_atomically(path, lambda file: file.write(encoded.getvalue()))


def _read_metrics(paths: RunPaths) -> dict[str, dict[str, Any]]:
    try:
        metrics = read_json(paths.metrics)
    except FileNotFoundError:
        return {}
    if not isinstance(metrics, dict) or not all(isinstance(values, dict) for values in metrics.values()):
        raise ValueError(f"{paths.metrics} is damaged: it is not a mapping from modes to their metrics")
    return metrics


def _read_rows(path: Path) -> list[Row]:
    """The rows of per_image.csv; none of a file with other columns, which another version of refsam wrote."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            return []
        return [
            {name: _COLUMN_TYPES.get(name, float)(value) for name, value in row.items()} for row in reader
        ]


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The csv module writes numbers with repr: means over rows that were read back are the same means."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
