"""The table of the Hugging Face study: what each strategy reaches and costs, over seeds."""

import io
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from refsam.errors import BadInput
from refsam.records.files import write_text
from refsam.records.paths import SweepPaths
from refsam.results.provenance import write_sidecar
from refsam.results.tables.table import ordered_modes
from refsam.results.tables.wide import refuse_mixtures
from refsam.terminal import UNLIMITED, standard_console

METRICS = ("mIoU", "mF1")
COLUMNS = (
    *("model", "weights", "strategy", "n_images", "mode", "n_seeds"),
    *("mIoU", "mIoU_std", "mF1", "mF1_std", "inference_ms", "trainable_parameters", "peak_memory_gib"),
)
_GROUPS = ["model", "weights", "strategy", "n_images"]
_TITLES = (
    *("model", "strategy", "images", "seeds", "mIoU (%)", "mF1 (%)", "inference, ms"),
    *("trainable parameters", "peak memory, GiB"),
)


def over_seeds(frame: pd.DataFrame, mode: str | None = None) -> pd.DataFrame:
    """One row for each model, strategy and number of images; columns COLUMNS.

    mIoU and mF1 in [0, 1] are means over seeds, with the standard deviation of the sample where there are
    several. inference_ms is the mean time of an image, its embedding and the prompts of all its objects
    included; peak_memory_gib the largest of any run's training.

    Args:
        frame: as refsam.results.collect.collect returns it.
        mode: of the evaluation; None: the first that there is of box, point, others.

    Raises:
        BadInput: when no run has been measured in this mode, or a row would mix data sets, resources or
            numbers of objects.
    """
    measured = ordered_modes(frame)
    chosen = mode if mode is not None else next(iter(measured), None)
    if chosen not in measured:
        raise BadInput(
            f"--mode: {mode or 'nothing'} was given, but the sweep has been measured in "
            f"{', '.join(measured) or 'no mode yet'}"
        )
    rows = frame[frame["mode"] == chosen]
    if "round" in rows:
        rows = rows[rows["round"].fillna(0) == 0]
    # Random weights are named by their seed; they are one kind of weights.
    rows = rows.assign(weights=rows["weights"].astype("string").str.replace(r", seed \d+$", "", regex=True))
    refuse_mixtures(rows, {*_GROUPS, "mode"}, "choose with --where {axis}={value}")
    found: list[dict[str, Any]] = []
    for key, runs in rows.groupby(_GROUPS, sort=False, dropna=False):
        values: dict[str, Any] = dict(zip(_GROUPS, key, strict=True))
        values |= {"mode": chosen, "n_seeds": runs["seed"].nunique()}
        for metric in METRICS:
            values |= {metric: runs[metric].mean(), f"{metric}_std": runs[metric].std()}
        values["inference_ms"] = 1000 * runs["seconds_per_image"].mean()
        values["trainable_parameters"] = runs["trainable_parameters"].max()
        values["peak_memory_gib"] = runs["peak_memory_gib"].max()
        found.append(values)
    return pd.DataFrame(found, columns=list(COLUMNS))


def write_strategies(sweep: SweepPaths, table: pd.DataFrame, origin: dict[str, Any]) -> Path:
    """Replace the sweep's strategies.csv, atomically, and return its path.

    strategies.json says where it comes from.
    """
    text = io.StringIO()
    table.to_csv(text, index=False, lineterminator="\n")
    write_text(sweep.strategies, text.getvalue())
    write_sidecar(sweep.strategies.with_suffix(""), origin, [sweep.strategies])
    return sweep.strategies


def print_strategies(table: pd.DataFrame, console: Console | None = None) -> None:
    """The table for the terminal, percentages as the study has them."""
    console = console or standard_console()
    if not console.is_terminal:
        console.width = UNLIMITED
    shown = Table(header_style="bold")
    for index, title in enumerate(_TITLES):
        shown.add_column(title, justify="left" if index < 2 else "right")
    for row in table.to_dict("records"):
        shown.add_row(*map(Text, cells(row)))
    console.print(shown)


def markdown(table: pd.DataFrame) -> str:
    """The table for a document."""
    lines = [_TITLES, ["---"] * len(_TITLES), *(cells(row) for row in table.to_dict("records"))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(row: Mapping[Hashable, Any]) -> Sequence[str]:
    """One row in words, in the order of the titles."""
    parameters, memory = row["trainable_parameters"], row["peak_memory_gib"]
    return (
        *(str(row["model"]), str(row["strategy"]), str(row["n_images"]), str(row["n_seeds"])),
        *(_percent(row[metric], row[f"{metric}_std"]) for metric in METRICS),
        f"{row['inference_ms']:.1f}",
        "" if pd.isna(parameters) else f"{int(parameters):,}",
        "" if pd.isna(memory) else f"{memory:.2f}",
    )


def _percent(mean: float, deviation: float) -> str:
    spread = "" if pd.isna(deviation) else f" ± {100 * deviation:.2f}"
    return "" if pd.isna(mean) else f"{100 * mean:.2f}{spread}"
