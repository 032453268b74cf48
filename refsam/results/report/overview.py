"""The first answers of the report: where the runs are, and the best of each mode."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from refsam.records.settings import is_of_training
from refsam.results.collect import BASELINE, INVALID, first_prompt
from refsam.results.fields import fields, of_trained
from refsam.results.sweeps import DAMAGED, UNREADABLE
from refsam.results.tables.table import AXES, axis_words, ordered_modes, run_words, varying_axes
from refsam.results.tables.wide import axis_text, number_first

# A sign beside each state, so that no meaning is in a colour alone.
SIGNS = {
    "completed": "✓",
    "running": "▶",
    "pending": "…",
    "planned": "○",
    "failed": "✕",
    DAMAGED: "!",
    UNREADABLE: "!",
    INVALID: "–",
}
_METRICS = ("SA50", "mIoU")  # the first that was measured in a mode
_MOST_VALUES = 10  # of an axis that are listed


@dataclass(frozen=True)
class StateCount:
    """How many runs are in a state; of failed ones, for which reasons."""

    state: str
    sign: str
    runs: int
    reasons: str


@dataclass(frozen=True)
class About:
    """What the runs are: their data sets and models, and with its values what tells them apart."""

    datasets: str
    models: str
    varied: list[tuple[str, str]]


@dataclass(frozen=True)
class Best:
    """The best run in a mode, and what the initial model reaches there."""

    mode: str
    metric: str
    value: str
    interval: str
    what: str
    initial: str


def states(frame: pd.DataFrame) -> list[StateCount]:
    """Runs by their state, in the order of SIGNS. Combinations that were left out are no runs."""
    runs = frame[frame["run_id"].notna()].drop_duplicates("run_id")
    found = []
    for state, sign in SIGNS.items():
        chosen = runs[runs["status"] == state]
        if chosen.empty:
            continue
        reasons = chosen["reason"].dropna().value_counts()
        words = ", ".join(f"{name} {count}" for name, count in reasons.items())
        found.append(StateCount(state, sign, len(chosen), words if state == "failed" else ""))
    return found


def about(frame: pd.DataFrame) -> About:
    """What was asked for, from all runs of the sweeps."""
    runs = frame[frame["run_id"].notna()]
    varied = [(axis_words(axis), _listed(of_trained(runs, axis)[axis])) for axis in varying_axes(runs)]
    shown = [(name, values) for name, values in varied if name not in (AXES["dataset"], AXES["model"])]
    return About(_listed(runs["dataset"]), _listed(runs["model"]), shown)


def _listed(values: "pd.Series[Any]") -> str:
    found = sorted({axis_text(value) for value in values.dropna()}, key=number_first)
    more = f" and {len(found) - _MOST_VALUES} more" if len(found) > _MOST_VALUES else ""
    return ", ".join(found[:_MOST_VALUES]) + more


def bests(frame: pd.DataFrame) -> list[Best]:
    """The best finetuned run of each data set and mode, by its first prompt."""
    axes = varying_axes(frame)
    measured = first_prompt(frame[frame["mode"].notna()])
    several = measured["dataset"].nunique() > 1
    found = []
    for dataset, of_dataset in measured.groupby("dataset", dropna=False, sort=True):
        for mode in ordered_modes(of_dataset):
            rows = of_dataset[of_dataset["mode"] == mode]
            metric = next((name for name in _METRICS if rows[name].notna().any()), None)
            trained = rows[(rows["strategy"] != BASELINE) & (rows[metric].notna() if metric else False)]
            if metric is None or trained.empty:
                continue
            row: Any = trained.iloc[trained[metric].to_numpy("float64").argmax()]
            of_model = rows["strategy"] == BASELINE
            for name in ("model", "weights", *(each for each in fields(rows) if not is_of_training(each))):
                of_model &= rows[name].map(axis_text) == axis_text(row[name])
            initial = rows[of_model][metric].dropna()
            low, high = row[f"{metric}_low"], row[f"{metric}_high"]
            found.append(
                Best(
                    mode=f"{dataset}, {mode}" if several else mode,
                    metric=metric,
                    value=f"{row[metric]:.3f}",
                    interval="" if pd.isna(low) or pd.isna(high) else f"{low:.3f} to {high:.3f}",
                    what=", ".join(filter(None, [run_words(row, axes), _images(row["n_test_images"])])),
                    initial=f"{initial.mean():.3f}" if len(initial) else "",
                )
            )
    return found


def _images(count: Any) -> str:
    return "" if pd.isna(count) else f"{count} test image{'' if count == 1 else 's'}"
