"""results/per_image.csv: a row for each test image and each thing that was measured on it."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refsam.records.metrics import METRICS, QLORA_SAM_METRICS, SECONDS, Measurement
from refsam.system.files import read_text, write_text

COLUMNS = (
    *("image", "mode", "round", "mask_input", *METRICS, "n_objects", "n_predicted", *SECONDS),
    *("parameters", "weights"),
)
_FORMER_COLUMNS = tuple(name for name in COLUMNS if name not in QLORA_SAM_METRICS)
_UNKNOWN = dict.fromkeys(QLORA_SAM_METRICS, math.nan)

Row = dict[str, Any]


def _truth(text: str) -> bool:
    return text == "True"


_COLUMN_TYPES: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(("image", "mode", "parameters", "weights"), str),
    **dict.fromkeys(("round", "n_objects", "n_predicted"), int),
    "mask_input": _truth,
}


def read_rows(path: Path) -> list[Row]:
    """The rows of per_image.csv; none of a file with other columns, which another version of refsam wrote.

    A file from before there was evaluate.metrics has no value of what that measures.

    Raises ValueError when the file is damaged.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        return []
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if tuple(reader.fieldnames or ()) not in (COLUMNS, _FORMER_COLUMNS):
            return []
        return [
            _UNKNOWN | {name: _COLUMN_TYPES.get(name, float)(value) for name, value in row.items()}
            for row in reader
        ]
    except (csv.Error, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from error


def read_values(path: Path, metric: str) -> dict[Measurement, dict[str, float]]:
    """One metric of each image, for everything that was measured; files of older versions are read, too.

    Images without objects, and those that have no value, are left out.

    Raises:
        FileNotFoundError: when nothing was measured yet.
        ValueError: when the file is damaged.
    """
    found: dict[Measurement, dict[str, float]] = {}
    text = read_text(path)
    try:
        for row in csv.DictReader(io.StringIO(text, newline=""), strict=True):
            # The first format had the first prompt only.
            first = Measurement(row["mode"], int(row.get("round", 0)), _truth(row.get("mask_input", "")))
            values = found.setdefault(first, {})
            value = float({**_UNKNOWN, **row}[metric])
            if int(row["n_objects"]) > 0 and math.isfinite(value):
                values[row["image"]] = value
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from error
    return found


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Replace per_image.csv.

    The csv module writes numbers with repr: means over rows that were read back are the same means.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
