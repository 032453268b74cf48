"""The figure of the resource study: quality over the number of training images, one figure per resource."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from refsam.records.files import write_atomically
from refsam.results.collect import BASELINE
from refsam.results.table import ordered_modes

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC = "SA50"
_DOTS_PER_INCH = 300
_PANEL_INCHES = (3.0, 2.3)
_MARGIN_INCHES = (1.0, 2.0)


@dataclass(frozen=True)
class _Style:
    """How a finetuning strategy is drawn. Line style and marker tell it apart in greyscale, too."""

    name: str
    line: str | tuple[int, tuple[int, ...]]  # matplotlib's name, or offset and lengths of dashes
    color: str
    marker: str


# Line styles as in the resource study (full finetuning solid, LoRA dotted). Colours of Okabe and Ito,
# "Color universal design" (2008), which people with any colour vision tell apart.
_STYLES = {
    "full": _Style("full finetuning", "-", "#0072B2", "o"),
    "lora": _Style("LoRA", ":", "#D55E00", "s"),
    "freeze_encoder": _Style("frozen encoder", "--", "#009E73", "^"),
}
_OTHERS = (
    _Style("", "-.", "#CC79A7", "D"),
    _Style("", (0, (5, 1)), "#E69F00", "v"),
    _Style("", (0, (1, 1)), "#56B4E9", "P"),
    _Style("", (0, (3, 1, 1, 1, 1, 1)), "#000000", "X"),
)


def figure(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw SA50 over the number of training images and write it as PNG (300 dpi) and PDF.

    One figure per data set and resource; one row of panels per mode, one column per initial model. Each line
    is a finetuning strategy and starts at the initial model's value. Where there are several runs of a
    strategy and a number of images (seeds), the line is their mean and the bars are their standard deviation.

    Args:
        frame: As `refsam.results.collect.collect` returns it. Runs without metrics are left out.
        folder: Where `sa50_<data set>_<resource>.png` and `.pdf` go; made if need be.

    Returns:
        The files, none where the frame has no metrics.
    """
    written: list[Path] = []
    for (dataset, resource), rows in _parts(frame[frame[METRIC].notna()]):
        folder.mkdir(parents=True, exist_ok=True)
        drawn = _draw(rows, dataset, resource)
        for kind in ("png", "pdf"):
            path = folder / f"sa50_{dataset}_{resource}.{kind}"
            write_atomically(path, partial(drawn.savefig, format=kind, dpi=_DOTS_PER_INCH))
            written.append(path)
    return written


def _parts(measured: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Rows per data set and resource. Baselines train nothing: they belong to every resource."""
    baselines = measured[measured["strategy"] == BASELINE]
    trained = measured[measured["strategy"] != BASELINE]
    for (dataset, resource), rows in (baselines if trained.empty else trained).groupby(
        ["dataset", "resource"]
    ):
        if len(trained):
            models = rows[["dataset", "model", "weights"]].drop_duplicates()
            rows = pd.concat([baselines.merge(models), rows])
        yield (str(dataset), str(resource)), rows


def _draw(rows: pd.DataFrame, dataset: str, resource: str) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    modes = ordered_modes(rows)
    models = sorted(set(zip(rows["model"], rows["weights"], strict=True)))
    counts = sorted(int(count) for count in rows["n_images"].unique() if count > 0)
    styles = _styles(rows)

    width, height = _PANEL_INCHES
    margin_width, margin_height = _MARGIN_INCHES
    drawn = Figure(
        figsize=(width * len(models) + margin_width, height * len(modes) + margin_height),
        layout="constrained",
    )
    FigureCanvasAgg(drawn)
    panels = drawn.subplots(len(modes), len(models), sharex=True, sharey=True, squeeze=False)
    for line, mode in zip(panels, modes, strict=True):
        for panel, (model, weights) in zip(line, models, strict=True):
            chosen = (rows["mode"] == mode) & (rows["model"] == model) & (rows["weights"] == weights)
            _draw_panel(panel, rows[chosen], counts, styles)
        line[0].set_ylabel(f"{mode.capitalize()}\n{METRIC}")
    for panel, (model, weights) in zip(panels[0], models, strict=True):
        panel.set_title(f"{model}\n{_starting_point(weights)}", fontsize="medium")
    for panel in panels[-1]:
        panel.set_xlabel("training images")
    # From zero, so that heights compare; up to the next tenth above the best value.
    panels[0, 0].set_ylim(0, min(1.0, math.ceil(10 * rows[METRIC].max() + 0.1) / 10))
    title = f"Finetuning on {dataset}\nresource {resource}"
    if rows.duplicated(["model", "weights", "strategy", "n_images", "mode"]).any():
        title += "\nmean and standard deviation of several runs"
    drawn.suptitle(title, fontsize="medium")
    entries: dict[str, Artist] = {}
    for panel in panels.flat:
        handles, labels = panel.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    drawn.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=2, frameon=False)
    return drawn


def _draw_panel(panel: "Axes", rows: pd.DataFrame, counts: list[int], styles: dict[str, _Style]) -> None:
    """One line per strategy, from the initial model (place 0) over the numbers of images (places 1, 2, …)."""
    baseline = rows.loc[rows["strategy"] == BASELINE, METRIC]
    for strategy, style in styles.items():
        runs = rows[rows["strategy"] == strategy]
        if runs.empty:
            continue
        summaries = {0: baseline} if len(baseline) else {}
        for place, count in enumerate(counts, start=1):
            values = runs.loc[runs["n_images"] == count, METRIC]
            if len(values):
                summaries[place] = values
        repeated = any(len(values) > 1 for values in summaries.values())
        panel.errorbar(
            list(summaries),
            [values.mean() for values in summaries.values()],
            yerr=[values.std(ddof=1) for values in summaries.values()] if repeated else None,
            label=style.name,
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            markersize=5,
            capsize=2,
            clip_on=False,
        )
    if len(baseline):
        # Above the lines that begin here, and not cut off by the panel's edge.
        above: dict[str, Any] = {"zorder": 10, "clip_on": False}
        panel.plot([0], [baseline.mean()], "D", color="black", markersize=6, label="initial model", **above)
    panel.set_xticks(range(len(counts) + 1), ["initial", *map(str, counts)])
    panel.set_xlim(-0.3, len(counts) + 0.3)
    panel.grid(axis="y", color="0.9")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _styles(rows: pd.DataFrame) -> dict[str, _Style]:
    """How each strategy of the figure is drawn: as _STYLES says, others with what is left."""
    strategies = set(rows["strategy"]) - {BASELINE}
    others = zip(sorted(strategies - set(_STYLES)), cycle(_OTHERS))
    styles = {strategy: style for strategy, style in _STYLES.items() if strategy in strategies}
    return styles | {strategy: replace(style, name=strategy) for strategy, style in others}


def _starting_point(weights: str) -> str:
    """Which weights the finetuning started from; a checkpoint by its file name."""
    return f"{weights} weights" if weights in ("pretrained", "random") else f"weights {Path(weights).name}"
