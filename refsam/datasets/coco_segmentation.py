"""The segmentation of one object in COCO's format: its pixels as run lengths, or what is wrong with it.

Also what becomes of several objects in one label image, which has one object per pixel: larger ones are
painted first, so that a smaller object lies on top of a larger one.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from refsam.datasets.coco_values import numbers, wholes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Programs round a box or a corner outwards, so that it stands off the image by less than that.
TOLERANCE = 1.0  # pixels
LEAST_COORDINATES = 6  # of a polygon: three corners

RunLengths = dict[str, Any]  # pycocotools' compressed form: size (H, W) and counts
Size = tuple[int, int]  # (H, W) in pixels


class Unusable(Exception):
    """A segmentation that cannot be used. The message is the kind of problem."""


def run_lengths(annotation: dict[str, Any], size: Size) -> RunLengths:
    """The pixels of an annotation's polygons or run lengths, compressed or not.

    Raises:
        Unusable: for everything that is no object inside an image of `size`.
    """
    segmentation, box = annotation.get("segmentation"), annotation.get("bbox")
    if not segmentation:
        raise Unusable("empty segmentation (only a box)" if box else "empty segmentation")
    _check_box(box, size)
    if isinstance(segmentation, dict):
        found, what = _of_counts(segmentation, size), "run lengths"
    elif isinstance(segmentation, list):
        found, what = _of_polygons(segmentation, size), "polygon"
    else:
        raise Unusable("broken segmentation")
    from pycocotools import mask

    if not int(mask.area(found)):  # a sliver has an area, and may cover no pixel
        raise Unusable(f"empty {what}")
    return found


def painted(objects: Sequence[RunLengths], size: Size) -> NDArray[np.uint32]:
    """(H, W) uint32: the objects, numbered from 1 in the order given; smaller ones lie on larger ones."""
    import numpy as np
    from pycocotools import mask

    labels = np.zeros(size, np.uint32)
    for index in _painting_order(objects):
        labels[mask.decode(objects[index]).astype(bool)] = index + 1
    return labels


def covered(objects: Sequence[RunLengths]) -> list[int]:
    """The indices of objects of one image that have no pixel left, because others lie on them."""
    import numpy as np
    from pycocotools import mask

    if len(objects) < 2:
        return []
    areas = mask.area(list(objects)).astype(np.int64)
    left, top, width, height = mask.toBbox(list(objects)).T
    right, bottom = left + width, top + height
    order, found = np.array(_painting_order(objects)), []
    for place, index in enumerate(order[:-1]):
        above = order[place + 1 :]
        above = above[
            (left[above] < right[index])
            & (right[above] > left[index])
            & (top[above] < bottom[index])
            & (bottom[above] > top[index])
        ]
        if areas[above].sum() < areas[index]:
            continue
        on_top = mask.merge([objects[other] for other in above])
        if int(mask.area(mask.merge([objects[index], on_top], intersect=True))) == areas[index]:
            found.append(int(index))
    return sorted(found)


def _painting_order(objects: Sequence[RunLengths]) -> list[int]:
    from pycocotools import mask

    areas = [int(mask.area(item)) for item in objects]
    return sorted(range(len(objects)), key=lambda index: -areas[index])


def _check_box(given: Any, size: Size) -> None:
    if given is None:  # nothing here needs one
        return
    box = numbers(given)
    if box is None or len(box) != 4 or min(box[2:]) < 0:
        raise Unusable("broken box")
    x, y, width, height = box
    if not _inside([x, y, x + width, y + height], size):
        raise Unusable("box outside of its image")


def _of_polygons(segmentation: Sequence[Any], size: Size) -> RunLengths:
    from pycocotools import mask

    polygons = []
    for given in segmentation:
        polygon = numbers(given)
        if polygon is None or len(polygon) < LEAST_COORDINATES or len(polygon) % 2:
            raise Unusable("broken polygon")
        if not _inside(polygon, size):
            raise Unusable("polygon outside of its image")
        polygons.append(polygon)
    found: RunLengths = mask.merge(mask.frPyObjects(polygons, *size))
    return found


def _of_counts(segmentation: dict[str, Any], size: Size) -> RunLengths:
    from pycocotools import mask

    if wholes(segmentation.get("size")) != list(size):
        raise Unusable("run lengths of another size than the image")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = _without_bytes_prefix(counts)
        lengths = _uncompressed(counts)
    else:
        lengths = wholes(counts)
    # pycocotools leaves the pixels that they do not reach to chance.
    if not lengths or min(lengths) < 0 or sum(lengths) != size[0] * size[1]:
        raise Unusable("broken run lengths")
    if isinstance(counts, str):
        return {"size": list(size), "counts": counts.encode()}
    found: RunLengths = mask.frPyObjects({"size": list(size), "counts": lengths}, *size)
    return found


def _without_bytes_prefix(counts: str) -> str:
    """The text that Python's str() wrote as b'…', which happens to pycocotools' counts."""
    if not counts.startswith(("b'", 'b"')):
        return counts
    try:
        return bytes(ast.literal_eval(counts)).decode("ascii")
    except (ValueError, SyntaxError, TypeError):
        raise Unusable("broken run lengths") from None


def _uncompressed(text: str) -> list[int] | None:
    """The numbers in the string of compressed run lengths; None where it is no such string.

    Each number is in groups of five bits, the lowest first, in characters from the 48th on whose sixth bit
    says that more follow; the highest bit is the sign. From the fourth on, numbers are differences to the one
    two before (rleToString in pycocotools' maskApi.c).
    """
    numbers: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 60:  # no run is longer than 32 bits say
            return None
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
        value = shift = 0
    return numbers if shift == 0 else None


def _inside(coordinates: Sequence[float], size: Size) -> bool:
    """Whether points x, y, x, y, … lie in an image, rounding allowed for."""
    height, width = size
    x, y = coordinates[::2], coordinates[1::2]
    return min(*x, *y) >= -TOLERANCE and max(x) <= width + TOLERANCE and max(y) <= height + TOLERANCE
