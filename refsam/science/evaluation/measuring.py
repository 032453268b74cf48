"""What is measured on one image, in an order that shares as much as possible."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from refsam.records.measurements import AUTOMATIC, NO_PROMPT, PROMPTED
from refsam.records.metrics import QLORA_SAM, Measurement
from refsam.records.per_image import Row
from refsam.science.evaluation.images import EmbeddedImage
from refsam.science.evaluation.prompts import PromptedSegmentation, TiledObjects, parts_of, rounds
from refsam.science.evaluation.segmenting import Model, automatic, without_prompt
from refsam.science.metrics import mask_metrics, qlora_sam_metrics, segmentation_metrics


@dataclass(frozen=True)
class ImageResult:
    """What was measured: a segmentation (H, W), its metrics, and the seconds that it took."""

    segmentation: NDArray[Any]
    metrics: Row
    seconds_prompts: float
    seconds_postprocessing: float

    @property
    def n_predicted(self) -> int:
        """Objects of the segmentation."""
        return int(np.count_nonzero(np.unique(self.segmentation)))


def measure(
    model: Model,
    embedded: EmbeddedImage,
    labels: NDArray[np.uint32],
    wanted: Sequence[Measurement],
    parameters: Mapping[str, Mapping[str, Any]],
    seed: int,
    name: str,
) -> Iterator[tuple[Measurement, ImageResult]]:
    """Measure one image.

    Args:
        labels: (H, W), numbered 1 … objects, at least one.
        parameters: of each automatic mode that is wanted.
        seed: of the run; with `name`, of the image, it seeds what is drawn.
    """
    modes = {each.mode for each in wanted}
    if modes & set(PROMPTED):
        parts = parts_of(embedded.tiles, labels)
        for mode in PROMPTED:
            of_mode = {each for each in wanted if each.mode == mode}
            for each, found in _prompted(model, embedded, parts, mode, of_mode, f"{seed}:{name}"):
                yield each, _of_prompts(found, parts, labels, model.evaluate.metrics)
    for mode in AUTOMATIC:
        if mode in modes:
            yield Measurement(mode), _automatic(model, embedded, labels, mode, parameters[mode])
    if NO_PROMPT in modes:
        yield Measurement(NO_PROMPT), _without_prompt(model, embedded, labels)


def _prompted(
    model: Model,
    embedded: EmbeddedImage,
    parts: Sequence[TiledObjects],
    mode: str,
    wanted: set[Measurement],
    seed: str,
) -> Iterator[tuple[Measurement, PromptedSegmentation]]:
    """The rounds of a mode, without and with the mask; the first prompt is decoded once for both."""
    evaluate, first = model.evaluate, None
    for mask_input in (False, True):
        last = max((each.round for each in wanted if each.mask_input == mask_input), default=None)
        if last is None:
            continue
        _seed(seed)
        found = rounds(
            model.predictor,
            parts,
            embedded.shape,
            mode,
            last,
            mask_input,
            evaluate.batch_size,
            evaluate.dilation,
            first,
        )
        for number, segmentation in enumerate(found):
            first = first or segmentation
            each = Measurement(mode, number, mask_input and number > 0)
            if each in wanted:
                wanted = wanted - {each}
                yield each, segmentation


def _of_prompts(
    found: PromptedSegmentation,
    parts: Sequence[TiledObjects],
    labels: NDArray[np.uint32],
    further: str | None,
) -> ImageResult:
    metrics: Row = segmentation_metrics(found.segmentation, labels)
    metrics |= mask_metrics(
        [mask for decoded in found.decoded for mask in decoded.masks],
        labels,
        [int(number) for part in parts for number in part.ids],
        [part.tile.outer for part in parts for _ in part.ids],
    )
    if further == QLORA_SAM:
        logits = [decoded.logits[:, 0].float().cpu().numpy() for decoded in found.decoded]
        metrics |= qlora_sam_metrics(logits, [part.labels for part in parts])
    return ImageResult(found.segmentation, metrics, found.seconds_prompts, found.seconds_postprocessing)


def _automatic(
    model: Model,
    embedded: EmbeddedImage,
    labels: NDArray[np.uint32],
    mode: str,
    parameters: Mapping[str, Any],
) -> ImageResult:
    found = automatic(model, embedded, mode, parameters)
    metrics: Row = segmentation_metrics(found.segmentation, labels)
    metrics |= mask_metrics([found.segmentation > 0], (labels > 0).astype("uint8"), [1])
    return ImageResult(found.segmentation, metrics, found.seconds_prompts, found.seconds_postprocessing)


def _without_prompt(model: Model, embedded: EmbeddedImage, labels: NDArray[np.uint32]) -> ImageResult:
    """One mask of the image from no prompt, which is to be the union of all objects."""
    found = without_prompt(model, embedded)
    metrics: Row = mask_metrics([found.segmentation > 0], (labels > 0).astype("uint8"), [1])
    return ImageResult(found.segmentation, metrics, found.seconds_prompts, found.seconds_postprocessing)


def _seed(words: str) -> None:
    """Seed by run and image, so that an evaluation that goes on draws what an uninterrupted one draws."""
    drawn = int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big")
    np.random.seed(drawn)  # micro-sam's prompt generators draw from the global generators
    torch.manual_seed(drawn)
