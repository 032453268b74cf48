"""The results of a sweep as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from refsam.records.settings import short_name, value_text
from refsam.results.collect import BASELINE, first_prompt
from refsam.results.fields import fields, of_trained, telling_apart
from refsam.results.tables.fitted import Column, Shown, are_words, print_columns
from refsam.results.tables.wide import time_text
from refsam.system.terminal import standard_console

# The order of this list is the order of columns and of rows.
AXES = {
    "dataset": "data set",
    "model": "model",
    "weights": "weights",
    "resource": "resource",
    "strategy": "strategy",
    "n_images": "images",
    "n_objects": "objects",
    "seed": "seed",
    "fold": "fold",
}
_WORDS = ("dataset", "model", "weights", "resource", "strategy")  # axes whose values speak for themselves
_METRICS = ("SA50", "mSA")
_FIRST_MODES = ("box", "point")  # as in the figures of the resource study; others follow by name
_COMPLETED = "completed"
_MOST_RUNS = 500  # that are printed line by line


def print_table(frame: pd.DataFrame, console: Console | None = None, wide: bool = False) -> None:
    """Print one line per run: what it is, SA50 and mSA of each mode, its best epoch and its state.

    Baselines come first among the runs of their model. What is the same for the whole sweep is said once,
    above the table; why runs have no result is said below it. Where the table does not fit the terminal, the
    columns of what Slurm's jobs have cost are left out, then those of the training, then metrics.

    Args:
        frame: As `refsam.results.collect.collect` returns it.
        console: Where to print; None: standard output.
        wide: all columns, also where they are wider than the terminal.
    """
    console = console or standard_console()
    if frame.empty:
        console.print("This sweep has no runs.")
        return
    frame = first_prompt(frame)
    if frame["run_id"].nunique() > _MOST_RUNS:
        states = frame.drop_duplicates("run_id")["status"].value_counts()
        console.print(", ".join(f"{count} {state}" for state, count in states.items()))
        console.print("Too many runs to read one by one; --rows and --columns make a table of them.")
        return
    axes = varying_axes(frame)
    constant = constant_axes(frame, axes)
    if constant:
        console.print(
            Text("The same for all: " + ", ".join(f"{name} {value}" for name, value in constant.items()))
        )
    runs = _runs(frame)
    models = [run["model"].iloc[0] for run in runs]
    sections = [number for number in range(1, len(runs)) if models[number] != models[number - 1]]
    dispensable = _dispensable(ordered_modes(frame))
    print_columns(_columns(frame, runs, axes), dispensable, console, Shown(wide=wide), sections)
    for run in runs:
        if run["status"].iloc[0] != _COMPLETED:
            console.print(Text(_explanation(run.iloc[0], axes)))
    if not (frame["status"] == _COMPLETED).any():
        console.print("No run of this sweep is completed yet, so there is nothing to compare.")


def _columns(frame: pd.DataFrame, runs: list[pd.DataFrame], axes: list[str]) -> list[Column]:
    firsts = [run.iloc[0] for run in runs]
    columns = [
        Column(axis_words(axis), axis_words(axis), cells, are_words(cells))
        for axis in axes
        for cells in [[_text(first[axis]) for first in firsts]]
    ]
    for mode in ordered_modes(frame):
        of_mode = [run[run["mode"] == mode] for run in runs]
        for metric in _METRICS:
            cells = [_decimals(part[metric].iloc[0]) if len(part) else "" for part in of_mode]
            columns.append(Column(f"{mode} {metric}", f"{mode}\n{metric}", cells))
    images = [_text(run["n_test_images"].min()) for run in runs]
    columns.append(Column("test images", "test\nimages", images))
    if frame["best_epoch"].notna().any():
        columns.append(Column("best epoch", "best\nepoch", [_text(first["best_epoch"]) for first in firsts]))
        times = [_duration(first["seconds_to_best"]) for first in firsts]
        columns.append(Column("time to best", "time to\nbest", times))
    if frame["elapsed_seconds"].notna().any():
        columns += [
            Column("in Slurm", "in Slurm", [_duration(first["elapsed_seconds"]) for first in firsts]),
            Column("queue", "queue", [_duration(first["queue_seconds"]) for first in firsts]),
            Column("GPU hours", "GPU\nhours", [_decimals(first["gpu_hours"], 2) for first in firsts]),
            Column("MaxRSS", "MaxRSS\nGiB", [_decimals(first["max_rss_gib"], 1) for first in firsts]),
        ]
    return [*columns, Column("state", "state", [str(first["status"]) for first in firsts], left=True)]


def _dispensable(modes: list[str]) -> list[str]:
    """What a narrow terminal goes without, in this order; SA50 of the first mode stays."""
    of_modes = [f"{mode} mSA" for mode in reversed(modes)] + [f"{mode} SA50" for mode in reversed(modes[1:])]
    return ["MaxRSS", "GPU hours", "queue", "in Slurm", "time to best", "best epoch", *of_modes]


def _explanation(row: "pd.Series[Any]", axes: list[str]) -> str:
    """What a run is, and its state: `lora, images 5: failed (out_of_memory): <message> (<run id>)`."""
    state = str(row["status"])
    if _text(row["reason"]):
        state += f" ({row['reason']})"
    message = f": {row['message']}" if _text(row["message"]) else ""
    run_id = f" ({row['run_id']})" if _text(row["run_id"]) else ""
    return f"{run_words(row, axes)}: {state}{message}{run_id}"


def run_words(row: "Mapping[str, Any] | pd.Series[Any]", axes: list[str]) -> str:
    """What a run is, by what tells the runs apart: `lora, images 5`."""
    named = [
        _text(row[axis]) if axis in _WORDS else f"{axis_words(axis)} {_text(row[axis])}"
        for axis in axes
        if _text(row[axis])
    ]
    return ", ".join(named) or "a run"


def axis_words(axis: str) -> str:
    """What a column is called: fields of the configuration by their short names."""
    return AXES.get(axis) or short_name(axis)


def ordered_modes(frame: pd.DataFrame) -> list[str]:
    """The modes that the frame has rows of: box, point, then others by name."""
    modes = set(frame["mode"].dropna())
    first = [mode for mode in _FIRST_MODES if mode in modes]
    return first + sorted(modes - set(first))


def varying_axes(frame: pd.DataFrame) -> list[str]:
    """What tells the runs apart: of AXES, and of the fields of the configuration."""
    axes = [
        axis for axis in AXES if axis == "strategy" or of_trained(frame, axis)[axis].nunique(dropna=True) > 1
    ]
    return [*axes, *telling_apart(frame)]


def constant_axes(frame: pd.DataFrame, varying: list[str]) -> dict[str, str]:
    """What is the same for the whole sweep, by its words."""
    trained = frame[frame["strategy"] != BASELINE]
    constant = {}
    for axis, name in AXES.items():
        values = (trained if len(trained) else frame)[axis].dropna()
        if axis not in varying and len(values):
            constant[name] = _text(values.iloc[0])
    return constant


def _runs(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each run, sorted by what it is. Each combination that was left out is one, too."""
    keys = frame["run_id"].where(frame["run_id"].notna(), frame.index.astype(str))
    keyed = frame.assign(is_trained=frame["strategy"] != BASELINE, key=keys)
    order = ["dataset", "model", "weights", "is_trained", *list(AXES)[3:-2], *fields(frame), "seed", "fold"]
    keyed = keyed.sort_values(order, kind="stable", na_position="last")
    return [run for _, run in keyed.groupby("key", sort=False)]


def _text(value: Any) -> str:
    return "" if pd.isna(value) else value_text(value)


def _decimals(value: Any, digits: int = 3) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _duration(seconds: Any) -> str:
    return "" if pd.isna(seconds) else time_text(seconds)
