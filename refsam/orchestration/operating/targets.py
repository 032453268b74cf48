"""What a person means: a sweep by its name, a run by its id or a part of it that no other run has."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refsam.errors import ConfigError, DamagedManifest, nearest
from refsam.records.paths import RunPaths, RunsFolder, SweepPaths
from refsam.results.sweeps import find_sweep, read_manifest, sweep_names

NAMED = 5  # runs that a sentence names at most


@dataclass(frozen=True)
class Target:
    """Some runs, and the sweep that they are looked at as a part of."""

    sweep: SweepPaths
    run_ids: tuple[str, ...]
    is_run: bool  # one run was named, and not a sweep

    @property
    def words(self) -> str:
        return f"run {self.run_ids[0]}" if self.is_run else f"sweep {self.sweep.name}"


def sweep_target(name: str | None, folder: RunsFolder) -> Target:
    """All runs of a sweep, of the newest one where no name is given.

    Raises ConfigError where there is none of that name, DamagedManifest when its manifest is damaged.
    """
    sweep = newest_sweep(folder) if name is None else find_sweep(name, folder)
    return Target(sweep, tuple(run.run_id for run in read_manifest(sweep).runs), is_run=False)


def find_target(name: str | None, folder: RunsFolder) -> Target:
    """A sweep, or else one run in the newest of its sweeps; the newest sweep where no name is given.

    Raises as `sweep_target` does, and ConfigError for a run that no sweep has.
    """
    names = sweep_names(folder)
    if name is None or name in names:
        return sweep_target(name, folder)
    run_ids = run_names(folder)
    if not any(name in run_id for run_id in run_ids):
        hint = (
            nearest(name, [*names, *short_names(run_ids).values()])
            or f"; {folder.root} has the sweeps {', '.join(names)}"
        )
        raise ConfigError(f"{name!r} is neither a sweep nor a part of a run's name{hint}")
    run_id = find_run(name, folder).run_id
    for sweep in _newest_first(folder):
        if _has(sweep, run_id):
            return Target(sweep, (run_id,), is_run=True)
    raise ConfigError(f"run {run_id} belongs to no sweep of {folder.root}; name a run that does")


def find_run(part: str, folder: RunsFolder) -> RunPaths:
    """The run whose id is `part`, or the only one whose id has `part` in it.

    Raises ConfigError, naming the nearest or those that it may be.
    """
    names = run_names(folder)
    if part in names:
        return folder.run(part)
    matches = [name for name in names if part and part in name]
    if len(matches) == 1:
        return folder.run(matches[0])
    if matches:
        more = f" and {len(matches) - NAMED} more" if len(matches) > NAMED else ""
        raise ConfigError(
            f"run {part!r} may be one of {', '.join(matches[:NAMED])}{more}; give a part of the name that "
            "only one has"
        )
    raise ConfigError(f"run {part!r} is not in {folder.root}{nearest(part, short_names(names).values())}")


def run_names(folder: RunsFolder) -> list[str]:
    """The ids of all runs that have a directory, sorted."""
    return sorted(
        path.name
        for path in folder.root.iterdir()
        if path.name != folder.sweeps.name and _is_there(path / "config.yaml")
    )


def newest_sweep(folder: RunsFolder) -> SweepPaths:
    """The sweep that was asked for last. Raises ConfigError where there is none."""
    sweeps = _newest_first(folder)
    if not sweeps:
        raise ConfigError(f"--runs {str(folder.root)!r} has no sweeps")
    return sweeps[0]


def short_names(run_ids: Sequence[str]) -> dict[str, str]:
    """The readable part of each id, with the hash only where another run has the same."""
    labels = [run_id.rsplit("-", 1)[0] for run_id in run_ids]
    counts = Counter(labels)
    return {
        run_id: label if counts[label] == 1 else run_id for run_id, label in zip(run_ids, labels, strict=True)
    }


def _newest_first(folder: RunsFolder) -> list[SweepPaths]:
    """The manifest is replaced by every command that asks for the sweep, so its time is the sweep's."""
    sweeps = [folder.sweep(name) for name in sweep_names(folder)]
    written = []
    for sweep in sweeps:
        with contextlib.suppress(OSError):  # no manifest, or another person's
            written.append((sweep.manifest.stat().st_mtime_ns, sweep))
    return [sweep for _, sweep in sorted(written, key=lambda each: each[0], reverse=True)]


def _has(sweep: SweepPaths, run_id: str) -> bool:
    """Whether a sweep has a run; one whose manifest cannot be used has none."""
    try:
        return any(run.run_id == run_id for run in read_manifest(sweep).runs)
    except (ConfigError, DamagedManifest):
        return False


def _is_there(path: Path) -> bool:
    """Whether a file exists, or may exist: what cannot be read is a run all the same."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
