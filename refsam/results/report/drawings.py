"""The figures of `refsam plot`, drawn for the page as SVG: light and dark, wide and narrow."""

import base64
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from refsam.errors import ConfigError
from refsam.records.paths import Directories
from refsam.results.figures.draw import draw_all
from refsam.results.figures.page import Page

GROUNDS = {"light": None, "dark": Path(__file__).with_name("dark.mplstyle")}
WIDTHS = {"wide": 2, "narrow": 1}  # in columns of a paper's page
METRIC = "SA50"
# Each kind with its heading, and what it shows in words.
KINDS = {
    "study": (
        "Quality over training images",
        "A line chart of {metric} over the number of training images: a colour and a marker for each mode, a "
        "line style for each strategy, starting at the baseline, the initial model.",
    ),
    "pareto": (
        "Quality over training time",
        "A scatter plot of {metric} over the minutes of training: a colour for each model, a marker for "
        "each strategy, and the Pareto front as a line.",
    ),
    "memory": (
        "Memory over trained parameters",
        "A scatter plot of the training's peak memory over the number of trained parameters: a colour for "
        "each model, a marker for each strategy.",
    ),
    "training": (
        "Training curves",
        "Line charts of the validation metric over epochs, lower is better: a panel for each model and "
        "strategy, a line for each run.",
    ),
    "heatmap": (
        "Strategies and numbers of images",
        "A heat map of {metric} with a row for each strategy and a column for each number of training "
        "images; the values stand in its cells.",
    ),
}
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)  # of all runs; the report says it once


@dataclass(frozen=True)
class Look:
    """A figure for a ground (light, dark) and a width of the page (wide, narrow), as a data URI of SVG."""

    ground: str
    width: str
    uri: str


@dataclass(frozen=True)
class Drawing:
    """A figure in all its looks; the style sheet shows one of them."""

    title: str
    words: str
    looks: list[Look]


@dataclass(frozen=True)
class Drawings:
    """The figures, and sentences about those that cannot be drawn."""

    drawn: list[Drawing]
    notes: list[str]


def drawings(frame: pd.DataFrame, directories: Directories, metric: str = METRIC) -> Drawings:
    """All kinds of figures that the rows have values for."""
    drawn: list[Drawing] = []
    notes: list[str] = []
    for kind, (title, words) in KINDS.items():
        looks: dict[str, list[Look]] = {}
        try:
            for width, columns in WIDTHS.items():
                for ground, style in GROUNDS.items():
                    page = Page(columns, style, ("svg",))
                    for name, uri in _draw(kind, frame, directories, metric, page).items():
                        looks.setdefault(name, []).append(Look(ground, width, uri))
        except ConfigError as error:
            notes.append(f"{title}: not drawn, because {error}.")
            continue
        drawn += [
            Drawing(_title(title, name, len(looks)), words.format(metric=metric), looks[name])
            for name in looks
        ]
    return Drawings(drawn, notes)


def _draw(
    kind: str, frame: pd.DataFrame, directories: Directories, metric: str, page: Page
) -> dict[str, str]:
    """Data URIs of the figures of a kind by their names."""
    with tempfile.TemporaryDirectory(prefix="refsam-report-") as name:
        paths = draw_all(frame, directories, Path(name), (kind,), metric, page)
        return {path.stem: _uri(path) for path in paths}


def _uri(path: Path) -> str:
    svg = _METADATA.sub("", path.read_text(encoding="utf-8"))
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode('utf-8')).decode('ascii')}"


def _title(title: str, name: str, how_many: int) -> str:
    """Several figures of a kind are told apart by what they are named after: metric, data set, resource."""
    return title if how_many == 1 else f"{title}: {' '.join(name.split('_')[1:])}"
