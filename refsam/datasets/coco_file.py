"""An annotation file in COCO's format: its images and their objects, and what in it cannot be used.

Everything that is wrong in a file is found before anything else is read from it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from refsam.datasets.coco_segmentation import RunLengths, Unusable, covered, run_lengths
from refsam.datasets.coco_values import Key, flag, key, whole
from refsam.errors import ConfigError, nearest, os_reason
from refsam.system.names import normalized

INCLUDE = "include"  # of dataset.crowds
CROWD = "crowd"
COVERED = "object covered by others"
OTHER_CATEGORY = "object of another category"
MOST_PIXELS = 2**31  # of an image; run lengths have 32 bits


@dataclass(frozen=True)
class CocoImage:
    """One image of a file; `name` is its file_name, below the folder of the images."""

    key: Key
    name: str
    height: int
    width: int


@dataclass(frozen=True)
class CocoProblem:
    """Something that is left out: what kind of thing, and where."""

    kind: str
    where: str


@dataclass
class CocoFile:
    """What can be used of a file, and what cannot.

    Attributes:
        images: by their ids.
        objects: run lengths of an image's objects by the image's id, in the order of the file, those
            included that others cover.
        problems: what is wrong and left out, images that are not there excepted.
        no_objects: annotations that are in order and give no object: crowds, other categories, and objects
            that others cover.
    """

    images: dict[Key, CocoImage] = field(default_factory=dict)
    objects: dict[Key, list[RunLengths]] = field(default_factory=dict)
    problems: list[CocoProblem] = field(default_factory=list)
    no_objects: list[CocoProblem] = field(default_factory=list)


def read_coco(path: Path, categories: Sequence[str], crowds: str) -> CocoFile:
    """The content of a file; each state of a file is read once.

    Args:
        categories: names of those whose annotations are objects; none: all.
        crowds: `include` where crowds are objects too.

    Raises:
        ConfigError: when the file cannot be read, is of another format, or lacks one of the categories.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise ConfigError(f"dataset.labels: {path} cannot be read ({os_reason(error)})") from error
    return _read(path, tuple(categories), crowds == INCLUDE, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, categories: tuple[str, ...], crowds: bool, changed: int, size: int) -> CocoFile:
    where = f"dataset.labels: {path}"
    try:
        content = parse(path.read_bytes(), where)
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({os_reason(error)})") from error
    found = CocoFile()
    known = _take_categories(found, content["categories"])
    wanted = _wanted_categories(path, known, categories)
    dropped = _take_images(found, content["images"])
    names: dict[Key, list[str]] = {image: [] for image in found.images}
    seen: set[Key] = set()
    for number, annotation in enumerate(content["annotations"]):
        identity, of_image = key(annotation.get("id")), key(annotation.get("image_id"))
        place = f"number {number} of the annotations" if identity is None else f"annotation {identity}"
        if of_image in dropped:  # the image is among the problems
            continue
        image = None if of_image is None else found.images.get(of_image)
        if identity is None:
            found.problems.append(CocoProblem("annotation without an id", place))
        elif identity in seen:
            found.problems.append(CocoProblem("duplicate annotation id", place))
        elif image is None:
            found.problems.append(CocoProblem("annotation of an unknown image", place))
        else:
            place = f"{place} of {image.name}"
            _take_annotation(found, annotation, image, place, known, wanted, crowds)
            names[image.key] += [place] * (len(found.objects[image.key]) - len(names[image.key]))
        if identity is not None:
            seen.add(identity)
    for image_key, objects in found.objects.items():
        found.no_objects += [CocoProblem(COVERED, names[image_key][index]) for index in covered(objects)]
    return found


def _take_annotation(
    found: CocoFile,
    annotation: dict[str, Any],
    image: CocoImage,
    place: str,
    known: Mapping[Key, str],
    wanted: set[Key],
    crowds: bool,
) -> None:
    category, crowd = key(annotation.get("category_id")), flag(annotation.get("iscrowd"))
    if category is None or category not in known:
        kind = "annotation without a category" if category is None else "annotation of an unknown category"
        found.problems.append(CocoProblem(kind, place))
    elif category not in wanted:
        found.no_objects.append(CocoProblem(OTHER_CATEGORY, place))
    elif crowd is None:
        found.problems.append(CocoProblem("iscrowd that is neither 0 nor 1", place))
    elif crowd and not crowds:
        found.no_objects.append(CocoProblem(CROWD, place))
    else:
        try:
            found.objects[image.key].append(run_lengths(annotation, (image.height, image.width)))
        except Unusable as problem:
            found.problems.append(CocoProblem(str(problem), place))


def parse(encoded: bytes, where: str) -> dict[str, Any]:
    """The content of an annotation file with the lists and fields that everything here relies on.

    Ids of images and categories are those that `key` makes of them, names of categories are text.

    Raises:
        ConfigError: when it is something else; the sentence begins with `where`.
    """
    content = _json(encoded, where)
    for name in ("images", "annotations", "categories"):
        items = content.get(name) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            if (other := other_format(content)) is not None:
                raise ConfigError(f"{where} looks like {other}; export it in COCO's format (instances)")
            raise ConfigError(f"{where} has no list of {name}, which COCO's format asks for")
    if any("segments_info" in item for item in content["annotations"]):
        raise ConfigError(f"{where} looks like COCO's panoptic format; export it as COCO instances")
    for name, text_field in (("images", "file_name"), ("categories", "name")):
        for index, item in enumerate(content[name]):
            if (found := key(item.get("id"))) is None:
                raise ConfigError(
                    f"{where} has no id in number {index} of its {name}, a whole number or a name"
                )
            text = item.get(text_field)
            if name == "categories" and whole(text) is not None:
                text = str(text)
            if not isinstance(text, str) or not text:
                raise ConfigError(f"{where} has no {text_field} in number {index} of its {name}")
            content[name][index] = {**item, "id": found, text_field: text}
    return dict(content)


def _json(encoded: bytes, where: str) -> Any:
    if encoded.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(f"{where} is encoded as UTF-16; save it as UTF-8")
    try:
        text = encoded.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if text.lstrip().startswith("<"):
        raise ConfigError(f"{where} is XML or HTML, not JSON; export it in COCO's format")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} cannot be read as JSON ({error})") from error


def other_format(content: Any) -> str | None:
    """Which other format than COCO's a JSON file seems to be of; None where nobody can tell."""
    if isinstance(content, list):
        return _other_list(content)
    if not isinstance(content, dict):
        return None
    fields, first = set(content), next(iter(content.values()), None)
    if {"shapes", "imagePath"} <= fields:
        return "LabelMe's format"
    if fields & {"_via_img_metadata", "_via_settings"} or (
        isinstance(first, dict) and {"filename", "regions"} <= set(first)
    ):
        return "VIA's format"
    if content.get("type") in ("FeatureCollection", "Feature"):
        return "GeoJSON, as QuPath exports it"
    if {"objects", "size"} <= fields:
        return "Supervisely's format"
    return "Labelbox's format" if "data_row" in fields else None


def _other_list(content: list[Any]) -> str | None:
    fields = set(content[0]) if content and isinstance(content[0], dict) else set()
    if fields & {"data_row", "Labeled Data"}:
        return "Labelbox's format"
    if "data" in fields and fields & {"annotations", "completions"}:
        return "Label Studio's format"
    if {"geometry", "properties"} <= fields:
        return "GeoJSON, as QuPath exports it"
    if {"image", "annotations"} <= fields:
        return "CreateML's format"
    return "COCO's format of results, which has no images" if "image_id" in fields else None


def _take_categories(found: CocoFile, listed: Sequence[dict[str, Any]]) -> dict[Key, str]:
    """The names of the categories by their ids."""
    known: dict[Key, str] = {}
    for item in listed:
        if item["id"] in known:
            found.problems.append(CocoProblem("duplicate category id", f"{item['id']} of {item['name']}"))
        known.setdefault(item["id"], normalized(item["name"]))
    return known


def _wanted_categories(path: Path, known: Mapping[Key, str], names: Sequence[str]) -> set[Key]:
    """The ids of the categories with these names; of all without names."""
    there, asked = list(dict.fromkeys(known.values())), [normalized(name) for name in names]
    for name in asked:
        if name not in there:
            raise ConfigError(
                f"dataset.categories: {path} has no category {name}{nearest(name, there)}; it has "
                f"{', '.join(there) or 'none'}"
            )
    return {category for category, name in known.items() if not names or name in asked}


def _take_images(found: CocoFile, images: Sequence[dict[str, Any]]) -> set[Key | None]:
    """Take the images that can be used, and return the ids of the others."""
    names: set[PurePosixPath] = set()
    dropped: set[Key | None] = set()
    for item in images:
        height, width = whole(item.get("height")) or 0, whole(item.get("width")) or 0
        image = CocoImage(item["id"], item["file_name"], height, width)
        path = PurePosixPath(normalized(image.name.replace("\\", "/")))
        name = path.parent / path.stem  # as runs call it
        kind = None
        if image.key in found.images:
            kind = "duplicate image id"
        elif name in names:
            kind = "duplicate file name"
        elif min(height, width) < 1:
            kind = "image without a size"
        elif height * width > MOST_PIXELS:
            kind = "image of more than 2^31 pixels"
        if kind is None:
            found.images[image.key] = image
            found.objects[image.key] = []
        else:
            where = f"{image.key} of {image.name}" if kind == "duplicate image id" else image.name
            found.problems.append(CocoProblem(kind, where))
            if image.key not in found.images:
                dropped.add(image.key)
        names.add(name)
    return dropped
