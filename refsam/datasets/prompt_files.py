"""Prompts for new images: from a CSV with a row for each object, or from label images."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refsam.datasets.new_images import NewImage, list_images
from refsam.errors import ConfigError

BOX, POINT = ("x_min", "y_min", "x_max", "y_max"), ("x", "y")
FIELD = "--prompts"
COLUMNS = f"image, and {','.join(BOX)} or {','.join(POINT)} (or both), in pixels"


@dataclass(frozen=True)
class PromptRow:
    """A prompt for one object, in pixels: x to the right, y downwards, (0, 0) is the upper left corner.

    line: of the file; box: x_min, y_min, x_max, y_max; point: x, y.
    """

    line: int
    box: tuple[float, ...] | None
    point: tuple[float, ...] | None


@dataclass(frozen=True)
class PromptFile:
    """A CSV file of prompts, by the names of the images."""

    path: Path
    rows: dict[str, list[PromptRow]]

    @property
    def kind(self) -> str:
        """`box`, `point`, or `box and point`."""
        rows = [row for each in self.rows.values() for row in each]
        kinds = {"box": any(row.box for row in rows), "point": any(row.point for row in rows)}
        return " and ".join(kind for kind, is_there in kinds.items() if is_there) or "box"

    def check(self, name: str, shape: tuple[int, int]) -> None:
        """Raise ConfigError for a prompt that is not within the image (H, W) of this name."""
        height, width = shape
        for row in self.rows.get(name, []):
            corners = [*(row.box or ()), *(row.point or ())]
            xs, ys = corners[::2], corners[1::2]
            if min(corners) < 0 or max(xs) > width or max(ys) > height:
                raise ConfigError(
                    f"{FIELD}: line {row.line} of {self.path} is not within image {name}, which has "
                    f"{width} x {height} pixels (width x height)"
                )


def read_prompt_file(path: Path, images: Sequence[NewImage]) -> PromptFile:
    """The prompts of a CSV file, of which each row is for one object.

    Its header has `image` (may be left out for a single image): the name or the file name of an image; and
    the columns of a box, of a point, or of both. Images without rows have no objects.

    Raises:
        ConfigError: when a column is missing, a value is no number, or an image is not one of `images`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            columns = [name.strip() for name in table.fieldnames or ()]
            table.fieldnames = columns
            kinds = [kind for kind in (BOX, POINT) if set(kind) <= set(columns)]
            if not kinds or ("image" not in columns and len(images) > 1):
                raise ConfigError(
                    f"{FIELD}: {path} has the columns {', '.join(columns) or '(none)'}, and needed are "
                    f"{COLUMNS}"
                )
            known = {key: each.name for each in images for key in (each.name, each.path.name, str(each.path))}
            found: dict[str, list[PromptRow]] = {}
            for row in table:
                given = row.get("image", images[0].name)
                if given not in known:
                    raise ConfigError(
                        f"{FIELD}: line {table.line_num} of {path} is for the image {given!r}, which is not "
                        "one of IMAGES"
                    )
                found.setdefault(known[given], []).append(_row(row, table.line_num, kinds, path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{FIELD}: {path} cannot be read as a CSV file ({error})") from error
    return PromptFile(path, found)


def _row(row: dict[str, str], line: int, kinds: Sequence[tuple[str, ...]], path: Path) -> PromptRow:
    values: dict[tuple[str, ...], tuple[float, ...]] = {}
    for kind in kinds:
        try:
            values[kind] = tuple(float(row[name]) for name in kind)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{FIELD}: line {line} of {path} lacks a number in {','.join(kind)}") from error
        if not all(math.isfinite(value) for value in values[kind]):
            raise ConfigError(f"{FIELD}: line {line} of {path} has a value that is not finite")
    box = values.get(BOX)
    if box is not None and not (box[0] < box[2] and box[1] < box[3]):
        raise ConfigError(
            f"{FIELD}: line {line} of {path} has the box {box}, and needed are x_min < x_max and "
            "y_min < y_max"
        )
    return PromptRow(line, box, values.get(POINT))


def match_labels(given: str, images: Sequence[NewImage], without: Path) -> dict[str, Path]:
    """The label image of each image: the one of the same name, or the only one for a single image.

    Args:
        given: a file, a folder or a pattern.
        without: see list_images.

    Raises:
        ConfigError: when an image has none.
    """
    labels = {each.name: each.path for each in list_images([given], without, FIELD)}
    if len(images) == len(labels) == 1:
        return {images[0].name: next(iter(labels.values()))}
    missing = [each.name for each in images if each.name not in labels]
    if missing:
        raise ConfigError(
            f"{FIELD}: {given!r} has no label image for {len(missing)} of {len(images)} images, such as "
            f"{missing[0]!r}; a label image has the name of its image"
        )
    return {each.name: labels[each.name] for each in images}
