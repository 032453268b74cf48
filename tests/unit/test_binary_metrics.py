"""mIoU and mF1 are those of segmentation_models_pytorch, with which the Hugging Face study measures."""

import numpy as np
import pytest
import torch
from segmentation_models_pytorch.metrics import f1_score, get_stats, iou_score

from refsam.science.metrics import mask_metrics

HEIGHT, WIDTH = 40, 50
Image = tuple[list[np.ndarray], np.ndarray]  # a mask per object, and the labels


def discs(generator: np.random.Generator, n_objects: int) -> np.ndarray:
    """(H, W) labels of objects in columns of their own."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint32)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for index in range(n_objects):
        row, column = generator.uniform(10, HEIGHT - 10), (index + 0.5) * WIDTH / n_objects
        radius = generator.uniform(2, WIDTH / n_objects / 2)
        labels[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = index + 1
    return labels


def images() -> list[Image]:
    """Predictions of every quality, overlapping ones, an empty one, and one object that is missed."""
    generator = np.random.default_rng(4)
    found = []
    for n_objects in (1, 3, 5, 2):
        labels = discs(generator, n_objects)
        masks = [
            np.roll(labels == number, generator.integers(-4, 5, 2), axis=(0, 1))
            for number in range(1, n_objects + 1)
        ]
        found.append((masks, labels))
    found[1][0][0][:] = False
    found[2][0][1][:, :30] = True
    return found


def stacked(given: list[Image]) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and targets, (images, objects, H, W): what an image has less of, it neither has nor predicts."""
    most = max(len(masks) for masks, _ in given)
    predicted, true = np.zeros((2, len(given), most, HEIGHT, WIDTH), bool)
    for index, (masks, labels) in enumerate(given):
        for number, mask in enumerate(masks):
            predicted[index, number] = mask
            true[index, number] = labels == number + 1
    return torch.from_numpy(predicted).int(), torch.from_numpy(true).int()


def test_means_over_images_are_theirs() -> None:
    given = images()
    ours = [mask_metrics(masks, labels, range(1, len(masks) + 1)) for masks, labels in given]
    counts = get_stats(*stacked(given), mode="multilabel")
    for name, score in (("mIoU", iou_score), ("mF1", f1_score)):
        expected = float(score(*counts, reduction="micro-imagewise"))
        assert 0.2 < expected < 0.9
        assert np.mean([values[name] for values in ours]) == pytest.approx(expected, abs=1e-6)


def test_the_union_of_all_objects_is_measured_as_one_mask() -> None:
    """As the models that are asked without a prompt are measured."""
    given = [([np.any(masks, axis=0)], (labels > 0).astype(np.uint32)) for masks, labels in images()]
    ours = [mask_metrics(masks, labels, [1]) for masks, labels in given]
    predicted, true = stacked(given)
    counts = get_stats(predicted, true, mode="binary")
    for name, score in (("mIoU", iou_score), ("mF1", f1_score)):
        expected = float(score(*counts, reduction="micro-imagewise"))
        assert np.mean([values[name] for values in ours]) == pytest.approx(expected, abs=1e-6)
