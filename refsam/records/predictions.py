"""The folder of `refsam predict`: what it holds for each image, and what that was made of."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refsam.errors import ConfigError
from refsam.records.paths import Below
from refsam.system.files import read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class PredictionsFolder:
    """The files of one folder of predictions; the record of an image is written last."""

    root: Path

    all_objects = Below("objects.csv")  # the rows of all images
    lock = Below(".lock")  # held while that is written

    def labels(self, name: str) -> Path:
        """The segmentation: a TIFF of object ids, 0 for background."""
        return self.root / "labels" / f"{name}.tif"

    def overlay(self, name: str) -> Path:
        """The image with the outlines of the objects."""
        return self.root / "overlays" / f"{name}.png"

    def objects(self, name: str) -> Path:
        """A row for each object of the image."""
        return self.root / "objects" / f"{name}.csv"

    def record(self, name: str) -> Path:
        return self.root / "records" / f"{name}.json"

    def files(self, name: str) -> tuple[Path, ...]:
        """What is there of an image that is complete, beside its record."""
        return self.labels(name), self.overlay(name), self.objects(name)

    def names(self) -> list[str]:
        """The images that have a record, sorted."""
        suffix = ".json"
        return sorted(
            path.name.removesuffix(suffix)
            for path in self.record("any").parent.glob(f"*{suffix}")
            if not path.name.startswith(".")
        )


def source_of(path: Path) -> dict[str, Any]:
    """What tells a file from another one, or from itself before it was changed."""
    facts = path.stat()
    return {"path": os.path.abspath(path), "bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}  # noqa: PTH100


def read_record(folder: PredictionsFolder, name: str) -> dict[str, Any] | None:
    """The record of an image; None where there is none, or half of one.

    Raises:
        ConfigError: when it is of a newer format.
    """
    try:
        values = read_json(folder.record(name))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(values, dict):
        return None
    if values.get("format") != FORMAT:
        raise ConfigError(
            f"{folder.record(name)} has the format {values.get('format')}, this refsam reads {FORMAT}; give "
            "another --output"
        )
    return values


def write_record(folder: PredictionsFolder, name: str, values: Mapping[str, Any]) -> None:
    """Say that an image is complete."""
    folder.record(name).parent.mkdir(parents=True, exist_ok=True)
    write_json(folder.record(name), {"format": FORMAT, **values})
