"""results/metrics.json: one row for each thing that was measured.

Format 3, which is written:

    {"format": 3, "rows": [{"mode": "box", "round": 0, "mask_input": false, "weights": "<hash>",
      "SA50": 0.3, …, "intervals": {"SA50": [0.2, 0.4], …}, "n_test_images": 36, …}, …]}

Older ones are read: format 2 called the number of test images n_images; the first format was a mapping from
modes to values, always of the first prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from refsam.records.typed import Count, checked
from refsam.system.files import check_format, read_json, write_json

FORMAT = 3
# Of an instance segmentation, and of binary masks: what is measured of each image, in this order everywhere.
SEGMENTATION_METRICS = ("mSA", "SA50", "SA75", "precision", "recall", "F1")
MASK_METRICS = ("mIoU", "mF1")
# The same as QLoRA-SAM's script measures them, of prompted masks where evaluate.metrics asks for it.
QLORA_SAM = "qlora_sam"
QLORA_SAM_METRICS = ("mIoU_qlora_sam", "mF1_qlora_sam")
METRICS = SEGMENTATION_METRICS + MASK_METRICS + QLORA_SAM_METRICS
# The parts of an image's time.
SECONDS = ("seconds_embedding", "seconds_prompts", "seconds_postprocessing")

MetricsRow = dict[str, Any]
_FIELDS: dict[str, Any] = {
    "mode": str,
    "round": Count,
    "mask_input": bool,
    "n_test_images": Count,
    **dict.fromkeys((*METRICS, "seconds_per_image", *SECONDS), float | None),
    "intervals": dict | None,
    "parameters": dict | None,
    "metrics": str | None,
    "weights": str | None,
    "pictures": Count,
    "predictions_saved": bool,
    "hardware": str | None,
    "note": str | None,
}


class Measurement(NamedTuple):
    """What a row measures: a mode, and for point and box the round of prompts (0 is the first prompt) and
    whether the mask of the round before was an input.
    """

    mode: str
    round: int = 0
    mask_input: bool = False

    @property
    def words(self) -> str:
        """As sentences name it."""
        if self.round == 0:
            return self.mode
        return f"{self.mode} round {self.round}{' with mask' if self.mask_input else ''}"


def measurement(row: MetricsRow) -> Measurement:
    """What a row of metrics.json measures."""
    return Measurement(str(row["mode"]), int(row["round"]), bool(row["mask_input"]))


def read_metrics(path: Path) -> list[MetricsRow]:
    """The rows of metrics.json, in any format.

    Raises:
        FileNotFoundError: when nothing was measured yet.
        WrittenByNewer: when the file is of a newer format.
        ValueError: when it is damaged.
    """
    return rows_of(read_json(path), path)


def rows_of(values: Any, path: Path) -> list[MetricsRow]:
    """The rows in the content of metrics.json, read from `path`. Raises as `read_metrics` does."""
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it is not a mapping")
    if "format" not in values:
        if not all(isinstance(row, dict) for row in values.values()):
            raise ValueError(f"{path} is damaged: it is not a mapping from modes to their metrics")
        first = [{"mode": mode, "round": 0, "mask_input": False, **row} for mode, row in values.items()]
        return [_row(row, number, path) for number, row in enumerate(first)]
    check_format(values["format"], FORMAT, path)
    rows = values.get("rows")
    if not isinstance(rows, list):
        raise ValueError(f"{path} is damaged: its rows are not a list of what was measured")
    return [_row(row, number, path) for number, row in enumerate(rows)]


def _row(row: Any, number: int, path: Path) -> MetricsRow:
    """A row with the types that its readers rely on. Raises ValueError, naming the field."""
    if isinstance(row, dict) and "n_images" in row:  # of an older format
        row = {"n_test_images" if name == "n_images" else name: value for name, value in row.items()}
    found = checked(row, _FIELDS, path, f"rows[{number}].")
    for name in ("mode", "round", "mask_input"):
        if name not in found:
            raise ValueError(f"{path} is damaged: rows[{number}].{name} is missing")
    return {**row, **found}


def write_metrics(path: Path, rows: Sequence[MetricsRow]) -> None:
    """Replace metrics.json, atomically."""
    write_json(path, {"format": FORMAT, "rows": list(rows)})
