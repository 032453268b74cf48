"""What is measured on one image, in an order that shares as much as possible."""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from micro_sam.instance_segmentation import DecoderAdapter
from numpy.typing import NDArray
from segment_anything import SamPredictor

from refsam.configuration.measurements import AUTOMATIC, NO_PROMPT, PROMPTED
from refsam.configuration.schema import EvaluateConfig
from refsam.records.metrics import METRICS, SEGMENTATION_METRICS, Measurement
from refsam.records.per_image import Row
from refsam.science.evaluation.automatic import Segmenter, make_segmenter
from refsam.science.evaluation.images import EmbeddedImage
from refsam.science.evaluation.prompts import Part, PromptedSegmentation, decode, enlarge, parts_of, rounds
from refsam.science.metrics import mask_metrics, segmentation_metrics

NO_DECODER = "the model has no decoder for automatic segmentation (train.decoder=true trains one)"


@dataclass(frozen=True)
class Outcome:
    """What was measured: a segmentation (H, W), its metrics, and the seconds that it took."""

    segmentation: NDArray[Any]
    metrics: Row
    seconds_prompts: float
    seconds_postprocessing: float

    @property
    def n_predicted(self) -> int:
        """Objects of the segmentation."""
        return int(np.count_nonzero(np.unique(self.segmentation)))


@dataclass
class Model:
    """The model that is measured, and the generators of the automatic modes, made when they are needed.

    decoder: of automatic segmentation; None where the model has none.
    """

    predictor: SamPredictor
    decoder: DecoderAdapter | None
    evaluate: EvaluateConfig
    _segmenters: dict[tuple[str, bool], Segmenter] = field(default_factory=dict)

    def segmenter(self, mode: str, tiled: bool) -> Segmenter:
        """The generator of an automatic mode."""
        key = mode, tiled
        if key not in self._segmenters:
            self._segmenters[key] = make_segmenter(
                mode,
                self.predictor,
                self.decoder,
                tiled,
                self.evaluate.points_per_side,
                self.evaluate.batch_size,
            )
        return self._segmenters[key]

    def obstacle(self, mode: str) -> str | None:
        """Why a mode cannot be measured; None where it can."""
        return NO_DECODER if mode in ("ais", "apg") and self.decoder is None else None


def measure(
    model: Model,
    embedded: EmbeddedImage,
    labels: NDArray[np.uint32],
    wanted: Sequence[Measurement],
    parameters: Mapping[str, Mapping[str, Any]],
    seed: int,
    name: str,
) -> Iterator[tuple[Measurement, Outcome]]:
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
                yield each, _of_prompts(found, parts, labels)
    for mode in AUTOMATIC:
        if mode in modes:
            yield Measurement(mode), _automatic(model, embedded, labels, mode, parameters[mode])
    if NO_PROMPT in modes:
        yield Measurement(NO_PROMPT), _without_prompt(model, embedded, labels)


def _prompted(
    model: Model,
    embedded: EmbeddedImage,
    parts: Sequence[Part],
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


def _of_prompts(found: PromptedSegmentation, parts: Sequence[Part], labels: NDArray[np.uint32]) -> Outcome:
    metrics: Row = segmentation_metrics(found.segmentation, labels)
    metrics |= mask_metrics(
        [mask for decoded in found.decoded for mask in decoded.masks],
        labels,
        [int(number) for part in parts for number in part.ids],
        [part.tile.outer for part in parts for _ in part.ids],
    )
    return Outcome(found.segmentation, metrics, found.seconds_prompts, found.seconds_postprocessing)


def _automatic(
    model: Model,
    embedded: EmbeddedImage,
    labels: NDArray[np.uint32],
    mode: str,
    parameters: Mapping[str, Any],
) -> Outcome:
    segmenter = model.segmenter(mode, embedded.tiled)
    segmenter.promise({parameter: [value] for parameter, value in parameters.items()})
    start = time.perf_counter()
    segmenter.initialize(embedded.image, embedded.for_micro_sam())
    between = time.perf_counter()
    segmentation = segmenter.generate(**parameters)
    end = time.perf_counter()
    metrics: Row = segmentation_metrics(segmentation, labels)
    metrics |= mask_metrics([segmentation > 0], (labels > 0).astype("uint8"), [1])
    return Outcome(segmentation, metrics, between - start, end - between)


@torch.no_grad()
def _without_prompt(model: Model, embedded: EmbeddedImage, labels: NDArray[np.uint32]) -> Outcome:
    """One mask of the image from no prompt, which is to be the union of all objects."""
    predictor = model.predictor
    union = np.zeros(embedded.shape, dtype="uint8")
    start = time.perf_counter()
    for tile in embedded.tiles:
        tile.select(predictor)
        low, _ = decode(predictor, None, None, multimask=False)
        mask = (enlarge(predictor, low)[0, 0] > predictor.model.mask_threshold).cpu().numpy()
        inside = tuple(
            slice(inner.start - outer.start, inner.stop - outer.start)
            for inner, outer in zip(tile.inner, tile.outer, strict=True)
        )
        union[tile.inner] = mask[inside]
    seconds = time.perf_counter() - start
    metrics: Row = dict.fromkeys(SEGMENTATION_METRICS, math.nan)
    metrics |= mask_metrics([union > 0], (labels > 0).astype("uint8"), [1])
    return Outcome(union, metrics, seconds, 0.0)


def nothing_measured() -> Row:
    """The metrics of an image on which nothing can be measured."""
    return dict.fromkeys(METRICS, math.nan)


def _seed(words: str) -> None:
    """Seed by run and image, so that an evaluation that goes on draws what an uninterrupted one draws."""
    drawn = int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big")
    np.random.seed(drawn)  # micro-sam's prompt generators draw from the global generators
    torch.manual_seed(drawn)
