"""The tidy table for the page: columns that a reader wants, as the script reads them and as text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from refsam.records.settings import short_name, value_text
from refsam.results.collect import METRICS
from refsam.results.fields import fields
from refsam.results.report.sources import printable
from refsam.results.run_rows import FLOATS, INTEGERS
from refsam.results.tables.table import AXES, varying_axes

FIRST = 100  # rows that are in the page itself, for browsers that run no scripts
MOST_CHOICES = 30  # values of a column that can be chosen from a list

# The columns that the table can show beside the fields that differ, and their headings; results.csv has all.
HEADINGS: Mapping[str, str] = {
    "sweep": "sweep",
    **AXES,
    "mode": "mode",
    "round": "round",
    "mask_input": "mask input",
    **{name: name for name in METRICS},
    "SA50_low": "SA50, 95 % from",
    "SA50_high": "SA50, 95 % to",
    "n_test_images": "test images",
    "seconds_per_image": "inference, s per image",
    "best_epoch": "best epoch",
    "seconds_to_best": "time to best, s",
    "seconds_total": "training, s",
    "peak_memory_gib": "peak memory, GiB",
    "trainable_parameters": "trained parameters",
    "engine": "engine",
    "arithmetic": "arithmetic",
    "hardware": "hardware",
    "elapsed_seconds": "in Slurm, s",
    "queue_seconds": "queue, s",
    "gpu_hours": "GPU hours",
    "max_rss_gib": "MaxRSS, GiB",
    "attempts": "attempts",
    "status": "state",
    "reason": "reason",
    "message": "message",
    "run_id": "run",
}
_AT_FIRST = ("mode", "SA50", "mSA", "mIoU", "n_test_images", "seconds_total", "peak_memory_gib", "status")
_BEFORE_FIELDS = ("sweep", *AXES)
_IF_SEVERAL = ("sweep", "round", "mask_input", "reason")
_CHOICES = ("sweep", *AXES, "mode", "round", "status", "reason")


@dataclass(frozen=True)
class PageColumn:
    """A column of the page's table.

    Attributes:
        digits: after the point, of a column of numbers; None: it is text.
        shown: whether it is there at first; the others can be added.
        choices: whether its values can be chosen from a list.
    """

    name: str
    heading: str
    digits: int | None
    shown: bool
    choices: bool
    values: list[Any]

    def text(self, number: int) -> str:
        """The cell of a row."""
        value = self.values[number]
        if value is None:
            return ""
        return str(value) if self.digits is None else f"{value:,.{self.digits}f}"


@dataclass(frozen=True)
class Rows:
    """The table of the page. `anchors` has for each row the id of the section about its run, or None."""

    columns: list[PageColumn]
    anchors: list[str | None]

    @property
    def shown(self) -> list[PageColumn]:
        return [column for column in self.columns if column.shown]

    @property
    def first(self) -> range:
        """The numbers of the rows that the page has without its script."""
        return range(min(FIRST, len(self.anchors)))

    def as_json(self) -> dict[str, Any]:
        """For the script. Words are written once, and a column of words is their numbers."""
        columns = []
        for column in self.columns:
            described: dict[str, Any] = {
                "name": column.name,
                "heading": column.heading,
                "shown": column.shown,
                "choices": column.choices,
                "digits": column.digits,
            }
            if column.digits is None:
                words = list(dict.fromkeys("" if value is None else value for value in column.values))
                places = {word: place for place, word in enumerate(words)}
                described["words"] = words
                described["values"] = [places["" if value is None else value] for value in column.values]
            else:
                described["values"] = column.values
            columns.append(described)
        return {"columns": columns, "anchors": self.anchors}


def table_rows(frame: pd.DataFrame, anchors: Mapping[str, str]) -> Rows:
    """All rows of the tidy table; columns that are empty for all of them are left out.

    Args:
        anchors: the id of the section about a run, for those that have one.
    """
    varying = {*varying_axes(frame), *(name for name in _IF_SEVERAL if frame[name].nunique() > 1)}
    columns = []
    further = fields(frame)
    headings = {**HEADINGS, **{name: short_name(name) for name in further}}
    for name in [*_BEFORE_FIELDS, *further, *(name for name in HEADINGS if name not in _BEFORE_FIELDS)]:
        heading = headings[name]
        if not frame[name].notna().any():
            continue
        values = [_plain(value) for value in frame[name].tolist()]
        if name in further:
            values = [None if value is None else value_text(value) for value in values]
        columns.append(
            PageColumn(
                name=name,
                heading=heading,
                digits=_digits(name),
                shown=name in varying or name in _AT_FIRST,
                choices=name in (*_CHOICES, *further) and 2 <= frame[name].nunique() <= MOST_CHOICES,
                values=values,
            )
        )
    runs: Sequence[Any] = frame["run_id"].tolist()
    return Rows(columns, [anchors.get(run) if isinstance(run, str) else None for run in runs])


def _digits(name: str) -> int | None:
    if name in INTEGERS:
        return 0
    if name not in FLOATS:
        return None
    if name.endswith("gib") or name == "gpu_hours":
        return 2
    return 1 if name in ("seconds_total", "seconds_to_best", "elapsed_seconds", "queue_seconds") else 3


def _plain(value: Any) -> Any:
    """A value that JSON has: None for a missing one, words for truth, seven digits of a number."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return int(value) if isinstance(value, int) else printable(str(value))
