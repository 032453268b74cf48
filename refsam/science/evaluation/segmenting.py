"""The segmentation of one embedded image: what evaluation compares with labels, and prediction writes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor

from refsam.configuration.schema import EvaluateConfig
from refsam.science.evaluation.automatic import Segmenter, make_segmenter
from refsam.science.evaluation.images import EmbeddedImage
from refsam.science.evaluation.prompts import ImagePrompts, decode, enlarge, parts_of, rounds, segment_prompts
from refsam.science.micro_sam import DecoderAdapter

NO_DECODER = "the model has no decoder for automatic segmentation (train.decoder=true trains one)"


@dataclass(frozen=True)
class TimedSegmentation:
    """A segmentation (H, W), 0 for background, and the seconds that its two halves took."""

    segmentation: NDArray[Any]
    seconds_prompts: float
    seconds_postprocessing: float


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


def automatic(
    model: Model, embedded: EmbeddedImage, mode: str, parameters: Mapping[str, Any]
) -> TimedSegmentation:
    """The segmentation of an automatic mode (amg, ais, apg) with these parameters of its generator."""
    segmenter = model.segmenter(mode, embedded.tiled)
    segmenter.promise({parameter: [value] for parameter, value in parameters.items()})
    start = time.perf_counter()
    segmenter.initialize(embedded.image, embedded.for_micro_sam())
    between = time.perf_counter()
    segmentation = segmenter.generate(**parameters)
    return TimedSegmentation(segmentation, between - start, time.perf_counter() - between)


@torch.no_grad()
def without_prompt(model: Model, embedded: EmbeddedImage) -> TimedSegmentation:
    """One mask (H, W) uint8 of the image from no prompt, 1 where some object is."""
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
    return TimedSegmentation(union, time.perf_counter() - start, 0.0)


def from_labels(
    model: Model, embedded: EmbeddedImage, labels: NDArray[np.uint32], mode: str
) -> NDArray[np.uint32]:
    """The segmentation (H, W) from the first prompt (`mode` point or box) of each object of a label image.

    Args:
        labels: (H, W), numbered 1 … objects.
    """
    if not labels.any():
        return np.zeros(embedded.shape, dtype="uint32")
    parts = parts_of(embedded.tiles, labels)
    evaluate = model.evaluate
    first = rounds(
        model.predictor, parts, embedded.shape, mode, 0, False, evaluate.batch_size, evaluate.dilation
    )
    return next(first).segmentation


def from_prompts(model: Model, embedded: EmbeddedImage, prompts: ImagePrompts) -> NDArray[np.uint32]:
    """The segmentation (H, W) from prompts in pixels of the image."""
    return segment_prompts(
        model.predictor, embedded.tiles, embedded.shape, prompts, model.evaluate.batch_size
    )
