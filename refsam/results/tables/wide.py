"""Wide tables: any axes of the sweep as rows and columns, any metric, mean and deviation over seeds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import pandas as pd

from refsam.errors import ConfigError, nearest
from refsam.records.settings import AXES as FIELDS_OF_AXES
from refsam.records.settings import full_name, is_of_training, same_text
from refsam.records.settings import value_text as field_text
from refsam.results.collect import BASELINE, first_prompt
from refsam.results.fields import fields, of_trained
from refsam.results.run_rows import COSTS, FLOATS, IDENTITY, PARAMETERS
from refsam.results.tables.notes import notes

# Beside these, each field of the configuration that differs between the runs is one (results.fields).
AXES = (
    *(*IDENTITY, "fold", "mode", "round", "mask_input", "hardware", "arithmetic", "engine", "sweep"),
    *("split_seed", "run_id"),
)
QUANTITIES = (*FLOATS, "best_epoch", *PARAMETERS)
# What has to be the same within a cell beside the fields, or it would mix what must not be mixed: seeds are
# what it is over, and the folds of each are joined before (results/folds.py).
KEPT_APART = (
    *("dataset", "model", "weights", "resource", "strategy", "n_images", "n_objects"),
    *("mode", "round", "mask_input", "fold"),
)
_SMALLER_IS_BETTER = (
    *("seconds", "peak_memory", *PARAMETERS, *COSTS, "best_epoch"),
    *("trainable", "memory", "training", "inference"),
)
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d*)?(?:e[+-]?\d+)?(?![\w.])")
_NAMED = 5  # values that a sentence names
_COUNTS = ("best_epoch", *PARAMETERS)


@dataclass(frozen=True)
class Cell:
    """One value: the mean of `n` runs, and their standard deviation where there are several."""

    mean: float
    deviation: float | None
    n: int
    best: bool = False
    text: str | None = None  # what is shown instead of the numbers


@dataclass(frozen=True)
class WideTable:
    """A table as a paper has it. `cells` has a row for each of `rows`, None where nothing was measured.

    Attributes:
        row_axes: what the rows are named by.
        rows: the values of the row axes, as text.
        columns: headings, one tuple for each column, the metric last.
        metrics: the metric of each column.
        run_ids: the runs behind it.
        notes: sentences that belong below it.
    """

    title: str
    row_axes: tuple[str, ...]
    rows: list[tuple[str, ...]]
    columns: list[tuple[str, ...]]
    metrics: list[str]
    cells: list[list[Cell | None]]
    run_ids: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def headings(self) -> list[str]:
        """The columns in one line each; a metric or axis that all share is left to the title."""
        levels = range(len(self.columns[0]) if self.columns else 0)
        keep = [level for level in levels if len({column[level] for column in self.columns}) > 1] or [-1]
        return [" ".join(column[level] for level in keep) for column in self.columns]


def wide_table(
    frame: pd.DataFrame,
    rows: Sequence[str],
    columns: Sequence[str],
    metrics: Sequence[str],
    where: Mapping[str, str] | None = None,
    title: str = "",
    options: tuple[str, str] = ("--rows", "--columns"),
) -> WideTable:
    """The table of some metrics over some axes.

    Only first prompts are in it unless `round` is an axis or chosen. Several modes are columns of their own
    unless they are an axis or one is chosen. Per row and metric the best value is marked, where there is
    more than one; in such columns of modes, that of each mode. Initial models are only in it where strategies
    or numbers of images tell them from what was trained, or nothing was.

    Args:
        options: how a person names the axes, for sentences.

    Raises:
        ConfigError: for axes or metrics that do not exist, values that no run has, or cells that would mix
            runs which differ in more than their seed.
    """
    chosen = choose(frame, where or {})
    rows = [axis_of(name, frame) for name in rows]
    columns = [axis_of(name, frame) for name in columns]
    for name in metrics:
        check_metric(name)
    twice = [name for name in rows if name in columns]
    if twice:
        raise ConfigError(f"{twice[0]} is one of {options[0]} and of {options[1]}; it can be one of them")
    named = {*rows, *columns, *(axis_of(name, frame) for name in where or {})}
    if "round" not in named:
        chosen = first_prompt(chosen)
    present = [metric for metric in metrics if chosen[metric].notna().any()]
    measured = chosen[chosen[present].notna().any(axis=1)] if present else chosen.iloc[:0]
    if not {"strategy", "n_images"} & {*rows, *columns} and (measured["strategy"] != BASELINE).any():
        measured = measured[measured["strategy"] != BASELINE]
    columns = tuple(columns)
    by_mode = all(depends_on_mode(metric) for metric in metrics)
    beside = "mode" not in named and by_mode and measured["mode"].nunique() > 1
    if beside:
        columns = ("mode", *columns)
    elif "mode" not in (*rows, *columns):
        # What a run has once is in each of its rows.
        measured = measured.drop_duplicates(
            ["run_id", *(["round", "mask_input"] if "round" in named else [])]
        )
    if "resource" in (*rows, *columns):
        measured = with_baselines_everywhere(measured)
    # What a run has once is not of a mode.
    once = set() if by_mode else {"mode", "round", "mask_input"}
    refuse_mixtures(measured, {*rows, *columns} | once, f"add it to {options[0]} or {options[1]}, or ")

    row_values = ordered_values(measured, rows)
    column_values = ordered_values(measured, columns)
    grouped = parts_by(measured, (*rows, *columns))
    cells: list[list[Cell | None]] = []
    for row in row_values:
        line: list[Cell | None] = []
        for metric in present:
            # Modes that nobody asked for as an axis are tables side by side, each with its own best.
            for _, columns_of_one in groupby(column_values, key=lambda column: beside and column[0]):
                values = [grouped.get((*row, *column)) for column in columns_of_one]
                cells_of_one = [None if part is None else cell_of(part[metric]) for part in values]
                line += with_best(cells_of_one, metric)
        cells.append(line)
    return WideTable(
        title=title,
        row_axes=tuple(rows),
        rows=[tuple(map(axis_text, row)) for row in row_values],
        columns=[
            (*(_column_text(axis, value) for axis, value in zip(columns, column, strict=True)), metric)
            for metric in present
            for column in column_values
        ],
        metrics=[metric for metric in present for _ in column_values],
        cells=cells,
        run_ids=list(dict.fromkeys(measured["run_id"].dropna())),
        notes=notes(measured, has_several(cells)) if by_mode else (),
    )


def choose(frame: pd.DataFrame, where: Mapping[str, str]) -> pd.DataFrame:
    """The rows with these values. Raises ConfigError with those that there are."""
    for name, value in where.items():
        axis = axis_of(name, frame)
        texts = frame[axis].map(axis_text)
        allowed = sorted(set(texts) - {""})
        wanted = [text for text in allowed if same_text(text, value)]
        if not wanted:
            hint = nearest(value, allowed) or f"; there are {', '.join(allowed) or 'none'}"
            raise ConfigError(f"{name}={value}: no run of the sweep has this value{hint}")
        baselines = (frame["strategy"] == BASELINE) & is_of_training(axis)
        frame = frame[texts.isin(wanted) | baselines]
    return frame


def axis_of(name: str, frame: pd.DataFrame) -> str:
    """The column that a person means by an axis of the table or a field that differs between its runs, which
    can be given in short (`lr`). Raises ConfigError for what is no axis.
    """
    known = [*AXES, *fields(frame)]
    if name in known:
        return name
    field = full_name(name)
    if field in known:
        return str(field)
    if name in FIELDS_OF_AXES.values():
        return next(axis for axis, each in FIELDS_OF_AXES.items() if each == name)
    if field is not None:
        raise ConfigError(
            f"{name!r} does not differ between these runs, so it is not an axis; axes are {', '.join(known)}"
        )
    raise ConfigError(f"{name!r} is not an axis{nearest(name, known)}; axes are {', '.join(known)}")


def check_metric(name: str) -> None:
    """Raises ConfigError for what is not a metric."""
    if name not in QUANTITIES:
        hint = nearest(name, QUANTITIES) or ""
        raise ConfigError(f"{name!r} is not a metric{hint}; metrics are {', '.join(QUANTITIES)}")


def axis_text(value: Any) -> str:
    """A value of an axis as tables show it; nothing for a missing one."""
    return "" if value is None or pd.isna(value) else field_text(value)


def value_text(value: float, metric: str) -> str:
    """A number with the digits that the metric deserves."""
    if metric.endswith((" million", " GiB", " min", " %", " ms")):
        return f"{value:.2f}"
    if metric in _COUNTS:
        return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"
    if metric.startswith(("seconds", "elapsed", "queue")):
        return f"{value:.1f}" if value >= 10 else f"{value:.3f}"
    return f"{value:.2f}" if metric in ("peak_memory_gib", "gpu_hours", "max_rss_gib") else f"{value:.3f}"


def time_text(seconds: float) -> str:
    """h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def cell_text(cell: Cell | None, metric: str) -> str:
    """`0.812 ± 0.004`, or the mean alone where there is one run; nothing where nothing was measured."""
    if cell is None:
        return ""
    if cell.text is not None:
        return cell.text
    mean = value_text(cell.mean, metric)
    return mean if cell.deviation is None else f"{mean} ± {value_text(cell.deviation, metric)}"


def with_baselines_everywhere(frame: pd.DataFrame) -> pd.DataFrame:
    """Baselines train nothing: what they measured holds on every resource that their model was trained on."""
    is_baseline = frame["strategy"] == BASELINE
    baselines, trained = frame[is_baseline], frame[~is_baseline]
    if trained.empty or baselines.empty:
        return frame
    places = trained[["resource", "model", "weights", "dataset"]].drop_duplicates()
    spread = baselines.drop(columns="resource").merge(places, on=["model", "weights", "dataset"])
    return pd.concat([spread[frame.columns], trained], ignore_index=True)


def refuse_mixtures(frame: pd.DataFrame, named: set[str], separate: str = "") -> None:
    """Raises ConfigError where rows that are the same in the axes `named` differ in more than their seed.

    Args:
        separate: how a person can tell them apart, before the choice of one value.
    """
    found = mixed(frame, named)
    if not found:
        return
    axis, values = next(iter(found.items()))
    differ = " and ".join(
        f"{name} ({', '.join(values[:_NAMED])}{', …' if len(values) > _NAMED else ''})"
        for name, values in found.items()
    )
    if axis == "run_id":
        differ = f"nothing but {differ}: not even in the seed"
    raise ConfigError(
        f"these cells hold runs that differ in {differ}; {separate}fix it with --where {axis}={values[0]}"
    )


def mixed(frame: pd.DataFrame, named: set[str]) -> dict[str, list[str]]:
    """The axes and fields in which rows differ that are the same in the axes `named`, with their values.

    Runs that differ in nothing and have the same seed are told apart by their ids.
    """
    axes = [name for name in sorted(named) if name in frame]
    found: dict[str, list[str]] = {}
    for axis in (*KEPT_APART, *fields(frame)):
        if axis in named or axis not in frame:
            continue
        compared = of_trained(frame, axis)
        if compared[axis].nunique() < 2:
            continue  # of most, which need not be looked at group by group
        values = {
            text
            for _, part in (compared.groupby(axes, dropna=False) if axes else [((), compared)])
            if part[axis].nunique(dropna=True) > 1
            for text in map(axis_text, part[axis].dropna().unique())
        }
        if values:
            found[axis] = sorted(values, key=number_first)
    if not found and "run_id" not in named:
        keys = [*axes, *(name for name in ("seed", *KEPT_APART) if name in frame and name not in axes)]
        runs = frame[frame["run_id"].notna()].drop_duplicates([*keys, "run_id"])
        twice = runs[runs.duplicated(keys, keep=False)]
        if len(twice):
            found["run_id"] = list(twice["run_id"])
    return found


def depends_on_mode(metric: str) -> bool:
    """Whether a run has a value for each mode, and not one only."""
    return metric in FLOATS[: FLOATS.index("seconds_to_best")]


def ordered_values(frame: pd.DataFrame, axes: Sequence[str]) -> list[tuple[Any, ...]]:
    """The combinations that exist; numbers by size, modes as the study has them, others by name."""
    if not axes:
        return [()]
    found = {key_of(values) for values in frame[list(axes)].itertuples(index=False)}
    return sorted(
        found, key=lambda values: [_order(axis, value) for axis, value in zip(axes, values, strict=True)]
    )


def key_of(values: Any) -> tuple[Any, ...]:
    """Values of axes as they are looked up by; None for a missing one."""
    given = tuple(values) if isinstance(values, tuple) else (values,)
    return tuple(None if pd.isna(value) else value for value in given)


def parts_by(frame: pd.DataFrame, axes: Sequence[str]) -> dict[tuple[Any, ...], pd.DataFrame]:
    """The rows of each combination of values, by `key_of` them; in the order of the rows."""
    groups = frame.groupby(list(axes), dropna=False, sort=False)
    return {key_of(key): part for key, part in groups}


def _order(axis: str, value: Any) -> tuple[int, float, str]:
    if value is None:
        return 3, 0.0, ""
    if axis == "strategy":
        known = (BASELINE, "full", "freeze_encoder", "lora")
        name = str(value).partition(", ")[0]
        # Figures name a strategy with the fields that differ, whose numbers are ordered by size.
        by_size = _NUMBER.sub(lambda found: f"{float(found[0]):030.15f}", str(value))
        return 0, float(known.index(name) if name in known else len(known)), by_size
    if axis == "mode":
        modes = ("box", "ais", "amg", "apg", "point")
        return 0, float(modes.index(value) if value in modes else len(modes)), str(value)
    return number_first(value)


def number_first(value: Any) -> tuple[int, float, str]:
    """Numbers by size, also those of a field that is text in other runs, before words."""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, str(value)


def _column_text(axis: str, value: Any) -> str:
    if axis == "n_images":
        return BASELINE if value == 0 else f"{value} image{'' if value == 1 else 's'}"
    return axis_text(value)


def cell_of(values: "pd.Series[Any]") -> Cell | None:
    """The mean of values and their standard deviation; None where there is none."""
    values = values.dropna().astype("float64")
    if values.empty:
        return None
    return Cell(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, len(values))


def has_several(cells: Sequence[Sequence[Cell | None]]) -> bool:
    """Whether a cell is a mean over seeds."""
    return any(cell is not None and cell.n > 1 for line in cells for cell in line)


def with_best(cells: list[Cell | None], metric: str) -> list[Cell | None]:
    """The cells with the best marked; none where all show the same."""
    texts = {value_text(cell.mean, metric) for cell in cells if cell is not None}
    if len(texts) < 2:
        return cells
    better = min if metric.startswith(_SMALLER_IS_BETTER) else max
    best = value_text(better(cell.mean for cell in cells if cell is not None), metric)
    # Equal digits are equally good to a reader.
    return [cell and replace(cell, best=value_text(cell.mean, metric) == best) for cell in cells]
