"""Settings: what decides the result of a run, its seed and its fold left out. Only runs of one setting may be
averaged: over seeds as they are, over the folds of a seed as results/folds.py joins them.

What is no field of a setting stands in one place, with the reason: the lists of records/identity.py.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from refsam.configuration.frozen import from_values, leaves
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.configuration.split import SEEDED, split_seed
from refsam.errors import ConfigError
from refsam.records.identity import (
    NOT_IDENTITY,
    NOT_RESULT_OF_EVALUATION,
    NOT_RESULT_OF_TRAINING,
    result_values,
)
from refsam.records.measurements import AUTOMATIC, SMALL
from refsam.system.files import read_yaml_sections

Setting = dict[str, Any]

# Of a frozen configuration, what settings are made of.
SECTIONS = (
    *("kind", "resource", "model", "peft", "dataset", "n_images", "n_objects", "seed", "train"),
    "evaluate",
)

ROOT, FINGERPRINT, SPLIT_SEED = "dataset.root", "dataset.fingerprint", "dataset.split_seed"
_FILES = "dataset.files"  # what is known of the images of a run from before fingerprints were recorded
# Tables have columns of their own for these; seeds are what means are over, and folds are joined before.
AXES = {
    "dataset": "dataset.name",
    "model": "model.name",
    "weights": "model.weights",
    "resource": "resource",
    "strategy": "peft.name",
    "n_images": "n_images",
    "n_objects": "n_objects",
    "seed": "seed",
    "fold": "evaluate.fold",
}
_NO_FIELDS = (*AXES.values(), "kind")
# A choice of a group brings values of its own, which tell it apart from no other choice.
_COMPARED_WITHIN = {
    "model": ("model.name", "model.weights"),
    "dataset": ("dataset.name",),
    "peft": ("peft.name",),
    "resource": ("resource",),
}
_BROUGHT_BY_STRATEGY = ("train.patch_pool",)
_PROTOCOL = "dataset.protocol"
_BROUGHT_BY_PROTOCOL = ("train.optimizer", "train.weight_decay", "dataset.n_validation", "dataset.n_unused")
_EFFECTIVE_SPLIT_SEED = "split_seed"  # that a null stands for


def setting_values(config: RefsamConfig) -> Setting:
    """The values that decide a run's result, by dotted names, in the schema's order; less its seed and its
    fold.

    Beside what makes a run another one (identity), they are what makes its measurement another one (the
    grids of automatic modes) or another machine of the same name (the GPU that is asked for), and where a
    data set lies, for tables to name it by. A baseline trains nothing, so it has no values of training.

    Args:
        config: resolved, as it is frozen in a run directory.
    """
    values = result_values(config)
    del values["seed"], values["evaluate"]["fold"]
    if config.kind == Kind.finetuning:
        values["resource"] = {"name": values["resource"], "gpu": config.resource.request.gpu}
    evaluate, dataset = values["evaluate"], values["dataset"]
    if set(config.evaluate.modes) & set(AUTOMATIC):
        evaluate["grid"] = config.evaluate.grid
        if config.evaluate.grid == SMALL:
            evaluate["small_grid"] = config.evaluate.small_grid
    if "amg" in config.evaluate.modes:
        evaluate["points_per_side"] = config.evaluate.points_per_side
    dataset["root"] = config.dataset.root
    dataset["fingerprint"] = config.dataset.version or config.dataset.fingerprint
    if dataset["fingerprint"] is None:
        given = (getattr(config.dataset, name) for name in ("images", "labels", "image_key", "label_key"))
        dataset["files"] = " ".join(str(each) for each in given if each is not None)
    values["model"]["weights_hash"] = config.model.weights_hash
    found = leaves(values)
    if "resource.name" in found:
        found["resource"] = found.pop("resource.name")
        found["resource.request.gpu"] = found.pop("resource.gpu")
    if config.dataset.split == SEEDED:
        found[_EFFECTIVE_SPLIT_SEED] = split_seed(config)
    return found


def recorded_values(values: Mapping[str, Any]) -> Setting:
    """The same of the sections of a frozen configuration, also of another version of refsam: then all that
    stands there counts. Runs that differ in their seed alone are resolved once.
    """
    dataset = values.get("dataset")
    follows_seed = not isinstance(dataset, Mapping) or dataset.get("split_seed") is None
    key = repr({**values, "seed": values.get("seed") if follows_seed else None})
    if key not in _RESOLVED:
        _RESOLVED[key] = _resolved(values)
    return dict(_RESOLVED[key])


_RESOLVED: dict[str, Setting] = {}


def _resolved(values: Mapping[str, Any]) -> Setting:
    try:
        # What takes most of the time and says nothing of the run is left out.
        needed = {**values, "resource": {**values["resource"], "settings": {}}}
        needed["evaluate"] = {**(values.get("evaluate") or {}), "resource": None}
        return setting_values(from_values(RefsamConfig, needed))
    except (AttributeError, ConfigError, KeyError, TypeError, ValueError):
        known = {name: value for name, value in values.items() if name not in (*NOT_IDENTITY, "seed")}
        trained = known.get("kind") != Kind.baseline
        found = {name: value for name, value in leaves(known).items() if _counts(name, trained)}
        return found | ({"resource": _resource_name(known)} if trained else {})


def _resource_name(values: Mapping[str, Any]) -> Any:
    resource = values.get("resource")
    return resource.get("name") if isinstance(resource, Mapping) else resource


def read_setting(path: Path) -> Setting:
    """The same of a config.yaml; nothing where there is none, or a damaged one."""
    try:
        sections = read_yaml_sections(path, *SECTIONS)
    except (OSError, ValueError):
        return {}
    return recorded_sections(sections)


def recorded_sections(sections: Sequence[Any]) -> Setting:
    """The same of the SECTIONS of a config.yaml, in their order; None for one that it lacks."""
    known = zip(SECTIONS, sections, strict=True)
    return recorded_values({name: value for name, value in known if value is not None})


def labels(settings: Mapping[str, Setting]) -> dict[str, str]:
    """A short name for each run: the readable part of its id, and the fields that tell it apart from others
    (`vit_b-lora-n5-v100-nuclei-s0 lr=0.001`); the whole id only where nothing else does.
    """
    parts = dict(zip(settings, differing(list(settings.values())), strict=True))
    readable = {run: run.rsplit("-", 1)[0] for run in settings}
    # What the readable part does not say of the columns that tables have.
    for names in _alike(readable, parts).values():
        for field in ("model.weights", "n_objects"):
            if len({repr(settings[run].get(field)) for run in names}) > 1:
                for run in names:
                    parts[run] |= {field: settings[run].get(field)}
    for names in _alike(readable, parts).values():
        if len(names) > 1:
            readable |= {run: run for run in names}
    return {run: _label(readable[run], part) for run, part in parts.items()}


def _label(readable: str, part: Setting) -> str:
    return " ".join([readable, *(f"{short_name(name)}={value_text(value)}" for name, value in part.items())])


def _alike(readable: Mapping[str, str], parts: Mapping[str, Setting]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for run, part in parts.items():
        groups.setdefault(_label(readable[run], part), []).append(run)
    return groups


def asked_values(overrides: Mapping[str, Any]) -> Setting:
    """The fields among the overrides that asked for a run which has no configuration."""
    return {
        name: _value(value) if isinstance(value, str) else value
        for name, value in overrides.items()
        if name in schema_fields() and "." in name and _counts(name, trained=True)
    }


def is_of_training(field: str) -> bool:
    """Whether a field or an axis says nothing about a baseline, which trains nothing."""
    section = field.partition(".")[0]
    return section in ("train", "peft", "resource", "strategy", "n_images", "n_objects")


def _counts(field: str, trained: bool) -> bool:
    """Whether a field of a configuration that cannot be resolved is one of a setting."""
    section, _, name = field.partition(".")
    if section == "resource":
        return trained and field == "resource.request.gpu"
    left_out = {"train": NOT_RESULT_OF_TRAINING, "evaluate": NOT_RESULT_OF_EVALUATION}.get(section, ())
    return name not in left_out and section not in NOT_IDENTITY and (trained or not is_of_training(field))


def differing(settings: Sequence[Setting]) -> list[Setting]:
    """Of each setting the fields that tell it apart from others beyond the columns that all tables have
    (AXES); in the schema's order. A field that says nothing about a run is not in its part.

    What a choice of a group brings along (a model its depth, a data set its folder) counts where runs with
    the same choice differ in it.
    """
    texts = [repr(setting) for setting in settings]
    kinds = dict(zip(texts, settings, strict=True))  # runs that differ in their seed alone are compared once
    parts = dict(zip(kinds, _differing(list(kinds.values())), strict=True))
    return [dict(parts[text]) for text in texts]


def _differing(settings: Sequence[Setting]) -> list[Setting]:
    known = _comparable(settings)
    values: dict[tuple[str, str], set[str]] = {}  # of a field, by the choices within which it is compared
    for setting in known:
        for key, value in _keyed(setting):
            values.setdefault(key, set()).add(repr(value))
    return [
        {key[0]: value for key, value in _keyed(setting) if key[0] not in _NO_FIELDS and len(values[key]) > 1}
        for setting in known
    ]


def _keyed(setting: Setting) -> Iterable[tuple[tuple[str, str], Any]]:
    within: dict[str, str] = {}
    for name, value in setting.items():
        section = "peft" if name in _BROUGHT_BY_STRATEGY else name.partition(".")[0]
        if section not in within:
            within[section] = repr([setting.get(each) for each in _COMPARED_WITHIN.get(section, ())])
        protocol = str(setting.get(_PROTOCOL)) if name in _BROUGHT_BY_PROTOCOL else ""
        yield (name, within[section] + protocol), value


def names_of(settings: Iterable[Setting]) -> list[str]:
    """All fields of some parts that `differing` has found, in order."""
    return sorted(dict.fromkeys(name for each in settings for name in each), key=_place)


@cache
def short_name(field: str) -> str:
    """`lr` for train.lr; the whole name where another field of the schema ends in the same word."""
    last = field.rpartition(".")[2]
    alike = [name for name in schema_fields() if name.rpartition(".")[2] == last]
    return last if alike in ([field], []) and last not in AXES else field


def full_name(name: str) -> str | None:
    """The field that `short_name` shortens to a name, or that has it; None for what is no field."""
    return next((field for field in schema_fields() if name in (field, short_name(field))), None)


@cache
def schema_fields() -> tuple[str, ...]:
    """The dotted names of all fields of the schema, in its order; those of mappings without their keys."""
    return tuple(_fields(RefsamConfig, ""))


def value_text(value: Any) -> str:
    """A value as tables show it and `--where` takes it: as YAML has it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {value_text(each)}' for key, each in value.items())}}}"
    return str(value)


def same_text(first: str, second: str) -> bool:
    """Whether two texts are the same value: numbers as numbers (`1e-3` is 0.001), lists by their items."""
    return first == second or _value(first) == _value(second)


def words(part: Setting) -> str:
    """`lr 0.001, crop [256, 256]`: fields and values by their short names."""
    return ", ".join(f"{short_name(name)} {value_text(value)}" for name, value in part.items())


def _value(text: str) -> Any:
    """What a text stands for; YAML itself takes 1e-3 for text."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return (
        [_value(each) if isinstance(each, str) else each for each in found]
        if isinstance(found, list)
        else found
    )


def _comparable(settings: Sequence[Setting]) -> list[Setting]:
    """With one field for what a data set holds, and without a null that stands for one seed only."""
    data = _data_field(settings)
    following = {
        setting[_EFFECTIVE_SPLIT_SEED]
        for setting in settings
        if _EFFECTIVE_SPLIT_SEED in setting and setting.get(SPLIT_SEED) is None
    }
    found = []
    for setting in settings:
        values = {
            name: value
            for name, value in setting.items()
            if name not in (ROOT, FINGERPRINT, _FILES, _EFFECTIVE_SPLIT_SEED)
        }
        if data is not None and ROOT in setting:
            values[data] = setting[ROOT] if data == ROOT else setting[FINGERPRINT] or setting.get(_FILES)
        if len(following) == 1 and SPLIT_SEED in values and values[SPLIT_SEED] is None:
            (values[SPLIT_SEED],) = following
        found.append(values)
    return found


def _data_field(settings: Iterable[Setting]) -> str | None:
    """By which field data sets of one name are told apart: their folder, or where one folder held several,
    their fingerprint; None where they hold the same.
    """
    data: dict[str, dict[Any, tuple[set[Any], set[Any]]]] = {}
    for setting in settings:
        roots = data.setdefault(repr(setting.get("dataset.name")), {})
        fingerprints, files = roots.setdefault(setting.get(ROOT), (set(), set()))
        if setting.get(FINGERPRINT) is not None:
            fingerprints.add(setting[FINGERPRINT])
        else:
            files.add(setting.get(_FILES))
    differ = False
    for roots in data.values():
        held = {root: fingerprints or files for root, (fingerprints, files) in roots.items()}
        if any(len(contents) > 1 for contents in held.values()):
            return FINGERPRINT
        # Without a fingerprint another folder has other images.
        differ |= len({next(iter(roots[root][0]), root) for root in held}) > 1
    return ROOT if differ else None


def _place(field: str) -> tuple[int, str]:
    known = schema_fields()
    of_schema = field if field in known else field.rpartition(".")[0]
    return (known.index(of_schema) if of_schema in known else len(known)), field


def _fields(kind: type, prefix: str) -> Iterable[str]:
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        child = hints[item.name]
        if isinstance(child, types.UnionType):
            child = next(each for each in typing.get_args(child) if each is not types.NoneType)
        if dataclasses.is_dataclass(child):
            yield from _fields(typing.cast(type, child), f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"
