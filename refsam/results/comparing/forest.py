"""The forest plot of comparisons: differences to a baseline with their intervals, a panel per mode."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes

from refsam.results.comparing.compare import Comparisons, Difference
from refsam.results.comparing.settings import Setting, varying
from refsam.results.figures.page import Page, mode_looks, save, words
from refsam.results.provenance import provenance

_LINE_INCHES = 0.24
_MARGIN_INCHES = 1.2
_LABEL_INCHES = 1.2  # of the settings' names, roughly
_TICK_INCHES = 0.45  # of a number below a panel


def forest_plot(
    found: Comparisons, frame: pd.DataFrame, folder: Path, name: str, page: Page | None = None
) -> list[Path]:
    """Draw the differences and write `name`.png, .pdf and .svg into `folder`.

    A filled marker is a difference whose interval excludes 0.

    Returns:
        The files; none where nothing was compared.
    """
    if not found.rows:
        return []
    page = page or Page()
    settings: list[Setting] = []
    for row in found.rows:
        if row.setting not in settings:
            settings.append(row.setting)
    differences = {(settings.index(row.setting), row.measured): row.difference for row in found.rows}
    modes = list(dict.fromkeys(row.measured for row in found.rows))
    axes = varying([found.baseline, *settings])
    with page.styled():
        looks = mode_looks([mode.mode for mode in modes])
        down, across = (1, len(modes)) if page.columns > 1 else (len(modes), 1)
        drawn = page.figure(down * _LINE_INCHES * (len(settings) + 1) + _MARGIN_INCHES)
        ticks = max(2, int((page.width - _LABEL_INCHES) / across / _TICK_INCHES))
        panels = drawn.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
        for panel, mode in zip(panels, modes, strict=True):
            panel.axvline(0, color="0.4", linewidth=0.8, zorder=1)
            for place in range(len(settings)):
                if (place, mode) in differences:
                    _draw(panel, differences[place, mode], place, looks[mode.mode])
            panel.set_title(words(mode.words))
            panel.grid(axis="y", visible=False)
            panel.locator_params(axis="x", nbins=ticks)
        panels[0].set_yticks(range(len(settings)), [_label(setting, axes) for setting in settings])
        panels[0].set_ylim(len(settings) - 0.5, -0.5)  # the first setting above
        difference = f"{words(found.metric)}, difference to {_label(found.baseline, axes)}"
        drawn.supxlabel(
            f"{difference}\n95 % intervals; filled where 0 is outside", fontsize=rcParams["axes.labelsize"]
        )
        return save(drawn, folder, name, provenance(frame, found.run_ids), page)


def _label(setting: Setting, axes: list[str]) -> str:
    return ", ".join(words(text) for axis in axes if (text := setting.text(axis)))


def _draw(panel: Axes, difference: Difference, place: int, look: tuple[str, str]) -> None:
    color, marker = look
    bounds: Any = None
    if difference.low is not None and difference.high is not None:
        # A percentile interval of very few images may lie beside its mean.
        below = max(0.0, difference.difference - difference.low)
        bounds = [[below], [max(0.0, difference.high - difference.difference)]]
    panel.errorbar(
        [difference.difference],
        [place],
        xerr=bounds,
        color=color,
        marker=marker,
        markerfacecolor=color if difference.excludes_zero else "white",
        linestyle="none",
        zorder=2,
    )
