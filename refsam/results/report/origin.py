"""How the runs were made: their configuration, versions, commits, machines and weights."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import yaml

from refsam.configuration.frozen import leaves
from refsam.records.paths import RunPaths
from refsam.results.report.sources import read_json_record

_SECTION = re.compile(r"^(?=[^\s#-])", re.MULTILINE)  # a line that begins a top-level key
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_VALUES = 12  # of a setting that are listed
_NOT_SET = "not set"


@dataclass(frozen=True)
class Counted:
    """A value, and how many runs have it."""

    text: str
    runs: int


@dataclass(frozen=True)
class Fact:
    """Something that runs have, and its values, the most common first. `more` values are not listed."""

    name: str
    values: list[Counted]
    more: int = 0


@dataclass(frozen=True)
class Configuration:
    """The settings of all runs by their dotted names: those that all have in common, and the others."""

    common: list[Fact]
    different: list[Fact]
    runs: int


@dataclass(frozen=True)
class Machine:
    """A kind of machine that runs were executed on. Memory in GiB."""

    processor: str
    cores: str
    memory: str
    gpu: str
    gpu_memory: str
    arithmetic: str
    system: str
    hosts: str = ""
    runs: int = 0


@dataclass(frozen=True)
class Environments:
    """What environment.json says, of all runs that have one."""

    versions: list[Fact]
    commits: list[Fact]
    machines: list[Machine]
    weights: list[Fact]
    runs: int


def configuration(runs: Iterable[RunPaths]) -> Configuration:
    """The settings of all runs. A record that cannot be read is left out: the table names it."""
    counts: Counter[str] = Counter()
    total = 0
    for paths in runs:
        try:
            sections = _SECTION.split(paths.config.read_text(encoding="utf-8"))
            parsed = [section for section in sections if _settings(section)]
        except (OSError, ValueError):
            continue
        total += 1
        counts.update(parsed)
    values: dict[str, Counter[str]] = {}
    for section, number in counts.items():  # runs have most sections in common, so each is parsed once
        for name, text in _settings(section):
            values.setdefault(name, Counter())[text] += number
    for found in values.values():
        if missing := total - found.total():
            found[_NOT_SET] += missing
    facts = [_fact(name, found) for name, found in values.items()]
    return Configuration(
        common=[fact for fact in facts if len(fact.values) == 1],
        different=[fact for fact in facts if len(fact.values) > 1],
        runs=total,
    )


def environments(runs: Mapping[str, RunPaths], models: Mapping[str, str]) -> Environments:
    """What the runs were made with.

    Args:
        models: the model of each run.
    """
    read = {
        run_id: values for run_id, paths in runs.items() if (values := read_json_record(paths.environment))
    }
    versions: dict[str, Counter[str]] = {}
    commits: Counter[str] = Counter()
    weights: dict[str, Counter[str]] = {}
    for run_id, values in read.items():
        for name, version in _mapping(values.get("versions")).items():
            versions.setdefault(str(name), Counter())[str(version)] += 1
        commit = values.get("commit")
        changed = ", with changes that are not committed" if commit and values.get("dirty") else ""
        commits[f"{commit or 'not known: not run from a git checkout'}{changed}"] += 1
        started = _mapping(values.get("weights"))
        text = str(started.get("source", "not known"))
        if started.get("hash"):  # random ones are known by their seed
            text += f", hash {started['hash']}"
        weights.setdefault(models.get(run_id, "not known"), Counter())[text] += 1
    return Environments(
        versions=[_fact(name, found) for name, found in versions.items()],
        commits=[_fact("commit", commits)] if commits else [],
        machines=_machines(read.values()),
        weights=[_fact(model, found) for model, found in sorted(weights.items())],
        runs=len(read),
    )


def _machines(read: Iterable[dict[str, Any]]) -> list[Machine]:
    hosts: dict[Machine, Counter[str]] = {}
    for values in read:
        hosts.setdefault(_machine(values), Counter())[str(values.get("host", "not known"))] += 1
    return [
        replace(machine, hosts=", ".join(sorted(found)), runs=found.total())
        for machine, found in sorted(hosts.items(), key=lambda item: -item[1].total())
    ]


def _machine(values: dict[str, Any]) -> Machine:
    """The kind of machine, no matter which one of them."""

    def text(name: str) -> str:
        return "" if values.get(name) is None else str(values[name])

    return Machine(
        processor=text("cpu"),
        cores=text("cores"),
        memory=text("memory_gib"),
        gpu=text("gpu"),
        gpu_memory=text("gpu_memory_gib"),
        arithmetic=text("precision"),
        system=text("system"),
    )


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _fact(name: str, counts: Counter[str]) -> Fact:
    common = counts.most_common()
    listed = [Counted(text, number) for text, number in common[:_MOST_VALUES]]
    return Fact(name, listed, len(common) - len(listed))


@lru_cache(maxsize=10_000)
def _settings(section: str) -> Sequence[tuple[str, str]]:
    """The dotted names and values in a part of a configuration. Raises ValueError when it is damaged."""
    try:
        values = yaml.load(section, Loader=_LOADER)  # noqa: S506
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if values is None:
        return ()
    if not isinstance(values, dict):
        raise ValueError("it is not a mapping")
    return tuple(
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
        for name, value in leaves(values).items()
    )
