"""The wide tables of the report: quality per method and number of images, and those of the studies."""

from dataclasses import dataclass

import pandas as pd

from refsam.errors import ConfigError
from refsam.results.collect import BASELINE
from refsam.results.fields import heading, telling_apart
from refsam.results.tables.studies import STUDIES
from refsam.results.tables.wide import WideTable, cell_text, wide_table

METRICS = ("SA50", "mSA", "mIoU")
_HEADINGS = {
    "resource": "Best epoch and training time",
    "peft": "Parameters, memory, time and SA50",
    "hugging_face": "mIoU, mF1 and time of inference",
}
_EXPLANATIONS = {
    "resource": "Epochs from 0; training time until the best epoch, h:mm:ss.",
    "peft": "Trained parameters in millions, peak memory in GiB, training in minutes. "
    "The best value per column is bold.",
    "hugging_face": "mIoU and mF1 in percent; inference in ms per image. The best value per column is bold.",
}
_OVER_SEEDS = (
    "The mean over seeds with its standard deviation where there are several. Of each row and mode the best "
    "is bold."
)
_CAN_DIFFER = ("dataset", "resource", "model", "weights")  # of what the quality tables have rows for


@dataclass(frozen=True)
class ComparisonTable:
    """A wide table as the page shows it. Lines: the names of a row, and text and "is best" of its cells."""

    title: str
    explanation: str
    axes: list[str]
    headings: list[str]
    lines: list[tuple[tuple[str, ...], list[tuple[str, bool]]]]


@dataclass(frozen=True)
class ComparisonTables:
    """The tables, and sentences about those that cannot be made."""

    tables: list[ComparisonTable]
    notes: list[str]


def comparisons(frame: pd.DataFrame) -> ComparisonTables:
    """All wide tables that the rows have values for."""
    tables: list[ComparisonTable] = []
    notes: list[str] = []
    trained = frame[frame["strategy"] != BASELINE]
    axes = [axis for axis in _CAN_DIFFER if (trained if len(trained) else frame)[axis].nunique() > 1]
    axes += ["strategy", *(["n_objects"] if trained["n_objects"].nunique() > 1 else [])]
    axes += telling_apart(frame[frame["mode"].notna()])
    for metric in METRICS:
        title = f"{metric} over training images"
        try:
            table = wide_table(frame, axes, ("n_images",), (metric,))
        except ConfigError as error:
            notes.append(f"{title}: left out, because {error}.")
            continue
        tables.append(_comparison(table, title, " ".join([_OVER_SEEDS, *table.notes])))
    for name, make in STUDIES.items():
        try:
            table = make(frame)
            explanation = " ".join([_EXPLANATIONS[name], *table.notes])
            tables.append(_comparison(table, _HEADINGS[name], explanation))
        except ConfigError as error:
            notes.append(f"{_HEADINGS[name]}: left out, because {error}.")
    return ComparisonTables([table for table in tables if table.lines and table.headings], notes)


def _comparison(table: WideTable, title: str, explanation: str) -> ComparisonTable:
    lines = [
        (
            names,
            [
                (cell_text(cell, metric), cell is not None and cell.best)
                for cell, metric in zip(cells, table.metrics, strict=True)
            ],
        )
        for names, cells in zip(table.rows, table.cells, strict=True)
    ]
    axes = [heading(axis).replace("_", " ") for axis in table.row_axes]
    return ComparisonTable(title, explanation, axes, table.headings, lines)
