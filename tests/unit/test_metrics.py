"""Metrics against cases that can be counted by hand, and against elf."""

import math

import numpy as np
import pytest

from refsam.records.metrics import METRICS, QLORA_SAM_METRICS
from refsam.science.metrics import mask_metrics, qlora_sam_metrics, segmentation_metrics


def _squares(*corners: tuple[int, int], size: int = 4) -> np.ndarray:
    labels = np.zeros((20, 20), dtype="uint32")
    for number, (row, column) in enumerate(corners, start=1):
        labels[row : row + size, column : column + size] = number
    return labels


def test_the_labels_themselves_are_a_perfect_segmentation():
    labels = _squares((0, 0), (10, 10))
    assert segmentation_metrics(labels, labels) == dict.fromkeys(
        ("mSA", "SA50", "SA75", "precision", "recall", "F1"), 1.0
    )


def test_one_exact_one_missed_and_one_invented_object():
    labels = _squares((0, 0), (10, 10))
    prediction = _squares((0, 0), (0, 10))
    metrics = segmentation_metrics(prediction, labels)
    assert [metrics[name] for name in ("SA50", "SA75", "mSA")] == pytest.approx([1 / 3] * 3)
    assert [metrics[name] for name in ("precision", "recall", "F1")] == pytest.approx([1 / 2] * 3)


def test_the_thresholds_of_sa50_and_sa75():
    labels = _squares((0, 0))  # 16 pixels
    prediction = labels.copy()
    prediction[3, :2] = 0  # 14 pixels of it: IoU 0.875
    assert segmentation_metrics(prediction, labels)["SA75"] == 1.0
    prediction[2:4] = 0  # 8 pixels of it: IoU 0.5
    metrics = segmentation_metrics(prediction, labels)
    assert (metrics["SA50"], metrics["SA75"]) == (1.0, 0.0)
    assert metrics["mSA"] == pytest.approx(1 / 10)


def test_an_object_in_two_pieces_counts_as_two_objects():
    labels = _squares((0, 0), (10, 10))
    labels[labels == 2] = 1
    prediction = _squares((0, 0), (10, 10))
    assert segmentation_metrics(prediction, labels)["SA50"] == 1.0


@pytest.mark.parametrize("predicted", [True, False])
@pytest.mark.parametrize("present", [True, False])
def test_every_metric_is_zero_where_nothing_is_matched(predicted: bool, present: bool):
    prediction = _squares((0, 0)) if predicted else _squares()
    labels = _squares((10, 10)) if present else _squares()
    assert set(segmentation_metrics(prediction, labels).values()) == {0.0}


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="shape"):
        segmentation_metrics(_squares(), _squares()[:10])


def test_pixels_are_pooled_over_the_objects_of_an_image():
    labels = _squares((0, 0), (10, 10))  # 16 pixels each
    first = labels == 1
    second = np.zeros_like(first)
    second[10:14, 12:20] = True  # 32 pixels, 8 of them right
    metrics = mask_metrics([first, second], labels, [1, 2])
    # true positives 16 + 8, false positives 24, false negatives 8
    assert metrics["mIoU"] == pytest.approx(24 / 56)
    assert metrics["mF1"] == pytest.approx(48 / 80)


def test_a_mask_is_compared_with_its_own_object_only():
    labels = _squares((0, 0), (10, 10))
    metrics = mask_metrics([labels == 2, labels == 1], labels, [1, 2])
    assert metrics == {"mIoU": 0.0, "mF1": 0.0}


def test_overlapping_masks_are_counted_each():
    labels = _squares((0, 0), (10, 10))
    everything = labels > 0
    metrics = mask_metrics([everything, everything], labels, [1, 2])
    assert metrics["mIoU"] == pytest.approx(32 / 64)


def test_empty_masks_score_zero_and_an_image_without_objects_scores_nothing():
    labels = _squares((0, 0))
    assert mask_metrics([np.zeros_like(labels, dtype=bool)], labels, [1]) == {"mIoU": 0.0, "mF1": 0.0}
    assert all(math.isnan(value) for value in mask_metrics([], _squares(), []).values())


def test_a_mask_too_few_is_refused():
    with pytest.raises(ValueError, match="1 masks for 2 objects"):
        mask_metrics([np.ones((20, 20), dtype=bool)], _squares((0, 0), (10, 10)), [1, 2])


def test_a_logit_between_the_two_thresholds_counts_for_ours_alone():
    labels = np.zeros((8, 8), dtype="uint32")
    labels[:4, :4] = 1  # reduced to 4 x 4: four pixels
    logits = np.full((1, 4, 4), -1.0)
    logits[0, :2, :2] = [[2.0, 0.5], [0.3, -1.0]]
    # Of the object's four pixels two have logits of 0.5 and more, and a third one is above 0.
    found = qlora_sam_metrics([logits], [labels])
    assert found == {"mIoU_qlora_sam": 2 / 4, "mF1_qlora_sam": 4 / 6}
    enlarged = np.repeat(np.repeat(logits[0] > 0, 2, axis=0), 2, axis=1)
    assert mask_metrics([enlarged], labels, [1]) == {"mIoU": 3 / 4, "mF1": 6 / 7}


def test_pixels_of_small_masks_are_pooled_over_objects_and_tiles():
    labels = np.zeros((4, 4), dtype="uint32")
    labels[0, :3], labels[2, 0] = 1, 2  # three pixels and one
    logits = np.full((2, 4, 4), -1.0)
    logits[0, 0, :3], logits[1, 2, :2] = 1.0, 1.0  # the first is right, the second has a pixel too many
    other = np.full((1, 4, 4), -1.0)  # of a tile whose object of four pixels is missed
    found = qlora_sam_metrics([logits, other], [labels, np.eye(4, dtype="uint32")])
    assert found == {"mIoU_qlora_sam": 4 / 9, "mF1_qlora_sam": 8 / 13}


def test_an_object_that_is_too_small_for_a_pixel_is_found_where_there_is_no_mask():
    labels = np.zeros((64, 64), dtype="uint32")
    labels[0, 0] = 1
    assert qlora_sam_metrics([np.full((1, 4, 4), -1.0)], [labels]) == dict.fromkeys(QLORA_SAM_METRICS, 1.0)
    assert set(qlora_sam_metrics([np.ones((1, 4, 4))], [labels]).values()) == {0.0}


def test_the_list_of_metrics_is_what_the_functions_return():
    labels = _squares((0, 0))
    measured = {**segmentation_metrics(labels, labels), **mask_metrics([labels == 1], labels, [1])}
    measured |= qlora_sam_metrics([np.ones((1, 4, 4))], [labels])
    assert tuple(measured) == METRICS
