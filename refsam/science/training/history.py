"""history.csv: one row per epoch."""

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from refsam.system.files import write_text

COLUMNS = (
    "epoch",  # counted from 0, as in the checkpoints
    "iteration",  # steps when the epoch ended
    "train_loss",
    "mask_loss",
    "iou_loss",
    "model_iou",
    "instance_loss",  # of the decoder; empty without one
    "validation_metric",  # lower is better
    "validation_loss",
    "learning_rate",  # of the epoch's last step
    "seconds",  # of this epoch, validation included
    "train_time",  # seconds since the training began, over all attempts
    "best",  # 1 where the validation metric was the best so far
)


@dataclass
class EpochMeans:
    """Means over the training steps of one epoch, and the learning rate of the last one."""

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    learning_rate: float = math.nan

    def add(self, learning_rate: float, **values: torch.Tensor) -> None:
        self.steps += 1
        self.learning_rate = learning_rate
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item()

    def mean(self, name: str) -> float | None:
        return self.sums[name] / self.steps if name in self.sums else None


class History:
    """The rows of history.csv, which is replaced as a whole whenever a row is added."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[dict[str, Any]] = []

    def resume(self, epochs: int) -> None:
        """Take over the rows of the first `epochs` epochs from the file; the later ones are trained again."""
        if not self._path.exists():
            return
        with self._path.open(newline="", encoding="utf-8") as file:
            self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < epochs]

    def append(self, row: dict[str, Any]) -> None:
        """Add the row of an epoch and replace the file. `row` has the keys of COLUMNS."""
        self.rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self._path, text.getvalue())

    def train_time(self, epoch: int) -> float:
        """Seconds from the beginning of the training, over all attempts, to the end of `epoch`."""
        return next(float(row["train_time"]) for row in self.rows if int(row["epoch"]) == epoch)
