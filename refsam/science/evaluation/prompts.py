"""Segmentation from a prompt for each object: the first prompt, and the rounds that correct it.

Prompts come from the labels as in micro-sam's evaluation. A correcting round adds to each object one positive
point where the mask lacks the object, and one negative point where it exceeds it.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from micro_sam.evaluation.inference import _get_batched_prompts
from micro_sam.inference import batched_inference
from micro_sam.prompt_generators import IterativePromptGenerator
from micro_sam.util import mask_data_to_segmentation
from numpy.typing import NDArray
from segment_anything import SamPredictor

from refsam.configuration.measurements import PROMPTED
from refsam.science.models import prompt_frame

# micro_sam.inference.batched_inference brings prompts to this frame, whatever the model's image size is.
_PROMPT_FRAME = (1024, 1024)
NO_POINT = -1  # the label of a point that Segment Anything takes for none


@dataclass(frozen=True)
class Prompts:
    """Prompts for all objects of an image, in its pixels; at least points or boxes are there.

    points: (objects, points, 2) x, y; point_labels: (objects, points), 1 or 0; boxes: (objects, 4) x, y of
    either corner; logits: (objects, 1, 256, 256), the masks of the round before.
    """

    points: NDArray[Any] | None
    point_labels: NDArray[Any] | None
    boxes: NDArray[Any] | None
    logits: torch.Tensor | None = None


@dataclass(frozen=True)
class PromptedSegmentation:
    """What one round gives.

    masks: one (H, W) bool mask per prompt, which may overlap; logits: (objects, 1, 256, 256);
    segmentation: (H, W) uint32 of the masks; seconds: of making and decoding the prompts, and of assembling
    the segmentation.
    """

    masks: list[NDArray[np.bool_]]
    logits: torch.Tensor
    segmentation: NDArray[np.uint32]
    seconds_prompts: float
    seconds_postprocessing: float


class LikeliestMask:
    """A predictor whose proposals are compared before they are enlarged, and only the likeliest one is.

    From one point Segment Anything proposes three masks, and micro-sam enlarges all of them to the image
    before it takes the one with the highest predicted IoU. The mask is the same one.
    """

    def __init__(self, predictor: SamPredictor) -> None:
        self._predictor = predictor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def predict_torch(
        self,
        point_coords: torch.Tensor | None,
        point_labels: torch.Tensor | None,
        boxes: torch.Tensor | None = None,
        mask_input: torch.Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As SamPredictor.predict_torch, with one mask for each prompt, as logits: masks (prompts, 1, H, W),
        predicted IoU (prompts, 1), and masks (prompts, 1, 256, 256).
        """
        low, likelihood = decode(
            self._predictor, point_coords, point_labels, boxes, mask_input, multimask_output
        )
        best = likelihood.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        low, likelihood = low[rows, best][:, None], likelihood[rows, best][:, None]
        return enlarge(self._predictor, low), likelihood, low


def decode(
    predictor: SamPredictor,
    points: torch.Tensor | None,
    point_labels: torch.Tensor | None,
    boxes: torch.Tensor | None = None,
    mask_input: torch.Tensor | None = None,
    multimask: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The decoder's answer to prompts in the model's frame, as SamPredictor.predict_torch gets it.

    Returns:
        Mask logits (prompts, proposals, 256, 256), and their predicted IoU (prompts, proposals).
    """
    model = predictor.model
    given = None if points is None else (points, point_labels)
    sparse, dense = model.prompt_encoder(points=given, boxes=boxes, masks=mask_input)
    low, likelihood = model.mask_decoder(
        image_embeddings=predictor.features,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )
    return low, likelihood


def enlarge(predictor: SamPredictor, low: torch.Tensor) -> torch.Tensor:
    """Mask logits (prompts, proposals, 256, 256) in the size of the image, (prompts, proposals, H, W)."""
    enlarged: torch.Tensor = predictor.model.postprocess_masks(
        low, predictor.input_size, predictor.original_size
    )
    return enlarged


def first_prompts(labels: NDArray[np.uint32], mode: str, dilation: int) -> Prompts:
    """A point or a box for every object of `labels` ((H, W), numbered 1 … objects, at least one).

    As in micro-sam's evaluation, the point is the object's pixel that is farthest from its boundary.

    Raises:
        ValueError: when the mode is unknown.
    """
    if mode not in PROMPTED:
        raise ValueError(f"{mode!r} was given as the first prompt, allowed are {' and '.join(PROMPTED)}")
    points, point_labels, boxes = _get_batched_prompts(
        labels,
        np.arange(1, labels.max() + 1),
        use_points=mode == "point",
        use_boxes=mode == "box",
        n_positives=1 if mode == "point" else 0,
        n_negatives=0,
        dilation=dilation,
    )
    return Prompts(points, point_labels, boxes)


def rounds(
    predictor: SamPredictor,
    labels: NDArray[np.uint32],
    mode: str,
    last: int,
    mask_input: bool,
    batch_size: int,
    dilation: int,
    first: PromptedSegmentation | None = None,
) -> Iterator[PromptedSegmentation]:
    """The segmentations of the first prompt (round 0) and of the rounds 1 to `last` that correct it.

    They decode on the embedding that is set in the predictor, as micro-sam's iterative prompting does, and
    draw the points from numpy's global generator in its order.

    Args:
        labels: (H, W), numbered 1 … objects, at least one.
        mask_input: whether the masks of a round are inputs of the next one.
        batch_size: objects that are decoded, and points that are drawn, at a time.
        first: round 0, if it was found before.

    Raises:
        ValueError: when the mode is unknown, or the model expects prompts in another frame than micro-sam's.
    """
    start = time.perf_counter()
    prompts = first_prompts(labels, mode, dilation)
    for number in range(last + 1):
        if number == 0 and first is not None:
            found = first
        else:
            found = segment(predictor, prompts, batch_size, propose=number == 0 and mode == "point")
            made = time.perf_counter() - start
            found = replace(found, seconds_prompts=made - found.seconds_postprocessing)
        yield found
        start = time.perf_counter()
        if number < last:
            prompts = _corrected(prompts, found, labels, mask_input, batch_size)


def segment(
    predictor: SamPredictor, prompts: Prompts, batch_size: int, propose: bool
) -> PromptedSegmentation:
    """Decode one prompt per object on the embedding that is set in the predictor.

    Masks become a segmentation as in micro-sam: larger ones first, connected components.

    Args:
        batch_size: Prompts that are decoded at a time.
        propose: whether three masks are proposed and the one with the highest predicted IoU is taken, as for
            a single point.

    Raises:
        ValueError: when the model expects prompts in another frame than micro-sam's.
    """
    frame = prompt_frame(predictor.model)
    if frame != _PROMPT_FRAME:
        raise ValueError(
            f"the model takes prompts in {frame} pixels, micro-sam gives them in {_PROMPT_FRAME}"
        )
    start = time.perf_counter()
    decoded = batched_inference(
        LikeliestMask(predictor) if propose else predictor,
        image=None,
        batch_size=batch_size,
        points=prompts.points,
        point_labels=prompts.point_labels,
        boxes=prompts.boxes,
        logits_masks=prompts.logits,
        multimasking=propose,
        return_instance_segmentation=False,
    )
    masks = [item["segmentation"].cpu().numpy() for item in decoded]
    between = time.perf_counter()
    records = [{"segmentation": mask, "area": int(mask.sum())} for mask in masks]
    segmentation = mask_data_to_segmentation(records, min_object_size=0)
    end = time.perf_counter()
    logits = torch.stack([item["logits"] for item in decoded])
    return PromptedSegmentation(masks, logits, segmentation, between - start, end - between)


def _corrected(
    prompts: Prompts,
    found: PromptedSegmentation,
    labels: NDArray[np.uint32],
    mask_input: bool,
    batch_size: int,
) -> Prompts:
    """The prompts of the next round, made a batch at a time: one-hot labels of all objects are large."""
    generator = IterativePromptGenerator()
    points, point_labels = [], []
    for first in range(0, len(found.masks), batch_size):
        masks = np.stack(found.masks[first : first + batch_size])[:, None]
        ids = np.arange(first, first + len(masks)) + 1
        objects = (labels[None, None] == ids[:, None, None, None]).astype("float32")
        full = np.flatnonzero(objects.all(axis=(1, 2, 3)))
        objects[full, 0, -1, -1] = 0  # the generator looks for a pixel that is not the object's
        new_points, new_labels, _, _ = generator(
            torch.from_numpy(objects), torch.from_numpy(masks.astype("float32"))
        )
        new_labels[full, 1] = NO_POINT
        points.append(new_points.numpy())
        point_labels.append(new_labels.numpy())
    more_points, more_labels = np.concatenate(points), np.concatenate(point_labels)
    if prompts.points is not None and prompts.point_labels is not None:
        more_points = np.concatenate([prompts.points, more_points], axis=1)
        more_labels = np.concatenate([prompts.point_labels, more_labels], axis=1)
    return replace(
        prompts,
        points=more_points,
        point_labels=more_labels,
        logits=found.logits if mask_input else None,
    )
