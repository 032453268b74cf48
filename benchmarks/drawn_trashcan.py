"""Images in the layout of TrashCan 1.0, drawn: for a whole small reproduction of the study that used it.

`plain` are bright objects on a dark ground, which a model is trained on before; `underwater` are pale objects
in turbid, coloured water above a ground with stones as pale, which it is finetuned on.
"""

import json
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from refsam.datasets.coco_writing import labels_to_coco
from refsam.datasets.trashcan import ANNOTATIONS, PARTS, VERSION

SHAPE = (96, 128)  # height, width
SIZES = (12, 24)  # radius of an object, in pixels
TRIED = 7  # objects, of which those that would cover another one are left out
Painter = Callable[[NDArray[np.int64], np.random.Generator], NDArray[np.float64]]


def write_data(folder: Path, paint: Painter, n_images: dict[str, int], seed: int) -> None:
    """Write instance_version with train/, val/ and their annotations.

    Args:
        n_images: of each of PARTS.
    """
    generator = np.random.default_rng(seed)
    version = folder / VERSION
    for part in PARTS:
        (version / part).mkdir(parents=True)
        described = []
        for number in range(n_images[part]):
            labels = draw_labels(generator)
            image = paint(labels, generator).clip(0, 255).astype(np.uint8)
            name = f"{part}_{number:03}.jpg"
            imageio.imwrite(version / part / name, image, quality=95)
            described.append((name, labels))
        (version / ANNOTATIONS.format(part)).write_text(json.dumps(labels_to_coco(described, "trash")))


def draw_labels(generator: np.random.Generator) -> NDArray[np.int64]:
    """(H, W) of bars, crosses, rings and ellipses, turned at random, none of which is cut or covered."""
    rows, columns = np.indices(SHAPE)
    labels = np.zeros(SHAPE, dtype=np.int64)
    for _ in range(TRIED):
        angle, size = generator.uniform(0, np.pi), generator.uniform(*SIZES)
        row, column = generator.uniform(size, np.array(SHAPE) - size)
        along = (rows - row) * np.sin(angle) + (columns - column) * np.cos(angle)
        across = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)
        distance = np.hypot(along, across)
        bar = (abs(along) < 0.95 * size) & (abs(across) < 0.3 * size)
        turned = (abs(across) < 0.95 * size) & (abs(along) < 0.3 * size)
        ring = (distance < size) & (distance > 0.5 * size)
        kinds = (bar, bar | turned, ring, np.hypot(along, 1.6 * across) < size)
        drawn = kinds[generator.integers(len(kinds))]
        if not labels[drawn].any():
            labels[drawn] = labels.max() + 1
    return labels


def plain(labels: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.float64]:
    """(H, W, 3) grey values of bright objects on a dark ground."""
    grey = np.append(50.0, generator.uniform(140, 220, labels.max()))[labels]
    return np.repeat((grey + generator.normal(0, 8, labels.shape))[..., None], 3, axis=2)


def underwater(labels: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.float64]:
    """(H, W, 3) colours of objects brighter than blue-green water, with stones that nobody labels."""
    stones = gaussian_filter(generator.normal(0, 1, labels.shape), 6)
    depth = np.linspace(0, 1, labels.shape[0])[:, None]
    ground = 105 - 40 * depth + 25 * stones / stones.std()
    contrasts = generator.uniform(35, 80, labels.max())
    texture = gaussian_filter(generator.normal(0, 1, labels.shape), 1.5)
    objects = 95 + np.append(0.0, contrasts)[labels] + 10 * texture / texture.std()
    grey = gaussian_filter(np.where(labels > 0, objects, ground), 1.0)
    colours = grey[..., None] * np.array([0.6, 1.0, 1.1])
    return colours + generator.normal(0, 6, colours.shape)
