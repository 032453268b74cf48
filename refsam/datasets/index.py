"""Facts about the files of a data set, which a plan checks before anything is submitted.

Reading all files takes seconds, so the facts are kept in the user's cache folder, one JSON file per data set
root.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from refsam.datasets.listing import Pair, list_pairs
from refsam.datasets.pairs import read_pair_labels
from refsam.datasets.reading import read_image
from refsam.errors import BadInput
from refsam.records.files import read_json, write_json

if TYPE_CHECKING:
    from refsam.configuration.schema import DatasetConfig

FORMAT = 2  # of the cached facts; a change of ImageFacts or of what is counted needs another number
PATIENCE = 1.0  # seconds before a progress bar appears
MOST_READERS = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFacts:
    """What a plan has to know of a pair.

    Attributes:
        shape: (H, W) of the image in pixels.
        channels: 1 (grey) or 3 (RGB).
        dtype: numpy's name of the image's data type in the file.
        label_shape: (H, W) of the label image in pixels.
        n_objects: number of ids beside the background.
        largest_object: pixels of the largest object, 0 where there is none.
        content: hash of the pixels of image and label image, whatever file format and path they have.
    """

    shape: tuple[int, int]
    channels: int
    dtype: str
    label_shape: tuple[int, int]
    n_objects: int
    largest_object: int
    content: str


def default_cache() -> Path:
    """The folder of the cached facts, below the user's cache folder."""
    return Path(platformdirs.user_cache_dir("refsam")) / "images"


def inspect(
    pairs: Sequence[Pair], dataset: DatasetConfig, cache: Path | None = None
) -> dict[str, ImageFacts]:
    """Facts about each pair, by name. Only files that are new or changed since the last call are read.

    `cache` is the folder of the cached facts (default_cache() when None). A file counts as unchanged when its
    path, its size and its time of modification are.

    Raises:
        BadInput: when a file cannot be read as an image or a label image.
    """
    root = str(Path(dataset.root).resolve())
    store = (cache or default_cache()) / f"{hashlib.sha256(root.encode()).hexdigest()[:16]}.json"
    known = _load(store)
    identities = {pair.name: _identity(pair, dataset) for pair in pairs}
    facts = {name: known[identity] for name, identity in identities.items() if identity in known}
    todo = [pair for pair in pairs if pair.name not in facts]
    if todo:
        facts.update(_read_all(todo, dataset))
        # Facts of other subsets of the same root stay, those of files that have changed or gone do not.
        present = {name.split("\n", 1)[0] for name in identities.values()}
        kept = {
            identity: fact
            for identity, fact in known.items()
            if (path := identity.split("\n", 1)[0]) not in present and Path(path).exists()
        }
        _save(store, {**kept, **{identities[name]: fact for name, fact in facts.items()}})
    return {pair.name: facts[pair.name] for pair in pairs}


def check_images(dataset: DatasetConfig, facts: Mapping[str, ImageFacts], patch_shape: Sequence[int]) -> None:
    """Refuse images that a run could not use.

    Raises:
        BadInput: for an image and a label image of different sizes, labels without any object that is as
        large as
            `dataset.min_object_size`, or an image smaller than `patch_shape` (H, W) while `dataset.padding`
            is off.
    """
    height, width = patch_shape
    for name, fact in facts.items():
        if fact.shape != fact.label_shape:
            raise BadInput(
                f"dataset.labels: the label image of {name} has {_size(fact.label_shape)} pixels and its "
                f"image {_size(fact.shape)}, and both have to have the same height and width"
            )
        if fact.n_objects == 0:
            raise BadInput(
                f"dataset.labels: the label image of {name} has no object, and at least one is needed"
            )
        if fact.largest_object < dataset.min_object_size:
            raise BadInput(
                f"dataset.min_object_size is {dataset.min_object_size} pixels, but the largest object of "
                f"{name} has {fact.largest_object}, and at least one object has to be that large"
            )
        if not dataset.padding and (fact.shape[0] < height or fact.shape[1] < width):
            raise BadInput(
                f"train.patch_shape is {_size((height, width))} pixels, but the image {name} has "
                f"{_size(fact.shape)}; allowed are patches that fit every image, or dataset.padding=true"
            )


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0]} × {shape[1]}"


def _identity(pair: Pair, dataset: DatasetConfig) -> str:
    image, label = pair.image.stat(), pair.label.stat()
    parts: tuple[object, ...] = (
        pair.image.resolve(),
        image.st_size,
        image.st_mtime_ns,
        dataset.image_key,
        pair.label.resolve(),
        label.st_size,
        label.st_mtime_ns,
        dataset.label_key,
    )
    if pair.item is not None:
        crowds = () if dataset.crowds == "skip" else (f"crowds {dataset.crowds}",)
        parts = (*parts, pair.item, *dataset.categories, *crowds)
    return "\n".join(str(part) for part in parts)


def _read_all(pairs: Sequence[Pair], dataset: DatasetConfig) -> dict[str, ImageFacts]:
    facts: dict[str, ImageFacts] = {}
    with ThreadPoolExecutor(min(MOST_READERS, os.cpu_count() or 1)) as pool, _progress(len(pairs)) as advance:
        tasks = {pool.submit(_inspect_pair, pair, dataset): pair for pair in pairs}
        try:
            for task in as_completed(tasks):
                facts[tasks[task].name] = task.result()
                advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return facts


def _inspect_pair(pair: Pair, dataset: DatasetConfig) -> ImageFacts:
    import numpy as np

    image = read_image(pair.image, dataset.image_key)
    labels = read_pair_labels(pair, dataset)
    ids, sizes = np.unique(labels, return_counts=True)
    sizes = sizes[ids > 0]
    return ImageFacts(
        shape=(image.shape[0], image.shape[1]),
        channels=1 if image.ndim == 2 else image.shape[2],
        dtype=str(image.dtype),
        label_shape=(labels.shape[0], labels.shape[1]),
        n_objects=len(sizes),
        largest_object=int(sizes.max()) if len(sizes) else 0,
        content=hashlib.sha256(image.tobytes() + labels.tobytes()).hexdigest()[:16],
    )


def fingerprint(dataset: DatasetConfig, cache: Path | None = None) -> str:
    """What identifies a data set wherever it lies: its version, or 16 hex digits over its names and pixels.

    Raises:
        BadInput: as list_pairs and inspect do, for a data set without a version.
    """
    if dataset.version is not None:
        return dataset.version
    facts = inspect(list_pairs(dataset), dataset, cache)
    lines = "".join(f"{name}\0{facts[name].content}\n" for name in sorted(facts))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A function to call after each image. At a terminal it shows a bar after PATIENCE seconds."""
    started = time.monotonic()
    bar: Any = None
    task: Any = None
    done = 0

    def advance() -> None:
        nonlocal bar, task, done
        done += 1
        if bar is None and sys.stderr.isatty() and time.monotonic() - started > PATIENCE:
            from rich.console import Console
            from rich.progress import Progress

            bar = Progress(console=Console(stderr=True), transient=True)
            task = bar.add_task("looking at the images", total=total)
            bar.start()
        if bar is not None:
            bar.update(task, completed=done)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _load(store: Path) -> dict[str, ImageFacts]:
    try:
        values = read_json(store)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        logger.warning("the facts about the images are read anew: %s", error)
        return {}
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        return {}
    return {
        identity: ImageFacts(
            **{**fact, "shape": tuple(fact["shape"]), "label_shape": tuple(fact["label_shape"])}
        )
        for identity, fact in values["images"].items()
    }


def _save(store: Path, facts: Mapping[str, ImageFacts]) -> None:
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, {"format": FORMAT, "images": {name: asdict(fact) for name, fact in facts.items()}})
    except OSError as error:
        # A home that is full or read-only makes the next plan slower, but not wrong.
        logger.warning("the facts about the images could not be cached: %s", error)
