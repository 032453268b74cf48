"""A heat map of any two axes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes

from refsam.results.collect import BASELINE, first_prompt
from refsam.results.figures.page import Page, models_of, over_seeds, save, series, titled, trained, words
from refsam.results.provenance import provenance
from refsam.results.tables.wide import WideTable, cell_text, depends_on_mode, value_text, wide_table

_SHARE_OF_CELLS = 0.45  # of a narrow figure's width
_CHARACTER_WIDTH = 0.7  # of a digit and its share of a cell's margin, in font sizes
_ROW_INCHES = 0.42
_FIGURES_OF = ("dataset", "resource")


def heat_map(
    frame: pd.DataFrame, target: Path, metric: str, mode: str | None, axes: tuple[str, str], page: Page
) -> list[Path]:
    """A metric over two axes: its mean in each cell, and the standard deviation where there are seeds.

    A panel for each model, and a figure for each data set and resource, unless they are axes. Where the
    strategy is one, its name has the fields that differ. What the initial model reaches is said above its
    panel.

    Raises:
        ConfigError: where axes are the same, or a cell would mix runs that differ in more than their seed.
    """
    by_mode = depends_on_mode(metric) and "mode" not in axes
    rows = frame if "round" in axes else first_prompt(frame)
    rows = rows[rows[metric].notna() & ((rows["mode"] == mode) | (not by_mode))]
    if not by_mode:
        rows = rows.drop_duplicates("run_id")
    rows = models_of(series(rows, axes) if "strategy" in axes else rows)
    initial, runs = rows[rows["strategy"] == BASELINE], trained(rows)
    figures_of = [axis for axis in _FIGURES_OF if axis not in axes]
    written: list[Path] = []
    for values, part in runs.groupby(figures_of) if figures_of else [((), runs)]:
        if part.empty:
            continue
        chosen = dict(zip(figures_of, map(str, values), strict=True))
        start = initial[initial["dataset"] == chosen["dataset"]] if "dataset" in chosen else initial.iloc[:0]
        with page.styled():
            written += _draw(part, start, metric, mode if by_mode else None, axes, chosen, target, page)
    return written


def _draw(
    runs: pd.DataFrame,
    initial: pd.DataFrame,
    metric: str,
    mode: str | None,
    axes: tuple[str, str],
    chosen: dict[str, str],
    target: Path,
    page: Page,
) -> list[Path]:
    across, down = axes
    parts: list[tuple[Any, pd.DataFrame]] = [("", runs)]
    if "model" not in axes:
        parts = list(runs.groupby("shown_model"))
    tables = [wide_table(part, (down,), (across,), (metric,), options=("--y", "--x")) for _, part in parts]
    columns = list(dict.fromkeys(column[0] for table in tables for column in table.columns))
    lines = list(dict.fromkeys(row[0] for table in tables for row in table.rows))
    means = [_means(table, lines, columns) for table in tables]
    low, high = float(np.nanmin(means)), float(np.nanmax(means))

    per_row = min(len(tables), page.columns)
    below = math.ceil(len(tables) / per_row)
    drawn = page.figure(below * (_ROW_INCHES * len(lines) + 0.7) + 0.6)
    panels = drawn.subplots(below, per_row, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(tables) :]:
        panel.set_visible(False)
    for number, (panel, table, (model, _)) in enumerate(zip(panels.flat, tables, parts, strict=False)):
        shown = panel.imshow(means[number], aspect="auto", vmin=low, vmax=high)
        _write_cells(panel, shown, table, lines, columns, metric, page.width / per_row)
        panel.set_title("\n".join(filter(None, [str(model), _initial(initial, str(model), metric)])))
        panel.grid(visible=False)
        panel.spines[:].set_visible(False)
        panel.set_xticks(range(len(columns)), [_without_unit(column) for column in columns])
        panel.set_yticks(range(len(lines)), [words(line) for line in lines])
        if number + per_row >= len(tables):
            panel.set_xlabel(words(across))
            panel.tick_params(labelbottom=True)
        if number % per_row == 0:
            panel.set_ylabel(words(down))
    label = words(metric) if mode is None else f"{words(mode)} {words(metric)}"
    drawn.colorbar(shown, ax=list(panels.flat[: len(tables)]), label=label)
    text = ", ".join(f"resource {v}" if k == "resource" else v for k, v in chosen.items())
    cells = [name for name in dict.fromkeys((*axes, "shown_model")) if name in runs]
    title = f"{text}\n{over_seeds(runs, cells)}".strip()
    if title:
        drawn.suptitle(titled(title, page))
    name = "_".join(["heatmap", metric.lower(), *([mode] if mode else []), down, across, *chosen.values()])
    run_ids = [run_id for table in tables for run_id in table.run_ids]
    return save(drawn, target, name, provenance(runs, run_ids), page)


def _means(table: WideTable, lines: list[str], columns: list[str]) -> "np.ndarray[Any, Any]":
    """(lines, columns) float, NaN where nothing was measured."""
    means = np.full((len(lines), len(columns)), math.nan)
    for row, cells in zip(table.rows, table.cells, strict=True):
        for column, cell in zip(table.columns, cells, strict=True):
            if cell is not None:
                means[lines.index(row[0]), columns.index(column[0])] = cell.mean
    return means


def _write_cells(
    panel: Axes,
    shown: Any,
    table: WideTable,
    lines: list[str],
    columns: list[str],
    metric: str,
    width: float,
) -> None:
    """The numbers, as large as the style's text, but none wider than its cell; `width` in inches."""
    written = [
        ((columns.index(column[0]), lines.index(row[0])), cell.mean, cell_text(cell, metric))
        for row, cells in zip(table.rows, table.cells, strict=True)
        for column, cell in zip(table.columns, cells, strict=True)
        if cell is not None
    ]
    longest = max(len(part) for *_, text in written for part in _lines(text))
    room = 72 * width * _SHARE_OF_CELLS / len(columns)
    size = min(float(rcParams["font.size"]), room / (_CHARACTER_WIDTH * longest))
    for place, mean, text in written:
        red, green, blue, _ = shown.to_rgba(np.asarray([mean]))[0]
        color = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
        look: dict[str, Any] = {"color": color, "fontsize": size, "linespacing": 1.0}
        panel.text(*place, "\n".join(_lines(text)), ha="center", va="center", **look)


def _lines(text: str) -> list[str]:
    """`0.812 ± 0.004` in two lines."""
    mean, plus_minus, deviation = text.partition(" ± ")
    return [mean, f"± {deviation}"] if plus_minus else [mean]


def _initial(initial: pd.DataFrame, model: str, metric: str) -> str:
    values = initial.loc[initial["shown_model"] == model, metric].astype("float64")
    return "" if values.empty else f"{BASELINE} {value_text(float(values.mean()), metric)}"


def _without_unit(text: str) -> str:
    return text.removesuffix(" images").removesuffix(" image")
