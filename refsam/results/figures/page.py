"""What all figures share: sizes of a page, the style file, how series are told apart, how they are saved."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refsam.errors import ConfigError
from refsam.records.paths import file_name
from refsam.records.settings import words as field_words
from refsam.results.fields import fields, part_of, telling_apart
from refsam.results.provenance import one_line, write_sidecar
from refsam.results.run_rows import BASELINE
from refsam.results.tables.notes import split_follows_seed
from refsam.results.tables.wide import KEPT_APART, number_first, refuse_mixtures
from refsam.system.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("refsam.mplstyle")
KINDS = ("png", "pdf", "svg")
_NAMED_WITH = {"dataset": "dataset", "evaluate": "dataset", "model": "model"}  # others with the strategy
_CHARACTERS = {1: 44, 2: 90}  # of a title's line
_INCHES = {1: 3.35, 2: 7.0}  # the width of one column and of two, as most journals have them

_LETTERS = "ABCDEFGHIJKLMNOP"  # for what has more than a dozen strategies
MARKERS = (*("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*"), *(f"${each}$" for each in _LETTERS))
FILLS = ("full", "none", "left", "bottom", "right", "top")  # of markers: apart without colours, too
LineStyle = Any  # matplotlib's name, or offset and lengths of dashes
LINES: tuple[LineStyle, ...] = (
    *("-", ":", "--", "-."),
    *((0, (3, 1, 1, 1, 1, 1)), (0, (9, 2)), (0, (1, 4)), (0, (9, 2, 1, 2, 1, 2)), (0, (5, 5))),
)
# As in the resource study: full finetuning solid, LoRA dotted.
STRATEGY_LINES: dict[str, LineStyle] = {"full": LINES[0], "lora": LINES[1], "freeze_encoder": LINES[2]}
NAMES = {
    "full": "full finetuning",
    "lora": "LoRA",
    "freeze_encoder": "frozen encoder",
    "decoder": "segmentation decoder",
    "dora": "DoRA",
    "qlora": "QLoRA",
    "ais": "AIS",
    "amg": "AMG",
    "apg": "APG",
    "box": "Box",
    "point": "Point",
    "no_prompt": "No prompt",
    "n_images": "training images",
    "seconds_total": "training (s)",
    "seconds_to_best": "training until the best epoch (s)",
    "best_epoch": "best epoch",
    "peak_memory_gib": "peak memory (GiB)",
    "trainable_parameters": "trainable parameters",
}
# A mode has its own colour and marker in all figures.
MODES = ("box", "ais", "amg", "point", "apg", "no_prompt")


@dataclass(frozen=True)
class Page:
    """The page that a figure is for.

    Attributes:
        columns: how many columns of a page it takes, 1 or 2.
        style: a matplotlib style file on top of refsam's.
        kinds: the formats that figures are written in.
    """

    columns: int = 2
    style: Path | None = None
    kinds: tuple[str, ...] = KINDS

    @property
    def width(self) -> float:
        """In inches."""
        return _INCHES[self.columns]

    @contextmanager
    def styled(self) -> Iterator[None]:
        """The style, for as long as a figure is drawn and saved. Raises ConfigError for a damaged file."""
        from matplotlib import rc_params_from_file, style

        styles = [rc_params_from_file(str(STYLE), use_default_template=False)]
        if self.style is not None:
            try:
                styles.append(rc_params_from_file(str(self.style), use_default_template=False))
            except (OSError, UnicodeDecodeError, ValueError) as error:
                raise ConfigError(
                    f"--style {str(self.style)!r} is not a matplotlib style file: {error}"
                ) from error
        with style.context(list[Any](["default", *styles])):
            yield

    def figure(self, height: float) -> "Figure":
        """An empty figure of this width; its height in inches."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(self.width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        return drawn


def save(drawn: "Figure", folder: Path, name: str, origin: dict[str, Any], page: Page) -> list[Path]:
    """Write a figure in the page's formats with its provenance inside, and a sidecar file beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    name = file_name(name)
    line = one_line(origin)
    maker, made_at = origin["made_by"], origin["made_at"]
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Description": line, "Software": maker, "Creation Time": made_at},
        "pdf": {"Subject": line, "Creator": maker},
        "svg": {"Description": line, "Creator": maker, "Date": made_at},
    }
    paths = []
    for kind in page.kinds:
        path = folder / f"{name}.{kind}"
        write_atomically(path, partial(drawn.savefig, format=kind, metadata=metadata[kind]))
        paths.append(path)
    write_sidecar(folder / name, origin, paths)
    return paths


def legend_below(drawn: "Figure", handles: Sequence[Any], page: Page, handlelength: float = 2.0) -> None:
    """A legend under all panels, for which the figure grows by as many lines as it has."""
    from matplotlib import rcParams

    in_a_line = 2 * page.columns
    lines = -(-len(handles) // in_a_line)
    drawn.set_figheight(drawn.get_figheight() + lines * 1.5 * rcParams["font.size"] / 72)
    drawn.legend(
        handles=list(handles), loc="outside lower center", ncols=in_a_line, handlelength=handlelength
    )


def trained(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The rows of runs that trained something."""
    return frame[frame["strategy"] != BASELINE]


def models_of(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The rows with the column `shown_model`: the model, and its weights where one has several."""
    kinds = frame.groupby("model")["weights"].nunique()
    shown = [
        f"{model}, {Path(str(weights)).name}" if kinds.get(model, 0) > 1 else model
        for model, weights in zip(frame["model"], frame["weights"], strict=True)
    ]
    return frame.assign(shown_model=shown)


def series(frame: "pd.DataFrame", axes: Sequence[str] = ()) -> "pd.DataFrame":
    """The rows with the fields that differ in the names of data set, model and strategy: what is a figure, a
    panel or a line of its own by these names is so by every field.

    Args:
        axes: that the figure shows itself.

    Raises:
        ConfigError: where runs differ in nothing, not even in the seed, and where folds are not joined.
    """
    refuse_mixtures(frame, {*KEPT_APART, *fields(frame)} - {"fold"} | set(axes))
    names = [name for name in telling_apart(frame) if name not in axes]
    of: dict[str, list[str]] = {"dataset": [], "model": [], "strategy": []}
    for name in names:
        of[_NAMED_WITH.get(name.partition(".")[0], "strategy")].append(name)
    of_training = trained(frame)
    objects = of_training.groupby(["resource", "model", "strategy"], dropna=False)["n_objects"].nunique()
    if "n_objects" not in axes and (objects > 1).any():
        of["strategy"].append("n_objects")
    columns = {
        column: [
            ", ".join(filter(None, [str(row[column]), _field_words(part_of(row, among))]))
            for row in frame.to_dict("records")
        ]
        for column, among in of.items()
        if among
    }
    return frame.assign(**columns).drop(columns=[name for name in names if "." in name])


def _field_words(part: Mapping[str, Any]) -> str:
    return field_words({"objects" if name == "n_objects" else name: value for name, value in part.items()})


def by_number(text: str) -> list[tuple[int, float, str]]:
    """Orders names by the numbers in them: `lr 1e-05` before `lr 0.001`."""
    return [number_first(word) for word in re.split(r"[ ,]+", text)]


def over_seeds(rows: "pd.DataFrame", axes: Sequence[str]) -> str:
    """A line of a title where points or cells are means over seeds: what their deviation holds; else nothing.

    Args:
        axes: whose values a point or a cell stands for.
    """
    if not rows.duplicated(list(axes)).any():
        return ""
    test_sets = ", each with a split of its own" if split_follows_seed(rows) else ""
    return f"mean and standard deviation over seeds{test_sets}"


def titled(text: str, page: Page) -> str:
    """A title in as many lines as the page needs."""
    return "\n".join(textwrap.fill(line, _CHARACTERS[page.columns]) for line in text.split("\n"))


def colors() -> list[str]:
    """The colours of the style that is in force."""
    from matplotlib import rcParams

    found: list[str] = rcParams["axes.prop_cycle"].by_key()["color"]
    return found


def words(name: str) -> str:
    """A name of the table as figures say it; what follows a comma stays as it is."""
    first, comma, rest = name.partition(", ")
    return f"{NAMES.get(first, first.replace('_', ' '))}{comma}{rest}"


def strategy_lines(strategies: Sequence[str]) -> dict[str, LineStyle]:
    """A line style for each of at most len(LINES) strategies: those of the study as there, the others what is
    left.
    """
    known = {name: STRATEGY_LINES[name] for name in STRATEGY_LINES if name in strategies}
    left = [line for line in LINES if line not in STRATEGY_LINES.values()]
    left += [line for name, line in STRATEGY_LINES.items() if name not in known]
    return known | dict(zip(sorted(set(strategies) - set(known), key=by_number), left, strict=False))


def mode_looks(modes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each mode."""
    palette = colors()
    order = [*MODES, *sorted(set(modes) - set(MODES))]
    return {
        mode: (palette[order.index(mode) % len(palette)], MARKERS[order.index(mode) % len(MARKERS)])
        for mode in modes
    }
