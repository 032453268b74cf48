"""The setting that a person means, by a run or by what only it has. Whatever is unclear is refused."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pandas as pd

from refsam.errors import ConfigError, nearest
from refsam.records.settings import full_name, same_text
from refsam.results.comparing.settings import AXES, Setting, varying
from refsam.results.tables.wide import axis_text

NAMED = 5  # candidates that a sentence names at most


def setting_with(values: Mapping[str, str], settings: list[Setting], given: str) -> Setting:
    """The one setting with these values of axes, or of what else varies.

    Raises ConfigError with the candidates; it quotes what was `given`.
    """
    chosen = settings
    for name, value in values.items():
        chosen = _with_value(chosen, name, value, settings)
    if not chosen:
        raise ConfigError(
            f"--baseline={given!r}, and no setting with results has all these values; there are "
            f"{listed([setting.words(varying(settings)) for setting in settings])}"
        )
    if len(chosen) > 1:
        apart = [axis for axis in varying(chosen) if len({repr(each.value(axis)) for each in chosen}) > 1]
        texts = [f"{axis}={axis_text(chosen[0].value(axis))}" for axis in apart]
        raise ConfigError(
            f"--baseline={given!r}, which may be one of {len(chosen)} settings: "
            f"{listed([setting.words(apart) for setting in chosen])}; choose by {' or '.join(texts)}, or "
            "name a run"
        )
    return chosen[0]


def setting_of_run(part: str, settings: list[Setting], frame: pd.DataFrame) -> Setting:
    """One run alone, by its id or a part of it that no other run of the frame has.

    Raises ConfigError, naming the candidates.
    """
    known = list(dict.fromkeys(frame["run_id"].dropna()))
    matches = [part] if part in known else [run for run in known if part and run.startswith(part)]
    matches = matches or [run for run in known if part and part in run]
    if not matches:
        hint = nearest(part, known) or f"; there are {listed(known)}"
        raise ConfigError(f"--baseline={part!r}, and the sweep has no such run{hint}")
    if len(matches) > 1:
        raise ConfigError(
            f"--baseline={part!r}, which may be one of {listed(matches)}; give a part of the "
            "name that only one has"
        )
    for setting in settings:
        for seed, run in setting.runs.items():
            if run == matches[0]:  # or all folds, of which one was named
                return replace(setting, runs={seed: run})
    row = frame[frame["run_id"] == matches[0]].iloc[0]
    if not pd.isna(row["fold"]):
        raise ConfigError(
            f"--baseline: run {matches[0]} is fold {row['fold']} of {row['folds']}, which are not complete, "
            "so there is nothing that others can be compared with"
        )
    raise ConfigError(
        f"--baseline: run {matches[0]} is {row['status']} and has nothing that others can be compared with"
    )


def _with_value(chosen: list[Setting], name: str, value: str, settings: list[Setting]) -> list[Setting]:
    """Those of the chosen settings that have this value; all settings are what a sentence speaks of."""
    names = [*AXES, *dict.fromkeys(field for setting in settings for field in setting.fields)]
    name = name if name in names else full_name(name) or name
    if name not in names:
        hint = nearest(name, names)
        raise ConfigError(
            f"--baseline: {name!r} is not an axis of settings{hint}; axes are {', '.join(names)}"
        )
    there = sorted({text for setting in settings if (text := axis_text(setting.value(name)))})
    if not any(same_text(value, text) for text in there):
        hint = nearest(value, there) or f"; there are {', '.join(there) or 'none'}"
        raise ConfigError(f"--baseline={name}={value}, and nothing with results has it{hint}")
    return [setting for setting in chosen if same_text(value, axis_text(setting.value(name)))]


def listed(texts: Iterable[str], between: str = "; ") -> str:
    """The first of them, and how many more there are."""
    named = list(texts)
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return f"{between.join(named[:NAMED]) or 'none'}{more}"
