"""The resolved configuration as it stands in a run directory, and back."""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from refsam.configuration.run_names import check_name
from refsam.configuration.schema import RefsamConfig
from refsam.errors import ConfigError, WrittenByNewer, nearest
from refsam.system.files import is_sealed, read_yaml, write_yaml

Config = TypeVar("Config")


def to_config(values: Any) -> RefsamConfig:
    """Typed configuration from a composed Hydra configuration or plain values.

    Raises omegaconf's errors for unknown keys, wrong types and missing values.
    """
    config = OmegaConf.to_object(OmegaConf.merge(_schema(), values))
    assert isinstance(config, RefsamConfig)
    return config


@functools.cache
def _schema() -> DictConfig:
    """The schema as OmegaConf has it, made once; merge copies what it merges into."""
    schema: DictConfig = OmegaConf.structured(RefsamConfig)
    return schema


def from_values(kind: type[Config], values: dict[str, Any], path: str = "") -> Config:
    """A dataclass of the schema from plain values that OmegaConf has checked already; 500 times faster than
    it.

    Raises ConfigError, naming the field, for a mandatory value that is not given.
    """
    types_of = _field_types(kind)
    arguments = {}
    for name, value in values.items():
        if value == MISSING:
            raise ConfigError(f"{path}{name} must be given: {path}{name}=… (there is no default)")
        if name not in types_of:
            raise ConfigError(f"{path}{name}: there is no such field{nearest(name, types_of)}")
        arguments[name] = _value(types_of[name], value, f"{path}{name}.")
    return kind(**arguments)


def _value(kind: Any, value: Any, path: str) -> Any:
    if value is None:
        return None
    kind = required(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_values(kind, value, path)
    if typing.get_origin(kind) is dict:
        item = typing.get_args(kind)[1]
        return {key: _value(item, child, f"{path}{key}.") for key, child in value.items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    return float(value) if kind is float else value


def required(kind: Any) -> Any:
    """A type without the None that an optional field takes besides."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return next(choice for choice in typing.get_args(kind) if choice is not types.NoneType)
    return kind


_TYPES: dict[type, dict[str, Any]] = {}


def _field_types(kind: type) -> dict[str, Any]:
    if kind not in _TYPES:
        _TYPES[kind] = typing.get_type_hints(kind)
    return _TYPES[kind]


def to_values(config: RefsamConfig) -> dict[str, Any]:
    """Plain values (dict, list, str, numbers) of a configuration, in the schema's order."""
    values = _plain(config)
    assert isinstance(values, dict)
    return values


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted names (`train.lr`); lists are leaves, and so are empty mappings."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, Enum):
        return value.value
    return value


def load(path: Path) -> RefsamConfig:
    """The configuration frozen in `path`.

    Raises OSError, WrittenByNewer, and ValueError when it is damaged, or was changed afterwards.
    """
    values = read_yaml(path)
    try:
        config = to_config(values)
    except ConfigKeyError as error:
        if is_sealed(path):  # and nobody has changed it
            raise WrittenByNewer(path, f"it has the field {error.full_key}") from error
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:  # also of no mapping at all
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    check_name(path, to_values(config))
    return config


def freeze(path: Path, config: RefsamConfig) -> None:
    """Write the configuration to `path`, atomically, with a checksum by which a change is seen."""
    write_yaml(path, to_values(config), sealed=True)


def with_settings(config: RefsamConfig, settings: dict[str, Any]) -> RefsamConfig:
    """The configuration with some values replaced, by their dotted names (`train.object_chunk`)."""
    for name, value in settings.items():
        section, _, key = name.partition(".")
        before = getattr(config, section)
        typed = _value(_field_types(type(before))[key], value, f"{name}.")
        config = dataclasses.replace(config, **{section: dataclasses.replace(before, **{key: typed})})
    return config
