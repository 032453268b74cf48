"""The pass over the test images: each is read and embedded once, and measured in all missing modes."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor

from refsam.configuration.measurements import MODES, PROMPTED
from refsam.configuration.schema import RefsamConfig
from refsam.datasets.listing import Pair
from refsam.records.metrics import Measurement, measurement, write_metrics
from refsam.records.paths import RunPaths
from refsam.science.engine.cache import DiskStore
from refsam.science.evaluation.images import embed, load_image, shared_embeddings
from refsam.science.evaluation.prompts import PromptedSegmentation, rounds
from refsam.science.evaluation.record import (
    Key,
    key_of,
    prediction_path,
    present_metrics,
    read_rows,
    unmeasured,
    write_prediction,
    write_rows,
)
from refsam.science.evaluation.statistics import SECONDS, Row, summary
from refsam.science.metrics import METRICS, mask_metrics, segmentation_metrics


def evaluate(
    config: RefsamConfig,
    predictor: SamPredictor,
    pairs: Sequence[Pair],
    paths: RunPaths,
    report: Callable[[str, int, int], None],
) -> None:
    """Measure `predictor` on `pairs` in all that `config.evaluate` asks for and that is not recorded yet.

    Writes results/per_image.csv after every image, results/metrics.json when all images are measured, and
    with `save_predictions` results/predictions/…/<name>.tif. Images that are in per_image.csv for the same
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
    wanted = unmeasured(config, paths)
    if not wanted:
        return
    for each in wanted:
        if each.mode not in MODES:
            raise ValueError(f"evaluate.modes has {each.mode!r}, allowed are {', '.join(MODES)}")
    predictor.model.eval()
    weights = str(predictor._hash)
    rows = {key_of(row): row for row in read_rows(paths.per_image) if row["weights"] == weights}
    paths.results.mkdir(parents=True, exist_ok=True)
    store = shared_embeddings(config, predictor, paths)

    report("evaluating", 0, len(pairs))
    for done, pair in enumerate(pairs, start=1):
        left = [each for each in wanted if not _is_measured(config, paths, rows, (pair.name, each))]
        if left:
            for row in _evaluate_image(config, predictor, pair, left, paths, store):
                rows[key_of(row)] = {**row, "weights": weights}
            write_rows(paths.per_image, list(rows.values()))
        report("evaluating", done, len(pairs))

    measured = {measurement(row): row for row in present_metrics(config, paths)}
    for each in wanted:
        means = summary([rows[pair.name, each] for pair in pairs], config.seed)
        measured[each] = {
            **each._asdict(),
            "weights": weights,
            **means,
            "parameters": None,
            "predictions_saved": config.evaluate.save_predictions,
        }
    write_metrics(paths.metrics, list(measured.values()))


def _is_measured(config: RefsamConfig, paths: RunPaths, rows: dict[Key, Row], key: Key) -> bool:
    if key not in rows:
        return False
    image, each = key
    needs_file = config.evaluate.save_predictions and rows[key]["n_objects"] > 0
    return not needs_file or prediction_path(paths, each, image).exists()


def _evaluate_image(
    config: RefsamConfig,
    predictor: SamPredictor,
    pair: Pair,
    wanted: Sequence[Measurement],
    paths: RunPaths,
    store: DiskStore | None,
) -> list[Row]:
    image, labels = load_image(config, pair)
    n_objects = int(labels.max())
    if n_objects == 0:
        nothing = dict.fromkeys((*METRICS, *SECONDS), math.nan)
        counts = {"n_objects": 0, "n_predicted": 0}
        return [
            {"image": pair.name, **each._asdict(), **nothing, **counts, "parameters": ""} for each in wanted
        ]

    seconds_embedding = embed(predictor, image, store)
    rows = []
    for each, found in _measure(config, predictor, pair, labels, wanted):
        if config.evaluate.save_predictions:
            write_prediction(prediction_path(paths, each, pair.name), found.segmentation)
        row: Row = {"image": pair.name, **each._asdict()}
        row |= segmentation_metrics(found.segmentation, labels)
        row |= mask_metrics(found.masks, labels, range(1, n_objects + 1))
        row |= {
            "n_objects": n_objects,
            "n_predicted": _count(found.segmentation),
            "seconds_embedding": seconds_embedding,
            "seconds_prompts": found.seconds_prompts,
            "seconds_postprocessing": found.seconds_postprocessing,
            "parameters": "",
        }
        rows.append(row)
    return rows


def _measure(
    config: RefsamConfig,
    predictor: SamPredictor,
    pair: Pair,
    labels: NDArray[np.uint32],
    wanted: Sequence[Measurement],
) -> Iterator[tuple[Measurement, PromptedSegmentation]]:
    """What is wanted, in an order that shares as much as possible. The first prompt is decoded once."""
    for mode in PROMPTED:
        left = {each for each in wanted if each.mode == mode}
        first = None
        for mask_input in (False, True):
            last = max((each.round for each in left if each.mask_input == mask_input), default=None)
            if last is None:
                continue
            _seed(config.seed, pair.name)
            found = rounds(
                predictor,
                labels,
                mode,
                last,
                mask_input,
                config.evaluate.batch_size,
                config.evaluate.dilation,
                first,
            )
            for number, segmentation in enumerate(found):
                first = first or segmentation
                each = Measurement(mode, number, mask_input and number > 0)
                if each in left:
                    left.remove(each)
                    yield each, segmentation


def _count(segmentation: NDArray[Any]) -> int:
    """The objects of a segmentation."""
    return int(np.count_nonzero(np.unique(segmentation)))


def _seed(seed: int, name: str) -> None:
    """Seed by run and image, so that an evaluation that goes on draws what an uninterrupted one draws."""
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")
    np.random.seed(drawn)  # micro-sam's prompt generators draw from the global generators
    torch.manual_seed(drawn)
