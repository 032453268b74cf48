"""An image and its labels as training and evaluation see them, in whichever form the data set has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refsam.datasets.numbering import COMPONENTS, numbered, numbered_pieces
from refsam.datasets.pair import COCO, Pair
from refsam.datasets.reading import ReadImage, ReadLabels, open_image, open_labels
from refsam.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from refsam.configuration.schema import DatasetConfig


@dataclass(frozen=True)
class ReadPair:
    """What the files of a pair hold.

    Attributes:
        image: as it was read, not yet of 8 bit.
        ids: (H, W) uint32 or uint64 as they stand in the file, or made of annotations.
        labels: (H, W) uint32, 0 for background and the objects from 1 on in the order of their ids.
    """

    image: ReadImage
    ids: NDArray[np.uint32 | np.uint64]
    labels: NDArray[np.uint32]


def open_pair(pair: Pair, dataset: DatasetConfig) -> ReadPair:
    """Read an image and its labels.

    Raises:
        ConfigError: when one of them cannot be read.
    """
    labels = _open_labels(pair, dataset)
    image = open_image(pair.image, dataset.image_key, dataset.channels, labels)
    return ReadPair(image, labels.ids, number_objects(labels.ids, dataset))


def read_pair(
    pair: Pair, dataset: DatasetConfig, *, for_patches: bool = False
) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """An image, (H, W) or (H, W, 3) uint8, and its labels, (H, W) uint32, see read_pair_labels.

    Args:
        for_patches: patches are cut from the image. With `dataset.normalize=patch` each is stretched by
            itself then, so the values are those of the file, of any type.

    Raises:
        ConfigError: when one of them cannot be read, or they differ in height or width.
    """
    from refsam.configuration.schema import Normalization

    read = open_pair(pair, dataset)
    as_read = for_patches and dataset.normalize == Normalization.patch
    image = read.image.pixels() if as_read else read.image.as_8bit(dataset.normalize)
    if image.shape[:2] != read.labels.shape:
        raise ConfigError(
            f"dataset.labels: the label image of {pair.name} has shape {read.labels.shape} and its image "
            f"{image.shape[:2]}, and both have to have the same height and width"
        )
    return image, read.labels


def read_pair_labels(pair: Pair, dataset: DatasetConfig) -> NDArray[np.uint32]:
    """(H, W) uint32, 0 for background and the objects from 1 on, in the order of their ids.

    With `dataset.labels_are=components` each connected piece of an id is an object.

    Raises:
        ConfigError: when the labels cannot be read.
    """
    return number_objects(_open_labels(pair, dataset).ids, dataset)


def _open_labels(pair: Pair, dataset: DatasetConfig) -> ReadLabels:
    if dataset.format == COCO:
        from refsam.datasets.coco import read_coco_labels  # pycocotools, for those who have such a data set

        return ReadLabels(read_coco_labels(pair, dataset))
    return open_labels(pair.label, dataset.label_key)


def number_objects(ids: NDArray[np.uint32 | np.uint64], dataset: DatasetConfig) -> NDArray[np.uint32]:
    """Ids (H, W) as objects from 1 on, in the order of the ids, as `dataset.labels_are` says."""
    return numbered_pieces(ids) if dataset.labels_are == COMPONENTS else numbered(ids)
