"""Which prompts the training gives the model: micro-sam's points and boxes in turn, one of them, or none.

Without prompts the model is asked for one mask of an image, and its target is the union of all objects. That
is one forward: there are no rounds of corrections, because what would correct is a prompt.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from refsam.configuration.prompts import BOXES, NONE, POINTS
from refsam.science.micro_sam import ConvertToSamInputs, IterativePromptGenerator

BatchedInputs = list[dict[str, Any]]
Choice = tuple[int, int, bool, bool]  # positive points, negative points, whether boxes, whether three masks
Convert = Callable[..., tuple[BatchedInputs, list[Any]]]
POINT: Choice = (1, 0, False, True)
BOX: Choice = (0, 0, True, False)
# Boxes are distorted by train.box_distortion, as micro-sam's are.
FIRST_PROMPTS: dict[str, Choice] = {POINTS: POINT, BOXES: BOX, NONE: (0, 0, False, False)}
# What of a batched input has one row per object.
PER_OBJECT = ("point_coords", "point_labels", "boxes", "mask_inputs")
MOST_POINTS = 4  # of each kind in a validation's random points, as in micro-sam's


class Prompts:
    """The prompts of a step: the first ones, and what corrects a prediction.

    Args:
        kind: a value of train.prompts.
        transform: takes coordinates to the frame in which the model expects them.
        box_distortion: of boxes, a share of their size.
        n_objects: of an image at most.
        mask_prob: probability that a correction contains the predicted mask.
        generator: gives points where predicted masks are wrong.
    """

    def __init__(
        self,
        kind: str,
        transform: Any,
        *,
        box_distortion: float,
        n_objects: int,
        mask_prob: float,
        generator: IterativePromptGenerator,
    ) -> None:
        self.kind = kind
        self.transform = transform
        self.generator: Callable[..., tuple[Any, ...]] = generator
        self.n_objects = n_objects
        self.mask_prob = mask_prob
        self.convert: Convert = (
            whole_images
            if kind == NONE
            else ConvertToSamInputs(transform=transform, box_distortion_factor=box_distortion)
        )

    def of_training(self, iteration: int) -> Choice:
        """What the step number `iteration` begins with."""
        return FIRST_PROMPTS.get(self.kind, BOX if iteration % 2 else POINT)

    def of_validation(self, index: int) -> Choice:
        """What batch number `index` of the validation is given."""
        # micro-sam's choice is drawn in any case: other prompts leave the objects of later batches the same.
        alternating = _alternating_of_validation(index)
        return FIRST_PROMPTS.get(self.kind, alternating)

    def rounds(self, asked_for: int) -> int:
        """Sub-iterations of a step: without prompts there is nothing to correct."""
        return 1 if self.kind == NONE else asked_for

    def objects(self, y: torch.Tensor) -> torch.Tensor:
        """(batch, 1, H, W) ids of the objects to be found: without prompts, all objects as one."""
        return (y > 0).to(y.dtype) if self.kind == NONE else y

    def first(
        self, x: torch.Tensor, y: torch.Tensor, choice: Choice, device: torch.device
    ) -> tuple[BatchedInputs, torch.Tensor]:
        """The first prompts of a batch, and what they ask for.

        Args:
            x: (batch, 3, H, W) images.
            y: (batch, 1, H, W) ids of objects.

        Returns:
            micro-sam's batched inputs, one per image; (batch, objects, 1, H, W) bool on the device. All
            images have as many objects as the one with the fewest.
        """
        n_positive, n_negative, boxes, _ = choice
        y = self.objects(y)
        batched_inputs, ids = self.convert(x, y, n_positive, n_negative, boxes, self.n_objects)
        n_objects = min(len(of_image) for of_image in ids)
        y = y.to(device, non_blocking=True)
        targets = torch.stack(
            [
                torch.stack([labels == number for number in of_image[:n_objects]])
                for labels, of_image in zip(y, ids, strict=True)
            ]
        )
        return [select_objects(given, slice(n_objects)) for given in batched_inputs], targets

    def correct(
        self, batched_inputs: BatchedInputs, targets: torch.Tensor, masks: torch.Tensor, logits: torch.Tensor
    ) -> None:
        """Add to `batched_inputs`, in place, a point where each object is missing and one where it is not.

        With probability mask_prob an image's logits become its mask prompts; else it has none.

        Args:
            batched_inputs: one per image.
            targets: (batch, objects, 1, H, W) bool.
            masks: of the same shape, what was predicted.
            logits: (batch, objects, 1, h, w), the same in the decoder's resolution.
        """
        for given, target, mask, logit in zip(batched_inputs, targets, masks, logits, strict=True):
            points, labels, _, _ = self.generator(target, mask)
            points = self.transform.apply_coords_torch(points, targets.shape[-2:])
            if "point_coords" in given:
                points = torch.cat([given["point_coords"], points], dim=1)
                labels = torch.cat([given["point_labels"], labels], dim=1)
            given["point_coords"], given["point_labels"] = points, labels
            given.pop("mask_inputs", None)
            if self.mask_prob > 0 and random.random() < self.mask_prob:  # noqa: S311 no secret
                given["mask_inputs"] = logit


def select_objects(batched_input: dict[str, Any], objects: slice) -> dict[str, Any]:
    """The input of one image with the prompts of some of its objects."""
    return {key: value[objects] if key in PER_OBJECT else value for key, value in batched_input.items()}


def whole_images(
    x: torch.Tensor, y: torch.Tensor, *_: object, **__: object
) -> tuple[BatchedInputs, list[list[int]]]:
    """The batched inputs of a model that is asked without a prompt, and of each the id of its only target.

    Args:
        x: (batch, 3, H, W) images.
        y: (batch, 1, H, W) of 0 and 1.
    """
    return [{"image": image, "original_size": image.shape[1:]} for image in x], [[1] for _ in y]


def _alternating_of_validation(index: int) -> Choice:
    """micro-sam's: a point, a box, random points, and a box with random points (SamTrainer)."""
    if index % 4 < 2:
        return BOX if index % 4 else POINT
    boxes = index % 4 == 3
    n_positive = int(np.random.randint(1, MOST_POINTS + 1))
    # A single positive point and nothing else has been asked already.
    least_negative = 1 if n_positive == 1 and not boxes else 0
    return n_positive, int(np.random.randint(least_negative, MOST_POINTS + 1)), boxes, False
