"""The figure of the resource study: quality over the number of training images, one figure per resource."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from refsam.results.collect import BASELINE, first_prompt
from refsam.results.figures.page import (
    LINES,
    MODES,
    STRATEGY_LINES,
    LineStyle,
    Page,
    by_number,
    legend_below,
    mode_looks,
    over_seeds,
    save,
    series,
    strategy_lines,
    titled,
    trained,
    words,
)
from refsam.results.provenance import provenance
from refsam.results.tables.table import ordered_modes

METRIC = "SA50"
_PANEL_INCHES = 1.75
_MARGIN_INCHES = 1.2  # without the legend
_MODELS_PER_COLUMN = 2  # panels side by side in a column of a page
_ABOVE = "box"  # has panels of its own, above those of all other modes


def figure(frame: pd.DataFrame, folder: Path, metric: str = METRIC, page: Page | None = None) -> list[Path]:
    """Draw a metric over the number of training images and write it as PNG (300 dpi), PDF and SVG.

    One figure per data set and resource, several where there are more strategies than styles of lines or more
    models than have room. Box has the panels above, the other modes share those below; one column of panels
    per initial model. A mode is a colour and a marker, a strategy a line style; each line starts at the
    initial model's value. A field of the configuration that differs is a figure, a panel or a line style of
    its own. Where there are several seeds, the line is their mean, the bars are their standard deviation.

    Args:
        frame: As `refsam.results.collect.collect` returns it. Runs without the metric are left out.
        folder: Where `<metric>_<data set>_<resource>.png`, `.pdf` and `.svg` go; made if need be.

    Returns:
        The files, none where the frame has no such values.
    """
    page = page or Page()
    written: list[Path] = []
    measured = series(first_prompt(frame[frame[metric].notna()]))
    for (dataset, resource), rows in parts(measured):
        for name, part in _pages(rows, page):
            title = "_".join([metric.lower(), dataset, resource, *name])
            with page.styled():
                drawn = _draw(part, metric, dataset, resource, page)
                written += save(drawn, folder, title, provenance(part), page)
    return written


def _pages(rows: pd.DataFrame, page: Page) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """What goes on a figure: no more strategies than there are styles of lines, those of the study first, and
    no more models than have room side by side. Numbers tell the figures apart where there are several.
    """
    found = set(trained(rows)["strategy"])
    strategies = [name for name in STRATEGY_LINES if name in found]
    strategies += sorted(found - set(strategies), key=by_number)
    models = sorted(set(rows["model"]), key=by_number)
    groups = [
        (some_models, some_strategies)
        for some_models in _chunks(models, _MODELS_PER_COLUMN * page.columns)
        for some_strategies in _chunks(strategies, len(LINES))
    ]
    for number, (some_models, some_strategies) in enumerate(groups, start=1):
        part = rows[rows["model"].isin(some_models) & rows["strategy"].isin([BASELINE, *some_strategies])]
        yield [str(number)] if len(groups) > 1 else [], part


def _chunks(values: list[str], size: int) -> list[list[str]]:
    return [values[first : first + size] for first in range(0, len(values), size)] or [[]]


def parts(measured: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Rows per data set and resource. Baselines train nothing: they belong to every resource."""
    baselines = measured[measured["strategy"] == BASELINE]
    runs = trained(measured)
    for (dataset, resource), rows in (baselines if runs.empty else runs).groupby(["dataset", "resource"]):
        if len(runs):
            models = rows[["dataset", "model", "weights"]].drop_duplicates()
            rows = pd.concat([baselines.merge(models), rows])
        yield (str(dataset), str(resource)), rows


def _draw(rows: pd.DataFrame, metric: str, dataset: str, resource: str, page: Page) -> Figure:
    # What a run has once belongs to no mode; of a run without configuration the weights are not known.
    rows = rows.assign(mode=rows["mode"].fillna(""), weights=rows["weights"].fillna(""))
    modes = sorted(ordered_modes(rows), key=lambda mode: MODES.index(mode) if mode in MODES else len(MODES))
    both = [mode for mode in modes if mode == _ABOVE], [mode for mode in modes if mode != _ABOVE]
    levels = [level for level in both if level]
    pairs = set(zip(rows["model"], rows["weights"], strict=True))
    models = sorted(pairs, key=lambda pair: (by_number(pair[0]), pair[1]))
    counts = sorted(int(count) for count in rows["n_images"].unique() if count > 0)
    lines = strategy_lines(sorted(set(rows["strategy"]) - {BASELINE}, key=by_number))
    looks = mode_looks(modes)

    drawn = page.figure(_PANEL_INCHES * len(levels) + _MARGIN_INCHES)
    panels = drawn.subplots(len(levels), len(models), sharex=True, sharey=True, squeeze=False)
    for line, level in zip(panels, levels, strict=True):
        for panel, (model, weights) in zip(line, models, strict=True):
            chosen = rows[(rows["model"] == model) & (rows["weights"] == weights)]
            for mode in level:
                _draw_mode(panel, chosen[chosen["mode"] == mode], metric, counts, lines, looks[mode], mode)
            _dress(panel, counts)
        name = "\n".join([", ".join(words(mode) for mode in level if mode), words(metric)]).strip()
        line[0].set_ylabel(name)
    for panel, (model, weights) in zip(panels[0], models, strict=True):
        panel.set_title("\n".join([*model.split(", "), _starting_point(weights)]))
    for panel in panels[-1]:
        panel.set_xlabel("training images")
    top = float(rows[metric].max())
    # From zero, so that heights compare; a metric up to the next tenth above the best value.
    panels[0, 0].set_ylim(0, min(1.0, math.ceil(10 * top + 0.1) / 10) if top <= 1 else 1.08 * top)
    seeds = over_seeds(rows, ("model", "weights", "strategy", "n_images", "mode"))
    title = f"Finetuning on {dataset}, resource {resource}\n{seeds}".strip()
    drawn.suptitle(titled(title, page))
    entries: list[Artist] = [
        Line2D([], [], color=looks[mode][0], marker=looks[mode][1], linestyle="none", label=words(mode))
        for mode in modes
        if mode
    ]
    entries += [
        Line2D([], [], color=rcParams["text.color"], linestyle=style, label=words(strategy))
        for strategy, style in lines.items()
    ]
    legend_below(drawn, entries, page, handlelength=3.0)
    return drawn


def _draw_mode(
    panel: Axes,
    rows: pd.DataFrame,
    metric: str,
    counts: list[int],
    lines: dict[str, LineStyle],
    look: tuple[str, str],
    mode: str,
) -> None:
    """One line per strategy, from the initial model (place 0) over the numbers of images (places 1, 2, …)."""
    baseline = rows.loc[rows["strategy"] == BASELINE, metric]
    color, marker = look
    for strategy, style in lines.items():
        runs = rows[rows["strategy"] == strategy]
        if runs.empty:
            continue
        summaries = {0: baseline} if len(baseline) else {}
        for place, count in enumerate(counts, start=1):
            values = runs.loc[runs["n_images"] == count, metric]
            if len(values):
                summaries[place] = values
        repeated = any(len(values) > 1 for values in summaries.values())
        panel.errorbar(
            list(summaries),
            [values.mean() for values in summaries.values()],
            yerr=[values.std(ddof=1) for values in summaries.values()] if repeated else None,
            label=f"{words(mode)}, {words(strategy)}",
            color=color,
            linestyle=style,
            marker=marker,
            clip_on=False,
        )
    if len(baseline) and not (set(rows["strategy"]) - {BASELINE}):
        above: dict[str, Any] = {"zorder": 10, "clip_on": False}
        panel.plot([0], [baseline.mean()], marker, color=color, label=BASELINE, **above)


def _dress(panel: Axes, counts: list[int]) -> None:
    panel.set_xticks(range(len(counts) + 1), [BASELINE, *map(str, counts)])
    panel.set_xlim(-0.3, len(counts) + 0.3)
    panel.grid(axis="x", visible=False)


def _starting_point(weights: str) -> str:
    """Which weights the finetuning started from; a checkpoint by its file name."""
    if not weights:
        return ""
    return f"{weights} weights" if weights in ("pretrained", "random") else f"weights {Path(weights).name}"
