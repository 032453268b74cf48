"""A folder of images and the label images that a person makes of them, as `dataset=folder` expects it.

FOLDER/images/NAME.tif   a copy of the image
FOLDER/labels/NAME.tif   its objects, (H, W) uint16 or uint32, 0 for background
"""

import filecmp
import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from refsam.datasets.reading import open_labels
from refsam.errors import ConfigError
from refsam.system.files import write_atomically

IMAGES, LABELS = "images", "labels"
LARGEST_UINT16 = 65535


@dataclass(frozen=True)
class Annotation:
    """An image that is annotated.

    Attributes:
        image: its file.
        kept: where a copy of it lies once it is annotated.
        labels: its label image, which may not be there yet.
    """

    image: Path
    kept: Path
    labels: Path

    def read_labels(self, shape: tuple[int, ...]) -> NDArray[np.uint32] | None:
        """The objects so far, (H, W); None before there are any.

        Raises:
            ConfigError: when they have another size than the image, or cannot be read.
        """
        if not self.labels.exists():
            return None
        found = open_labels(self.labels).ids
        if found.shape != shape:
            raise ConfigError(f"--output: {self.labels} has shape {found.shape} and its image {shape}")
        return found.astype(np.uint32)

    def save(self, labels: NDArray[np.uint32]) -> int:
        """Write the label image, and the copy of the image before it; the number of objects."""
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        self.labels.parent.mkdir(parents=True, exist_ok=True)
        if not self.kept.exists():
            with self.image.open("rb") as source:
                write_atomically(self.kept, lambda file: shutil.copyfileobj(source, file))
        values = labels if labels.max() > LARGEST_UINT16 else labels.astype(np.uint16)
        encoded = BytesIO()
        tifffile.imwrite(encoded, values, compression="zlib")
        write_atomically(self.labels, lambda file: file.write(encoded.getvalue()))
        return len(np.unique(values[values > 0]))


def annotation_of(image: Path, name: str, folder: Path) -> Annotation:
    """Where an image and its objects lie in a folder. Raises ConfigError where another image has the name.

    Args:
        name: of the image in the folder, without suffix.
    """
    kept = folder / IMAGES / f"{name}{image.suffix}"
    others = [path for path in kept.parent.glob(f"{name}.*") if path.stem == name and path != kept]
    if others or (kept.exists() and not kept.samefile(image) and not filecmp.cmp(kept, image, shallow=False)):
        raise ConfigError(
            f"--output: {others[0] if others else kept} is another image of the same name; annotate {image} "
            "into another folder"
        )
    return Annotation(image, kept, folder / LABELS / f"{name}.tif")
