"""Test images for evaluations: discs on noise, with labels."""

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from refsam.datasets.pair import Pair

DISC_RADIUS = 9


def ignore(phase: str, done: int, total: int) -> None:
    """A report that nobody listens to."""


def draw_pair(
    folder: Path, name: str, seed: int, objects: int = 3, shape: tuple[int, int] = (96, 120)
) -> Pair:
    """An image with `objects` discs, which may touch or be cut by the border; their ids have gaps."""
    generator = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    labels = np.zeros(shape, dtype="uint16")
    for number in range(objects):
        row, column = generator.uniform((0, 0), shape)
        labels[(rows - row) ** 2 + (columns - column) ** 2 < DISC_RADIUS**2] = 3 * number + 2
    return write_pair(folder, name, labels, generator)


def write_pair(folder: Path, name: str, labels: NDArray[np.uint16], generator: np.random.Generator) -> Pair:
    """Labels (H, W), and an 8 bit image that is brighter where they are."""
    image = (generator.normal(60, 20, labels.shape) + 120 * (labels > 0)).clip(0, 255).astype("uint8")
    pair = Pair(name, folder / f"{name}.tif", folder / f"{name}_labels.tif")
    tifffile.imwrite(pair.image, image)
    tifffile.imwrite(pair.label, labels)
    return pair
