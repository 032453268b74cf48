"""Everything that is known about one run, for a person and for a program. Reads, and writes nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from refsam.errors import os_problem
from refsam.orchestration.operating.sweep_state import RunState
from refsam.orchestration.operating.sweep_view import run_json, state_words
from refsam.orchestration.submission.live_table import BEST, duration, plain_text
from refsam.records.logs import attempt_numbers, find_log
from refsam.records.metrics import Measurement, measurement, rows_of
from refsam.records.paths import RunPaths
from refsam.records.status import State
from refsam.records.training import read_training
from refsam.system.files import read_json, read_yaml
from refsam.system.terminal import standard_console

# Of the status, in this order; the state itself comes first of all.
_FACTS = ("message", "attempt", "job_id", "host", "device", "phase", "epoch", "epochs", "best_epoch")
_MORE_FACTS = ("best_metric", "loss", "elapsed_seconds", "seconds_left")
SUMMARIZED = ("SA50", "mSA", "mIoU")  # metrics in the summary
_TIMES = ("submitted_at", "started_at", "updated_at", "ended_at")


@dataclass(frozen=True)
class Details:
    """The record of a run as `refsam show --json` prints it, and sentences on what could not be read."""

    values: dict[str, Any]
    state: str
    problems: tuple[str, ...]


def details(paths: RunPaths, run: RunState) -> Details:
    """Read every part of a run's record."""
    problems: list[str] = []

    def read(reader: Callable[[Path], Any], path: Path) -> Any:
        try:
            return reader(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            problems.append(str(error))
            return None

    if run.damaged is not None:
        problems.append(run.damaged)
    values = {
        "run_id": paths.run_id,
        "path": str(paths.root.absolute()),
        "status": {key: value for key, value in run_json(run).items() if key != "run_id"},
        "attempts": [_attempt(paths, number, read) for number in _numbers(paths, problems)],
        "metrics": read(_metrics, paths.metrics),
        "training": read(read_training, paths.training),
        "costs": read(read_json, paths.costs),
        "environment": read(read_json, paths.environment),
        "configuration": read(read_yaml, paths.config),
    }
    return Details(values, state_words(run), tuple(dict.fromkeys(problems)))


def print_summary(found: Details, console: Console | None = None) -> None:
    """Print five lines: which run, its state, its training, what was measured, where it lies."""
    console = standard_console(highlight=False) if console is None else console
    first, *others = _summary(found)
    console.print(plain_text(first), style="bold", soft_wrap=True)
    for text in others:
        console.print(plain_text(f"  {text}"), soft_wrap=True)


def _summary(found: Details) -> list[str]:
    status = found.values["status"]
    where = " ".join(filter(None, (status["host"] and f"on {status['host']}", status["device"])))
    attempts = len(found.values["attempts"])
    facts = [
        " ".join(filter(None, (found.state, where))),
        status["elapsed_seconds"] is not None and duration(status["elapsed_seconds"]),
        attempts > 1 and f"{attempts} attempts",
        status["message"],
    ]
    return [
        found.values["run_id"],
        ", ".join(fact for fact in facts if fact),
        _training_words(status, found.values["training"] or {}),
        _measured_words(found.values["metrics"]),
        f"{found.values['path']} (everything about it: --full; for programs: --json)",
    ]


def _training_words(status: dict[str, Any], training: dict[str, Any]) -> str:
    epoch = training.get("best_epoch", status["best_epoch"])
    metric = training.get("best_metric", status["best_metric"])
    if epoch is None and status["epoch"] is None:
        return "nothing trained yet" if status["state"] != State.completed else "baseline, nothing to train"
    words = [] if status["epoch"] is None else [f"epoch {status['epoch']} of {status['epochs'] or '?'}"]
    if epoch is not None:
        best = "" if metric is None else f", validation metric {metric:.4f} (lower is better)"
        words.append(f"best epoch {epoch}{best}")
    return "; ".join(words)


def _measured_words(metrics: Any) -> str:
    """`test: box SA50 0.812, mSA 0.550; point …; 12 images`: of each mode its first prompt."""
    try:
        rows = [row for row in rows_of(metrics, Path()) if measurement(row) == Measurement(row["mode"])]
        parts = [
            f"{row['mode']} " + ", ".join(f"{name} {row[name]:.3f}" for name in SUMMARIZED if name in row)
            for row in rows
        ]
        images = {f"{row['n_test_images']} images" for row in rows if "n_test_images" in row}
    except (KeyError, TypeError, ValueError):
        return "nothing measured yet"  # and why the file is of no use is among the problems
    return "; ".join(["test: " + "; ".join(parts), *sorted(images)]) if parts else "nothing measured yet"


def print_details(found: Details, console: Console | None = None) -> None:
    """Print the details as sections of `name: value` lines, the most asked for first."""
    console = standard_console(highlight=False) if console is None else console
    values = found.values

    def line(text: str, style: str = "") -> None:
        console.print(plain_text(text), style=style, soft_wrap=True)

    line(values["run_id"], "bold")
    line(f"  {values['path']}")
    line(f"  state: {found.state}")
    for name in (*_FACTS, *_MORE_FACTS, *_TIMES):
        if values["status"][name] is not None:
            which = f" ({BEST})" if name == "best_metric" else ""
            line(f"  {name}: {values['status'][name]}{which}")
    for title, content in (
        ("attempts", {entry.pop("attempt"): entry for entry in map(dict, values["attempts"])}),
        ("metrics", values["metrics"]),
        ("training", values["training"]),
        ("what its Slurm jobs have cost", values["costs"]),
        ("environment", values["environment"]),
        ("configuration", values["configuration"]),
    ):
        if content:
            line(title, "bold")
            shown = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10_000)
            for text in shown.splitlines():
                line(f"  {text}")


def _metrics(path: Path) -> Any:
    """metrics.json as it stands. Raises as `read_metrics` does."""
    values = read_json(path)
    rows_of(values, path)
    return values


def _numbers(paths: RunPaths, problems: list[str]) -> list[int]:
    try:
        return attempt_numbers(paths)
    except OSError as error:
        problems.append(os_problem(error))
        return []


def _attempt(paths: RunPaths, number: int, read: Callable[[Callable[[Path], Any], Path], Any]) -> Any:
    log = find_log(paths, number)
    values: dict[str, Any] = {"attempt": number, "log": None if log is None else str(log[1])}
    for path in sorted(paths.attempt(number).glob("*.json")):
        recorded = read(read_json, path)
        values |= {path.stem: recorded} if not isinstance(recorded, dict) else recorded
    return values
