"""An image and its labels by name: what a data set is a list of, and what is said where it is not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refsam.errors import ConfigError

if TYPE_CHECKING:
    from refsam.configuration.schema import DatasetConfig  # importing Hydra takes a third of a second

# Data sets that `refsam prepare` fetches or makes, with what it has to be told besides.
PREPARED = {
    "nuclei": "",
    "nuclei_coco": "",
    "covid_if": "",
    "synthetic": "",
    "trashcan": " dataset.archive=ARCHIVE, the dataset.zip of TrashCan 1.0 (https://hdl.handle.net/11299/214865)",
}
COCO = "coco"  # the format of annotations in one file; the other one is label_images


@dataclass(frozen=True)
class Pair:
    """An image and its label image; both are the same path where one HDF5 file holds both.

    `name` is the image's path below the data set's root, with slashes and without suffix, normalized. `item`
    is the image's id in `label` where that is the annotation file of all images.
    """

    name: str
    image: Path
    label: Path
    item: int | str | None = None


class DataMissing(ConfigError):
    """The folder of a data set is not there. The message says how to get it."""


def missing_data(dataset: DatasetConfig) -> str:
    """Sentence for a data set whose folder is not there."""
    if dataset.name in PREPARED:
        remedy = f"fetch it with: refsam prepare dataset={dataset.name}{PREPARED[dataset.name]}"
    else:
        remedy = "give the folder of your images with dataset.root=FOLDER"
    return f"dataset.root {dataset.root} is not a folder; {remedy}"
