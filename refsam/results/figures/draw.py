"""All kinds of figures by their names: which file draws which."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from refsam.records.paths import Directories
from refsam.results.figures.heat_map import heat_map
from refsam.results.figures.page import Page
from refsam.results.figures.scatter import memory_figure, pareto_figure
from refsam.results.figures.study import figure
from refsam.results.figures.training_curves import training_figure
from refsam.results.tables.table import ordered_modes

HEAT_MAP_AXES = ("n_images", "strategy")


def draw_all(
    frame: pd.DataFrame,
    directories: Directories,
    target: Path,
    kinds: Sequence[str],
    metric: str = "SA50",
    page: Page | None = None,
    mode: str | None = None,
    axes: tuple[str, str] = HEAT_MAP_AXES,
    problems: list[str] | None = None,
) -> list[Path]:
    """Draw the figures of these kinds (study, memory, pareto, training, heatmap) into `target`.

    Each kind is one figure for each data set and resource, except the heat map, whose axes they can be.

    Args:
        frame: with folds joined (refsam.results.folds), unless the fold is an axis of the heat map.
        directories: of the runs, for their histories.
        mode: of the figures that show one; None: the first that the frame has, box before others.
        axes: of the heat map, the horizontal and the vertical one.
        problems: where sentences about damaged histories are appended.

    Returns:
        The files; none of a kind that the frame has no values for.

    Raises:
        ConfigError: where a cell of the heat map would mix runs that differ in more than their seed.
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
            said = problems if problems is not None else []
            written += training_figure(frame, directories, target, page, said)
        elif kind == "heatmap":
            written += heat_map(frame, target, metric, one, axes, page)
    return written
