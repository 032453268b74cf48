"""The columns of the tidy table for fields of the configuration, beside those that all tables have.

A sweep can vary any field. Each one that tells runs of a table apart is a column of it, by its dotted name
(`train.lr`), so that whatever was varied can be a row, a column, a colour or a choice.
"""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from refsam.records.settings import Setting, differing, is_of_training, names_of, short_name, value_text
from refsam.results.run_rows import BASELINE, SETTING

# The column strategy has a value for each of these.
_SAID_BY_STRATEGY = ("peft.", "train.joint")
_NOTHING = object()


def with_fields(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a column for each field that differs between its runs, in the place of SETTING.

    Numbers are numbers where all values are; else a column is text, as YAML has it. A missing value is that
    of a run about which the field says nothing: a baseline was not trained.
    """
    texts = frame[SETTING].fillna("{}")
    kinds = list(dict.fromkeys(texts))
    parts = differing([json.loads(text) for text in kinds])
    of_kind = dict(zip(kinds, parts, strict=True))
    columns = {
        name: _column([of_kind[text].get(name, _NOTHING) for text in texts]).set_axis(frame.index)
        for name in names_of(parts)
    }
    return pd.concat([frame.drop(columns=SETTING), pd.DataFrame(columns, index=frame.index)], axis=1)


def fields(frame: pd.DataFrame) -> list[str]:
    """The columns for fields, in the schema's order."""
    return [name for name in frame.columns if "." in str(name)]


def telling_apart(frame: pd.DataFrame) -> list[str]:
    """The fields that have several values among these rows. What the column `strategy` says is left out."""
    found = []
    for name in fields(frame):
        values = of_trained(frame, name)[name]
        if not name.startswith(_SAID_BY_STRATEGY) and values.nunique(dropna=True) > 1:
            found.append(name)
    return found


def of_trained(frame: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The rows that an axis or a field says something about: of one of the training not the baselines, where
    there is anything else.
    """
    if not is_of_training(axis):
        return frame
    trained = frame[frame["strategy"] != BASELINE]
    return trained if len(trained) else frame


def part_of(row: Any, names: Sequence[str]) -> Setting:
    """Those of some fields that say something about the run of a row."""
    return {name: row[name] for name in names if not pd.isna(row[name])}


def heading(axis: str) -> str:
    """What a terminal shows above a column: fields by their short names."""
    return short_name(axis) if "." in axis else axis


def _column(values: Sequence[Any]) -> "pd.Series[Any]":
    there = [value for value in values if value is not _NOTHING]
    kinds = {type(value) for value in there}
    if kinds and kinds <= {int, float}:
        numbers = [None if value is _NOTHING else value for value in values]
        return pd.Series(numbers, dtype="Int64" if kinds == {int} else "float64")
    return pd.Series([None if value is _NOTHING else value_text(value) for value in values], dtype="str")
