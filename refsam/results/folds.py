"""k-fold cross-validation in tables: the runs of all folds as one, with one value for all test images.

Each image tests in one fold, so the value is the mean over the images of all folds, which is the estimate of
cross-validation as Hastie, Tibshirani and Friedman define it (2009, equation 7.48; Stone 1974). Folds are no
seeds: they are joined for each seed, and what ± is over are the joined values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from refsam.errors import ConfigError
from refsam.records.metrics import METRICS, SECONDS
from refsam.records.settings import AXES
from refsam.results.fields import fields
from refsam.results.run_rows import BASELINE, COSTS, INTEGERS, PARAMETERS
from refsam.results.tables.table import run_words, varying_axes

FOLD = "fold"
SHARED_TRAINING = (
    "With cross-validation an image's value is from the fold that tests it. The models of the folds share "
    "training images, which the intervals ignore (Bengio and Grandvalet 2004)."
)
_BETWEEN = ", "  # of the values of a text that the folds do not have in common
# What a set of folds has in common, beside the fields that differ between the runs of the table.
_SET = (*(axis for axis in AXES if axis != FOLD), "split_seed", "folds")
_NOT_OF_BASELINES = ("resource", "n_objects")  # which train nothing, wherever they are
_MEASUREMENT = ["mode", "round", "mask_input"]
_OVER_IMAGES = (*METRICS, "seconds_per_image", *SECONDS)
_OVER_TRAININGS = ("best_epoch", "seconds_to_best", "seconds_total")
_LARGEST = ("peak_memory_gib", "max_rss_gib", *PARAMETERS)
_SUMS = ("n_test_images", *(name for name in COSTS if name not in _LARGEST), "attempts")


@dataclass(frozen=True)
class JoinedFolds:
    """A tidy table in which folds are joined.

    Attributes:
        frame: a row for all folds of a setting and seed, with the ids of their runs in `run_id` (`runs_of`)
            and no `fold`; runs without folds as they are.
        incomplete: the rows of folds that cannot be joined, since others of them have no result.
        sentences: what is missing of those that have results.
    """

    frame: pd.DataFrame
    incomplete: pd.DataFrame
    sentences: list[str]

    def results(self) -> pd.DataFrame:
        """The frame. Raises ConfigError where all that was measured are incomplete sets of folds."""
        if self.sentences and not self.frame["mode"].notna().any():
            raise ConfigError(f"no set of folds is complete: {'; '.join(self.sentences)}")
        return self.frame


def runs_of(run_id: str) -> list[str]:
    """The ids of the runs that a row is made of: of all folds, or its own."""
    return run_id.split(_BETWEEN)


def join_folds(
    frame: pd.DataFrame, chosen: pd.DataFrame | None = None, named: Sequence[str] = ()
) -> JoinedFolds:
    """Join the folds of each setting, seed and measurement that all of them have results of.

    Metrics and times of an image are means over the test images of all folds, those of the training means
    over the folds (epochs rounded), memory and parameters the largest, costs and numbers of images sums.
    There is no interval: `refsam compare` has one, from the values of single images.

    Args:
        frame: as refsam.results.collect.collect returns it.
        chosen: its rows that are wanted; the others say what has become of the missing folds. None: all.
        named: axes of what is made of it. Where the fold is one, it is all left as it is.
    """
    wanted = frame if chosen is None else chosen
    if not wanted[FOLD].notna().any() or {FOLD, AXES[FOLD]} & set(named):
        return JoinedFolds(wanted, wanted.iloc[:0], [])
    folds = frame[frame[FOLD].notna()]
    keys = folds[[*_SET, *fields(frame)]].copy()
    for name in _NOT_OF_BASELINES:
        keys[name] = keys[name].mask(folds["strategy"] == BASELINE)
    axes = [axis for axis in varying_axes(frame) if axis != FOLD]
    joined: dict[Any, dict[str, Any]] = {}  # by the place of the first fold
    left: list[Any] = []
    sentences = []
    for places in keys.groupby(list(keys), dropna=False, sort=False).groups.values():
        of_set = folds.loc[places]
        shown = of_set[of_set.index.isin(wanted.index)]
        for _, rows in shown[shown["mode"].notna()].groupby(_MEASUREMENT, dropna=False, sort=False):
            if sorted(rows[FOLD]) == list(range(1, int(rows["folds"].iloc[0]) + 1)):
                joined[rows.index[0]] = _joined(rows)
            else:
                left += rows.index.tolist()
                sentences.append(f"{run_words(rows.iloc[0], axes)}: {_missing(rows, of_set)}")
        left += shown.index[shown["mode"].isna()].tolist()
    rows_of_joined = pd.DataFrame(list(joined.values()), index=list(joined), columns=frame.columns)
    table = pd.concat([wanted[wanted[FOLD].isna()], rows_of_joined.astype(frame.dtypes)]).sort_index()
    return JoinedFolds(table.reset_index(drop=True), frame.loc[sorted(left)], list(dict.fromkeys(sentences)))


def _joined(rows: pd.DataFrame) -> dict[str, Any]:
    """One row of those of all folds, which are in one measurement."""
    images = rows["n_test_images"].to_numpy("float64")
    found: dict[str, Any] = {}
    for name in map(str, rows):
        values = rows[name].dropna()
        if name in (*_OVER_IMAGES, *_OVER_TRAININGS):
            weights = images if name in _OVER_IMAGES else np.ones(len(rows))
            found[name] = _mean(rows[name].to_numpy("float64", na_value=np.nan), weights)
            if name in INTEGERS and found[name] is not None:
                found[name] = round(found[name])
        elif name in _LARGEST or name in _SUMS:
            found[name] = None if values.empty else values.max() if name in _LARGEST else values.sum()
        elif values.nunique() == 1:
            found[name] = values.iloc[0]
        elif pd.api.types.is_string_dtype(rows[name]):
            parts = dict.fromkeys(part for text in values for part in text.split(_BETWEEN))
            found[name] = _BETWEEN.join(parts) or None
        else:
            found[name] = None  # the fold, and the intervals of single folds
    is_completed = (rows["status"] == "completed").all()
    others = rows.loc[rows["status"] != "completed", "status"]
    return {**found, "status": "completed" if is_completed else others.iloc[0]}


def _mean(values: "np.ndarray[Any, Any]", weights: "np.ndarray[Any, Any]") -> float | None:
    """None where a fold with images has no value. A fold without any image has none to count."""
    mean = float(np.sum(np.where(weights > 0, weights * values, 0.0)) / max(1.0, np.sum(weights)))
    return None if np.isnan(mean) or not weights.any() else mean


def _missing(rows: pd.DataFrame, of_set: pd.DataFrame) -> str:
    """What the folds of a measurement lack: `left out, because of 5 folds fold 2 is pending`."""
    folds, mode = int(rows["folds"].iloc[0]), str(rows["mode"].iloc[0])
    return f"left out, because of {folds} folds {' and '.join(_states(rows, of_set, folds, mode))}"


def _states(rows: pd.DataFrame, of_set: pd.DataFrame, folds: int, mode: str) -> Iterator[str]:
    for fold in range(1, folds + 1):
        there = int((rows[FOLD] == fold).sum())
        if there == 1:
            continue
        states = of_set.loc[of_set[FOLD] == fold, "status"]
        if there > 1:
            yield f"fold {fold} is there {there} times"
        elif states.empty:
            yield f"fold {fold} is missing"
        elif states.iloc[0] == "completed":
            yield f"fold {fold} is not measured in mode {mode}"
        else:
            state = states.iloc[0]
            yield f"fold {fold} {'has' if state == 'failed' else 'is'} {state}"
