"""Figures with a point for each way to train: memory over parameters, quality over time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from refsam.results.collect import first_prompt
from refsam.results.figures.page import (
    FILLS,
    MARKERS,
    Page,
    by_number,
    colors,
    legend_below,
    models_of,
    over_seeds,
    save,
    series,
    titled,
    trained,
    words,
)
from refsam.results.provenance import provenance

_LARGEST_SPAN = 20.0  # between the smallest and the largest value of a linear axis
_INCHES = {1: 2.6, 2: 3.2}  # without the legend
_SIZE = 4.5  # of a marker, in points, and what more images add to it
_MORE = 1.6
_POINT = ["shown_model", "strategy", "n_images"]  # what a point stands for


def memory_figure(frame: pd.DataFrame, target: Path, page: Page) -> list[Path]:
    """Peak memory over trainable parameters: a colour and a filling per model, a marker per strategy, a size
    per number of images. Bars are the standard deviation over seeds.
    """
    values = ["trainable_parameters", "peak_memory_gib"]
    runs = models_of(series(trained(frame).dropna(subset=values).drop_duplicates("run_id")))

    def finish(panel: Axes, points: pd.DataFrame) -> None:
        _log_axis(panel, points["trainable_parameters"])
        panel.set_ylim(0, 1.15 * float((points["peak_memory_gib"] + points["peak_memory_gib_std"]).max()))
        panel.set_xlabel("trainable parameters")
        panel.set_ylabel("peak memory of the training (GiB)")

    return _draw(runs, values, "memory_parameters", target, page, finish)


def pareto_figure(frame: pd.DataFrame, target: Path, metric: str, mode: str | None, page: Page) -> list[Path]:
    """Quality over training time, with its Pareto front as a line. Bars are the standard
    deviation over seeds.
    """
    rows = first_prompt(trained(frame))
    rows = rows[(rows["mode"] == mode) & rows[metric].notna() & rows["seconds_total"].notna()]
    rows = models_of(series(rows).assign(minutes=rows["seconds_total"] / 60))

    def finish(panel: Axes, points: pd.DataFrame) -> Any:
        if points["minutes"].max() > _LARGEST_SPAN * max(points["minutes"].min(), 1e-9):
            _log_axis(panel, points["minutes"])
        panel.set_xlabel("training (minutes)")
        panel.set_ylabel(f"{words(str(mode))} {words(metric)}")
        return _draw_front(panel, points, metric)

    name = f"pareto_{metric.lower()}_{mode}"
    return _draw(rows, ["minutes", metric], name, target, page, finish, with_seeds=True)


def _draw(
    runs: pd.DataFrame,
    values: list[str],
    name: str,
    target: Path,
    page: Page,
    finish: Callable[[Axes, pd.DataFrame], Any],
    with_seeds: bool = False,
) -> list[Path]:
    """A figure for each data set and resource: the second of `values` over the first.

    Args:
        finish: sets up the axes of the drawn points, and returns a line for the legend, or None.
        with_seeds: whether the title says over how many seeds a point is a mean.
    """
    written: list[Path] = []
    for (dataset, resource), part in runs.groupby(["dataset", "resource"]):
        points = _summaries(part, values, _POINT)
        with page.styled():
            drawn = page.figure(_INCHES[page.columns])
            panel = drawn.subplots()
            _scatter(panel, points, *values)
            line = finish(panel, points)
            seeds = over_seeds(part, _POINT) if with_seeds else ""
            panel.set_title(titled(f"{_title(points, str(dataset), str(resource))}\n{seeds}".strip(), page))
            _legend(drawn, points, page, line)
            written += save(drawn, target, f"{name}_{dataset}_{resource}", provenance(part), page)
    return written


def pareto_front(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """Which points nothing cheaper or equally cheap surpasses in quality, by rising cost."""
    front: list[int] = []
    order = sorted(range(len(costs)), key=lambda number: (costs[number], -qualities[number]))
    for number in order:
        if not front or qualities[number] > qualities[front[-1]]:
            front.append(number)
    return front


def _draw_front(panel: Axes, points: pd.DataFrame, metric: str) -> Any:
    """The best quality for the time that one has, up to the right edge; returns its line."""
    best = points.iloc[pareto_front(points["minutes"].tolist(), points[metric].tolist())]
    low, high = panel.get_xlim()
    (line,) = panel.plot(
        [*best["minutes"], high],
        [*best[metric], best[metric].iloc[-1]],
        color="0.5",
        drawstyle="steps-post",
        zorder=1,
        label="Pareto front",
    )
    panel.set_xlim(low, high)
    return line


def _summaries(rows: pd.DataFrame, values: list[str], axes: list[str]) -> pd.DataFrame:
    """One point for what differs in nothing else: means, and standard deviations (0 for a single run)."""
    typed = rows.astype(dict.fromkeys(values, "float64")).groupby(axes)[values]
    return typed.mean().join(typed.std(ddof=1).fillna(0.0), rsuffix="_std").reset_index()


def _scatter(panel: Axes, points: pd.DataFrame, x: str, y: str) -> None:
    looks = _looks(points)
    for row in points.to_dict("records"):
        look = looks[row["shown_model"], row["strategy"]]
        panel.errorbar(
            row[x],
            row[y],
            xerr=row[f"{x}_std"] or None,
            yerr=row[f"{y}_std"] or None,
            elinewidth=0.8,
            linestyle="none",
            markersize=_size(points, row["n_images"]),
            **look,
        )


def _looks(points: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """A colour and a filling for each model, which greyscale keeps apart, and a marker for each strategy."""
    palette = colors()
    models = sorted(set(points["shown_model"]), key=by_number)
    strategies = sorted(set(points["strategy"]), key=by_number)
    return {
        (model, strategy): {
            "color": palette[place % len(palette)],
            "fillstyle": FILLS[place % len(FILLS)],
            "markerfacecoloralt": rcParams["axes.facecolor"],
            "marker": MARKERS[number % len(MARKERS)],
        }
        for place, model in enumerate(models)
        for number, strategy in enumerate(strategies)
    }


def _size(points: pd.DataFrame, n_images: int) -> float:
    return _SIZE + _MORE * sorted(set(points["n_images"])).index(n_images)


def _title(points: pd.DataFrame, dataset: str, resource: str) -> str:
    models = set(points["shown_model"])
    only = f"{models.pop()} on " if len(models) == 1 else ""
    return f"{only}{dataset}, resource {resource}"


def _legend(drawn: Figure, points: pd.DataFrame, page: Page, front: Any = None) -> None:
    """A marker for each strategy, a colour for each model, a size for each number of images, below."""
    looks = _looks(points)
    models, strategies = (list(dict.fromkeys(names)) for names in zip(*looks, strict=True))
    plain = {"color": rcParams["text.color"], "linestyle": "none"}
    handles: list[Any] = [front] if front is not None else []
    for strategy in strategies:
        marker = looks[models[0], strategy]["marker"]
        handles.append(Line2D([], [], **plain, marker=marker, markersize=_SIZE, label=words(strategy)))
    for model in models if len(models) > 1 else []:  # else the title says it; a marker that no strategy has
        look = looks[model, strategies[0]] | {"marker": MARKERS[len(strategies) % len(MARKERS)]}
        handles.append(Line2D([], [], linestyle="none", markersize=1.4 * _SIZE, label=model, **look))
    counts = sorted(set(points["n_images"]))
    for count in counts if len(counts) > 1 else []:
        label = f"{count} image{'' if count == 1 else 's'}"
        look = {"marker": "o", "markersize": _size(points, count), "fillstyle": "none"}
        handles.append(Line2D([], [], **plain, **look, label=label))
    legend_below(drawn, handles, page)


def _log_axis(panel: Axes, values: "pd.Series[float]") -> None:
    """A logarithmic horizontal axis with round numbers, also where the values span less than a decade."""
    low, high = float(values.min()), float(values.max())
    panel.set_xscale("log")
    panel.set_xlim(low / 2, 2 * high)  # wide enough for two of the numbers
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 30 * low else (1.0,)))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.xaxis.set_minor_formatter(NullFormatter())
