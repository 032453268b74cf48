"""A test image with ground truth, prediction and errors as contours: one PNG, sensible at a glance."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from bioimage_cpp.segmentation import label
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries

from refsam.system.files import write_encoded

MATCHED_AT = 0.5  # IoU, as for SA50, precision and recall
PANEL = 4.5  # inches of a panel's longer side
RESOLUTION = 120  # pixels per inch
OVERLAY_SIDE = 2048  # pixels of an overlay's longer side, at most: more than a screen shows
# Colours that also those tell apart who do not see red and green.
TRUTH, PREDICTED, FOUND, MISSED, WRONG = "#ffd400", "#00c8ff", "#009e73", "#e69f00", "#d81b60"


Contours = list[tuple[NDArray[Any], str, str]]  # what is outlined, its colour, and its words in the legend


def draw(image: NDArray[Any], labels: NDArray[Any], segmentation: NDArray[Any], path: Path) -> None:
    """Write a PNG of three panels: the labels, the prediction, and which objects of both agree.

    Args:
        image: (H, W) or (H, W, channels) uint8.
        labels: (H, W), 0 is background.
        segmentation: (H, W), 0 is background.
    """
    objects = label(labels.astype("uint32")).astype("int64")
    matched_objects, matched_predictions = _matches(objects, segmentation)
    found, missed = len(matched_objects), int(objects.max()) - len(matched_objects)
    wrong = np.setdiff1d(np.unique(segmentation), [0, *matched_predictions])
    contours = [
        (np.where(np.isin(segmentation, wrong), segmentation, 0), WRONG, f"{len(wrong)} wrong"),
        (np.where(np.isin(objects, matched_objects), 0, objects), MISSED, f"{missed} missed"),
        (np.where(np.isin(objects, matched_objects), objects, 0), FOUND, f"{found} found"),
    ]
    panels = [
        (f"ground truth: {int(objects.max())} objects", [(objects, TRUTH, "")]),
        (f"prediction: {np.count_nonzero(np.unique(segmentation))}", [(segmentation, PREDICTED, "")]),
        (f"at IoU {MATCHED_AT}", contours),
    ]
    _write(image, panels, path)


def draw_foreground(
    image: NDArray[Any], truth: NDArray[np.bool_], predicted: NDArray[np.bool_], path: Path
) -> None:
    """Write a PNG of three panels for one mask of the whole image: foreground, prediction, where they differ.

    Args:
        image: (H, W) or (H, W, channels) uint8.
        truth: (H, W), the union of all objects.
        predicted: (H, W).
    """
    areas = {"found": truth & predicted, "missed": truth & ~predicted, "wrong": predicted & ~truth}
    iou = areas["found"].sum() / max(1, sum(area.sum() for area in areas.values()))
    panels = [
        (f"ground truth: {truth.mean():.0%} of the image", [(truth, TRUTH, "")]),
        (f"prediction: {predicted.mean():.0%}", [(predicted, PREDICTED, "")]),
        (
            f"pixels, IoU {iou:.2f}",
            [
                (areas[words], colour, f"{areas[words].mean():.0%} {words}")
                for words, colour in (("wrong", WRONG), ("missed", MISSED), ("found", FOUND))
            ],
        ),
    ]
    _write(image, panels, path)


def draw_overlay(image: NDArray[np.uint8], segmentation: NDArray[Any], path: Path) -> None:
    """Write a PNG of the image with the outlines of the objects, of at most OVERLAY_SIDE pixels per side.

    Args:
        image: (H, W) or (H, W, channels) uint8.
        segmentation: (H, W), 0 is background.
    """
    height, width = image.shape[:2]
    scale = min(1.0, OVERLAY_SIDE / max(height, width))
    if scale < 1.0:
        # Reduced before it is drawn: a line of one pixel would be lost afterwards.
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BOX))
        rows = ((np.arange(size[1]) + 0.5) / scale).astype(int).clip(max=height - 1)
        columns = ((np.arange(size[0]) + 0.5) / scale).astype(int).clip(max=width - 1)
        segmentation = segmentation[np.ix_(rows, columns)]
    picture = PIL.Image.fromarray(_with_contours(image, [(segmentation, PREDICTED)]))
    write_encoded(path, lambda file: picture.save(file, format="png"))


def _write(image: NDArray[Any], panels: list[tuple[str, Contours]], path: Path) -> None:
    """The panels side by side, each with its title, its contours and their legend."""
    height, width = image.shape[:2]
    scale = PANEL / max(height, width)
    figure = Figure(figsize=(3 * width * scale, height * scale + 0.6), dpi=RESOLUTION, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, contours) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.imshow(_with_contours(image, [(drawn, colour) for drawn, colour, _ in contours]))
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
        named = [Patch(color=colour, label=words) for _, colour, words in contours if words]
        if named:
            # Below the image, where it hides no object.
            place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0)}
            axes.legend(handles=named[::-1], fontsize=8, ncols=3, frameon=False, **place)
    write_encoded(path, lambda file: figure.savefig(file, format="png"))


def _matches(objects: NDArray[Any], segmentation: NDArray[Any]) -> tuple[list[int], list[int]]:
    """The ids of objects and of predictions that overlap with an IoU of MATCHED_AT or more, pairwise."""
    ids, predicted = np.unique(segmentation, return_inverse=True)
    columns = int(objects.max()) + 1
    counts = np.bincount(predicted.ravel() * columns + objects.ravel(), minlength=len(ids) * columns)
    overlap = counts.reshape(len(ids), columns)
    union = overlap.sum(axis=1, keepdims=True) + overlap.sum(axis=0, keepdims=True) - overlap
    rows, numbers = np.nonzero(overlap >= MATCHED_AT * np.maximum(union, 1))
    pairs = [(number, ids[row]) for row, number in zip(rows, numbers, strict=True) if ids[row] and number]
    return [int(number) for number, _ in pairs], [int(prediction) for _, prediction in pairs]


def _with_contours(image: NDArray[Any], contours: list[tuple[NDArray[Any], str]]) -> NDArray[np.uint8]:
    """The image in grey or colour, (H, W, 3), stretched to its range, with lines that stay visible."""
    shown = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)
    shown = shown[..., :3].astype("float32")
    low, high = np.percentile(shown, (1, 99.5))
    picture = (np.clip((shown - low) / max(high - low, 1), 0, 1) * 255).astype("uint8")
    wide = max(image.shape[:2]) > 512
    for drawn, colour in contours:
        lines = find_boundaries(drawn, mode="thick" if wide else "inner")
        picture[lines] = [int(colour[first : first + 2], 16) for first in (1, 3, 5)]
    return picture
