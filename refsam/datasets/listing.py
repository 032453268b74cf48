"""Which image belongs to which label image. Looks at names; index.py looks inside."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from refsam.datasets.coco import list_coco_pairs
from refsam.datasets.pair import COCO, DataMissing, Pair, missing_data
from refsam.errors import ConfigError, some
from refsam.system.names import normalized

if TYPE_CHECKING:
    from refsam.configuration.schema import DatasetConfig  # importing Hydra takes a third of a second

LABEL_SUFFIXES = ("", "_mask", "_masks", "_label", "_labels", "_seg")
WILDCARDS = frozenset("*?[")


def list_pairs(dataset: DatasetConfig) -> list[Pair]:
    """All pairs of a data set, sorted by name.

    An image belongs to the label image with the same stem, or with the same stem and one of LABEL_SUFFIXES;
    where stems repeat in several folders, the folders that the patterns leave open have to agree too. Names
    that print alike are equal, and patterns take the suffix in capitals as well as in small letters. Labels
    that no image matched are ignored, images without a label are an error. Hidden files are not looked at.

    Raises:
        DataMissing: when `dataset.root` is not a folder.
        ConfigError: when a pattern finds nothing, images and labels do not pair, or annotations cannot be
            used.
    """
    if dataset.format == COCO:
        return list_coco_pairs(dataset)
    root = Path(dataset.root)
    if not root.is_dir():
        raise DataMissing(missing_data(dataset))
    labels = _matches(root, dataset.labels, "dataset.labels")
    if dataset.images == dataset.labels:
        if dataset.image_key is None or dataset.label_key is None or dataset.image_key == dataset.label_key:
            raise ConfigError(
                f"dataset.labels is the same pattern as dataset.images ({dataset.images!r}), which is "
                "allowed only for HDF5 files with a dataset.image_key and another dataset.label_key"
            )
        return _named(root, [(path, path) for path in labels])
    # `images=*.tif labels=*_mask.tif` means: the masks are no images.
    known = set(labels)
    images = [path for path in _matches(root, dataset.images, "dataset.images") if path not in known]
    if not images:
        raise ConfigError(
            f"dataset.images {dataset.images!r} matches only files that dataset.labels {dataset.labels!r} "
            "matches too; the patterns have to tell images from labels"
        )
    return _named(root, _paired(root, images, labels, dataset))


def complete_pairs(dataset: DatasetConfig) -> list[Pair]:
    """All pairs of a data set, sorted by name: of a published one as many as were published.

    Raises:
        ConfigError: as list_pairs does, and where the folder holds another number of images.
    """
    pairs = list_pairs(dataset)
    # Annotations that cannot be used are left out, and that is said.
    if dataset.n_files in (None, len(pairs)) or dataset.version is None or dataset.format == COCO:
        return pairs
    raise ConfigError(
        f"dataset.root {dataset.root} holds {len(pairs)} of the {dataset.n_files} images of {dataset.name}; "
        "remove the folder and prepare it again, or give another dataset.root (your own images: "
        "dataset=folder)"
    )


def count_images(dataset: DatasetConfig) -> int:
    """How many images a data set has; for a published one that is not fetched yet, as published.

    Raises:
        ConfigError: as list_pairs does.
    """
    if dataset.version is not None and dataset.n_files is not None and not Path(dataset.root).is_dir():
        return dataset.n_files
    return len(list_pairs(dataset))


def _matches(root: Path, pattern: str, field: str) -> list[Path]:
    parts = PurePosixPath(pattern).parts
    if not parts or PurePosixPath(pattern).is_absolute() or ".." in parts:
        raise ConfigError(
            f"{field} {pattern!r} is not a glob pattern below dataset.root, such as images/*.tif"
        )
    if any("**" in part and part != "**" for part in parts):
        raise ConfigError(
            f"{field} {pattern!r}: ** stands for folders, alone between slashes, as in **/*.tif"
        )
    listed = {
        path
        for form in _forms(pattern)
        for path in root.glob(form)
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    }
    for path in listed:
        if path.is_symlink() and not path.exists():
            raise ConfigError(f"{field} {pattern!r} matches {path}, a broken link")
        if not _is_text(str(path)):
            raise ConfigError(
                f"{field} {pattern!r} matches {str(path)!a}, whose name is not UTF-8; rename it"
            )
    found = sorted(path for path in listed if path.is_file())
    if not found:
        closed = _closed_folder(root, parts)
        why = f" ({closed} cannot be read)" if closed else ""
        raise ConfigError(f"{field} {pattern!r} matches no file in {root}{why}; at least one is needed")
    return found


def _forms(pattern: str) -> set[str]:
    """The pattern with its characters composed and decomposed, and its suffix in letters of either case."""
    suffix = re.search(r"(\.ome)?\.[a-z0-9]+$", pattern, re.IGNORECASE)
    if suffix is not None:
        either = "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in suffix[0])
        pattern = pattern[: suffix.start()] + either
    return {pattern, *(unicodedata.normalize(form, pattern) for form in ("NFC", "NFD"))}


def _closed_folder(root: Path, parts: Sequence[str]) -> Path | None:
    """The first of the folders that a pattern names before its wildcards that may not be looked into."""
    for part in ("", *itertools.takewhile(lambda part: not WILDCARDS & set(part), parts)):
        root = root / part
        if not root.is_dir():
            return None
        if not os.access(root, os.R_OK | os.X_OK):
            return root
    return None


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _paired(
    root: Path, images: Sequence[Path], labels: Sequence[Path], dataset: DatasetConfig
) -> list[tuple[Path, Path]]:
    by_folder = len({normalized(path.stem) for path in images}) < len(images)

    def key(path: Path, pattern: str) -> tuple[str, ...]:
        return (*(_open_folders(root, path, pattern) if by_folder else ()), normalized(path.stem))

    candidates: dict[tuple[str, ...], list[Path]] = {}
    for label in labels:
        candidates.setdefault(key(label, dataset.labels), []).append(label)
    pairs: list[tuple[Path, Path]] = []
    unmatched: list[str] = []
    for image in images:
        *folders, stem = key(image, dataset.images)
        found = [
            label for suffix in LABEL_SUFFIXES for label in candidates.get((*folders, stem + suffix), ())
        ]
        if len(found) > 1:
            raise ConfigError(
                f"dataset.labels {dataset.labels!r} matches {len(found)} label images for "
                f"{_below(root, image)} ({some([_below(root, label) for label in found])}), and exactly one "
                "is allowed"
            )
        if found:
            pairs.append((image, found[0]))
        else:
            unmatched.append(_below(root, image))
    if unmatched:
        used = {label for _, label in pairs}
        spare = [_below(root, label) for label in labels if label not in used]
        raise ConfigError(
            f"dataset.images found {len(images)} images and dataset.labels {len(labels)} label images in "
            f"{root}, but {len(unmatched)} images have no label ({some(unmatched)}; labels left over: "
            f"{some(spare)}); every image needs a label image of the same name, or with one of "
            + ", ".join(LABEL_SUFFIXES[1:])
            + " appended"
        )
    twice = [label for label, count in Counter(label for _, label in pairs).items() if count > 1]
    if twice:
        owners = [_below(root, image) for image, label in pairs if label == twice[0]]
        raise ConfigError(
            f"dataset.images matches {len(owners)} images ({some(owners)}) for the one label image "
            f"{_below(root, twice[0])}, and exactly one is allowed"
        )
    return pairs


def _open_folders(root: Path, path: Path, pattern: str) -> tuple[str, ...]:
    """The folders of `path` that the pattern leaves open: `a` for a/images/1.tif and */images/*.tif."""
    literal = {normalized(part) for part in PurePosixPath(pattern).parts[:-1] if not WILDCARDS & set(part)}
    folders = (normalized(part) for part in path.relative_to(root).parts[:-1])
    return tuple(part for part in folders if part not in literal)


def _named(root: Path, files: Sequence[tuple[Path, Path]]) -> list[Pair]:
    pairs = sorted(
        (
            Pair(normalized(image.relative_to(root).with_suffix("").as_posix()), image, label)
            for image, label in files
        ),
        key=lambda pair: pair.name,
    )
    repeated = [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]
    if repeated:
        raise ConfigError(
            f"dataset.images matches several files that differ only in their suffix ({some(repeated)}), and "
            "one file per name is allowed; name the suffix in the pattern, such as images/*.tif"
        )
    return pairs


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
