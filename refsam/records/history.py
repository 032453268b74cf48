"""history.csv as others read it: one row per epoch. Its writer is science.training.history."""

import csv
import io
from pathlib import Path

from refsam.system.files import read_text

_INTEGERS = ("epoch", "iteration", "best")


def read_history(path: Path) -> list[dict[str, float | int]]:
    """The rows of history.csv by its columns, without what is empty; none where there is no file.

    Raises:
        ValueError: when it is damaged; the message names the file.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except FileNotFoundError:  # a baseline, or not begun
        return []
    except csv.Error as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    try:
        return [
            {
                name: int(text) if name in _INTEGERS else float(text)
                for name, text in row.items()
                if text or name == "epoch"
            }
            for row in rows
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
