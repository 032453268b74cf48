"""Comparisons as a table for the terminal, as CSV and as Markdown, and what has to be said below it."""

import csv
import io
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from refsam.records.bootstrap import FEW, FEW_WORDS, RESAMPLES
from refsam.records.settings import short_name
from refsam.results.comparing.compare import Comparison, Comparisons
from refsam.results.comparing.settings import AXES, RUN, varying
from refsam.results.folds import SHARED_TRAINING, runs_of
from refsam.results.provenance import provenance, write_sidecar
from refsam.results.tables.fitted import Column, Shown, are_words, print_columns
from refsam.results.tables.formats import markdown_table
from refsam.results.tables.notes import OTHER_TEST_SETS, TOO_FEW
from refsam.results.tables.table import AXES as TABLE_AXES
from refsam.results.tables.wide import axis_text
from refsam.system.files import write_text
from refsam.system.terminal import standard_console

COLUMNS = (
    *(*AXES, "seeds", "mode", "round", "mask_input", "n_test_images", "n_left_out", "metric"),
    *("baseline", "value", "difference", "low", "high", "excludes_zero", "p", "p_holm", "run_ids"),
)
_LISTS = ("seeds", "run_ids")
_BROKEN = {
    "n_test_images": "test\nimages",
    "n_left_out": "left\nout",
    "interval": "95 %\ninterval",
    "excludes_zero": "excludes\n0",
    "p_holm": "p\n(Holm)",
}
# What a narrow terminal goes without, in this order.
_DISPENSABLE = ("seeds", "excludes_zero", "baseline", "value", "n_left_out", "p_holm")


def records(found: Comparisons) -> list[dict[str, Any]]:
    """One mapping for each comparison, with the keys COLUMNS, and after the axes those of the fields that
    differ; numbers with all digits.
    """
    columns = _columns(found)
    rows = []
    for row in found.rows:
        difference = row.difference
        values = {
            **{axis: row.setting.value(axis) for axis in columns if axis in (*AXES, *_fields(found))},
            "seeds": [seed for seed in difference.seeds if seed >= 0],
            **row.measured._asdict(),
            "n_test_images": difference.n_images,
            "n_left_out": difference.n_left_out,
            "metric": found.metric,
            "baseline": difference.baseline,
            "value": difference.mean,
            "difference": difference.difference,
            "low": difference.low,
            "high": difference.high,
            "excludes_zero": difference.excludes_zero,
            "p": difference.p,
            "p_holm": difference.p_holm,
            "run_ids": row.setting.run_ids,
        }
        rows.append({name: values[name] for name in columns})
    return rows


def print_comparisons(found: Comparisons, console: Console | None = None, shown: Shown | None = None) -> None:
    """Print a line per setting and mode, and below it how to read it. Raises as print_columns does."""
    console = console or standard_console()
    console.print(Text(f"Compared with {baseline_words(found)}."))
    axes, constant = _axes(found)
    if constant:
        console.print(Text(f"The same for all: {', '.join(constant)}."))
    if found.rows:
        titles, rows = _titles(found, axes), _lines(found, axes)
        columns = [
            Column(name, _BROKEN.get(name, title), cells, name in axes and are_words(cells), name == "mode")
            for (name, title), cells in zip(titles.items(), zip(*rows, strict=True), strict=True)
        ]
        measured = [row.measured for row in found.rows]
        changes = [place for place in range(1, len(rows)) if measured[place] != measured[place - 1]]
        print_columns(columns, _DISPENSABLE, console, shown or Shown(), changes)
    for note in notes(found):
        console.print(Text(note))


def write_comparisons(found: Comparisons, frame: pd.DataFrame, path: Path) -> list[Path]:
    """Write `path`.csv with all digits, `path`.md for reading, and where they come from; atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _columns(found), lineterminator="\n")
    writer.writeheader()
    for row in records(found):
        writer.writerow({**row, **{name: " ".join(map(str, row[name])) for name in _LISTS}})
    written = [path.with_name(f"{path.name}.csv"), path.with_name(f"{path.name}.md")]
    write_text(written[0], text.getvalue())
    write_text(written[1], markdown(found))
    write_sidecar(path, provenance(frame, found.run_ids), written)
    return written


def markdown(found: Comparisons) -> str:
    """The table for a document, with what has to be said about it."""
    axes, constant = _axes(found)
    said = [f"{found.metric} compared with {baseline_words(found)}."]
    said += [f"The same for all: {', '.join(constant)}."] if constant else []
    titles = list(_titles(found, axes).values())
    table = markdown_table(titles, _lines(found, axes), titles.index("test images"))
    return "\n".join([" ".join(said), "", table, *(f"- {note}" for note in notes(found))]) + "\n"


def baseline_words(found: Comparisons) -> str:
    """The baseline as sentences name it."""
    axes, _ = _axes(found)
    seeds = [str(seed) for seed in found.baseline.seeds if seed >= 0]
    runs = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}" if seeds else found.baseline.run_ids[0]
    return f"{found.baseline.words(axes)} ({runs})"


def notes(found: Comparisons) -> list[str]:
    """How the numbers were made, and what they do not say."""
    if not found.rows:
        return ["There is nothing to compare it with.", *found.left_out]
    number = sum(row.difference.p is not None for row in found.rows)
    several = any(len(row.difference.seeds) > 1 for row in found.rows)
    over = "; an image's difference is its mean over the seeds that both settings have" if several else ""
    said = [
        f"Differences are means over the test images that both have{over}. Intervals: 95 %, percentile "
        f"bootstrap over images ({RESAMPLES} resamples, always the same ones).",
    ]
    if found.other_test_sets and several:
        said.append(OTHER_TEST_SETS)
    if any(len(runs_of(run)) > 1 for row in found.rows for run in row.setting.runs.values()):
        said.append(SHARED_TRAINING)
    if number:
        said.append(
            "p: Wilcoxon's signed-rank test over images, adjusted by Holm for the "
            f"{number} comparison{'s' if number > 1 else ''} of this table; the intervals are not adjusted."
        )
    if any(len(row.difference.seeds) < 2 for row in found.rows):
        said.append("With one seed, the variation between trainings is not known.")
    if any(row.difference.low is not None and row.difference.n_images < FEW for row in found.rows):
        said.append(FEW_WORDS)
    left_out = sum(row.difference.n_left_out for row in found.rows)
    if left_out:
        said.append("Left out: images that only one of the two has; they are counted in the table.")
    if any(row.difference.low is None for row in found.rows):
        said.append(TOO_FEW)
    return [*said, *(f"Not compared: {sentence}." for sentence in found.left_out)]


def difference_text(value: float) -> str:
    """`+0.042` or `-0.042`."""
    return f"{value:+.3f}"


def _axes(found: Comparisons) -> tuple[list[str], list[str]]:
    """The axes that differ, and the others in words."""
    settings = [found.baseline, *(row.setting for row in found.rows)]
    axes = varying(settings)
    trained = next((setting for setting in settings if not setting.is_baseline), settings[0])
    constant = [text for axis in AXES if axis not in axes and (text := trained.text(axis))]
    return axes, constant


def _fields(found: Comparisons) -> list[str]:
    """The fields beside AXES that any of the settings is told apart by, other than by its run."""
    settings = [found.baseline, *(row.setting for row in found.rows)]
    return list(dict.fromkeys(name for each in settings for name in each.fields if name != RUN))


def _columns(found: Comparisons) -> list[str]:
    return [*AXES, *_fields(found), *COLUMNS[len(AXES) :]]


def _titles(found: Comparisons, axes: list[str]) -> dict[str, str]:
    """The headings of the table's columns, by the names that the CSV has for them, or nearly so."""
    with_left_out = any(row.difference.n_left_out for row in found.rows)
    with_seeds = any(row.difference.seeds != (0,) for row in found.rows)
    return {
        **{axis: TABLE_AXES.get(axis) or short_name(axis) for axis in axes},
        "mode": "mode",
        **({"seeds": "seeds"} if with_seeds else {}),
        "n_test_images": "test images",
        **({"n_left_out": "left out"} if with_left_out else {}),
        "baseline": "baseline",
        "value": found.metric,
        "difference": "difference",
        "interval": "95 % interval",
        "excludes_zero": "excludes 0",
        "p_holm": "p (Holm)",
    }


def _lines(found: Comparisons, axes: list[str]) -> list[list[str]]:
    """The cells of each row, in the order of `_titles`."""
    return [[_texts(row, axes)[name] for name in _titles(found, axes)] for row in found.rows]


def _texts(row: Comparison, axes: list[str]) -> dict[str, str]:
    found = row.difference
    interval = (
        "none"
        if found.low is None or found.high is None
        else f"{difference_text(found.low)} to {difference_text(found.high)}"
    )
    return {
        **{axis: axis_text(row.setting.value(axis)) for axis in axes},
        "mode": row.measured.words,
        "seeds": " ".join(str(seed) for seed in found.seeds if seed >= 0),
        "n_test_images": str(found.n_images),
        "n_left_out": str(found.n_left_out),
        "baseline": f"{found.baseline:.3f}",
        "value": f"{found.mean:.3f}",
        "difference": difference_text(found.difference),
        "interval": interval,
        "excludes_zero": {None: "", True: "yes", False: "no"}[found.excludes_zero],
        "p_holm": (
            "" if found.p_holm is None else "< 0.001" if found.p_holm < 0.001 else f"{found.p_holm:.3f}"
        ),
    }
