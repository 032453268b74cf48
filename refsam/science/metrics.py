"""How good a segmentation is. Numbers only: nothing here knows models, prompts or files."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from bioimage_cpp.segmentation import label
from elf.evaluation import matching, mean_segmentation_accuracy
from numpy.typing import NDArray
from PIL import Image

from refsam.records.metrics import MASK_METRICS, QLORA_SAM_METRICS, SEGMENTATION_METRICS

# Places of SA50 and SA75 in elf's thresholds, np.arange(0.5, 1, 0.05), as in micro_sam.evaluation.
_SA50, _SA75 = 0, 5
# src/trainer.py:109 of MagnusS0/QLoRA-SAM at f7bece0, where masks are logits and no probabilities.
_QLORA_SAM_THRESHOLD = 0.5


def segmentation_metrics(prediction: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Metrics of an instance segmentation, as micro_sam.evaluation.run_evaluation gets them from files.

    mSA is the mean of tp / (tp + fp + fn) over the IoU thresholds 0.5, 0.55, …, 0.95, SA50 and SA75 its
    values at 0.5 and 0.75; precision, recall and F1 count objects matched at IoU 0.5 (elf.evaluation). As
    there, an object of `labels` that consists of several pieces counts as several objects (connected
    components, 8 neighbours), and `prediction` is taken as it is.

    Every metric is 0 where no object is matched: for an image without predictions, without objects, or
    without both (elf's definition; `refsam.science.evaluation` leaves images without objects out of the
    means).

    Args:
        prediction: (H, W) integer, 0 is background.
        labels: (H, W) integer, 0 is background.

    Returns:
        mSA, SA50, SA75, precision, recall and F1, each in [0, 1].

    Raises:
        ValueError: when the shapes differ.
    """
    if prediction.shape != labels.shape:
        raise ValueError(f"the prediction has the shape {prediction.shape}, the labels have {labels.shape}")
    objects = label(labels)
    mean_accuracy, accuracies = mean_segmentation_accuracy(prediction, objects, return_accuracies=True)
    matched = matching(prediction, objects)
    values = (
        mean_accuracy,
        accuracies[_SA50],
        accuracies[_SA75],
        matched["precision"],
        matched["recall"],
        matched["f1"],
    )
    return dict(zip(SEGMENTATION_METRICS, map(float, values), strict=True))


def mask_metrics(
    masks: Sequence[NDArray[np.bool_]],
    labels: NDArray[Any],
    object_ids: Sequence[int],
    places: Sequence[tuple[slice, slice]] | None = None,
) -> dict[str, float]:
    """IoU and F1 (Dice) of an image's binary masks, from pixel counts pooled over its objects.

    Each mask is compared with the object that its prompt was made from; true positive, false positive and
    false negative pixels are summed over all objects before dividing. The mean over images is mIoU and mF1,
    as in the Hugging Face study of parameter-efficient finetuning (github.com/MagnusS0/qlora-sam).

    Args:
        masks: One (H, W) bool mask per object; masks may overlap.
        labels: (H, W) integer.
        object_ids: The object in `labels` of each mask.
        places: Where in the image each mask is, for masks of a part of it.

    Returns:
        mIoU and mF1, each in [0, 1]; 0 where all masks are empty, NaN where there is no object.

    Raises:
        ValueError: when there is not exactly one mask per object.
    """
    if len(masks) != len(object_ids):
        raise ValueError(f"{len(masks)} masks for {len(object_ids)} objects")
    places = places or [(slice(None), slice(None))] * len(masks)
    predicted = sum(int(np.count_nonzero(mask)) for mask in masks)
    true_positives = sum(
        int(np.count_nonzero(labels[place][mask] == object_id))
        for mask, object_id, place in zip(masks, object_ids, places, strict=True)
    )
    sizes = dict(zip(*(values.tolist() for values in np.unique(labels, return_counts=True)), strict=True))
    actual = sum(sizes[int(object_id)] for object_id in object_ids)
    if actual == 0:
        return dict.fromkeys(MASK_METRICS, float("nan"))
    union = predicted + actual - true_positives
    return {"mIoU": true_positives / union, "mF1": 2 * true_positives / (predicted + actual)}


def qlora_sam_metrics(
    logits: Sequence[NDArray[np.floating[Any]]], labels: Sequence[NDArray[Any]]
) -> dict[str, float]:
    """IoU and F1 of an image's masks as the script of QLoRA-SAM measures them (MagnusS0/QLoRA-SAM at f7bece0,
    src/trainer.py:105): masks stay as small as the model gives them, and have the pixels of logits >= 0.5.

    Labels become as small as the masks, as transformers' SamProcessor does it for that script. Pixels are
    pooled over the objects; all objects count, also those that are too small for a pixel.

    Args:
        logits: Of the image or of each of its tiles, (objects, height, width) of the padded square that the
            model sees, which is 256 x 256 of the published models.
        labels: Of the same, (H, W) integer, numbered 1 … objects.

    Returns:
        The QLORA_SAM_METRICS, each in [0, 1]; 1 where there is no pixel of an object and of a mask.
    """
    hits = predicted = actual = 0
    for of_part, labels_of_part in zip(logits, labels, strict=True):
        masks = of_part >= _QLORA_SAM_THRESHOLD
        small = _as_small_as(masks.shape[1:], labels_of_part)
        objects = small == np.arange(1, len(masks) + 1)[:, None, None]
        hits += int(np.count_nonzero(masks & objects))
        predicted += int(np.count_nonzero(masks))
        actual += int(np.count_nonzero(objects))
    both, union = predicted + actual, predicted + actual - hits
    values = (hits / union, 2 * hits / both) if union else (1.0, 1.0)
    return dict(zip(QLORA_SAM_METRICS, values, strict=True))


def _as_small_as(shape: tuple[int, ...], labels: NDArray[Any]) -> NDArray[np.int32]:
    """Labels whose longer side has the length of a square, by nearest neighbours, with 0 below or right."""
    height, width = (max(1, int(side * max(shape) / max(labels.shape) + 0.5)) for side in labels.shape)
    small = Image.fromarray(labels.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST)
    padded = np.zeros(shape, dtype=np.int32)
    padded[:height, :width] = np.asarray(small)
    return padded
