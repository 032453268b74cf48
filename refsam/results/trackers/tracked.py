"""What a tracker is told of a run, from its records. Plain values only."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from refsam.configuration.frozen import leaves
from refsam.records.attempts import read_attempt
from refsam.records.history import read_history
from refsam.records.metrics import METRICS, Measurement
from refsam.records.paths import RunPaths
from refsam.records.recovery import read_record
from refsam.records.settings import ROOT
from refsam.results.run_rows import COSTS, INTERVALS, TRAINING
from refsam.system.files import read_yaml

Value = str | int | float | bool

# Of config.yaml: what the result depends on, and no path of this machine.
_SECTIONS = (
    *("kind", "n_images", "n_objects", "seed", "resource", "model", "peft", "dataset", "train", "evaluate"),
)
_LEFT_OUT = ("resource.request.", "resource.settings.", "dataset.root", "dataset.archive")
_TAGS = {
    "run_id": "run_id",
    "sweep": "sweep",
    "git_commit": "commit",
    "hardware": "hardware",
    "device": "device",
    "arithmetic": "arithmetic",
    "weights": "weights",
    "refsam_version": "refsam_version",
    "torch_version": "torch_version",
    "micro_sam_version": "micro_sam_version",
}
_NOT_OF_AN_EPOCH = ("epoch", "train_time")


@dataclass(frozen=True)
class Epoch:
    """One row of history.csv: when the epoch ended, in seconds since 1970, and its values."""

    number: int
    ended: float
    values: dict[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """A completed run as trackers know runs.

    Attributes:
        parameters: the resolved configuration by dotted names.
        tags: run_id, sweep, git_commit, hardware, versions.
        epochs: history.csv. A run that was interrupted is told as if it had been trained in one go.
        metrics: final ones: `box/SA50`, `box round 1/SA50`, `training/seconds_total`.
        began, ended: seconds since 1970.
    """

    run_id: str
    parameters: dict[str, Value]
    tags: dict[str, str]
    epochs: list[Epoch]
    metrics: dict[str, float]
    began: float
    ended: float

    @property
    def signature(self) -> str:
        """Changes with everything that is told."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def tracked_run(rows: pd.DataFrame, paths: RunPaths) -> TrackedRun:
    """A completed run, from its rows in the tidy table and its records.

    Raises:
        ValueError: when a record is damaged; the message names it.
    """
    first = rows.iloc[0]
    status = read_record(paths)
    ended = _seconds(status.ended_at) or 0.0
    # The first attempt's begin is the run's; an old record may not have it.
    began = _seconds(read_attempt(paths, 1).started_at) or _seconds(status.started_at) or ended
    return TrackedRun(
        run_id=paths.run_id,
        parameters=_parameters(paths),
        tags={name: str(first[column]) for name, column in _TAGS.items() if not pd.isna(first[column])}
        | _folder(first),
        epochs=_epochs(paths, began),
        metrics=_metrics(rows),
        began=began,
        ended=max(began, ended),
    )


def _folder(row: "pd.Series[Any]") -> dict[str, str]:
    """The name of the data set's folder, where others of the same name lie elsewhere: no path is told."""
    root = row.get(ROOT)
    return {} if root is None or pd.isna(root) else {"dataset_folder": Path(root).name}


def _parameters(paths: RunPaths) -> dict[str, Value]:
    try:
        config = read_yaml(paths.config)
    except FileNotFoundError as error:
        raise ValueError(f"{paths.config} is not there") from error
    if not isinstance(config, dict):
        raise ValueError(f"{paths.config} is damaged: it is not a mapping")
    flat = leaves({section: config.get(section) for section in _SECTIONS})
    return {
        name: json.dumps(value) if isinstance(value, list) else value
        for name, value in flat.items()
        if not name.startswith(_LEFT_OUT) and value not in (None, [], {})
    }


def _epochs(paths: RunPaths, began: float) -> list[Epoch]:
    return [
        Epoch(
            int(row["epoch"]),
            began + row.get("train_time", 0.0),
            {
                name: value
                for name, value in row.items()
                if name not in _NOT_OF_AN_EPOCH and math.isfinite(value)
            },
        )
        for row in read_history(paths.history)
    ]


def _metrics(rows: pd.DataFrame) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows[rows["mode"].notna()].to_dict("records"):
        later = not pd.isna(row["round"]) and int(row["round"]) > 0
        measured = Measurement(row["mode"], int(row["round"]), bool(row["mask_input"])) if later else None
        prefix = measured.words if measured else row["mode"]
        for name in (*METRICS, *INTERVALS, "seconds_per_image"):
            _add(found, f"{prefix}/{name}", row[name])
    first = rows.iloc[0]
    for name in (*TRAINING, *COSTS):
        _add(found, f"training/{name}", first[name])
    return found


def _add(into: dict[str, float], name: str, value: Any) -> None:
    if not pd.isna(value) and math.isfinite(float(value)):
        into[name] = float(value)


def _seconds(text: str | None) -> float | None:
    """Since 1970, of a time as records write it."""
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
