"""The rows of one run in the tidy table, from its records. Knows nothing of tables: plain values only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refsam.configuration.run_names import check_name
from refsam.configuration.split import LEAST_TEST_IMAGES, SEEDED
from refsam.errors import Unreadable
from refsam.models.strategies import strategy_label
from refsam.records.metrics import (
    MASK_METRICS,
    METRICS,
    QLORA_SAM_METRICS,
    SECONDS,
    SEGMENTATION_METRICS,
    measurement,
    rows_of,
)
from refsam.records.paths import RunPaths
from refsam.records.recovery import look_up
from refsam.records.settings import SECTIONS, asked_values, recorded_values
from refsam.records.status import State
from refsam.records.training import read_savings, read_training
from refsam.results.sweeps import DAMAGED, UNREADABLE
from refsam.system.files import read_json, read_yaml, read_yaml_sections

INVALID = "invalid"
# The kind of a run that trains nothing (configuration.schema.Kind), and its strategy here.
BASELINE = "baseline"

_ALWAYS_MEASURED = (*SEGMENTATION_METRICS, *MASK_METRICS, "seconds_per_image")
INTERVALS = tuple(f"{name}_{bound}" for name in METRICS for bound in ("low", "high"))
PARAMETERS = ("trainable_parameters", "total_parameters", "saved_bytes")
TRAINING = ("best_epoch", "seconds_to_best", "seconds_total", "peak_memory_gib", *PARAMETERS)
SAVINGS = (
    *("engine", "joint", "optimizer", "object_chunk", "checkpoint_every", "attention", "embedding_cache"),
    "embedding_dtype",
)
COSTS = ("elapsed_seconds", "queue_seconds", "gpu_hours", "max_rss_gib")  # of Slurm's jobs, summed
INTEGERS = (
    *("n_images", "n_objects", "seed", "round", "n_test_images", "best_epoch", *PARAMETERS),
    *("object_chunk", "checkpoint_every", "attempts", "split_seed", "fold", "folds"),
)
FLOATS = (
    *(*METRICS, *INTERVALS, "seconds_per_image", *SECONDS),
    *("seconds_to_best", "seconds_total", "peak_memory_gib", *COSTS),
)
IDENTITY = ("resource", "model", "weights", "strategy", "n_images", "n_objects", "seed", "dataset")
SETTING = "setting"  # of rows in the index: the fields of the run's setting, as JSON
COLUMNS = (
    *("run_id", "sweep", "kind", *IDENTITY, "split_seed", "fold", "folds"),
    *("mode", "round", "mask_input", *METRICS, "n_test_images", "seconds_per_image", *SECONDS, *INTERVALS),
    *(*TRAINING, *SAVINGS, "arithmetic", "device", "hardware", "evaluation_hardware", *COSTS),
    *("torch_version", "micro_sam_version", "refsam_version", "commit", "host", "job_id", "ended_at"),
    *("attempts", "status", "reason", "message"),
)
TYPES: dict[str, type] = {
    name: int if name in INTEGERS else float if name in FLOATS else bool if name == "mask_input" else str
    for name in COLUMNS
}

Row = dict[str, Any]


def run_rows(paths: RunPaths, run_id: str, overrides: dict[str, Any]) -> list[Row]:
    """The rows of one run; overrides say what it is where it has no configuration yet.

    Never raises for what stands in a record: a damaged one is named in the message, and the status is
    `damaged`, or `unreadable` where nothing is wrong but that it cannot be read now.
    """
    problems: list[str] = []
    unreadable: list[str] = []  # of another person, who keeps it to themselves

    def take(convert: Callable[[Any], Any], reader: Callable[[Path], Any], path: Path) -> Any:
        """What `convert` makes of a record; nothing of one that is not there, or that cannot be used."""
        try:
            values = reader(path)
        except FileNotFoundError:  # not written yet
            return {}
        except Unreadable as error:
            unreadable.append(str(error))
            return {}
        except ValueError as error:
            problems.append(str(error))
            return {}
        if not isinstance(values, dict):
            problems.append(f"{path} is damaged: it is not a mapping")
            return {}
        try:
            return convert(values) if values else {}
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # not laid out as expected
            named = str(path) in str(error)  # by who read it, in a sentence of its own
            problems.append(str(error) if named else f"{path} is damaged: {type(error).__name__} {error}")
            return {}

    row: Row = {"run_id": run_id, **_from_overrides(overrides)}
    row |= take(lambda values: _from_config(values, paths.config), _read_config, paths.config)
    is_known = not problems and not unreadable  # what the run is, so that its results mean something
    row |= take(_from_environment, read_json, paths.environment)
    row |= take(_from_training, read_training, paths.training)
    row |= take(_from_savings, read_savings, paths.savings)
    row |= take(_from_costs, read_json, paths.costs)
    measured = take(lambda values: _from_metrics(values, paths.metrics), read_json, paths.metrics)
    record = look_up(paths)
    status = record.status
    row |= {"attempts": status.attempt, "status": str(status.state), "message": status.message}
    row["reason"] = None if status.reason is None else str(status.reason)
    row["device"] = row.get("device") or status.device
    row |= {"host": status.host, "job_id": status.job_id, "ended_at": status.ended_at}
    if record.problem is not None:
        (unreadable if status.state is State.unreadable else problems).append(record.problem)
    if problems or unreadable:
        row["status"] = DAMAGED if problems else UNREADABLE
        row |= {"reason": None, "message": "; ".join([*problems, *unreadable])}
    return [_typed(row | values) for values in (measured if is_known else ())] or [_typed(row)]


def skipped_row(overrides: dict[str, Any], reason: str) -> Row:
    """The row of a combination that the sweep left out."""
    return _typed({**_from_overrides(overrides), "status": INVALID, "message": reason})


def _typed(row: Row) -> Row:
    """The row with all columns of the table, in their types."""
    typed = {name: None if row.get(name) is None else TYPES[name](row[name]) for name in COLUMNS}
    return typed | {SETTING: row[SETTING]}


def _read_config(path: Path) -> dict[str, Any]:
    """What the table needs of a configuration. Sections that runs have in common are parsed once."""
    values = dict(zip(SECTIONS, read_yaml_sections(path, *SECTIONS), strict=True))
    return {} if not any(values.values()) and not read_yaml(path) else values


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
        "evaluate.fold": "fold",
        "evaluate.folds": "folds",
    }
    row: Row = {column: overrides[key] for key, column in names.items() if key in overrides}
    row[SETTING] = json.dumps(asked_values(overrides), default=str)
    for column in set(INTEGERS) & set(row):
        row[column] = _integer_or_none(row[column])
    if row.get("kind") == BASELINE:
        row |= {"strategy": BASELINE, "n_images": 0, "n_objects": None}
    return row


def _integer_or_none(value: Any) -> int | None:
    """An integer, or None for `auto` and for what made a combination invalid (n_images=many)."""
    text = str(value)
    return int(text) if text.removeprefix("-").isdigit() else None


def _from_config(config: dict[str, Any], path: Path) -> Row:
    check_name(path, config)
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
        "split_seed": _split_seed(config),
        **{name: (config.get("evaluate") or {}).get(name) for name in ("fold", "folds")},
        SETTING: json.dumps(recorded_values(config), default=str),
    }


def _split_seed(config: dict[str, Any]) -> int | None:
    """The seed that decided which images train and test; None where they are in a given order."""
    dataset = config["dataset"]
    if dataset.get("split") != SEEDED:
        return None
    fixed = dataset.get("split_seed")
    return int(config["seed"] if fixed is None else fixed)


def _strategy(config: dict[str, Any]) -> str:
    """The strategy's name; a joint step of another kind than micro-sam's is another strategy."""
    train = config.get("train") or {}
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
    row = {name: training.get(name) for name in TRAINING}
    if training.get("precision"):
        row["arithmetic"] = training["precision"]
    return row


def _from_savings(savings: dict[str, Any]) -> Row:
    return {name: savings.get(name) for name in SAVINGS}


def _from_costs(costs: dict[str, Any]) -> Row:
    return {name: _number_or_none(costs[name]) for name in COSTS}


def _from_metrics(metrics: dict[str, Any], path: Path) -> list[Row]:
    """A row for each mode, round of prompts and mask input that was measured."""
    rows = []
    for values in rows_of(metrics, path):
        row: Row = {name: _number_or_none(values[name]) for name in _ALWAYS_MEASURED}
        row |= {name: _number_or_none(values.get(name)) for name in (*QLORA_SAM_METRICS, *SECONDS)}
        for name, (low, high) in (values.get("intervals") or {}).items():
            # Older records have intervals of fewer images, too.
            if name in METRICS and int(values["n_test_images"]) >= LEAST_TEST_IMAGES:
                row |= {f"{name}_low": _number_or_none(low), f"{name}_high": _number_or_none(high)}
        measured = measurement(values)
        row |= {"mode": measured.mode, "round": measured.round, "mask_input": measured.mask_input}
        row["evaluation_hardware"] = values.get("hardware")
        rows.append(row | {"n_test_images": int(values["n_test_images"])})
    return rows


def _number_or_none(value: Any) -> float | None:
    return None if value is None else float(value)
