"""mIoU and mF1 are those of segmentation_models_pytorch, with which the Hugging Face study measures."""

import numpy as np
import pytest
import torch
from segmentation_models_pytorch.metrics import f1_score, get_stats, iou_score
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from refsam.science.metrics import mask_metrics, qlora_sam_metrics

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


@pytest.mark.parametrize("shape", [(270, 480), (97, 61), (360, 480)])
def test_the_metrics_of_qlora_sam_are_those_of_its_script(shape: tuple[int, int]) -> None:
    """It gives masks to transformers' processor, and 256 x 256 logits to segmentation_models_pytorch."""
    generator = np.random.default_rng(5)
    labels = np.zeros(shape, np.uint32)
    for number in (1, 2, 3, 4):
        row, column = generator.integers(0, np.array(shape) - 30)
        labels[row : row + 5 * number, column : column + 7 * number] = number
    processor = SamImageProcessorPil()  # the script's version resizes with Pillow, too
    masks = [(labels == number).astype(np.uint8) for number in (1, 2, 3, 4)]
    image = np.zeros((*shape, 3), np.uint8)
    processed = processor([image] * 4, segmentation_maps=masks, return_tensors="pt")["labels"]
    true = processed[None, :, None]
    logits = (2.0 * true + torch.from_numpy(generator.normal(-1.0, 0.5, true.shape))).float()
    counts = get_stats(logits, true.int(), mode="binary", threshold=0.5)
    ours = qlora_sam_metrics([logits[0, :, 0].numpy()], [labels])
    for name, score in (("mIoU_qlora_sam", iou_score), ("mF1_qlora_sam", f1_score)):
        assert ours[name] == pytest.approx(score(*counts, reduction="micro").item(), abs=1e-6)
        assert 0.05 < ours[name] < 0.95
