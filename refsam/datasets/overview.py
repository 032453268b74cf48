"""What a data set holds, for a person to look at before anything runs: numbers of its facts, and warnings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from refsam.configuration.split import split_sizes
from refsam.datasets.index import ImageFacts, binary_masks, shape_text
from refsam.datasets.pair import COCO, Pair
from refsam.errors import some

if TYPE_CHECKING:
    from refsam.configuration.schema import DatasetConfig

SHOWN = 3  # kinds of a property
DARK = 32  # 8-bit images without a value as high are black to the eye

Counts = tuple[tuple[str, int], ...]  # what, and how many images have it; the most frequent first


@dataclass(frozen=True)
class Overview:
    """What a data set holds.

    Attributes:
        n_images: images with labels.
        split: how many train at most, validate and test; None where it cannot be split.
        folds: of k-fold cross-validation, whose first one the split is; None without.
        suffixes: of the image files.
        sizes: height × width in pixels.
        channels: what is made of the files' channels.
        types: of the pixel values in the files.
        values: the lowest and the highest pixel value.
        sources: formats, and what was read of them.
        objects_per_image: fewest, median, most.
        object_pixels: of the smallest object, the median of the images' medians, of the largest object.
        warnings: what looks wrong and may be right, one sentence each.
    """

    name: str
    root: str
    n_images: int
    split: tuple[int, int, int] | None
    suffixes: Counts
    sizes: Counts
    channels: Counts
    types: Counts
    values: tuple[float, float]
    sources: Counts
    n_objects: int
    objects_per_image: tuple[int, float, int]
    object_pixels: tuple[int, float, int]
    warnings: tuple[str, ...]
    folds: int | None = None


def overview(dataset: DatasetConfig, pairs: Sequence[Pair], facts: Mapping[str, ImageFacts]) -> Overview:
    """The overview of a data set with at least one image.

    Args:
        pairs: all of its images.
        facts: about each of them, by name.
    """
    all_facts = [facts[pair.name] for pair in pairs]
    images = [fact.image for fact in all_facts]
    numbers = [fact.n_objects for fact in all_facts]
    return Overview(
        name=dataset.name,
        root=dataset.root,
        n_images=len(pairs),
        split=_split(dataset, [pair.name for pair in pairs]),
        suffixes=_counts(pair.image.suffix for pair in pairs),
        sizes=_counts(shape_text(image.shape) for image in images),
        channels=_counts(_channels(dataset, image.channels, image.in_file) for image in images),
        types=_counts(image.dtype for image in images),
        values=(min(image.lowest for image in images), max(image.highest for image in images)),
        sources=_counts(image.source for image in images),
        n_objects=sum(numbers),
        objects_per_image=(min(numbers), median(numbers), max(numbers)),
        object_pixels=(
            min((fact.smallest_object for fact in all_facts if fact.n_objects), default=0),
            median([fact.median_object for fact in all_facts if fact.n_objects] or [0]),
            max(fact.largest_object for fact in all_facts),
        ),
        warnings=tuple(_warnings(dataset, facts)),
    )


def in_folds(found: Overview, dataset: DatasetConfig, names: Sequence[str], folds: int) -> Overview:
    """The same data set, split into folds."""
    return replace(found, split=_split(dataset, names, folds), folds=folds)


def rows(found: Overview) -> list[tuple[str, str]]:
    """The lines of its table: what, and its words. Warnings are not among them."""
    least, middle, most = found.objects_per_image
    smallest, usual, largest = found.object_pixels
    return [
        ("data set", f"{found.name} ({found.root})"),
        ("images", f"{found.n_images:,} ({_words(found.suffixes)})"),
        ("split", _split_words(found) or "too few images for training, validation and test"),
        ("sizes", f"{_words(found.sizes)} pixels"),
        ("channels", _words(found.channels)),
        ("types", f"{_words(found.types)}; values from {found.values[0]:g} to {found.values[1]:g}"),
        ("read as", _words(found.sources)),
        ("objects", f"{found.n_objects:,}; per image: fewest {least:,}, median {middle:g}, most {most:,}"),
        ("object sizes", f"smallest {smallest:,}, median {usual:g}, largest {largest:,} pixels"),
    ]


def short_lines(found: Overview, with_root: bool = False) -> list[str]:
    """The same in two lines; with its folder, where another data set has the same name."""
    least, middle, most = found.objects_per_image
    smallest, usual, _ = found.object_pixels
    files = _words(found.suffixes) if len(found.suffixes) > 1 else ""
    images = "; ".join(filter(None, (files, _split_words(found))))
    root = f" ({found.root})" if with_root else ""
    return [
        f"Data set {found.name}{root}: {found.n_images:,} images{f' ({images})' if images else ''}, "
        f"{_words(found.sizes)} pixels, {_words(found.channels)}, {_words(found.types)}",
        f"  {found.n_objects:,} objects: {least:,} to {most:,} per image (median {middle:g}), the smallest "
        f"of {smallest:,} pixels (median {usual:g})",
    ]


def _split(
    dataset: DatasetConfig, names: Sequence[str], folds: int | None = None
) -> tuple[int, int, int] | None:
    try:
        return split_sizes(dataset, names, folds)
    except ValueError:
        return None


def _split_words(found: Overview) -> str | None:
    if found.split is None:
        return None
    train, validation, test = found.split
    if found.folds is None:
        return f"{train:,} to train, {validation:,} to validate, {test:,} to test"
    # Where the images cannot be dealt evenly, the last folds test one less.
    uneven = found.n_images % found.folds != 0
    trains, tests = (f"{train:,} or {train + 1:,}", f"{test - 1:,} or {test:,}") if uneven else (train, test)
    return f"{found.folds:,} folds, each {trains} to train, {validation:,} to validate, {tests} to test"


def _channels(dataset: DatasetConfig, channels: int, in_file: int) -> str:
    if dataset.channels is not None:
        chosen = ",".join("null" if name is None else str(name) for name in dataset.channels)
        return f"[{chosen}] of {in_file}"
    kind = "grey" if channels == 1 else "RGB"
    return kind if in_file == channels else f"{kind} and opacity"


def _counts(values: Iterable[str]) -> Counts:
    return tuple(Counter(values).most_common())


def _words(counts: Counts) -> str:
    """`uint8`, or `uint8 (40), uint16 (8)`."""
    if len(counts) == 1:
        return counts[0][0]
    shown = ", ".join(f"{what or 'none'} ({number:,})" for what, number in counts[:SHOWN])
    return shown + (f", … ({len(counts) - SHOWN:,} others)" if len(counts) > SHOWN else "")


def _warnings(dataset: DatasetConfig, facts: Mapping[str, ImageFacts]) -> list[str]:
    total = len(facts)

    def having(holds: Callable[[ImageFacts], bool]) -> list[str]:
        return [name for name, fact in facts.items() if holds(fact)]

    found = []
    undecided = dataset.labels_are is None and not binary_masks(dataset, facts)
    if undecided and (split := having(lambda fact: fact.n_split > 0)):
        found.append(_split_objects(dataset, facts, split))
    large = having(lambda fact: 2 * fact.largest_object > math.prod(fact.label_shape))
    if 2 * len(large) > total:
        found.append(
            f"{_of(large, total)} covered by one object for more than a half; the background has to be 0"
        )
    if turned := having(lambda fact: fact.image.orientation != 1):
        found.append(f"{_of(turned, total)} turned as their orientation in EXIF says")
    if lying := having(lambda fact: fact.image.ignored_orientation):
        found.append(
            f"{_of(lying, total)} not turned as their orientation in EXIF says, because their labels have "
            "the size of the unturned image"
        )
    if opaque := having(lambda fact: fact.image.used_alpha):
        found.append(
            f"{_of(opaque, total)} read without their opacity, which differs between pixels; if it is a "
            "channel of its own, choose channels with dataset.channels"
        )
    if dataset.normalize in ("auto", "none") and (
        dark := having(lambda fact: fact.image.dtype == "uint8" and fact.image.highest < DARK)
    ):
        found.append(
            f"{_of(dark, total)} nearly black, of 8 bit without a value above {DARK - 1}; "
            "dataset.normalize=percentile stretches them"
        )
    if empty := having(lambda fact: fact.image.lowest == fact.image.highest):
        found.append(f"{_of(empty, total)} of one value in all pixels")
    return [f"dataset {dataset.name}: {sentence}" for sentence in found]


def _split_objects(dataset: DatasetConfig, facts: Mapping[str, ImageFacts], names: Sequence[str]) -> str:
    total = len(facts)
    split = sum(facts[name].n_split for name in names)
    what = (
        f"{split:,} of {sum(fact.n_objects for fact in facts.values()):,} objects, in {len(names):,} of "
        f"{total:,} images ({some(names)}), are in several pieces: training takes each piece as an object, "
        "the evaluation all of them as one"
    )
    mostly = sum(2 * facts[name].n_split > facts[name].n_objects for name in names)
    if dataset.format != COCO and 2 * mostly > total:
        what += "; if the ids are classes, dataset.labels_are=components numbers the pieces"
    return what


def _of(names: Sequence[str], total: int) -> str:
    """`3 of 48 images (a, b, c) are`."""
    return f"{len(names):,} of {total:,} images ({some(names)}) {'is' if len(names) == 1 else 'are'}"
