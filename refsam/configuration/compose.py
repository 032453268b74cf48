"""From overrides to configurations, many at a time.

Hydra composes one configuration in an eighth of a second, most of it spent on what all runs of a sweep share.
Here the first run of a sweep is composed by Hydra, each further choice of a group once, and every other run
is made from their differences. The result is what Hydra would have composed; where that is not certain (two
choices that set the same key, additions, deletions, packages), Hydra composes that run in full.
"""

import contextlib
import copy
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from refsam.configuration.composition_errors import choice_problem
from refsam.configuration.frozen import from_values, to_config
from refsam.configuration.paths import with_absolute_paths
from refsam.configuration.resources import folder
from refsam.configuration.schema import RefsamConfig, register
from refsam.configuration.text_values import quote_text, split_override
from refsam.errors import ConfigError

Load = Callable[[list[str]], DictConfig]
Leaves = dict[tuple[str, ...], Any]


@dataclass(frozen=True)
class _Patch:
    """What one override changes: new leaves, and leaves that go."""

    new: Leaves
    removed: frozenset[tuple[str, ...]]

    def touched(self) -> set[tuple[str, ...]]:
        return set(self.new) | self.removed


class Composer:
    """Composes the runs of one sweep.

    Args:
        load: Hydra's composition of a list of overrides, without the `hydra` node.
        is_group: whether a key names a config group.
    """

    def __init__(self, load: Load, is_group: Callable[[str], bool]) -> None:
        self._load = load
        self._is_group = functools.lru_cache(maxsize=None)(is_group)
        self._parser = OverridesParser.create()
        self._parsed: dict[str, Override] = {}
        self._patches: dict[str, _Patch | None] = {}
        self._base_overrides: dict[str, str] = {}
        self._base: DictConfig | None = None
        self._base_leaves: Leaves = {}
        self._interpolated: dict[tuple[tuple[tuple[str, ...], str], ...], Leaves] = {}

    def values(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The plain, resolved values of the run that `overrides` ask for.

        Raises hydra's and omegaconf's errors for what cannot be composed, and ConfigError for what is no
        choice.
        """
        keyed = {self._key(override): override for override in overrides}
        if self._base is None:
            self._set_base(keyed)
        if set(keyed) - set(self._base_overrides):
            # A key that the first run did not have (the strategy that `auto` stands for): Hydra's order is
            # kept.
            additional = [override for key, override in keyed.items() if key not in self._base_overrides]
            if not all(self._is_plain_group(override) for override in additional):
                return self._resolved(self._load(list(overrides)))
        changed = [override for key, override in keyed.items() if self._base_overrides.get(key) != override]
        groups = [override for override in changed if self._is_group(self._key(override))]
        scalars = [override for override in changed if override not in groups]
        patches = [self._patch(override) for override in groups]
        if None in patches or set(self._base_overrides) - set(keyed) or self._conflict(patches):
            return self._resolved(self._load(list(overrides)))
        leaves = dict(self._base_leaves)
        for patch in patches:
            assert patch is not None
            for path in patch.removed:
                leaves.pop(path, None)
            leaves.update(patch.new)
        # Values given directly win over group files, as in Hydra: the unchanged ones are applied again as
        # well.
        for override in [item for item in keyed.values() if item not in groups]:
            if self._is_group(self._key(override)) or (not patches and override not in scalars):
                continue
            patch = self._patch(override)
            if patch is None or not all(self._has_parent(leaves, path) for path in patch.new):
                return self._resolved(self._load(list(overrides)))
            leaves.update(patch.new)
        return _nested(self._with_interpolations(leaves))

    def _with_interpolations(self, leaves: Leaves) -> Leaves:
        """`leaves` with every ${…} replaced, each distinct set of interpolations resolved by OmegaConf
        once.
        """
        raw = {
            path: value
            for path, value in leaves.items()
            if isinstance(value, str | list) and "${" in str(value)
        }
        if not raw:
            return leaves
        # Whatever an expression could refer to is part of the key: every leaf a part of whose path occurs in
        # one.
        text = " ".join(map(str, raw.values()))
        needed = raw | {path: value for path, value in leaves.items() if any(part in text for part in path)}
        key = tuple(sorted((path, repr(value)) for path, value in needed.items()))
        if key not in self._interpolated:
            resolved = _flat(OmegaConf.create(_nested(leaves)), resolve=True)
            self._interpolated[key] = {path: resolved[path] for path in raw}
        return leaves | self._interpolated[key]

    def _set_base(self, keyed: dict[str, str]) -> None:
        self._base = self._load(list(keyed.values()))
        self._base_overrides = keyed
        self._base_leaves = _flat(self._base)

    def _key(self, override: str) -> str:
        return str(self._parse(override).get_key_element())

    def _parse(self, override: str) -> Override:
        if override not in self._parsed:
            parsed = self._parser.parse_override(override)
            key = str(parsed.get_key_element())
            if not key:
                raise ConfigError(f"the override {override!r} has no key; expected KEY=VALUE")
            if (
                not set(key) & set("+~@")
                and self._is_group(key)
                and (problem := choice_problem(key, parsed.value()))
            ):
                raise ConfigError(problem)
            self._parsed[override] = parsed
        return self._parsed[override]

    def _is_plain_group(self, override: str) -> bool:
        key = self._key(override)
        return not set(key) & set("+~@") and self._is_group(key)

    def _patch(self, override: str) -> _Patch | None:
        """What `override` changes in the first run; None where only Hydra can tell."""
        if override not in self._patches:
            key = self._key(override)
            if set(key) & set("+~@"):
                self._patches[override] = None
            elif self._is_group(key):
                others = [given for name, given in self._base_overrides.items() if name != key]
                leaves = _flat(self._load([*others, override]))
                changed = {
                    path: value
                    for path, value in leaves.items()
                    if self._base_leaves.get(path, _ABSENT) != value
                }
                self._patches[override] = _Patch(changed, frozenset(set(self._base_leaves) - set(leaves)))
            else:
                self._patches[override] = self._value_patch(key, self._parse(override).value())
        return self._patches[override]

    def _value_patch(self, key: str, value: Any) -> _Patch | None:
        """The leaf that `key=value` sets, checked against the type that the schema gives it."""
        assert self._base is not None
        if isinstance(value, dict) or OmegaConf.is_dict(OmegaConf.select(self._base, key)):
            return None
        trial = copy.deepcopy(self._base)
        OmegaConf.set_struct(trial, True)
        OmegaConf.update(trial, key, value)
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(trial, parent) if parent else trial
        value = node[name]
        if isinstance(value, Enum):
            value = value.value
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        return _Patch({tuple(key.split(".")): plain}, frozenset())

    @staticmethod
    def _has_parent(leaves: Leaves, path: tuple[str, ...]) -> bool:
        parent = path[:-1]
        return path in leaves or any(other[: len(parent)] == parent for other in leaves)

    @staticmethod
    def _conflict(patches: Sequence[_Patch | None]) -> bool:
        seen: set[tuple[str, ...]] = set()
        for patch in patches:
            assert patch is not None
            if seen & patch.touched():
                return True
            seen |= patch.touched()
        return False

    @staticmethod
    def _resolved(config: DictConfig) -> dict[str, Any]:
        values = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
        assert isinstance(values, dict)
        return {str(key): value for key, value in values.items()}


_ABSENT = object()


def _flat(config: DictConfig, resolve: bool = False) -> Leaves:
    """Leaves of a configuration by path, interpolations as they are written or resolved; lists are leaves."""
    leaves: Leaves = {}

    def descend(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, dict) and node:
            for key, child in node.items():
                descend(child, (*path, str(key)))
        else:
            leaves[path] = node

    descend(OmegaConf.to_container(config, resolve=resolve, enum_to_str=True), ())
    return leaves


def _nested(leaves: Leaves) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path, value in leaves.items():
        node = values
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = copy.copy(value)
    return values


def without_hydra(config: DictConfig) -> DictConfig:
    """A composed configuration less Hydra's own node."""
    with open_dict(config):
        config.pop("hydra", None)
    return config


@contextlib.contextmanager
def hydra_session() -> Iterator[None]:
    """Hydra with refsam's configuration tree, for commands that are no Hydra application."""
    register()
    with (
        contextlib.redirect_stderr(io.StringIO()),
        initialize_config_dir(str(folder("conf")), version_base="1.3"),
    ):
        yield


def compose(overrides: Sequence[str], config_name: str = "config") -> RefsamConfig:
    """The typed configuration of one run, its paths absolute.

    Raises hydra's and omegaconf's errors, and ConfigError for a path that cannot be one.
    """
    with hydra_session():
        config = to_config(without_hydra(hydra_compose(config_name, overrides=quote_text(overrides))))
    return with_absolute_paths(config)


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of values that commas separate, each a list of overrides. Raises hydra's errors."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parsed = OverridesParser.create().parse_overrides(quote_text(overrides))
    (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for job in jobs]


def compose_sweep(
    overrides: Sequence[str], config_name: str | None = None, config_dir: str | None = None
) -> Iterator[RefsamConfig]:
    """The configurations of all runs that a sweep's command line asks for, `auto` as it stands.

    Args:
        config_name: of a named sweep, whose own values and choices are those that no override names.
        config_dir: a folder whose groups are found besides refsam's.

    Raises hydra's and omegaconf's errors, and ConfigError for a folder that is not there or what is no path.
    """
    name, added = config_name or "config", []
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ConfigError(f"--config-dir must be a folder, got {config_dir!r}")
        quoted = str(Path(config_dir).absolute()).replace("\\", "\\\\").replace("'", "\\'")
        added = [f"hydra.searchpath=['file://{quoted}']"]
    with hydra_session():
        whole = hydra_compose(name, overrides=added, return_hydra_config=True)
        params = OmegaConf.select(whole, "hydra.sweeper.params") or {}
        given = {split_override(override)[0] for override in overrides}
        asked = [*(f"{key}={value}" for key, value in params.items() if key not in given), *overrides]
        loader = GlobalHydra.instance().config_loader()
        composer = Composer(
            load=lambda job: without_hydra(hydra_compose(name, overrides=[*added, *job])),
            is_group=lambda key: bool(loader.get_group_options(key)),
        )
        for job in combinations(asked):
            yield with_absolute_paths(from_values(RefsamConfig, composer.values(job)))
