"""A data set whose objects are in an annotation file of COCO's format. Needs pycocotools and no torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

from refsam.datasets.coco_file import CROWD, INCLUDE, CocoProblem, read_coco
from refsam.datasets.coco_segmentation import painted
from refsam.datasets.decoded import PLAUSIBLE_BYTES, PLAUSIBLE_RATIO
from refsam.datasets.pair import DataMissing, Pair, missing_data
from refsam.errors import ConfigError, some
from refsam.system.names import normalized

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from refsam.configuration.schema import DatasetConfig

SKIP, REFUSE = "skip", "refuse"


def list_coco_pairs(dataset: DatasetConfig) -> list[Pair]:
    """The images of a COCO data set that have objects, sorted by name.

    Raises:
        DataMissing: when `dataset.root` is no folder.
        ConfigError: when the file cannot be read, when nothing is left, and where `dataset.on_problem` or
            `dataset.empty_images` refuses what was found.
    """
    found = _look(dataset)
    if found.problems and dataset.on_problem == REFUSE:
        raise ConfigError(
            f"dataset.labels: {_path(dataset)} has {_counted(found.problems)}; correct the file, or leave "
            f"out what is wrong with dataset.on_problem={SKIP}"
        )
    if not found.pairs:
        raise ConfigError(f"dataset.labels: {_path(dataset)} {_nothing_left(found)}")
    if found.empty and dataset.empty_images == REFUSE:
        raise ConfigError(
            f"dataset.labels: {_path(dataset)} has {_number(len(found.empty), 'image')} without objects "
            f"({some(found.empty)}); annotate them, or leave them out with dataset.empty_images={SKIP}"
        )
    return found.pairs


def left_out(dataset: DatasetConfig) -> str | None:
    """What is left out of a COCO data set, by reason, in one sentence; None where nothing is."""
    found = _look(dataset)
    counted = [*found.problems, *found.no_objects]
    parts = [_counted(counted)] if counted else []
    if found.empty:
        parts.append(f"{_number(len(found.empty), 'image')} without objects ({some(found.empty)})")
    if not parts:
        return None
    hint = f"; dataset.crowds={INCLUDE} takes crowds as objects" if _crowds(found) else ""
    return f"{_path(dataset)}: left out are {', and '.join(parts)}{hint}"


def read_coco_labels(pair: Pair, dataset: DatasetConfig) -> NDArray[np.uint32]:
    """(H, W) uint32: the objects of one image, numbered in the order of the file."""
    found = read_coco(_path(dataset), dataset.categories, dataset.crowds)
    assert pair.item is not None
    image = found.images[pair.item]
    return painted(found.objects[pair.item], (image.height, image.width))


@dataclass(frozen=True)
class _Look:
    pairs: list[Pair]
    problems: list[CocoProblem]
    no_objects: list[CocoProblem]
    empty: list[str]


def _look(dataset: DatasetConfig) -> _Look:
    root, path = Path(dataset.root), _path(dataset)
    if not root.is_dir():
        raise DataMissing(missing_data(dataset))
    if not path.is_file():
        raise ConfigError(
            f"dataset.labels: {path} is not a file; give COCO's annotation file, below dataset.root"
        )
    read = read_coco(path, dataset.categories, dataset.crowds)
    folder = root / dataset.images
    listed = cache(lambda: {normalized(name): folder / name for name in _files_below(folder)})
    pairs: dict[str, Pair] = {}
    problems, empty = list(read.problems), []
    for key, image in read.images.items():
        file = _file_of(image.name, folder, listed)
        # What a run calls the image: the name of its file without suffix.
        name = normalized(file.relative_to(folder).with_suffix("").as_posix()) if file else ""
        if _leaves(image.name.replace("\\", "/")):
            problems.append(CocoProblem("file name that leaves dataset.images", image.name))
        elif file is None:
            problems.append(CocoProblem("missing image", image.name))
        elif image.height * image.width > max(PLAUSIBLE_BYTES, PLAUSIBLE_RATIO * file.stat().st_size):
            problems.append(CocoProblem("image of a size that its file cannot have", image.name))
        elif not read.objects[key]:
            empty.append(image.name)
        elif name in pairs:
            problems.append(CocoProblem("duplicate file name", image.name))
        else:
            pairs[name] = Pair(name, file, path, key)
    return _Look([pairs[name] for name in sorted(pairs)], problems, read.no_objects, empty)


def _path(dataset: DatasetConfig) -> Path:
    return Path(dataset.root) / dataset.labels


def _file_of(name: str, folder: Path, listed: Callable[[], Mapping[str, Path]]) -> Path | None:
    """The file that an annotation file calls `name`: as it is written, or else with slashes for backslashes,
    with the characters that URLs encode, or with characters composed otherwise.
    """
    slashes = name.replace("\\", "/")
    spellings = dict.fromkeys((name, slashes, unquote(name), unquote(slashes)))
    allowed = [spelling for spelling in spellings if not _leaves(spelling)]
    for spelling in allowed:
        if _is_file(folder / spelling):
            return folder / spelling
    found = (listed().get(normalized(spelling)) for spelling in allowed)
    return next((file for file in found if file is not None), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _leaves(name: str) -> bool:
    """Whether a name points out of its folder."""
    return PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts


def _files_below(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield (Path(parent) / name).relative_to(folder).as_posix()


def _nothing_left(found: _Look) -> str:
    crowds = _crowds(found)
    if crowds and not found.problems and crowds == len(found.no_objects):
        return (
            f"has {_number(crowds, 'object')}, all of them crowds (iscrowd=1), as CVAT and pycococreator "
            f"mark brush masks; take them as objects with dataset.crowds={INCLUDE}"
        )
    counted = [*found.problems, *found.no_objects]
    return "has no image with an object that can be used, and at least one is needed" + (
        f" (left out are {_counted(counted)})" if counted else ""
    )


def _crowds(found: _Look) -> int:
    return sum(item.kind == CROWD for item in found.no_objects)


def _counted(found: Sequence[CocoProblem]) -> str:
    """`2 × missing image (a.png, b.png), 1 × broken polygon (annotation 7 of c.png)`."""
    kinds = Counter(item.kind for item in found)
    return ", ".join(
        f"{count} × {kind} ({some([item.where for item in found if item.kind == kind])})"
        for kind, count in kinds.items()
    )


def _number(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
