"""TrashCan 1.0 (Hong, Fulton and Sattar 2020, arXiv:2007.08097) from the archive that its authors publish.

The archive is downloaded by a person, who has to accept its licence. Of its two versions, the one with a
category for each kind of object is taken (`instance_version`): it has the same masks as the other.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from refsam.datasets.coco_file import parse
from refsam.datasets.coco_writing import merge_coco
from refsam.errors import ConfigError

VERSION = "instance_version"
PARTS = ("train", "val")
ANNOTATIONS = "instances_{}_trashcan.json"
PAGE = "https://hdl.handle.net/11299/214865"

Folder = zipfile.Path | Path


@contextmanager
def trashcan_archive(archive: str | None) -> Iterator[Folder]:
    """The folder of the annotations in the archive, which may be unpacked already.

    Raises:
        ConfigError: when there is no archive, or something else in it.
    """
    if archive is None:
        raise ConfigError(
            f"dataset.archive: nothing was given; download dataset.zip of TrashCan 1.0 from {PAGE} and give "
            "its path as dataset.archive=PATH"
        )
    path = Path(archive).expanduser()
    if path.is_dir():
        yield _version(path, archive)
        return
    try:
        file = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"dataset.archive: {archive} cannot be opened ({error}); expected the dataset.zip of TrashCan "
            "1.0, or the folder that it was unpacked to"
        ) from error
    with file:
        yield _version(zipfile.Path(file), archive)


def write_trashcan(source: Folder, folder: Path, say: Callable[[str], object]) -> None:
    """Write images/train, images/val and annotations.json of both below `folder`."""
    parts = {}
    for part in PARTS:
        name = ANNOTATIONS.format(part)
        parts[part] = parse((source / name).read_bytes(), f"dataset.archive: {name}")
        target = folder / "images" / part
        target.mkdir(parents=True)
        images = [image for image in (source / part).iterdir() if image.name.lower().endswith(".jpg")]
        for image in images:
            with image.open("rb") as given, (target / image.name).open("wb") as written:
                shutil.copyfileobj(given, written)
        say(f"  {part} images: {len(images)}")
    merged = merge_coco(parts)
    (folder / "annotations.json").write_text(json.dumps(merged), encoding="utf-8")


def _version(root: Folder, archive: str) -> Folder:
    """The folder with both annotation files: the root itself, or instance_version in it or in dataset."""
    wanted = [ANNOTATIONS.format(part) for part in PARTS]
    for place in (root, root / VERSION, root / "dataset" / VERSION):
        if all((place / name).is_file() for name in wanted):
            return place
    raise ConfigError(
        f"dataset.archive: {archive} holds no dataset/{VERSION} with {' and '.join(wanted)}; expected the "
        "dataset.zip of TrashCan 1.0, or the folder that it was unpacked to"
    )
