"""The table of the Hugging Face study: what each strategy reaches and costs, over seeds."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from refsam.errors import ConfigError
from refsam.records.metrics import MASK_METRICS, QLORA_SAM_METRICS
from refsam.records.paths import SweepPaths
from refsam.results.fields import fields, heading, telling_apart
from refsam.results.provenance import write_sidecar
from refsam.results.tables.fitted import Column, Shown, are_words, print_columns
from refsam.results.tables.formats import markdown_table
from refsam.results.tables.table import ordered_modes
from refsam.results.tables.wide import axis_text, refuse_mixtures
from refsam.system.files import write_text
from refsam.system.terminal import standard_console

METRICS = (*MASK_METRICS, *QLORA_SAM_METRICS)
_GROUPS = ("model", "weights", "strategy", "n_images")
COLUMNS = (
    *(*_GROUPS, "mode", "n_seeds", "n_test_images"),
    *(column for metric in METRICS for column in (metric, f"{metric}_std")),
    *("inference_ms", "trainable_parameters", "peak_memory_gib"),
)
_NAMES = {"n_images": "images"}
_TITLES = {
    "n_seeds": "seeds",
    "n_test_images": "test images",
    **{metric: f"{metric} (%)" for metric in METRICS},
    "inference_ms": "inference, ms",
    "trainable_parameters": "trainable parameters",
    "peak_memory_gib": "peak memory, GiB",
}
_BROKEN = {
    "test images": "test\nimages",
    **{f"{metric} (%)": f"{metric.partition('_')[0]}_\nqlora_sam (%)" for metric in QLORA_SAM_METRICS},
    "inference, ms": "inference,\nms",
    "trainable parameters": "trainable\nparameters",
    "peak memory, GiB": "memory,\nGiB",
}
# What a narrow terminal goes without, in this order.
_DISPENSABLE = (
    *("trainable_parameters", "peak_memory_gib", "inference_ms", "n_seeds", "mF1_qlora_sam", "mF1"),
    "mIoU_qlora_sam",
)


def over_seeds(frame: pd.DataFrame, mode: str | None = None) -> pd.DataFrame:
    """One row for each model, strategy, number of images, and value of a field that differs between them;
    columns COLUMNS, and those fields after n_images.

    mIoU and mF1 in [0, 1] are means over seeds, with the standard deviation of the sample where there are
    several; so are those of QLoRA-SAM, where evaluate.metrics asked for them. inference_ms is the mean time
    of an image, its embedding and the prompts of all its objects included; peak_memory_gib the largest of any
    run's training.

    Args:
        frame: as refsam.results.collect.collect returns it.
        mode: of the evaluation; None: the first that there is of box, point, others.

    Raises:
        ConfigError: when no run has been measured in this mode, or a row would mix data sets, resources or
            numbers of objects.
    """
    measured = ordered_modes(frame)
    chosen = mode if mode is not None else next(iter(measured), None)
    if chosen not in measured:
        raise ConfigError(
            f"--mode={mode or 'nothing'}, but the sweep has been measured in "
            f"{', '.join(measured) or 'no mode yet'}"
        )
    rows = frame[frame["mode"] == chosen]
    if "round" in rows:
        rows = rows[rows["round"].fillna(0) == 0]
    # Random weights are named by their seed; they are one kind of weights.
    rows = rows.assign(weights=rows["weights"].astype("string").str.replace(r", seed \d+$", "", regex=True))
    groups = [*_GROUPS, *telling_apart(rows)]
    refuse_mixtures(rows, {*groups, "mode"})
    found: list[dict[str, Any]] = []
    for key, runs in rows.groupby(groups, sort=False, dropna=False):
        values: dict[str, Any] = dict(zip(groups, key, strict=True))
        values |= {"mode": chosen, "n_seeds": runs["seed"].nunique()}
        values["n_test_images"] = runs["n_test_images"].min()
        for metric in METRICS:
            values |= {metric: runs[metric].mean(), f"{metric}_std": runs[metric].std()}
        values["inference_ms"] = 1000 * runs["seconds_per_image"].mean()
        values["trainable_parameters"] = runs["trainable_parameters"].max()
        values["peak_memory_gib"] = runs["peak_memory_gib"].max()
        found.append(values)
    return pd.DataFrame(found, columns=[*groups, *COLUMNS[len(_GROUPS) :]])


def write_strategies(sweep: SweepPaths, table: pd.DataFrame, origin: dict[str, Any]) -> Path:
    """Replace the sweep's strategies.csv, atomically, and return its path.

    strategies.json says where it comes from.
    """
    write_text(sweep.strategies, table.to_csv(index=False, lineterminator="\n"))
    write_sidecar(sweep.strategies.with_suffix(""), origin, [sweep.strategies])
    return sweep.strategies


def print_strategies(table: pd.DataFrame, console: Console | None = None, shown: Shown | None = None) -> None:
    """The table for the terminal, percentages as the study has them. Raises as print_columns does."""
    axes = _axes(table)
    lines = [texts(row, table) for row in table.to_dict("records")]
    columns = [
        Column(name, _BROKEN.get(title, title), cells, name in axes and are_words(cells))
        for name, title, cells in zip(
            [*axes, *_shown(table)], titles(table), zip(*lines, strict=True), strict=True
        )
    ]
    print_columns(columns, _DISPENSABLE, console or standard_console(), shown or Shown())


def markdown(table: pd.DataFrame) -> str:
    """The table for a document."""
    return markdown_table(titles(table), [texts(row, table) for row in table.to_dict("records")])


def titles(table: pd.DataFrame) -> Sequence[str]:
    """The headings: what tells the rows apart, and what they reach and cost."""
    return (
        *(_NAMES.get(name, heading(name)) for name in _axes(table)),
        *(_TITLES[name] for name in _shown(table)),
    )


def texts(row: Mapping[Hashable, Any], table: pd.DataFrame) -> Sequence[str]:
    """One row in words, in the order of the titles."""
    parameters, memory, images = (
        row[name] for name in ("trainable_parameters", "peak_memory_gib", "n_test_images")
    )
    return (
        *(axis_text(row[name]) for name in _axes(table)),
        *(str(row["n_seeds"]), "" if pd.isna(images) else str(int(images))),
        *(_percent(row[name], row[f"{name}_std"]) for name in _shown(table) if name in METRICS),
        f"{row['inference_ms']:.1f}",
        "" if pd.isna(parameters) else f"{int(parameters):,}",
        "" if pd.isna(memory) else f"{memory:.2f}",
    )


def _axes(table: pd.DataFrame) -> list[str]:
    """The columns that say what a row is; the weights only where there are several."""
    axes = [*_GROUPS, *fields(table)]
    return [name for name in axes if name != "weights" or table["weights"].nunique(dropna=False) > 1]


def _shown(table: pd.DataFrame) -> list[str]:
    """The columns that say what a row reaches and costs; QLoRA-SAM's metrics where any was measured."""
    return [name for name in _TITLES if name not in QLORA_SAM_METRICS or table[name].notna().any()]


def _percent(mean: float, deviation: float) -> str:
    spread = "" if pd.isna(deviation) else f" ± {100 * deviation:.2f}"
    return "" if pd.isna(mean) else f"{100 * mean:.2f}{spread}"
