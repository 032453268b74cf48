"""What of a run is measured already, by metrics.json and per_image.csv, and where its segmentations go."""

import sys
from pathlib import Path
from typing import Any

import tifffile
from numpy.typing import NDArray

from refsam.configuration.schema import Kind, RefsamConfig
from refsam.errors import Unreadable
from refsam.records.measurements import missing
from refsam.records.metrics import Measurement, MetricsRow, measurement, read_metrics
from refsam.records.paths import RunPaths
from refsam.records.per_image import Row
from refsam.science.micro_sam import _compute_hash
from refsam.system.files import write_encoded

Key = tuple[str, Measurement]  # the name of an image, and what was measured on it


def unmeasured(config: RefsamConfig, paths: RunPaths) -> list[Measurement]:
    """What metrics.json lacks of all that the configuration asks for, for the run's present weights."""
    return missing(config.evaluate, present_metrics(config, paths))


def present_metrics(config: RefsamConfig, paths: RunPaths) -> list[MetricsRow]:
    """The rows of metrics.json that were measured with the run's present weights; none of a damaged file.

    Raises Unreadable when the file cannot be read now, which says nothing about what is in it.
    """
    try:
        rows = read_metrics(paths.metrics)
    except FileNotFoundError:
        return []
    except Unreadable:
        raise
    except ValueError as error:
        print(f"{error}; what is missing is measured again", file=sys.stderr)
        return []
    if config.kind is Kind.finetuning and paths.best.exists() and rows:
        weights = _compute_hash(paths.best)
        rows = [row for row in rows if row.get("weights") == weights]
    return rows


def key_of(row: Row) -> Key:
    """Image and measurement of a row of per_image.csv."""
    return row["image"], measurement(row)


def prediction_path(paths: RunPaths, measured: Measurement, image: str) -> Path:
    """Where the segmentation of an image is saved."""
    return paths.predictions(*measured) / f"{image.replace('/', '__')}.tif"


def write_prediction(path: Path, segmentation: NDArray[Any]) -> None:
    """Save a segmentation (H, W), compressed."""
    write_encoded(path, lambda file: tifffile.imwrite(file, segmentation, compression="zlib"))
