"""The other figures: memory over parameters, quality over time, training curves, a heat map of two axes."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from refsam.records.paths import RunsFolder
from refsam.results.collect import BASELINE, first_prompt
from refsam.results.figure import figure
from refsam.results.page import LINES, MARKERS, Page, colors, save, words
from refsam.results.provenance import provenance
from refsam.results.table import ordered_modes
from refsam.results.wide import value_text, wide_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LARGEST_SPAN = 20.0  # between the smallest and the largest value of a linear axis
_PANEL_INCHES = 1.7
_SHARE_OF_CELLS = 0.45  # of a narrow figure's width
_NUMBER_WIDTH = 3.6  # of `0.812` and a margin, in font sizes


def draw_all(
    frame: pd.DataFrame,
    folder: RunsFolder,
    target: Path,
    kinds: Sequence[str],
    metric: str = "SA50",
    page: Page | None = None,
    mode: str | None = None,
    axes: tuple[str, str] = ("n_images", "strategy"),
) -> list[Path]:
    """Draw the figures of these kinds (study, memory, pareto, training, heatmap) into `target`.

    Args:
        mode: of the figures that show one; None: the first that the frame has, box before others.
        axes: of the heat map, the horizontal and the vertical one.

    Returns:
        The files; none of a kind that the frame has no values for.

    Raises:
        BadInput: where a cell of the heat map would mix runs that differ in more than their seed.
    """
    page = page or Page()
    modes = ordered_modes(frame)
    one = mode or (modes[0] if modes else None)
    written: list[Path] = []
    for kind in kinds:
        if kind == "study":
            written += figure(frame, target, metric, page)
        elif kind == "memory":
            written += memory_figure(frame, target, page)
        elif kind == "pareto":
            written += pareto_figure(frame, target, metric, one, page)
        elif kind == "training":
            written += training_figure(frame, folder, target, page)
        elif kind == "heatmap":
            written += heat_map(frame, target, metric, one, axes, page)
    return written


def memory_figure(frame: pd.DataFrame, target: Path, page: Page) -> list[Path]:
    """Peak memory over trainable parameters: a colour per model, a marker per strategy."""
    runs = _trained(frame).dropna(subset=["trainable_parameters", "peak_memory_gib"])
    if runs.empty:
        return []
    points = _means(runs.drop_duplicates("run_id"), ["trainable_parameters", "peak_memory_gib"])
    with page.styled():
        drawn = page.figure(3.2 if page.columns == 1 else 3.8)
        panel = drawn.subplots()
        _scatter(panel, points, "trainable_parameters", "peak_memory_gib")
        panel.set_xscale("log")
        _round_log_axis(panel, points["trainable_parameters"])
        panel.set_ylim(0, 1.15 * float(points["peak_memory_gib"].max()))
        panel.set_xlabel("trainable parameters")
        panel.set_ylabel("peak memory of the training (GiB)")
        _legend(drawn, panel, points, page)
        return save(drawn, target, "memory_parameters", provenance(runs), page)


def pareto_figure(frame: pd.DataFrame, target: Path, metric: str, mode: str | None, page: Page) -> list[Path]:
    """Quality over training time; the line joins what nothing faster surpasses."""
    rows = first_prompt(_trained(frame))
    rows = rows[(rows["mode"] == mode) & rows[metric].notna() & rows["seconds_total"].notna()]
    if rows.empty:
        return []
    points = _means(rows.assign(minutes=rows["seconds_total"] / 60), ["minutes", metric])
    front = pareto_front(points["minutes"].tolist(), points[metric].tolist())
    with page.styled():
        drawn = page.figure(3.2 if page.columns == 1 else 3.8)
        panel = drawn.subplots()
        best = points.iloc[front].sort_values("minutes")
        panel.plot(
            best["minutes"], best[metric], color="0.5", drawstyle="steps-post", zorder=1, label="Pareto front"
        )
        _scatter(panel, points, "minutes", metric, sizes=True)
        if points["minutes"].max() > _LARGEST_SPAN * max(points["minutes"].min(), 1e-9):
            panel.set_xscale("log")
        panel.set_xlabel("training (minutes)")
        panel.set_ylabel(f"{words(str(mode))} {words(metric)}")
        panel.set_title("larger markers: more training images" if points["n_images"].nunique() > 1 else "")
        _legend(drawn, panel, points, page)
        return save(drawn, target, f"pareto_{metric.lower()}_{mode}", provenance(rows), page)


def pareto_front(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """Which points nothing cheaper or equally cheap surpasses in quality, by rising cost."""
    front: list[int] = []
    order = sorted(range(len(costs)), key=lambda number: (costs[number], -qualities[number]))
    for number in order:
        if not front or qualities[number] > qualities[front[-1]]:
            front.append(number)
    return front


def training_figure(frame: pd.DataFrame, folder: RunsFolder, target: Path, page: Page) -> list[Path]:
    """Validation metric over epochs, a panel per model and strategy, a line per number of images and seed."""
    runs = _trained(frame).drop_duplicates("run_id")
    curves: dict[str, list[tuple[int, float]]] = {}
    for run_id in runs["run_id"].dropna():
        curve = _history(folder.run(run_id).history)
        if curve:
            curves[run_id] = curve
    runs = runs[runs["run_id"].isin(curves)]
    if runs.empty:
        return []
    panels_of = list(runs.groupby(["model", "strategy"], sort=True))
    counts = sorted(int(count) for count in runs["n_images"].unique())
    across = min(len(panels_of), 2 if page.columns == 1 else 4)
    down = math.ceil(len(panels_of) / across)
    with page.styled():
        palette = colors()
        drawn = page.figure(_PANEL_INCHES * down + 1.0)
        panels = drawn.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for panel in panels.flat[len(panels_of) :]:
            panel.set_visible(False)
        labelled: set[int] = set()
        for panel, (name, part) in zip(panels.flat, panels_of, strict=False):
            for run_id, count in zip(part["run_id"], part["n_images"], strict=True):
                place = counts.index(int(count))
                epochs, values = zip(*curves[run_id], strict=True)
                panel.plot(
                    epochs,
                    values,
                    color=palette[place % len(palette)],
                    linestyle=LINES[place % len(LINES)],
                    marker="o" if len(epochs) == 1 else None,
                    label="_" if place in labelled else _images(counts[place]),
                )
                labelled.add(place)
            panel.set_title(f"{name[0]}\n{words(str(name[1]))}")
        # Labels of the panels: one of the whole figure would lie under the legend.
        for number, panel in enumerate(panels.flat[: len(panels_of)]):
            panel.xaxis.get_major_locator().set_params(integer=True)
            if number + across >= len(panels_of):
                panel.set_xlabel("epoch")
                panel.tick_params(labelbottom=True)
            if number % across == 0:
                panel.set_ylabel("validation\n(lower is better)")
        drawn.legend(loc="outside lower center", ncols=2 * page.columns)
        return save(drawn, target, "training_curves", provenance(runs), page)


def heat_map(
    frame: pd.DataFrame, target: Path, metric: str, mode: str | None, axes: tuple[str, str], page: Page
) -> list[Path]:
    """A metric over two axes, its mean written into each cell."""
    if mode is None or not frame[metric].notna().any():
        return []
    across, down = axes
    table = wide_table(frame, (down,), (across,), (metric,), {} if "mode" in axes else {"mode": mode})
    if not table.rows:
        return []
    values = [[math.nan if cell is None else cell.mean for cell in row] for row in table.cells]
    with page.styled():
        from matplotlib import rcParams

        drawn = page.figure(0.42 * len(table.rows) + 1.6)
        panel = drawn.subplots()
        # As large as the style's text, but no number wider than its cell.
        room = 72 * page.width * _SHARE_OF_CELLS / len(table.columns)
        size = min(float(rcParams["font.size"]), room / _NUMBER_WIDTH)
        shown = panel.imshow(values, aspect="auto")
        panel.grid(visible=False)
        panel.spines[:].set_visible(False)
        panel.set_xticks(range(len(table.columns)), [_axis_label(column[0]) for column in table.columns])
        panel.set_yticks(range(len(table.rows)), [words(row[0]) for row in table.rows])
        panel.set_xlabel(words(across))
        panel.set_ylabel(words(down))
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                if not math.isnan(value):
                    red, green, blue, _ = shown.to_rgba(np.asarray([value]))[0]
                    light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
                    text = value_text(value, metric)
                    color = "black" if light else "white"
                    panel.text(column, row, text, ha="center", va="center", color=color, fontsize=size)
        label = words(metric) if "mode" in axes else f"{words(mode)} {words(metric)}"
        drawn.colorbar(shown, ax=panel, label=label)
        name = f"heatmap_{metric.lower()}_{down}_{across}"
        return save(drawn, target, name, provenance(frame, table.run_ids), page)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _axis_label(text: str) -> str:
    return text.removesuffix(" images").removesuffix(" image")


def _trained(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["strategy"] != BASELINE]


def _means(rows: pd.DataFrame, values: list[str]) -> pd.DataFrame:
    """One point for what differs in no more than the seed."""
    axes = ["dataset", "resource", "model", "weights", "strategy", "n_images"]
    typed = rows.astype(dict.fromkeys(values, "float64"))
    return typed.groupby(axes, dropna=False)[values].mean().reset_index()


def _scatter(panel: "Axes", points: pd.DataFrame, x: str, y: str, sizes: bool = False) -> None:
    palette = colors()
    models = sorted(set(points["model"]))
    strategies = sorted(set(points["strategy"]))
    counts = sorted(set(points["n_images"]))
    for (model, strategy), part in points.groupby(["model", "strategy"]):
        area = [22 + (18 * counts.index(count) if sizes else 0) for count in part["n_images"]]
        panel.scatter(
            part[x],
            part[y],
            s=area,
            color=palette[models.index(model) % len(palette)],
            marker=MARKERS[strategies.index(strategy) % len(MARKERS)],
            edgecolors="white",
            linewidths=0.5,
            zorder=2,
        )


def _legend(drawn: "Figure", panel: "Axes", points: pd.DataFrame, page: Page) -> None:
    """A marker for each strategy and a colour for each model, below the panel."""
    from matplotlib import rcParams
    from matplotlib.lines import Line2D

    palette = colors()
    handles: list[Any] = list(panel.get_legend_handles_labels()[0])
    for number, strategy in enumerate(sorted(set(points["strategy"]))):
        marker = MARKERS[number % len(MARKERS)]
        look = {"color": rcParams["text.color"], "marker": marker, "linestyle": "none"}
        handles.append(Line2D([], [], label=words(strategy), **look))
    for number, model in enumerate(sorted(set(points["model"]))):
        color = palette[number % len(palette)]
        handles.append(Line2D([], [], color=color, linewidth=5, solid_capstyle="butt", label=model))
    drawn.legend(handles=handles, loc="outside lower center", ncols=2 * page.columns)


def _round_log_axis(panel: "Axes", values: "pd.Series[float]") -> None:
    """Whole decades around the values, so that a narrow span has ticks, too."""
    low, high = float(values.min()), float(values.max())
    panel.set_xlim(10 ** math.floor(math.log10(low) - 0.05), 10 ** math.ceil(math.log10(high) + 0.05))


def _history(path: Path) -> list[tuple[int, float]]:
    """Epochs and validation metrics of history.csv; none where it is not there or damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [(int(row["epoch"]), float(row["validation_metric"])) for row in csv.DictReader(file)]
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return []
    return [(epoch, value) for epoch, value in rows if math.isfinite(value)]
