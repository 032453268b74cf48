"""Segmentation without prompts: micro-sam's generators, told not to compute what they would throw away.

Each class here gives the segmentations of the micro-sam class that it derives from, to the pixel, and keeps
what the next parameters of a grid search need again. docs/evaluation.md says what that saves.
"""

from collections.abc import Hashable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.utils.amg import MaskData
from torch_em.util.segmentation import size_filter

from refsam.science.evaluation.prompts import decode, enlarge
from refsam.science.micro_sam import (
    AutomaticMaskGenerator,
    AutomaticPromptGenerator,
    DecoderAdapter,
    InstanceSegmentationWithDecoder,
    TiledAutomaticMaskGenerator,
    TiledAutomaticPromptGenerator,
    TiledInstanceSegmentationWithDecoder,
    _derive_point_prompts,
    batched_inference,
    batched_tiled_inference,
    util,
)

ENLARGED_AT_A_TIME = 32  # masks; one of 1024 x 1024 pixels takes 4 MiB, and its steps several times that


class Segmenter(Protocol):
    """What all generators are used by; micro-sam's classes have more."""

    def initialize(self, image: NDArray[Any], image_embeddings: Any = None) -> None:
        """Compute what all parameters need, for an image whose embedding is given."""

    def generate(self, **parameters: Any) -> NDArray[Any]:
        """The segmentation (H, W) of the image with these parameters."""

    def promise(self, parameters: dict[str, list[Any]]) -> None:
        """Say which parameters the next images will be segmented with, all values of each."""

    def sameness(self, parameters: dict[str, Any]) -> Hashable:
        """Equal for parameters that give the same segmentation of the present image."""


def make_segmenter(
    mode: str,
    predictor: SamPredictor,
    decoder: DecoderAdapter | None,
    tiled: bool,
    points_per_side: int,
    batch_size: int,
) -> Segmenter:
    """The generator of a mode.

    Args:
        mode: amg, ais or apg; the latter two need a decoder.
        tiled: whether it is for images that are embedded in tiles.
        points_per_side: of the grid of amg.
        batch_size: prompts that are decoded at a time.
    """
    segmenter: Segmenter
    if mode == "amg":
        masks = TiledMaskGenerator if tiled else MaskGenerator
        segmenter = masks(predictor, points_per_side=points_per_side, points_per_batch=batch_size)
    elif mode == "ais":
        distances = TiledDecoderSegmenter if tiled else DecoderSegmenter
        segmenter = distances(predictor, decoder)
    else:
        prompts = TiledPromptGenerator if tiled else PromptGenerator
        segmenter = prompts(predictor, decoder)
        segmenter.points_at_a_time = batch_size
    return segmenter


class _LikelyMasks(AutomaticMaskGenerator):
    """Enlarges only masks that a predicted IoU above the least promised threshold keeps.

    Of the 3072 masks of a grid of 32 x 32 points, micro-sam enlarges all to the image, measures their
    stability, and then drops those below the threshold.
    """

    least_iou = 0.0
    _crop_list: list[MaskData]
    _crop_boxes: list[list[int]]

    def promise(self, parameters: dict[str, list[Any]]) -> None:
        self.least_iou = min(parameters["pred_iou_thresh"])

    def sameness(self, parameters: dict[str, Any]) -> Hashable:
        kept = tuple(
            (
                (data["iou_preds"] > parameters["pred_iou_thresh"])
                & (data["stability_score"] >= parameters["stability_score_thresh"])
            )
            .cpu()
            .numpy()
            .tobytes()
            for data in self._crop_list
        )
        rest = {name: value for name, value in parameters.items() if name not in _FILTERS}
        return kept, tuple(sorted(rest.items()))

    def _process_batch(
        self,
        points: NDArray[Any],
        im_size: tuple[int, int],
        crop_box: list[int],
        original_size: tuple[int, int],
    ) -> MaskData:
        predictor: SamPredictor = self._predictor
        coordinates = torch.as_tensor(
            predictor.transform.apply_coords(points, im_size), device=predictor.device, dtype=torch.float
        )
        labels = torch.ones(len(coordinates), dtype=torch.int, device=coordinates.device)
        low, iou = decode(predictor, coordinates[:, None, :], labels[:, None])
        likely = iou > self.least_iou if self.least_iou > 0 else torch.ones_like(iou, dtype=torch.bool)
        of_points = likely.nonzero()[:, 0].cpu().numpy()
        low, iou = low[likely][:, None], iou[likely][:, None]
        data = MaskData()
        for first in range(0, len(low), ENLARGED_AT_A_TIME):
            some = slice(first, first + ENLARGED_AT_A_TIME)
            enlarged = enlarge(predictor, low[some])
            data.cat(
                self._to_mask_data(enlarged, iou[some], crop_box, original_size, points[of_points[some]])
            )
        return data

    def initialize(self, image: NDArray[Any], image_embeddings: Any = None) -> None:
        super().initialize(image, image_embeddings)
        found = [
            (data, box)
            for data, box in zip(self._crop_list, self._crop_boxes, strict=True)
            if dict(data.items())
        ]
        self._crop_list = [data for data, _ in found]
        self._crop_boxes = [box for _, box in found]

    def generate(self, **parameters: Any) -> NDArray[Any]:
        if not self._crop_list:
            return np.zeros(self._original_size, dtype="uint32")
        return super().generate(**parameters)


_FILTERS = ("pred_iou_thresh", "stability_score_thresh")


class MaskGenerator(_LikelyMasks):
    """Automatic mask generation from a grid of points."""


class TiledMaskGenerator(_LikelyMasks, TiledAutomaticMaskGenerator):
    """The same for an image that is embedded in tiles."""


class _OneWatershed(InstanceSegmentationWithDecoder):
    """Computes one watershed for all minimal sizes, which micro-sam filters by afterwards."""

    def promise(self, parameters: dict[str, list[Any]]) -> None:
        """Nothing depends on it."""

    def sameness(self, parameters: dict[str, Any]) -> Hashable:
        return tuple(sorted(parameters.items()))

    def initialize(self, image: NDArray[Any], image_embeddings: Any = None) -> None:
        super().initialize(image, image_embeddings)
        self._watershed: tuple[Hashable, NDArray[Any]] | None = None

    def generate(self, min_size: int = 0, **parameters: Any) -> NDArray[Any]:
        key = tuple(sorted(parameters.items()))
        if self._watershed is None or self._watershed[0] != key:
            self._watershed = key, super().generate(min_size=0, **parameters)
        return size_filter(self._watershed[1].copy(), min_size)


class DecoderSegmenter(_OneWatershed):
    """Automatic instance segmentation from the distances that the decoder predicts."""


class TiledDecoderSegmenter(_OneWatershed, TiledInstanceSegmentationWithDecoder):
    """The same for an image that is embedded in tiles."""


class _OneDecoding(InstanceSegmentationWithDecoder):
    """Decodes the prompts of a pair of distance thresholds once, for all that filters their masks."""

    points_at_a_time = 32

    def promise(self, parameters: dict[str, list[Any]]) -> None:
        """Nothing depends on it."""

    def sameness(self, parameters: dict[str, Any]) -> Hashable:
        return tuple(sorted(parameters.items()))

    def _decode(self, prompts: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
        """The masks of point prompts for the present image."""
        raise NotImplementedError

    def initialize(self, image: NDArray[Any], image_embeddings: Any = None) -> None:
        super().initialize(image, image_embeddings)
        self._decoded: tuple[Hashable, list[dict[str, Any]] | None] | None = None

    def generate(
        self,
        min_size: int = 25,
        nms_threshold: float = 0.9,
        intersection_over_min: bool = False,
        **parameters: Any,
    ) -> NDArray[Any]:
        key = tuple(sorted(parameters.items()))
        if self._decoded is None or self._decoded[0] != key:
            prompts = _derive_point_prompts(
                self._foreground, self._center_distances, self._boundary_distances, **parameters
            )
            self._decoded = key, None if prompts is None else self._decode(prompts)
        predictions = self._decoded[1]
        shape = self._foreground.shape
        if predictions is None:
            return np.zeros(shape, dtype="uint32")
        return util.apply_nms(
            predictions,
            shape=shape,
            min_size=int(min_size),
            nms_thresh=nms_threshold,
            intersection_over_min=bool(intersection_over_min),
        )


class PromptGenerator(_OneDecoding, AutomaticPromptGenerator):
    """Automatic prompt generation: points from what the decoder predicts, and their masks."""

    def _decode(self, prompts: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
        return batched_inference(
            self._predictor, None, self.points_at_a_time, return_instance_segmentation=False, **prompts
        )


class TiledPromptGenerator(_OneDecoding, TiledAutomaticPromptGenerator):
    """The same for an image that is embedded in tiles."""

    def _decode(self, prompts: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
        return batched_tiled_inference(
            self._predictor,
            None,
            self.points_at_a_time,
            image_embeddings=self._image_embeddings,
            return_instance_segmentation=False,
            **prompts,
        )
