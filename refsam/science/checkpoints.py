"""best.pt and latest.pt, in micro-sam's training format, written so that a crash costs one epoch at most.

best.pt is what the annotator opens: the weights, LoRA merged. latest.pt is what a run continues from: the
weights as they are trained, optimizer, schedules and counters. Both hold tensors and plain values only.
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import torch

from refsam.records.files import write_atomically
from refsam.records.paths import RunPaths

DAMAGED = (RuntimeError, EOFError, pickle.UnpicklingError)


def previous_latest(paths: RunPaths) -> Path:
    """The latest.pt before the one that is there, in case that one gets damaged."""
    return paths.latest.with_suffix(".previous.pt")


def write_best(paths: RunPaths, values: dict[str, Any]) -> None:
    """Replace best.pt."""
    write_atomically(paths.best, lambda file: torch.save(values, file))


def write_latest(paths: RunPaths, values: dict[str, Any]) -> None:
    """Replace latest.pt and keep the one that was there as the previous one."""
    if paths.latest.exists():
        paths.latest.replace(previous_latest(paths))
    write_atomically(paths.latest, lambda file: torch.save(values, file))


def read_latest(paths: RunPaths) -> dict[str, Any] | None:
    """What a run continues from: latest.pt, the previous one where that is damaged, or None to start anew."""
    for path in (paths.latest, previous_latest(paths)):
        if not path.exists():
            continue
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
        except DAMAGED as error:
            print(f"{path} is damaged and is left out: {error}", file=sys.stderr)
            continue
        assert isinstance(values, dict)
        return values
    return None
