"""best.pt and latest.pt, in micro-sam's training format, written so that no crash leaves a run without one.

best.pt is what the annotator opens: the weights, LoRA merged. latest.pt is what a run continues from: the
weights as they are trained, optimizer, schedules and counters, and in the middle of an epoch the position in
it. Both hold tensors and plain values only.
"""

import errno
import sys
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from refsam.errors import ConfigError
from refsam.records.paths import RunPaths
from refsam.system.files import write_atomically


def previous_latest(paths: RunPaths) -> Path:
    """The latest.pt before the one that is there, in case that one gets damaged."""
    return paths.latest.with_suffix(".previous.pt")


def write_best(paths: RunPaths, values: dict[str, Any]) -> None:
    """Replace best.pt."""
    write_atomically(paths.best, lambda file: _save(values, file))


def write_latest(paths: RunPaths, values: dict[str, Any]) -> None:
    """Replace latest.pt and keep the one that was there as the previous one."""
    if paths.latest.exists():
        paths.latest.replace(previous_latest(paths))
    write_atomically(paths.latest, lambda file: _save(values, file))


def read_latest(paths: RunPaths) -> dict[str, Any] | None:
    """What a run continues from: latest.pt, the previous one where that is damaged, or None to start anew.

    Raises OSError when a file that is there cannot be read now, which says nothing about what is in it, and
    ConfigError when it holds what a run does not write.
    """
    for path in (paths.latest, previous_latest(paths)):
        if not path.exists():
            continue
        found = damage(path)
        if found is not None:
            print(f"{path} is damaged and is left out: {found}", file=sys.stderr)
            continue
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            raise ConfigError(
                f"{path} holds other objects than tensors and plain values, so no run has written it; remove "
                "it, and the run starts from the beginning"
            ) from error
        assert isinstance(values, dict)
        return values
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint: it is cut off, or a checksum does not fit (torch.load asks none)."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                part = archive.testzip()
        except OSError as error:
            if error.errno != errno.EINVAL:  # a place in the file that a cut-off file does not have
                raise
            return str(error)
        except Exception as error:  # whatever a reader stumbles over in bytes that are not what was written
            return f"{type(error).__name__}: {error}"
    return None if part is None else f"the checksum of {part} does not fit"


def _save(values: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(values, file)
    except RuntimeError as error:
        # Of a full disk torch's writer says only that its position is not the one that it expected.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
