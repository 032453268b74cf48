"""The tidy table: one row per run and evaluation mode, from the records of a sweep. Reads, never computes."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from refsam.configuration.strategies import strategy_label
from refsam.records.files import read_json, read_yaml, write_text
from refsam.records.metrics import measurement, rows_of
from refsam.records.paths import RunPaths, RunsFolder, SweepPaths
from refsam.records.status import read_status
from refsam.results.sweeps import DAMAGED, PlannedRun, SkippedRun, read_manifest

INVALID = "invalid"
BASELINE = (
    "baseline"  # the kind of a run that trains nothing (configuration.schema.Kind), and its strategy here
)

METRICS = ("mSA", "SA50", "SA75", "precision", "recall", "F1", "mIoU", "mF1")
TRAINING = ("best_epoch", "seconds_to_best", "seconds_total", "peak_memory_gib", "trainable_parameters")
SAVINGS = (
    *("engine", "joint", "optimizer", "object_chunk", "checkpoint_every", "attention", "embedding_cache"),
    "embedding_dtype",
)
COSTS = ("elapsed_seconds", "queue_seconds", "gpu_hours", "max_rss_gib")  # of Slurm's jobs, summed
INTEGERS = (
    "n_images",
    "n_objects",
    "seed",
    "n_test_images",
    "best_epoch",
    "trainable_parameters",
    "object_chunk",
    "checkpoint_every",
    "attempts",
)
COLUMNS = (
    *(
        "run_id",
        "kind",
        "resource",
        "model",
        "weights",
        "strategy",
        "n_images",
        "n_objects",
        "seed",
        "dataset",
    ),
    *("mode", *METRICS, "n_test_images", "seconds_per_image"),
    *(*TRAINING, *SAVINGS, "arithmetic", "device", "hardware", *COSTS),
    *("torch_version", "micro_sam_version", "refsam_version", "commit"),
    *("attempts", "status", "reason", "message"),
)

Row = dict[str, Any]


def collect(sweep: SweepPaths, runs: RunsFolder) -> pd.DataFrame:
    """The results of a sweep as its records say now.

    A run without metrics (planned, pending, failed, …) has one row with an empty mode; a combination that the
    sweep left out has one with the status `invalid`. A baseline has the strategy `baseline` and n_images 0.
    `n_images` counts training images, `n_test_images` those behind a metric. Where a record cannot be read,
    the status is `damaged` and the message names the file. Times in seconds, memory in GiB, metrics in [0,
    1].

    Returns:
        The columns COLUMNS, in the manifest's order of runs; empty cells are missing values.

    Raises:
        BadInput: when the sweep has no manifest or one of a newer format.
        DamagedManifest: when the manifest is damaged.
    """
    manifest = read_manifest(sweep)
    rows = [row for run in manifest.runs for row in _run_rows(runs.run(run.run_id), run)]
    rows += [_skipped_row(skipped) for skipped in manifest.skipped]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = (*METRICS, "seconds_per_image", *TRAINING, *COSTS)
    types = dict.fromkeys(numbers, "float64") | dict.fromkeys(INTEGERS, "Int64")
    return frame.astype(types)


def write_results(sweep: SweepPaths, frame: pd.DataFrame) -> Path:
    """Replace the sweep's results.csv, atomically, and return its path."""
    text = io.StringIO()
    frame.to_csv(text, index=False, lineterminator="\n")
    write_text(sweep.results, text.getvalue())
    return sweep.results


def damaged(frame: pd.DataFrame) -> list[str]:
    """The sentences that name the damaged records of a sweep, one per run."""
    return frame.loc[frame["status"] == DAMAGED, ["run_id", "message"]].drop_duplicates()["message"].tolist()


def _run_rows(paths: RunPaths, run: PlannedRun) -> list[Row]:
    problems: list[str] = []

    def read(reader: Callable[[Path], Any], path: Path) -> dict[str, Any]:
        try:
            values = reader(path)
        except FileNotFoundError:  # not written yet
            return {}
        except ValueError as error:
            problems.append(str(error))
            return {}
        if not isinstance(values, dict):
            problems.append(f"{path} is damaged: it is not a mapping")
            return {}
        return values

    row: Row = {"run_id": run.run_id, **_from_overrides(run.overrides)}
    row |= _guarded(_from_config, read(read_yaml, paths.config), paths.config, problems)
    row |= _guarded(_from_environment, read(read_json, paths.environment), paths.environment, problems)
    row |= _guarded(_from_training, read(read_json, paths.training), paths.training, problems)
    row |= _guarded(_from_savings, read(read_json, paths.savings), paths.savings, problems)
    row |= _guarded(_from_costs, read(read_json, paths.costs), paths.costs, problems)
    metrics = _guarded(
        lambda values: _from_metrics(values, paths.metrics),
        read(read_json, paths.metrics),
        paths.metrics,
        problems,
    )
    try:
        status = read_status(paths)
        row |= {"attempts": status.attempt, "status": str(status.state), "message": status.message}
        row["reason"] = None if status.reason is None else str(status.reason)
        row["device"] = row.get("device") or status.device
    except ValueError as error:
        problems.append(str(error))
    if problems:
        row |= {"status": DAMAGED, "reason": None, "message": "; ".join(problems)}
    return [row | {"mode": mode} | values for mode, values in metrics.items()] or [row]


def _skipped_row(skipped: SkippedRun) -> Row:
    return {**_from_overrides(skipped.overrides), "status": INVALID, "message": skipped.reason}


def _guarded(
    take: Callable[[dict[str, Any]], Row], values: dict[str, Any], path: Path, problems: list[str]
) -> dict[str, Any]:
    """What `take` finds in a record; a record that is not laid out as expected is one of the problems."""
    if not values:
        return {}
    try:
        return take(values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problems.append(f"{path} is damaged: {type(error).__name__} {error}")
        return {}


def _from_overrides(overrides: dict[str, Any]) -> Row:
    """What the command said about a run whose configuration was never written, or cannot be read."""
    names = {
        "kind": "kind",
        "resource": "resource",
        "model": "model",
        "model.weights": "weights",
        "peft": "strategy",
        "n_train_images": "n_images",
        "n_images": "n_images",
        "n_objects": "n_objects",
        "seed": "seed",
        "dataset": "dataset",
    }
    row: Row = {column: overrides[key] for key, column in names.items() if key in overrides}
    for column in set(INTEGERS) & set(row):
        row[column] = _integer_or_none(row[column])
    if row.get("kind") == BASELINE:
        row |= {"strategy": BASELINE, "n_images": 0, "n_objects": None}
    return row


def _integer_or_none(value: Any) -> int | None:
    """An integer, or None for `auto` and for what made a combination invalid (n_images=many)."""
    text = str(value)
    return int(text) if text.removeprefix("-").isdigit() else None


def _from_config(config: dict[str, Any]) -> Row:
    is_baseline = config["kind"] == BASELINE
    return {
        "kind": config["kind"],
        "resource": config["resource"]["name"],
        "model": config["model"]["name"],
        "weights": config["model"]["weights"],
        "strategy": BASELINE if is_baseline else _strategy(config),
        "n_images": 0 if is_baseline else int(config["n_images"]),
        "n_objects": None if is_baseline else _integer_or_none(config["n_objects"]),
        "seed": int(config["seed"]),
        "dataset": config["dataset"]["name"],
    }


def _strategy(config: dict[str, Any]) -> str:
    """The strategy's name; a joint step of another kind than micro-sam's is another strategy."""
    train = config.get("train", {})
    summed = train.get("decoder") and train.get("joint") == "summed"
    label = strategy_label(config["peft"])
    return f"{label}, summed" if summed else label


def _from_environment(environment: dict[str, Any]) -> Row:
    versions = environment["versions"]
    commit = environment.get("commit")
    device = environment.get("device")
    on_gpu = device is not None and device.startswith("cuda")
    return {
        "device": device,
        "hardware": environment.get("gpu") if on_gpu else environment.get("cpu"),
        "arithmetic": environment.get("precision"),
        "torch_version": versions.get("torch"),
        "micro_sam_version": versions.get("micro_sam"),
        "refsam_version": versions.get("refsam"),
        "commit": f"{commit}-dirty" if commit and environment.get("dirty") else commit,
    }


def _from_training(training: dict[str, Any]) -> Row:
    row: Row = {name: _number_or_none(training.get(name)) for name in TRAINING}
    for name in set(INTEGERS) & set(TRAINING):
        row[name] = None if row[name] is None else int(row[name])
    if training.get("precision"):
        row["arithmetic"] = training["precision"]
    return row


def _from_savings(savings: dict[str, Any]) -> Row:
    row: Row = {name: savings.get(name) for name in SAVINGS}
    for name in set(INTEGERS) & set(SAVINGS):
        row[name] = None if row[name] is None else int(row[name])
    return row


def _from_costs(costs: dict[str, Any]) -> Row:
    return {name: _number_or_none(costs[name]) for name in COSTS}


def _from_metrics(metrics: dict[str, Any], path: Path) -> dict[str, Row]:
    """The values of each mode with its first prompt."""
    rows = {}
    for values in rows_of(metrics, path):
        if measurement(values).round == 0:
            row: Row = {name: _number_or_none(values[name]) for name in (*METRICS, "seconds_per_image")}
            rows[str(values["mode"])] = row | {"n_test_images": int(values["n_images"])}
    return rows


def _number_or_none(value: Any) -> float | None:
    return None if value is None else float(value)
