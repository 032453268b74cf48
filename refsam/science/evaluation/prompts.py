"""Segmentation from a prompt for each object: the first prompt, and the rounds that correct it.

Prompts come from the labels as in micro-sam's evaluation. A correcting round adds to each object one positive
point where the mask lacks the object, and one negative point where it exceeds it.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from bioimage_cpp.segmentation import relabel_sequential
from numpy.typing import NDArray
from segment_anything import SamPredictor

from refsam.science.evaluation.images import Tile
from refsam.science.micro_sam import (
    IterativePromptGenerator,
    PointAndBoxPromptGenerator,
    batched_inference,
    get_centers_and_bounding_boxes,
    mask_data_to_segmentation,
)
from refsam.science.models import prompt_frame

# micro_sam.inference.batched_inference brings prompts to this frame, whatever the model's image size is.
_PROMPT_FRAME = (1024, 1024)
NO_POINT = -1  # the label of a point that Segment Anything takes for none


@dataclass(frozen=True)
class TiledObjects:
    """The objects of an image whose centers are in one tile, in the tile's own frame.

    labels: (H, W) of the tile with its halo, numbered 1 … objects; ids: (objects,) in the image's labels;
    centers: row and column of the pixel of each object that is farthest from its boundary; boxes: row and
    column of either corner.
    """

    tile: Tile
    labels: NDArray[np.uint32]
    ids: list[int]
    centers: list[tuple[int, int]]
    boxes: list[tuple[int, int, int, int]]


@dataclass(frozen=True)
class ImagePrompts:
    """Prompts for all objects of a part or of an image, in its pixels; at least points or boxes are there.

    points: (objects, points, 2) x, y; point_labels: (objects, points), 1 or 0; boxes: (objects, 4) x, y of
    either corner; logits: (objects, 1, 256, 256), the masks of the round before.
    """

    points: NDArray[Any] | None
    point_labels: NDArray[Any] | None
    boxes: NDArray[Any] | None
    logits: torch.Tensor | None = None

    def batches(self, size: int) -> Iterator["ImagePrompts"]:
        """The same prompts, `size` at a time."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        for first in range(0, max(map(len, given.values())), size):
            yield replace(self, **{name: value[first : first + size] for name, value in given.items()})


@dataclass(frozen=True)
class DecodedMasks:
    """One mask per prompt of a part, which may overlap.

    masks: each (H, W) bool, of the tile with its halo; logits: (objects, 1, 256, 256); boxes: x, y, width and
    height of each mask.
    """

    masks: list[NDArray[np.bool_]]
    logits: torch.Tensor
    boxes: list[list[int]]


@dataclass(frozen=True)
class PromptedSegmentation:
    """What one round gives.

    decoded: of each part; segmentation: (H, W) uint32 of all masks; seconds: of making and decoding the
    prompts, and of assembling the segmentation.
    """

    decoded: list[DecodedMasks]
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


def parts_of(tiles: Sequence[Tile], labels: NDArray[np.uint32]) -> list[TiledObjects]:
    """The objects of `labels` ((H, W), numbered 1 … objects), each in the tile that has its center.

    What an object has outside of its tile and the halo is out of reach for its prompts and its mask. A tile
    without objects is left out.
    """
    centers, boxes = get_centers_and_bounding_boxes(labels)
    if len(tiles) == 1:
        return [TiledObjects(tiles[0], labels, list(centers), list(centers.values()), list(boxes.values()))]
    return [part for tile in tiles if (part := _part(tile, labels, centers)) is not None]


def first_prompts(part: TiledObjects, mode: str, dilation: int, batch_size: int) -> ImagePrompts:
    """A point or a box for every object, as micro-sam's evaluation makes them.

    The point is the object's pixel that is farthest from its boundary.
    """
    points = mode == "point"
    generator = PointAndBoxPromptGenerator(
        n_positive_points=int(points),
        n_negative_points=0,
        dilation_strength=dilation,
        get_point_prompts=points,
        get_box_prompts=not points,
    )
    # A batch at a time: one-hot labels of all objects are large.
    made = [
        generator(torch.from_numpy(_one_hot(part.labels, some)), part.boxes[some], part.centers[some])
        for some in _batches(len(part.ids), batch_size)
    ]
    if points:
        coordinates, point_labels = (
            np.concatenate([each[index].numpy() for each in made]) for index in (0, 1)
        )
        return ImagePrompts(coordinates, point_labels, None)
    return ImagePrompts(None, None, np.concatenate([each[2].numpy() for each in made]))


def rounds(
    predictor: SamPredictor,
    parts: Sequence[TiledObjects],
    shape: tuple[int, int],
    mode: str,
    last: int,
    mask_input: bool,
    batch_size: int,
    dilation: int,
    first: PromptedSegmentation | None = None,
) -> Iterator[PromptedSegmentation]:
    """The segmentations of the first prompt (round 0) and of the rounds 1 to `last` that correct it.

    For an image of one tile they are those of micro-sam's iterative prompting, which draws its points from
    numpy's global generator in the same order.

    Args:
        parts: of the image, at least one.
        shape: H, W of the image.
        mask_input: whether the masks of a round are inputs of the next one.
        batch_size: objects that are decoded, and points that are drawn, at a time.
        first: round 0, if it was found before.

    Raises:
        ValueError: when the model expects prompts in another frame than micro-sam's.
    """
    start = time.perf_counter()
    prompts = [first_prompts(part, mode, dilation, batch_size) for part in parts]
    for number in range(last + 1):
        if number == 0 and first is not None:
            found = first
        else:
            propose = number == 0 and mode == "point"
            decoded = [
                decode_prompts(predictor, part.tile, each, batch_size, propose)
                for part, each in zip(parts, prompts, strict=True)
            ]
            between = time.perf_counter()
            segmentation = _assembled([part.tile for part in parts], decoded, shape)
            end = time.perf_counter()
            found = PromptedSegmentation(decoded, segmentation, between - start, end - between)
        yield found
        start = time.perf_counter()
        if number < last:
            prompts = [
                _corrected(part, each, of_part, mask_input, batch_size)
                for part, each, of_part in zip(parts, prompts, found.decoded, strict=True)
            ]


def decode_prompts(
    predictor: SamPredictor, tile: Tile, prompts: ImagePrompts, batch_size: int, propose: bool
) -> DecodedMasks:
    """Decode one prompt per object on the embedding of a tile.

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
    tile.select(predictor)
    masks, logits, boxes = [], [], []
    # What is decoded leaves the GPU at once: all masks of an image may be more than it holds.
    for batch in prompts.batches(batch_size):
        for item in batched_inference(
            LikeliestMask(predictor) if propose else predictor,
            image=None,
            batch_size=batch_size,
            points=batch.points,
            point_labels=batch.point_labels,
            boxes=batch.boxes,
            logits_masks=batch.logits,
            multimasking=propose,
            return_instance_segmentation=False,
        ):
            masks.append(item["segmentation"].cpu().numpy())
            logits.append(item["logits"].clone())  # else all masks of the batch that were proposed stay
            boxes.append(item["bbox"])
    return DecodedMasks(masks, torch.stack(logits), boxes)


def segment_prompts(
    predictor: SamPredictor,
    tiles: Sequence[Tile],
    shape: tuple[int, int],
    prompts: ImagePrompts,
    batch_size: int,
) -> NDArray[np.uint32]:
    """The segmentation (H, W) from prompts in pixels of the image, one for each object.

    An object is decoded in the tile that has the center of its box, or its first point where it has no box.
    What its prompt has outside of the tile and its halo is cut off.

    Raises:
        ValueError: when the model expects prompts in another frame than micro-sam's.
    """
    single_point = prompts.boxes is None and prompts.points is not None and prompts.points.shape[1] == 1
    used, decoded = [], []
    for tile in tiles:
        own = _in_tile(tile, prompts, shape)
        if own is not None:
            used.append(tile)
            decoded.append(decode_prompts(predictor, tile, own, batch_size, propose=single_point))
    if not used:
        return np.zeros(shape, dtype="uint32")
    return _assembled(used, decoded, shape)


def _in_tile(tile: Tile, prompts: ImagePrompts, shape: tuple[int, int]) -> ImagePrompts | None:
    """The prompts of the objects that belong to a tile, in its pixels; None where there is none."""
    (inner_rows, inner_columns), (rows, columns) = tile.inner, tile.outer
    points, boxes, point_labels = prompts.points, prompts.boxes, prompts.point_labels
    if boxes is not None:
        anchors = (boxes[:, :2] + boxes[:, 2:]) / 2
    else:
        assert points is not None
        anchors = points[:, 0]
    x, y = np.minimum(anchors, np.array(shape[::-1]) - 1).T
    own = (inner_columns.start <= x) & (x < inner_columns.stop)
    own &= (inner_rows.start <= y) & (y < inner_rows.stop)
    if not own.any():
        return None
    origin, size = np.array([columns.start, rows.start]), np.array([columns.stop, rows.stop])
    if boxes is not None:
        boxes = np.clip(boxes[own], np.tile(origin, 2), np.tile(size, 2)) - np.tile(origin, 2)
    if points is not None and point_labels is not None:
        outside = ((points[own] < origin) | (points[own] >= size)).any(axis=-1)
        points = points[own] - origin
        point_labels = np.where(outside, NO_POINT, point_labels[own])
    return ImagePrompts(points, point_labels, boxes)


def _part(tile: Tile, labels: NDArray[np.uint32], centers: dict[int, tuple[int, int]]) -> TiledObjects | None:
    (rows, columns), outer = tile.inner, labels[tile.outer]
    ids = [
        number
        for number, (row, column) in centers.items()
        if rows.start <= row < rows.stop and columns.start <= column < columns.stop
    ]
    if not ids:
        return None
    own, _, _ = relabel_sequential(np.where(np.isin(outer, ids), outer, 0).astype("uint32"))
    own_centers, boxes = get_centers_and_bounding_boxes(own)
    return TiledObjects(tile, own, sorted(ids), list(own_centers.values()), list(boxes.values()))


def _corrected(
    part: TiledObjects, prompts: ImagePrompts, found: DecodedMasks, mask_input: bool, batch_size: int
) -> ImagePrompts:
    """The prompts of the next round: one positive and one negative point more for each object."""
    generator = IterativePromptGenerator()
    points, point_labels = [], []
    for some in _batches(len(found.masks), batch_size):
        objects = _one_hot(part.labels, some).astype("float32")
        masks = np.stack(found.masks[some])[:, None].astype("float32")
        full = np.flatnonzero(objects.all(axis=(1, 2, 3)))
        objects[full, 0, -1, -1] = 0  # the generator looks for a pixel that is not the object's
        new_points, new_labels, _, _ = generator(torch.from_numpy(objects), torch.from_numpy(masks))
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


def _assembled(
    tiles: Sequence[Tile], decoded: Sequence[DecodedMasks], shape: tuple[int, int]
) -> NDArray[np.uint32]:
    """One segmentation (H, W) of all masks as micro-sam makes it: larger ones first, connected components."""
    records = []
    for tile, found in zip(tiles, decoded, strict=True):
        rows, columns = tile.outer
        for mask, (x, y, width, height) in zip(found.masks, found.boxes, strict=True):
            record = {"segmentation": mask, "area": int(mask.sum())}
            if mask.shape != shape:
                # What micro-sam's boxes leave out, the last row and column of the mask, is in these.
                record["bbox"] = [x, y, width + 1, height + 1]
                record["global_bbox"] = [x + columns.start, y + rows.start, width + 1, height + 1]
            records.append(record)
    segmentation: NDArray[np.uint32] = mask_data_to_segmentation(records, shape=shape, min_object_size=0)
    return segmentation


def _one_hot(labels: NDArray[np.uint32], some: slice) -> NDArray[np.bool_]:
    """(objects, 1, H, W) of some of the objects."""
    ids = np.arange(some.start, some.stop, dtype=labels.dtype) + 1
    hot: NDArray[np.bool_] = labels[None, None] == ids[:, None, None, None]
    return hot


def _batches(number: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, number)) for first in range(0, number, size)]
