"""Facts about the files of a data set, which a plan checks before anything is submitted.

Reading all files takes seconds, so the facts are kept in the user's cache folder, one JSON file per data set
root.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from refsam.datasets.listing import list_pairs
from refsam.datasets.numbering import COMPONENTS, piece_counts
from refsam.datasets.pair import COCO, Pair
from refsam.datasets.pairs import open_pair
from refsam.datasets.reading import ImageRecord
from refsam.errors import ConfigError
from refsam.system.files import read_json, write_json

if TYPE_CHECKING:
    from refsam.configuration.schema import DatasetConfig

FORMAT = 3  # of the cached facts; a change of ImageFacts or of what is counted needs another number
PATIENCE = 1.0  # seconds before a progress bar appears
MOST_READERS = 8
MANY = 200  # pairs, from which several processes read them

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFacts:
    """What a plan has to know of a pair.

    Attributes:
        image: what was read of the image file.
        label_shape: (H, W) of the label image in pixels.
        n_objects: number of ids beside the background, or of their pieces (`dataset.labels_are`).
        n_split: how many of the objects are in several pieces.
        smallest_object: its pixels, 0 where there is none.
        median_object: the median of the objects' pixels, 0 where there is none.
        largest_object: pixels of the largest object, 0 where there is none.
        content: hash of the pixels of image and label image, whatever file format and path they have.
    """

    image: ImageRecord
    label_shape: tuple[int, int]
    n_objects: int
    n_split: int
    smallest_object: int
    median_object: float
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
        ConfigError: when a file cannot be read as an image or a label image.
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


def binary_masks(dataset: DatasetConfig, facts: Mapping[str, ImageFacts]) -> int:
    """How many label images hold one id in several pieces, where nobody has said what that means and it looks
    like binary masks: no image has a second id, and most are so. 0 where they are none.
    """
    if dataset.labels_are is not None or dataset.format == COCO:
        return 0
    split = sum(fact.n_split > 0 for fact in facts.values())
    return split if 2 * split > len(facts) and all(fact.n_objects <= 1 for fact in facts.values()) else 0


def check_images(dataset: DatasetConfig, facts: Mapping[str, ImageFacts], patch_shape: Sequence[int]) -> None:
    """Refuse images that a run could not use.

    Raises:
        ConfigError: for labels that look like binary masks, an image and a label image of different sizes,
            labels without any object that is as large as `dataset.min_object_size`, or an image smaller than
            `patch_shape` (H, W) while `dataset.padding` is off.
    """
    height, width = patch_shape
    if split := binary_masks(dataset, facts):
        raise ConfigError(
            f"dataset.labels: the labels of {split} of {len(facts)} images hold one id in several pieces: "
            "these look like binary masks; dataset.labels_are=components makes an object of each piece, "
            "dataset.labels_are=instances takes them as one object"
        )
    for name, fact in facts.items():
        if fact.image.shape != fact.label_shape:
            raise ConfigError(
                f"dataset.labels: the label image of {name} has {shape_text(fact.label_shape)} pixels and "
                f"its image {shape_text(fact.image.shape)}, and both have to have the same height and width"
            )
        if fact.n_objects == 0:
            raise ConfigError(
                f"dataset.labels: the label image of {name} has no object, and at least one is needed"
            )
        if fact.largest_object < dataset.min_object_size:
            raise ConfigError(
                f"dataset.min_object_size is {dataset.min_object_size} pixels, but the largest object of "
                f"{name} has {fact.largest_object}, and at least one object has to be that large"
            )
        if not dataset.padding and (fact.image.shape[0] < height or fact.image.shape[1] < width):
            raise ConfigError(
                f"train.patch_shape is {shape_text((height, width))} pixels, but the image {name} has "
                f"{shape_text(fact.image.shape)}; expected patches that fit every image, or "
                "dataset.padding=true"
            )


def shape_text(shape: tuple[int, int]) -> str:
    """`height × width`, in pixels."""
    return f"{shape[0]} × {shape[1]}"


def _identity(pair: Pair, dataset: DatasetConfig) -> str:
    """What the facts about a pair depend on, the path of its image first."""
    parts: list[object] = []
    for path, key in ((pair.image, dataset.image_key), (pair.label, dataset.label_key)):
        state = path.stat()
        parts += [path.absolute(), state.st_size, state.st_mtime_ns, key]
    if dataset.channels is not None:
        parts.append(f"channels {dataset.channels}")
    if dataset.labels_are == COMPONENTS:
        parts.append(COMPONENTS)
    if pair.item is not None:
        crowds = () if dataset.crowds == "skip" else (f"crowds {dataset.crowds}",)
        parts += [pair.item, *dataset.categories, *crowds]
    return "\n".join(map(str, parts))


def _read_all(pairs: Sequence[Pair], dataset: DatasetConfig) -> dict[str, ImageFacts]:
    from tqdm import tqdm

    workers = min(MOST_READERS, len(os.sched_getaffinity(0)))
    pool: Executor
    if len(pairs) < MANY or workers == 1:
        pool, chunk = ThreadPoolExecutor(workers), 1
    else:
        # Processes, since the libraries' own Python takes more time than their decoders. Forked, because
        # the other ways to start them import the program that is running once more.
        context = multiprocessing.get_context("fork")
        pool, chunk = ProcessPoolExecutor(workers, context, _leave_interruption_to_the_parent), 16
    with pool:
        try:
            found = pool.map(_inspect_pair, pairs, itertools.repeat(dataset), chunksize=chunk)
            # Only a terminal has a bar (disable=None).
            found = tqdm(
                found, "looking at the images", len(pairs), leave=False, delay=PATIENCE, disable=None
            )
            return {pair.name: fact for pair, fact in zip(pairs, found, strict=True)}
        except BrokenProcessPool as error:
            raise ConfigError(
                f"dataset.root: reading the images of {dataset.root} was killed, most likely because the "
                "memory is full; free some, or give smaller images"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _leave_interruption_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _inspect_pair(pair: Pair, dataset: DatasetConfig) -> ImageFacts:
    import numpy as np

    read = open_pair(pair, dataset)
    pixels = read.image.pixels()
    sizes = np.bincount(read.labels.ravel())[1:]
    # What a run_id is made of: the pixels as they were hashed before anything was numbered or chosen.
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data)
    digest.update(np.ascontiguousarray(read.ids).data)
    return ImageFacts(
        image=read.image.record,
        label_shape=(read.labels.shape[0], read.labels.shape[1]),
        n_objects=len(sizes),
        n_split=0 if dataset.labels_are == COMPONENTS else int((piece_counts(read.labels) > 1).sum()),
        smallest_object=int(sizes.min()) if len(sizes) else 0,
        median_object=float(np.median(sizes)) if len(sizes) else 0.0,
        largest_object=int(sizes.max()) if len(sizes) else 0,
        content=digest.hexdigest()[:16],
    )


def fingerprint(
    dataset: DatasetConfig, cache: Path | None = None, facts: Mapping[str, ImageFacts] | None = None
) -> str:
    """What identifies a data set wherever it lies: its version, or 16 hex digits over its names and pixels.

    Args:
        cache: as for inspect.
        facts: about all of its images, by name, where they are known already.

    Raises:
        ConfigError: as list_pairs and inspect do, for a data set without a version.
    """
    if dataset.version is not None:
        return dataset.version
    if facts is None:
        facts = inspect(list_pairs(dataset), dataset, cache)
    lines = "".join(f"{name}\0{facts[name].content}\n" for name in sorted(facts))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _load(store: Path) -> dict[str, ImageFacts]:
    try:
        values = read_json(store)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        logger.warning("the image cache is rebuilt: %s", error)
        return {}
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        return {}
    try:
        return {identity: _facts(fact) for identity, fact in values["images"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        logger.warning("the image cache is rebuilt: %s is damaged (%r)", store, error)
        return {}


def _facts(values: dict[str, Any]) -> ImageFacts:
    image = values.pop("image")
    record = ImageRecord(**{**image, "shape": tuple(image["shape"])})
    return ImageFacts(image=record, label_shape=tuple(values.pop("label_shape")), **values)


def _save(store: Path, facts: Mapping[str, ImageFacts]) -> None:
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, {"format": FORMAT, "images": {name: asdict(fact) for name, fact in facts.items()}})
    except OSError as error:
        # A home that is full or read-only makes the next plan slower, but not wrong.
        logger.warning("the image cache could not be written: %s", error)
