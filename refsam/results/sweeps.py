"""The sweeps of a runs folder: finding them by name and reading what their manifests say."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refsam.errors import ConfigError, DamagedManifest, WrittenByNewer, nearest
from refsam.records.paths import RunsFolder, SweepPaths, default_runs
from refsam.records.recovery import look_up
from refsam.records.status import State
from refsam.records.typed import checked
from refsam.system.files import check_format, read_json

MANIFEST_FORMAT = 1
DAMAGED = "damaged"
UNREADABLE = str(State.unreadable)


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep: its id and the overrides that asked for it."""

    run_id: str
    overrides: dict[str, Any]


@dataclass(frozen=True)
class SkippedRun:
    """A combination of the sweep that cannot run, and why."""

    overrides: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Manifest:
    """What a sweep asked for.

    Attributes:
        commands: the different commands that asked for it, as lists of words with the program first; the last
            one was typed last.
        created: when it was asked for first, UTC in ISO 8601.
        updated: when it was asked for last.
    """

    runs: list[SweepRun]
    skipped: list[SkippedRun]
    commands: list[list[str]]
    created: str | None
    updated: str | None


def sweep_names(folder: RunsFolder) -> list[str]:
    """Names of the sweeps in a runs folder, sorted; none where the folder is not there."""
    if not folder.sweeps.is_dir():
        return []
    return sorted(path.name for path in folder.sweeps.iterdir() if path.is_dir())


def find_sweep(name: str, folder: RunsFolder) -> SweepPaths:
    """The paths of a sweep. Raises ConfigError with the nearest name where there is no such sweep."""
    names = sweep_names(folder)
    if name in names:
        return folder.sweep(name)
    if not names:
        raise ConfigError(f"sweep {name!r} is not in {folder.root}: there are no sweeps")
    hint = nearest(name, names) or f"; there are {', '.join(names)}"
    raise ConfigError(f"sweep {name!r} is not in {folder.root}{hint}")


def read_manifest(sweep: SweepPaths) -> Manifest:
    """The manifest of a sweep.

    Raises:
        ConfigError: when it is not there, or is of a format that a newer refsam writes.
        DamagedManifest: when it is damaged.
    """
    try:
        values = read_json(sweep.manifest)
    except FileNotFoundError as error:
        raise ConfigError(f"sweep {sweep.name!r} has no {sweep.manifest}") from error
    except ValueError as error:
        raise DamagedManifest(str(error)) from error
    try:
        check_format(values["format"], MANIFEST_FORMAT, sweep.manifest)
        commands = values.get("commands") or [values.get("command") or []]
        runs = {_run_name(run["run_id"]): dict(run["overrides"]) for run in values["runs"]}
        times = checked(values, {"created": str | None, "updated": str | None}, sweep.manifest)
        return Manifest(
            [SweepRun(run_id, overrides) for run_id, overrides in runs.items()],
            [SkippedRun(dict(skipped["overrides"]), str(skipped["reason"])) for skipped in values["skipped"]],
            [[str(word) for word in command] for command in commands if command],
            times.get("created") or None,
            times.get("updated") or None,
        )
    except WrittenByNewer as error:
        raise ConfigError(str(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        words = str(error) if str(sweep.manifest) in str(error) else f"{sweep.manifest} is damaged: {error!r}"
        raise DamagedManifest(words) from error


def _run_name(run_id: Any) -> str:
    """An id that names a folder inside of the runs folder. Raises ValueError for any other."""
    if not isinstance(run_id, str) or run_id in ("", ".", "..") or "/" in run_id or "\0" in run_id:
        raise ValueError(f"run_id {run_id!r} is not the name of a folder")
    return run_id


def count_states(sweep: SweepPaths, folder: RunsFolder) -> Counter[str]:
    """How many runs of a sweep are in which state; `damaged` for status files that are, or are gone.

    Raises as `read_manifest` does.
    """
    counts: Counter[str] = Counter()
    for run in read_manifest(sweep).runs:
        record = look_up(folder.run(run.run_id))
        is_damaged = record.problem is not None and record.status.state is not State.unreadable
        counts[DAMAGED if is_damaged else str(record.status.state)] += 1
    return counts


def runs_folder(path: str | Path, option: str = "--runs") -> RunsFolder:
    """The runs folder at `path`, as an option has it. Raises ConfigError where it is not a folder."""
    path = Path(path).expanduser()
    if path.is_dir():
        return RunsFolder(path)
    if option == "--runs" and str(path) == default_runs():
        raise ConfigError(
            f"the runs folder does not exist: {str(path)!r}; run a sweep first, or give the folder with "
            "--runs or the environment variable REFSAM_RUNS"
        )
    raise ConfigError(f"{option} {str(path)!r} is not a folder")
