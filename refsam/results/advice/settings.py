"""Settings: what the runs have in common that differ in nothing but their seed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from refsam.configuration.frozen import from_values, leaves
from refsam.configuration.identity import identity
from refsam.configuration.schema import RefsamConfig
from refsam.errors import BadInput
from refsam.records.files import read_yaml_sections
from refsam.records.paths import Directories, RunPaths
from refsam.results.run_rows import BASELINE
from refsam.results.tables.wide import key_of, ordered_values

AXES = ("dataset", "model", "weights", "resource", "strategy", "n_images", "n_objects")
# A baseline trains nothing, so these say nothing about it.
_OF_TRAINING = ("resource", "n_objects")
_SECTIONS = (
    *("kind", "resource", "model", "peft", "dataset", "train", "evaluate"),
    *("n_images", "n_objects", "seed"),
)
_COUNTED = {"n_images": ("image", "images"), "n_objects": ("object", "objects")}


@dataclass(frozen=True)
class Setting:
    """What was trained, over seeds.

    Attributes:
        values: of AXES; None where an axis says nothing about it.
        variant: what else tells it apart from settings with the same values, such as `train.lr=0.0001`.
        runs: the run of each seed. A run whose seed is not known has the seed -1.
    """

    values: Mapping[str, Any]
    runs: Mapping[int, str]
    variant: tuple[str, ...] = ()

    @property
    def run_ids(self) -> list[str]:
        return list(self.runs.values())

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.runs)

    @property
    def is_baseline(self) -> bool:
        """Whether it is an initial model, which was trained on nothing."""
        return bool(self.values["strategy"] == BASELINE)

    def words(self, axes: Iterable[str] = AXES) -> str:
        """`vit_b, lora, 5 images`: its values of some axes, and what else tells it apart."""
        return ", ".join([*(text for axis in axes if (text := self.text(axis))), *self.variant])

    def text(self, axis: str) -> str:
        """A value as sentences say it; nothing where there is none."""
        value = self.values[axis]
        if value is None or (axis == "n_images" and self.is_baseline):
            return ""
        if axis in _COUNTED:
            return f"{value} {_COUNTED[axis][value != 1]}"
        return "initial model" if value == BASELINE and axis == "strategy" else str(value)

    def without(self, run_ids: Iterable[str]) -> "Setting":
        """The same setting less some runs."""
        left_out = set(run_ids)
        return replace(self, runs={seed: run for seed, run in self.runs.items() if run not in left_out})


def settings_of(frame: pd.DataFrame, directories: Directories) -> list[Setting]:
    """The settings of all completed runs that something was measured of; the initial model before what was
    trained from it.

    Runs that agree in all columns of the table but were configured differently (another learning rate, other
    test images) are settings of their own: their configurations are compared.

    Args:
        frame: as refsam.results.collect.collect returns it.
        directories: of its runs.
    """
    runs = frame[(frame["status"] == "completed") & frame["mode"].notna()].drop_duplicates("run_id")
    baseline = runs["strategy"] == BASELINE
    for axis in _OF_TRAINING:
        runs = runs.assign(**{axis: runs[axis].mask(baseline)})
    groups = {key_of(key): part for key, part in runs.groupby(list(AXES), dropna=False, sort=False)}
    found: list[Setting] = []
    for key in ordered_values(runs, AXES):
        values = {axis: _plain(value) for axis, value in zip(AXES, key, strict=True)}
        part = groups[key]
        seeds = [-1 if pd.isna(seed) else int(seed) for seed in part["seed"]]
        found += _settings(values, list(zip(seeds, part["run_id"], strict=True)), directories)
    models = list(dict.fromkeys(_model(setting) for setting in found))
    return sorted(found, key=lambda setting: (models.index(_model(setting)), not setting.is_baseline))


def varying(settings: Iterable[Setting]) -> list[str]:
    """The axes that tell the settings apart, and the strategy. Initial models do not differ in training."""
    known = list(settings)
    trained = [setting for setting in known if not setting.is_baseline] or known
    axes = []
    for axis in AXES:
        compared = trained if axis in (*_OF_TRAINING, "n_images") else known
        if axis == "strategy" or len({setting.values[axis] for setting in compared}) > 1:
            axes.append(axis)
    return axes


def read_config(paths: RunPaths) -> RefsamConfig | None:
    """The configuration of a run; None where it is not that of this version of refsam, or not there.

    The table has the values of such runs all the same. Parts that runs have in common are parsed once.
    """
    try:
        values = dict(zip(_SECTIONS, read_yaml_sections(paths.config, *_SECTIONS), strict=True))
        return from_values(RefsamConfig, values)
    except (BadInput, FileNotFoundError, AttributeError, KeyError, TypeError, ValueError):
        return None


def result_values(paths: RunPaths) -> dict[str, Any] | None:
    """What decides the result of a run, its seed left out, by dotted names; None where that is not known.

    Of a data set without a published version the folder is a part of it: another one has other images.
    """
    config = read_config(paths)
    if config is None:
        return None
    try:
        found = identity(config, data_fingerprint="", weights_hash=None)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # as in read_config
    del found["seed"]
    if config.dataset.version is None:
        found["dataset"]["root"] = config.dataset.root
    return leaves(found)


def _settings(values: dict[str, Any], runs: list[tuple[int, str]], directories: Directories) -> list[Setting]:
    """One setting, or several where the configurations of the runs differ in more than the seed."""
    if len(runs) == 1:
        return [Setting(values, dict(runs))]
    results = {run: result_values(directories[run]) or {} for _, run in runs}
    names = sorted({name for known in results.values() for name in known})
    differing = [name for name in names if len({repr(known.get(name)) for known in results.values()}) > 1]
    groups: dict[tuple[str, ...], list[tuple[int, str]]] = {}
    for seed, run in runs:
        variant = tuple(f"{name}={_text(results[run].get(name))}" for name in differing)
        groups.setdefault(variant, []).append((seed, run))
    found = []
    for variant, members in groups.items():
        if len({seed for seed, _ in members}) == len(members):
            found.append(Setting(values, dict(sorted(members)), variant))
        else:  # not told apart by anything that is recorded: they are not called seeds of one setting
            found += [Setting(values, {seed: run}, (*variant, run)) for seed, run in members]
    return found


def _model(setting: Setting) -> tuple[Any, ...]:
    return tuple(setting.values[axis] for axis in AXES[:3])


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _text(value: Any) -> str:
    return "null" if value is None else str(value).replace(" ", "")
