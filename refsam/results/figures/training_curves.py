"""Training curves: the validation metric over epochs."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from refsam.records.history import read_history
from refsam.records.paths import Directories
from refsam.results.figures.page import (
    LINES,
    Page,
    by_number,
    colors,
    legend_below,
    models_of,
    save,
    series,
    titled,
    trained,
    words,
)
from refsam.results.folds import runs_of
from refsam.results.provenance import provenance

_PANEL_INCHES = 1.7
_MARGIN_INCHES = 0.8
Curve = list[tuple[int, float]]


def training_figure(
    frame: pd.DataFrame, directories: Directories, target: Path, page: Page, problems: list[str]
) -> list[Path]:
    """Validation metric over epochs, a panel per model and strategy, a line per number of images, seed and
    fold.

    Args:
        problems: where a sentence about each damaged history.csv is appended; its run is left out.
    """
    runs = trained(frame).drop_duplicates("run_id")
    curves: dict[str, list[Curve]] = {}  # of each row, one for each fold
    for row, run_id in [(ids, run) for ids in runs["run_id"].dropna() for run in runs_of(ids)]:
        try:
            curve = _curve(directories[run_id].history)
        except ValueError as error:
            problems.append(str(error))
            continue
        if curve:
            curves.setdefault(row, []).append(curve)
    runs = models_of(series(runs[runs["run_id"].isin(list(curves))]))
    written: list[Path] = []
    for (dataset, resource), part in runs.groupby(["dataset", "resource"]):
        with page.styled():
            written += _draw(part, curves, str(dataset), str(resource), target, page)
    return written


def _draw(
    runs: pd.DataFrame, curves: dict[str, list[Curve]], dataset: str, resource: str, target: Path, page: Page
) -> list[Path]:
    groups = list(runs.groupby(["shown_model", "strategy"]))
    panels_of = sorted(groups, key=lambda group: [by_number(str(each)) for each in group[0]])
    counts = sorted(int(count) for count in runs["n_images"].unique())
    across = min(len(panels_of), 2 if page.columns == 1 else 4)
    down = math.ceil(len(panels_of) / across)
    palette = colors()
    drawn = page.figure(_PANEL_INCHES * down + _MARGIN_INCHES)
    panels = drawn.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(panels_of) :]:
        panel.set_visible(False)
    handles: dict[int, Any] = {}
    for panel, (name, part) in zip(panels.flat, panels_of, strict=False):
        shown = zip(part["run_id"], part["n_images"], strict=True)
        for curve, count in [(curve, count) for row, count in shown for curve in curves[row]]:
            place = counts.index(int(count))
            epochs, values = zip(*curve, strict=True)
            (line,) = panel.plot(
                epochs,
                values,
                color=palette[place % len(palette)],
                linestyle=LINES[place % len(LINES)],
                marker="o" if len(epochs) == 1 else None,
                label=f"{count} image{'' if count == 1 else 's'}",
            )
            handles.setdefault(place, line)
        panel.set_title(f"{name[0]}, {words(str(name[1]))}".replace(", ", "\n"))
    # Labels of the panels: one of the whole figure would lie under the legend.
    for number, panel in enumerate(panels.flat[: len(panels_of)]):
        panel.xaxis.get_major_locator().set_params(integer=True)
        if number + across >= len(panels_of):
            panel.set_xlabel("epoch")
            panel.tick_params(labelbottom=True)
        if number % across == 0:
            panel.set_ylabel("validation\n(lower is better)")
    drawn.suptitle(titled(f"Training on {dataset}, resource {resource}", page))
    legend_below(drawn, [handles[place] for place in sorted(handles)], page)
    return save(drawn, target, f"training_curves_{dataset}_{resource}", provenance(runs), page)


def _curve(path: Path) -> Curve:
    """Epochs and validation metrics of history.csv. Raises ValueError when it is damaged."""
    rows = read_history(path)
    points = [(int(row["epoch"]), row["validation_metric"]) for row in rows if "validation_metric" in row]
    return [(epoch, value) for epoch, value in points if math.isfinite(value)]
