"""What stands for two things under one name: a run that two combinations ask for, a resource, a sweep."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from refsam.configuration.schema import Kind, RefsamConfig
from refsam.errors import ConfigError, DamagedManifest
from refsam.records.measurements import extended
from refsam.records.paths import RunsFolder
from refsam.records.settings import (
    Setting,
    differing,
    names_of,
    read_setting,
    setting_values,
    short_name,
    value_text,
)
from refsam.results.sweeps import read_manifest
from refsam.system.files import read_yaml_sections
from refsam.system.names import counted

# The configuration of a run that was asked for, and the overrides that the sweep varies.
Asked = tuple[RefsamConfig, dict[str, str]]
_GPU = "resource.request.gpu"


def add(runs: dict[str, Asked], run_id: str, asked: Asked) -> None:
    """Add a combination to the runs of a plan. What several of them want measured of one run is measured.

    Raises ConfigError for two combinations that are one run by its id and could not be told apart by it.
    """
    if run_id not in runs:
        runs[run_id] = asked
        return
    (first, overrides), (second, others) = runs[run_id], asked
    parts = differing([setting_values(first), setting_values(second)])
    names = names_of(parts)
    if names:
        raise ConfigError(_sentence(names[0], parts, first, (overrides, others), run_id))
    runs[run_id] = replace(first, evaluate=extended(first.evaluate, second.evaluate)), overrides


def check_recorded(runs: Mapping[str, Asked], folder: RunsFolder) -> None:
    """Raise ConfigError where a run has a directory whose resource of the same name asks for another GPU."""
    for run_id, (config, _) in runs.items():
        if config.kind == Kind.baseline:
            continue
        path = folder.run(run_id).config
        try:
            (resource,) = read_yaml_sections(path, "resource")
            recorded = resource["request"]["gpu"]
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            continue  # not there; what is damaged is named where it is read
        asked = config.resource.request.gpu
        if str(recorded).casefold() != str(asked).casefold():
            raise ConfigError(
                f"{_GPU}: {value_text(asked)} was given for resource {config.resource.name}, but in {path} "
                f"the resource of this name asks for {value_text(recorded)}; give one of them another "
                "resource.name"
            )


def other_settings(name: str, folder: RunsFolder, planned: Mapping[str, Setting]) -> Iterator[str]:
    """That a sweep of this name has runs which this command does not ask for, and in which fields they
    differ from those that it does; nothing where they differ in none.
    """
    try:
        runs = read_manifest(folder.sweep(name)).runs
    except (ConfigError, DamagedManifest):
        return  # there is none, or it is named when it is written
    there = {run.run_id: read_setting(folder.run(run.run_id).config) for run in runs}
    others = {run: setting for run, setting in there.items() if run not in planned and setting}
    parts = differing([*planned.values(), *others.values()])
    here, elsewhere = parts[: len(planned)], parts[len(planned) :]
    said = []
    for field in names_of(elsewhere):
        values = list(dict.fromkeys(value_text(part[field]) for part in elsewhere if field in part))
        if not set(values) <= {value_text(part[field]) for part in here if field in part}:
            said.append(f"{short_name(field)} ({', '.join(values)})")
    if said:
        count = counted(len(others), "run")
        yield f"sweep {name} has {count} of other commands, which differ from these in {' and '.join(said)}"


def _sentence(
    field: str,
    parts: list[Setting],
    config: RefsamConfig,
    overrides: tuple[dict[str, str], dict[str, str]],
    run_id: str,
) -> str:
    values = [value_text(part.get(field)) for part in parts]
    if field == _GPU:
        asked = " and ".join(" ".join(f"{key}={value}" for key, value in each.items()) for each in overrides)
        return (
            f"resource.name: {config.resource.name} is the name of two resources ({asked}), which ask for "
            f"the GPUs {values[0]} and {values[1]}; give one of them another name"
        )
    return (
        f"{field}: {values[0]} and {values[1]} were given for the same run {run_id}, which has one of them; "
        "give one value in each command"
    )
