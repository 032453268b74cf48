"""Annotations in COCO's format as label images, and back. Needs pycocotools and no torch.

A label image has one object per pixel, and COCO's annotations may overlap: larger ones are painted first, so
a smaller object lies on top of a larger one, and what is covered as a whole is no object any more. Crowds
(`iscrowd`) are no objects. Everything that is wrong in a file is found before anything is read from it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refsam.datasets.listing import DataMissing, Pair, missing_data
from refsam.errors import BadInput, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from refsam.configuration.schema import DatasetConfig

SKIP, REFUSE = "skip", "refuse"
# Programs round a box or a corner outwards, so that it stands off the image by less than that.
TOLERANCE = 1.0  # pixels
SHOWN = 3  # names of each kind of problem in a sentence
LEAST_COORDINATES = 6  # of a polygon: three corners

Key = int | str


@dataclass(frozen=True)
class CocoImage:
    """One image of a file; `name` is its file_name, below the folder of the images."""

    key: Key
    name: str
    height: int
    width: int


@dataclass(frozen=True)
class Problem:
    """Something that is wrong: what kind of thing, and where."""

    kind: str
    where: str


@dataclass
class CocoFile:
    """What can be used of a file, and what cannot.

    Attributes:
        images: by their ids.
        annotations: the segmentations of an image's objects by the image's id, in the order of the file.
        problems: what was left out, images that are not there excepted.
    """

    images: dict[Key, CocoImage] = field(default_factory=dict)
    annotations: dict[Key, list[Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def list_coco_pairs(dataset: DatasetConfig) -> list[Pair]:
    """The images of a COCO data set that have objects, sorted by name.

    Raises:
        DataMissing: when `dataset.root` is no folder.
        BadInput: when the file cannot be read, when nothing is left, and where `dataset.on_problem` or
            `dataset.empty_images` refuses what was found.
    """
    found = _look(dataset)
    if found.problems and dataset.on_problem == REFUSE:
        raise BadInput(
            f"dataset.labels: {_path(dataset)} has {_counted(found.problems)}; mend the file, or leave out "
            f"what is wrong with dataset.on_problem={SKIP}"
        )
    if found.empty and dataset.empty_images == REFUSE:
        raise BadInput(
            f"dataset.labels: {_path(dataset)} has {_number(len(found.empty), 'image')} without objects "
            f"({_some(found.empty)}); annotate them, or leave them out with dataset.empty_images={SKIP}"
        )
    if not found.pairs:
        raise BadInput(
            f"dataset.labels: {_path(dataset)} has no image with an object that can be used, and at least "
            "one is needed" + (f" (it has {_counted(found.problems)})" if found.problems else "")
        )
    return found.pairs


def left_out(dataset: DatasetConfig) -> str | None:
    """What is left out of a COCO data set, in one sentence; None where nothing is."""
    found = _look(dataset)
    parts = [_counted(found.problems)] if found.problems else []
    if found.empty:
        parts.append(f"{_number(len(found.empty), 'image')} without objects ({_some(found.empty)})")
    return f"{_path(dataset)}: left out are {', and '.join(parts)}" if parts else None


def read_coco_labels(pair: Pair, dataset: DatasetConfig) -> NDArray[np.uint32]:
    """(H, W) uint32: the objects of one image, numbered in the order of the file."""
    import numpy as np

    found = _read(_path(dataset), tuple(dataset.categories))
    assert pair.item is not None
    image = found.images[pair.item]
    masks = [_mask(segmentation, image) for segmentation in found.annotations[pair.item]]
    labels = np.zeros((image.height, image.width), np.uint32)
    for number in sorted(range(len(masks)), key=lambda index: -int(masks[index].sum())):
        labels[masks[number]] = number + 1
    return labels


def labels_to_coco(images: Iterable[tuple[str, NDArray[Any]]], category: str = "object") -> dict[str, Any]:
    """The objects of label images in COCO's format, as compressed run lengths: nothing is rounded.

    Args:
        images: file name and (H, W) integer label image of each.
    """
    import numpy as np
    from pycocotools import mask

    described: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": category}],
    }
    for image_id, (name, labels) in enumerate(images, start=1):
        height, width = labels.shape
        described["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        for object_id in np.unique(labels[labels > 0]):
            encoded = mask.encode(np.asfortranarray(labels == object_id, dtype=np.uint8))
            described["annotations"].append(
                {
                    "id": len(described["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": int(mask.area(encoded)),
                    "bbox": [float(value) for value in mask.toBbox(encoded)],
                    "segmentation": {"size": [height, width], "counts": encoded["counts"].decode()},
                }
            )
    return described


def merge_coco(parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Several files as one: images lie in a folder with the part's name, and everything is renumbered.

    Categories are taken as equal where their names are.
    """
    merged: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    categories: dict[str, int] = {}
    for folder, part in parts.items():
        of_part = {}
        for category in part["categories"]:
            of_part[category["id"]] = categories.setdefault(category["name"], len(categories) + 1)
        images = {}
        for image in part["images"]:
            images[image["id"]] = len(merged["images"]) + 1
            name = f"{folder}/{image['file_name']}"
            merged["images"].append({**image, "id": images[image["id"]], "file_name": name})
        for annotation in part["annotations"]:
            # What points to nothing still does, and is found when the merged file is read.
            changes = {
                "id": len(merged["annotations"]) + 1,
                "image_id": images.get(annotation.get("image_id"), 0),
                "category_id": of_part.get(annotation.get("category_id"), 0),
            }
            merged["annotations"].append({**annotation, **changes})
    merged["categories"] = [{"id": number, "name": name} for name, number in categories.items()]
    return merged


@dataclass(frozen=True)
class _Look:
    pairs: list[Pair]
    problems: list[Problem]
    empty: list[str]


def _look(dataset: DatasetConfig) -> _Look:
    root, path = Path(dataset.root), _path(dataset)
    if not root.is_dir():
        raise DataMissing(missing_data(dataset))
    if not path.is_file():
        raise BadInput(f"dataset.labels: {path} is no file; give COCO's annotation file, below dataset.root")
    read = _read(path, tuple(dataset.categories))
    pairs, problems, empty = [], list(read.problems), []
    for key, image in read.images.items():
        file = root / dataset.images / image.name
        if not file.is_file():
            problems.append(Problem("missing image", image.name))
        elif not read.annotations[key]:
            empty.append(image.name)
        else:
            pairs.append(Pair(_name_of(image), file, path, key))
    return _Look(sorted(pairs, key=lambda pair: pair.name), problems, empty)


def _path(dataset: DatasetConfig) -> Path:
    return Path(dataset.root) / dataset.labels


def _read(path: Path, categories: tuple[str, ...]) -> CocoFile:
    state = path.stat()
    return _read_once(path, categories, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _read_once(path: Path, categories: tuple[str, ...], changed: int, size: int) -> CocoFile:
    """The content of a file; once for each state of it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadInput(f"dataset.labels: {path} cannot be read ({error})") from error
    content = parse(text, f"dataset.labels: {path}")
    found = CocoFile()
    known = _take_categories(found, content["categories"])
    wanted = _wanted_categories(path, known, categories)
    _take_images(found, content["images"])
    seen: set[Key] = set()
    for number, annotation in enumerate(content["annotations"]):
        fields = ("id", "image_id", "category_id")
        key, of_image, category = (_key(annotation.get(name)) for name in fields)
        where = f"number {number} of the annotations" if key is None else f"annotation {key}"
        image = None if of_image is None else found.images.get(of_image)
        if key is None:
            found.problems.append(Problem("annotation without an id", where))
        elif key in seen:
            found.problems.append(Problem("duplicate annotation id", where))
        elif image is None:
            found.problems.append(Problem("annotation of an unknown image", where))
        elif category not in known:
            found.problems.append(Problem("annotation of an unknown category", f"{where} of {image.name}"))
        elif category in wanted and not annotation.get("iscrowd"):
            kind = _problem(annotation, image)
            if kind is None:
                found.annotations[image.key].append(annotation["segmentation"])
            else:
                found.problems.append(Problem(kind, f"{where} of {image.name}"))
        if key is not None:
            seen.add(key)
    return found


def parse(text: str, where: str) -> dict[str, Any]:
    """The content of an annotation file with the lists and fields that everything here relies on.

    Raises:
        BadInput: when it is something else; the sentence begins with `where`.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{where} cannot be read as JSON ({error})") from error
    for name in ("images", "annotations", "categories"):
        items = content.get(name) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise BadInput(f"{where} has no list of {name}, which COCO's format asks for")
    for name, text_field in (("images", "file_name"), ("categories", "name")):
        for index, item in enumerate(content[name]):
            if _key(item.get("id")) is None:
                raise BadInput(f"{where} has no id in number {index} of its {name}, a whole number or a name")
            if not isinstance(item.get(text_field), str) or not item[text_field]:
                raise BadInput(f"{where} has no {text_field} in number {index} of its {name}")
    return dict(content)


def _key(value: Any) -> Key | None:
    """What can be an id; None for anything else that JSON has."""
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _take_categories(found: CocoFile, listed: Sequence[dict[str, Any]]) -> dict[Key, str]:
    """The names of the categories by their ids."""
    known: dict[Key, str] = {}
    for item in listed:
        if item["id"] in known:
            found.problems.append(Problem("duplicate category id", f"{item['id']} of {item['name']}"))
        known.setdefault(item["id"], item["name"])
    return known


def _wanted_categories(path: Path, known: Mapping[Key, str], names: Sequence[str]) -> set[Key]:
    """The ids of the categories with these names; of all without names."""
    there = list(dict.fromkeys(known.values()))
    for name in names:
        if name not in there:
            raise BadInput(
                f"dataset.categories: {path} has no category {name}{nearest(name, there)}; it has "
                f"{', '.join(there) or 'none'}"
            )
    return {key for key, name in known.items() if not names or name in names}


def _take_images(found: CocoFile, images: Sequence[dict[str, Any]]) -> None:
    names: set[str] = set()
    for item in images:
        size = (item.get("height"), item.get("width"))
        image = CocoImage(item["id"], item["file_name"], *(size if all(map(_is_length, size)) else (0, 0)))
        name = _name_of(image)
        if image.key in found.images:
            found.problems.append(Problem("duplicate image id", f"{image.key} of {image.name}"))
        elif name in names:
            found.problems.append(Problem("duplicate file name", image.name))
        elif image.height < 1:
            found.problems.append(Problem("image without a size", image.name))
        else:
            found.images[image.key] = image
            found.annotations[image.key] = []
        names.add(name)


def _name_of(image: CocoImage) -> str:
    """What a run calls an image: the name of its file without suffix."""
    return Path(image.name).with_suffix("").as_posix()


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _problem(annotation: Mapping[str, Any], image: CocoImage) -> str | None:
    """What kind of problem an annotation has; None where it has none."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return "empty segmentation"
    if kind := _box_problem(annotation.get("bbox"), image):
        return kind
    if isinstance(segmentation, dict):
        kind, what = _run_length_problem(segmentation, image), "run lengths"
    elif isinstance(segmentation, list):
        kind, what = _polygon_problem(segmentation, image), "polygon"
    else:
        return "broken segmentation"
    if kind is not None:
        return kind
    from pycocotools import mask

    # A sliver has an area, and may cover no pixel.
    return None if int(mask.area(_encoded(segmentation, image))) else f"empty {what}"


def _box_problem(box: Any, image: CocoImage) -> str | None:
    if box is None:  # nothing here needs one
        return None
    if not _numbers(box, 4) or min(box[2:]) < 0:
        return "broken box"
    return None if _inside(_corners(box), image) else "box outside of its image"


def _polygon_problem(polygons: Sequence[Any], image: CocoImage) -> str | None:
    for polygon in polygons:
        if not _numbers(polygon, None) or len(polygon) < LEAST_COORDINATES or len(polygon) % 2:
            return "broken polygon"
        if not _inside(polygon, image):
            return "polygon outside of its image"
    return None


def _run_length_problem(segmentation: Mapping[str, Any], image: CocoImage) -> str | None:
    if segmentation.get("size") != [image.height, image.width]:
        return "run lengths of another size than the image"
    counts = segmentation.get("counts")
    lengths = _uncompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(
        isinstance(length, int) and length >= 0 for length in lengths
    ):
        return "broken run lengths"
    # pycocotools leaves the pixels that they do not reach to chance.
    return None if sum(lengths) == image.height * image.width else "broken run lengths"


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
        if not 0 <= group < 64:
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


def _numbers(values: Any, count: int | None) -> bool:
    if not isinstance(values, list) or (count is not None and len(values) != count):
        return False
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    )


def _corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _inside(coordinates: Sequence[float], image: CocoImage) -> bool:
    """Whether points x, y, x, y, … lie in an image, rounding allowed for."""
    return all(-TOLERANCE <= x <= image.width + TOLERANCE for x in coordinates[::2]) and all(
        -TOLERANCE <= y <= image.height + TOLERANCE for y in coordinates[1::2]
    )


def _mask(segmentation: Any, image: CocoImage) -> NDArray[np.bool_]:
    """(H, W) bool of polygons, or of run lengths, compressed or not, which have no problem."""
    from pycocotools import mask

    decoded: NDArray[np.bool_] = mask.decode(_encoded(segmentation, image)).astype(bool)
    return decoded


def _encoded(segmentation: Any, image: CocoImage) -> Any:
    """The same as pycocotools' compressed run lengths."""
    from pycocotools import mask

    if isinstance(segmentation, list):
        return mask.merge(mask.frPyObjects(segmentation, image.height, image.width))
    if isinstance(segmentation["counts"], list):
        return mask.frPyObjects(segmentation, image.height, image.width)
    return {**segmentation, "counts": segmentation["counts"].encode()}


def _counted(problems: Sequence[Problem]) -> str:
    """`2 missing images (a.png, b.png), 1 broken polygon (annotation 7 of c.png)`."""
    kinds = Counter(problem.kind for problem in problems)
    return ", ".join(
        f"{count} × {kind} ({_some([problem.where for problem in problems if problem.kind == kind])})"
        for kind, count in kinds.items()
    )


def _number(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
