"""The run whose model is meant: one that is named, or the best one of a sweep by a metric."""

from dataclasses import dataclass
from pathlib import Path

from refsam.errors import ConfigError
from refsam.orchestration.operating.targets import find_run, run_names
from refsam.records.metrics import METRICS, MetricsRow, read_metrics
from refsam.records.paths import RunPaths, RunsFolder, SweepPaths, default_runs
from refsam.results.sweeps import read_manifest, runs_folder, sweep_names
from refsam.system.files import read_yaml_sections

DEFAULT_METRIC = "SA50"
# By which mode the runs of a sweep are compared where the one that is asked for was not measured.
MODES = ("ais", "amg", "apg", "box", "point")


@dataclass(frozen=True)
class ChosenRun:
    """A run, and in words why it is the one."""

    paths: RunPaths
    words: str


def choose_run(
    target: str | Path, metric: str | None = None, mode: str | None = None, runs: str | Path | None = None
) -> ChosenRun:
    """The run that is meant.

    Args:
        target: the folder of a run or of a sweep, or the name of a sweep, a run id, or a part of one.
        metric: by which the best run of a sweep is chosen (SA50); not for a run.
        mode: of the evaluation that the metric is of. Where no run has it: the first of MODES that one has.
        runs: the runs folder that names are looked up in (REFSAM_RUNS, else `runs`).

    Raises:
        ConfigError: when there is none, or nothing of the sweep was measured.
    """
    if metric is not None and metric not in METRICS:
        raise ConfigError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    path = Path(target).expanduser()
    if (path / "config.yaml").is_file():
        return _named(RunPaths(path.absolute()), metric)
    if (path / "manifest.json").is_file():
        sweep = SweepPaths(path.absolute())
        return _best(sweep, RunsFolder(sweep.root.parent.parent), metric or DEFAULT_METRIC, mode)
    folder = runs_folder(runs if runs is not None else default_runs())
    if str(target) in sweep_names(folder):
        return _best(folder.sweep(str(target)), folder, metric or DEFAULT_METRIC, mode)
    if not any(str(target) in name for name in run_names(folder)):
        raise ConfigError(
            f"{str(target)!r} is neither a run nor a sweep of {folder.root}; refsam list names the sweeps"
        )
    return _named(find_run(str(target), folder), metric)


def _named(paths: RunPaths, metric: str | None) -> ChosenRun:
    if metric is not None:
        raise ConfigError(
            f"metric: {metric} was given with run {paths.run_id}, and it chooses among the runs of a sweep"
        )
    return ChosenRun(paths, f"run {paths.run_id}")


def _best(sweep: SweepPaths, folder: RunsFolder, metric: str, mode: str | None) -> ChosenRun:
    """The run with the highest value of the metric, of the first prompt; of equal ones the first."""
    measured: dict[str, list[tuple[float, RunPaths]]] = {}
    for run in read_manifest(sweep).runs:
        paths = folder.run(run.run_id)
        for row in _rows(paths):
            value = row.get(metric)
            if row["round"] == 0 and isinstance(value, float):
                measured.setdefault(row["mode"], []).append((value, paths))
    chosen = next((each for each in (mode, *MODES) if each in measured), None)
    if chosen is None:
        raise ConfigError(f"sweep {sweep.name!r} has no run with a model for which {metric} was measured")
    value, paths = max(measured[chosen], key=lambda each: each[0])
    words = f"run {paths.run_id}, the best of {len(measured[chosen])} by {metric} of {chosen}: {value:.3f}"
    if value == 0:
        words += f"\nWith {chosen} no run of this sweep found an object in a test image, so none is expected."
    return ChosenRun(paths, words)


def _rows(paths: RunPaths) -> list[MetricsRow]:
    """What was measured of a run that has a model; nothing of one with damaged records."""
    try:
        (kind,) = read_yaml_sections(paths.config, "kind")
        return read_metrics(paths.metrics) if kind == "baseline" or paths.best.exists() else []
    except (FileNotFoundError, ValueError):
        return []
