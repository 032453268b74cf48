"""The labels of a pair, in whichever form the data set has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refsam.datasets.listing import COCO, Pair
from refsam.datasets.reading import read_labels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from refsam.configuration.schema import DatasetConfig


def read_pair_labels(pair: Pair, dataset: DatasetConfig) -> NDArray[np.uint32]:
    """(H, W) uint32, 0 for background and one id per object: of a label image, or made of annotations.

    Raises:
        BadInput: when the labels cannot be read.
    """
    if dataset.format == COCO:
        from refsam.datasets.coco import read_coco_labels  # pycocotools, for those who have such a data set

        return read_coco_labels(pair, dataset)
    return read_labels(pair.label, dataset.label_key)
