"""The overrides that ask for a given run: choices of groups, and what differs from them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refsam.configuration.compose import compose
from refsam.configuration.frozen import leaves, to_values
from refsam.configuration.patch_pool import with_patch_pool
from refsam.configuration.resources import folder
from refsam.configuration.schema import DatasetConfig, RefsamConfig
from refsam.system.files import read_yaml

_GROUPS = ("model", "peft", "dataset", "train", "evaluate")
_DEFAULT = "default"
# Where a published data set lies is found by the configuration that is typed.
_WHERE_DATA_LIES = ("dataset.root", "dataset.archive")
_OF_THE_PLAN = ("dataset.fingerprint", "model.weights_hash")
_BARE = re.compile(r"(?!null$|true$|false$|nan$|inf$)[A-Za-z_./-][A-Za-z0-9_./-]*", re.IGNORECASE)


def overrides_for(config: RefsamConfig, place: Sequence[str]) -> list[str]:
    """The overrides that ask for the same run, in another place if need be.

    Args:
        config: resolved, as it is frozen in a run directory.
        place: the overrides that come first and say where to run, such as `resource=local`.
    """
    values = to_values(config)
    choices = [f"{group}={_choice(group, values[group])}" for group in _GROUPS]
    chosen = [*place, *(choice for choice in choices if not choice.endswith(f"={_DEFAULT}"))]
    if config.dataset.version is None:  # what it is cannot be said without
        chosen.append(f"dataset.root={value_text(config.dataset.root)}")
    chosen += [f"n_images={config.n_images}", f"n_objects={config.n_objects}"]
    chosen += [f"seed={config.seed}"] if config.seed else []
    wanted, present = leaves(values), leaves(to_values(with_patch_pool(compose(chosen))))
    return [
        *chosen,
        *(
            f"{name if name in present else f'+{name}'}={value_text(value)}"
            for name, value in wanted.items()
            if name.partition(".")[0] in _GROUPS
            and name not in (*_WHERE_DATA_LIES, *_OF_THE_PLAN, "model.memory_gb")
            and present.get(name, ...) != value
        ),
    ]


def value_text(value: Any) -> str:
    """A value as Hydra's overrides write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(value_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{value_text(child)}' for key, child in value.items())}}}"
    if not isinstance(value, str) or _BARE.fullmatch(value):
        return str(value)
    # Backslashes are themselves, but for those before a quotation mark or the end.
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + (r"\'" if found[2] else ""), value)
    return f"'{escaped}'"


def _choice(group: str, values: Mapping[str, Any]) -> str:
    """The file of a group in conf/ that a person would name: of the same name and format where one is, else
    the one that fewest values differ from.
    """
    root = folder("conf") / group

    def differing(path: Path) -> tuple[int, int, bool, str]:
        given = {"format": DatasetConfig.format, **_read(path)}
        names = {*given, *values}
        other = {name for name in names if _comparable(given.get(name)) != _comparable(values.get(name))}
        return len(other & {"name", "format"}), len(other), path.stem != values.get("name"), path.stem

    return min(root.glob("*.yaml"), key=differing).stem


def _read(path: Path) -> dict[str, Any]:
    """A file of a group with the others that it is made from."""
    values: dict[str, Any] = read_yaml(path)
    made: dict[str, Any] = {}
    for name in values.pop("defaults", []):
        if name != "_self_":
            made |= _read(path.with_name(f"{name}.yaml"))
    return made | values


def _comparable(value: Any) -> Any:
    """YAML takes 1e-5 for text, and what is not given is null or empty."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return None if value in ([], {}) else value
