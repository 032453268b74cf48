"""What was measured: a row per image and measurement in per_image.csv, and their means in metrics.json."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tifffile
from micro_sam.util import _compute_hash
from numpy.typing import NDArray

from refsam.configuration.measurements import missing
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.records.files import write_atomically, write_text
from refsam.records.metrics import Measurement, MetricsRow, measurement, read_metrics
from refsam.records.paths import RunPaths
from refsam.science.evaluation.statistics import SECONDS, Row
from refsam.science.metrics import METRICS

COLUMNS = (
    *("image", "mode", "round", "mask_input", *METRICS, "n_objects", "n_predicted", *SECONDS),
    *("parameters", "weights"),
)

Key = tuple[str, Measurement]  # the name of an image, and what was measured on it


def _truth(text: str) -> bool:
    return text == "True"


_COLUMN_TYPES: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(("image", "mode", "parameters", "weights"), str),
    **dict.fromkeys(("round", "n_objects", "n_predicted"), int),
    "mask_input": _truth,
}


def unmeasured(config: RefsamConfig, paths: RunPaths) -> list[Measurement]:
    """What metrics.json does not have of all that the configuration asks for, for the run's present weights.

    Raises:
        ValueError: when metrics.json is damaged.
    """
    return missing(config.evaluate, present_metrics(config, paths))


def present_metrics(config: RefsamConfig, paths: RunPaths) -> list[MetricsRow]:
    """The rows of metrics.json that were measured with the run's present weights.

    Raises:
        ValueError: when metrics.json is damaged.
    """
    try:
        rows = read_metrics(paths.metrics)
    except FileNotFoundError:
        return []
    if config.kind is Kind.finetuning and paths.best.exists() and rows:
        weights = _compute_hash(paths.best)
        rows = [row for row in rows if row.get("weights") == weights]
    return rows


def key_of(row: Row) -> Key:
    """Image and measurement of a row of per_image.csv."""
    return row["image"], measurement(row)


def read_rows(path: Path) -> list[Row]:
    """The rows of per_image.csv; none of a file with other columns, which another version of refsam wrote."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            return []
        return [
            {name: _COLUMN_TYPES.get(name, float)(value) for name, value in row.items()} for row in reader
        ]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Replace per_image.csv.

    The csv module writes numbers with repr: means over rows that were read back are the same means.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def prediction_path(paths: RunPaths, measured: Measurement, image: str) -> Path:
    """Where the segmentation of an image is saved."""
    return paths.predictions(*measured) / f"{image.replace('/', '__')}.tif"


def write_prediction(path: Path, segmentation: NDArray[Any]) -> None:
    """Save a segmentation (H, W), compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = io.BytesIO()
    tifffile.imwrite(encoded, segmentation, compression="zlib")
    write_atomically(path, lambda file: file.write(encoded.getvalue()))
