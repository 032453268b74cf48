"""results/training.json and results/savings.json, how a run was trained, by the types of their fields."""

from pathlib import Path
from typing import Any

from refsam.records.typed import Count, Seconds, checked
from refsam.system.files import read_json

_TRAINING: dict[str, Any] = {
    **dict.fromkeys(("best_epoch", "epochs", "iterations"), Count | None),
    **dict.fromkeys(("trainable_parameters", "total_parameters", "saved_bytes"), Count | None),
    **dict.fromkeys(("seconds_total", "seconds_to_best", "seconds_per_step"), Seconds | None),
    "best_metric": float | None,
    "peak_memory_gib": Seconds | None,
    "precision": str | None,
}
_SAVINGS: dict[str, Any] = {
    **dict.fromkeys(("object_chunk", "checkpoint_every"), Count | None),
    **dict.fromkeys(("engine", "joint", "optimizer", "attention", "precision"), str | None),
    **dict.fromkeys(("hardware_precision", "embedding_cache", "embedding_dtype"), str | None),
}


def read_training(path: Path) -> dict[str, Any]:
    """The summary of a finished training; a field that is not there is not given.

    Raises FileNotFoundError, and ValueError that names the file and the field when it is damaged.
    """
    return _read(path, _TRAINING)


def read_savings(path: Path) -> dict[str, Any]:
    """How the present attempt trains. Raises as `read_training` does."""
    return _read(path, _SAVINGS)


def _read(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    values = read_json(path)
    found = checked(values, fields, path)
    return {**values, **found}
