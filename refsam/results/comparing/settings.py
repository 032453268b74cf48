"""The settings of a table: runs that have in common what decides their results, and differ in the seed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from refsam.configuration.frozen import from_values
from refsam.configuration.schema import RefsamConfig
from refsam.errors import ConfigError
from refsam.records.paths import RunPaths
from refsam.records.settings import SECTIONS, short_name, value_text
from refsam.results.fields import part_of, telling_apart
from refsam.results.folds import runs_of
from refsam.results.run_rows import BASELINE
from refsam.results.tables.wide import ordered_values, parts_by
from refsam.system.files import read_yaml_sections

AXES = ("dataset", "model", "weights", "resource", "strategy", "n_images", "n_objects")
RUN = "run_id"  # the field of runs that nothing else tells apart
# A baseline trains nothing, so these say nothing about it.
_OF_TRAINING = ("resource", "n_objects")
_COUNTED = {"n_images": ("image", "images"), "n_objects": ("object", "objects")}


@dataclass(frozen=True)
class Setting:
    """What was trained, over seeds.

    Attributes:
        values: of AXES; None where an axis says nothing about it.
        runs: the run of each seed, of joined folds their ids as one text. A run whose seed is not known has
            the seed -1.
        fields: of the configuration that differ between the settings of its table, such as `train.lr`; those
            that say nothing about it are left out.
    """

    values: Mapping[str, Any]
    runs: Mapping[int, str]
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_ids(self) -> list[str]:
        return [each for run in self.runs.values() for each in runs_of(run)]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.runs)

    @property
    def is_baseline(self) -> bool:
        """Whether it is an initial model, which was trained on nothing."""
        return bool(self.values["strategy"] == BASELINE)

    def words(self, axes: Iterable[str] = AXES) -> str:
        """`vit_b, lora, 5 images, lr 0.001`: its values of some axes, and what else tells it apart."""
        texts = [self.text(axis) for axis in dict.fromkeys([*axes, *self.fields])]
        return ", ".join(filter(None, texts))

    def value(self, axis: str) -> Any:
        """Of an axis or a field; None where it says nothing about the setting."""
        return self.values[axis] if axis in self.values else self.fields.get(axis)

    def text(self, axis: str) -> str:
        """A value as sentences say it; nothing where there is none."""
        value = self.value(axis)
        if value is not None and axis in self.fields:
            return str(value) if axis == RUN else f"{short_name(axis)} {value_text(value)}"
        if value is None or (axis == "n_images" and self.is_baseline):
            return ""
        if axis in _COUNTED:
            return f"{value} {_COUNTED[axis][value != 1]}"
        return str(value)

    def without(self, run_ids: Iterable[str]) -> "Setting":
        """The same setting less some runs."""
        left_out = set(run_ids)
        kept = {seed: run for seed, run in self.runs.items() if left_out.isdisjoint(runs_of(run))}
        return replace(self, runs=kept)


def settings_of(frame: pd.DataFrame) -> list[Setting]:
    """The settings of all completed runs that something was measured of; the initial model before what was
    trained from it.

    Args:
        frame: as refsam.results.collect.collect returns it, with folds joined (refsam.results.folds).
    """
    runs = frame[(frame["status"] == "completed") & frame["mode"].notna()].drop_duplicates("run_id")
    baseline = runs["strategy"] == BASELINE
    for axis in _OF_TRAINING:
        runs = runs.assign(**{axis: runs[axis].mask(baseline)})
    names = telling_apart(runs)
    axes = [*AXES, *names]
    groups = parts_by(runs, axes)
    found: list[Setting] = []
    for key in ordered_values(runs, axes):
        part = groups[key]
        values = {axis: _plain(value) for axis, value in zip(AXES, key[: len(AXES)], strict=True)}
        fields = {name: _plain(value) for name, value in part_of(part.iloc[0], names).items()}
        seeds = [-1 if pd.isna(seed) else int(seed) for seed in part["seed"]]
        members = sorted(zip(seeds, part["run_id"], strict=True))
        if len(set(seeds)) == len(seeds):
            found.append(Setting(values, dict(members), fields))
        else:  # not told apart by anything that is recorded: they are not called seeds of one setting
            found += [Setting(values, {seed: run}, {**fields, RUN: run}) for seed, run in members]
    models = list(dict.fromkeys(_model(setting) for setting in found))
    return sorted(found, key=lambda setting: (models.index(_model(setting)), not setting.is_baseline))


def varying(settings: Iterable[Setting]) -> list[str]:
    """The axes and fields that tell the settings apart, and the strategy. Initial models do not differ in
    training.
    """
    known = list(settings)
    trained = [setting for setting in known if not setting.is_baseline] or known
    axes = []
    for axis in AXES:
        compared = trained if axis in (*_OF_TRAINING, "n_images") else known
        if axis == "strategy" or len({setting.values[axis] for setting in compared}) > 1:
            axes.append(axis)
    fields = dict.fromkeys(name for setting in known for name in setting.fields)
    return [*axes, *(name for name in fields if _differs(name, known))]


def read_config(paths: RunPaths) -> RefsamConfig | None:
    """The configuration of a run; None where it is not that of this version of refsam, or not there.

    The table has the values of such runs all the same. Parts that runs have in common are parsed once.
    """
    try:
        values = dict(zip(SECTIONS, read_yaml_sections(paths.config, *SECTIONS), strict=True))
        return from_values(RefsamConfig, values)
    except (ConfigError, FileNotFoundError, AttributeError, KeyError, TypeError, ValueError):
        return None


def _differs(name: str, settings: list[Setting]) -> bool:
    return len({repr(setting.fields[name]) for setting in settings if name in setting.fields}) > 1


def _model(setting: Setting) -> tuple[Any, ...]:
    return tuple(setting.values[axis] for axis in AXES[:3])


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
