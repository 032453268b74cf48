"""Everything that is known about one run, for a person and for a program. Reads, and writes nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from refsam.orchestration.display import plain_text
from refsam.orchestration.operating.sweep_state import RunState
from refsam.orchestration.operating.sweep_view import run_json, state_words
from refsam.records.files import read_json, read_yaml
from refsam.records.logs import attempt_numbers, find_log
from refsam.records.paths import RunPaths
from refsam.terminal import standard_console

# Of the status, in this order; the state itself comes first of all.
_FACTS = ("message", "attempt", "job_id", "host", "device", "phase", "epoch", "epochs", "best_epoch")
_MORE_FACTS = ("best_metric", "loss", "elapsed_seconds", "seconds_left")
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
        "attempts": [_attempt(paths, number, read) for number in attempt_numbers(paths)],
        "metrics": read(read_json, paths.metrics),
        "training": read(read_json, paths.training),
        "costs": read(read_json, paths.costs),
        "environment": read(read_json, paths.environment),
        "configuration": read(read_yaml, paths.config),
    }
    return Details(values, state_words(run), tuple(dict.fromkeys(problems)))


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
            line(f"  {name}: {values['status'][name]}")
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
            for text in _yaml(content).splitlines():
                line(f"  {text}")


def _attempt(paths: RunPaths, number: int, read: Callable[[Callable[[Path], Any], Path], Any]) -> Any:
    log = find_log(paths, number)
    values: dict[str, Any] = {"attempt": number, "log": None if log is None else str(log[1])}
    for path in sorted(paths.attempt(number).glob("*.json")):
        recorded = read(read_json, path)
        values |= {path.stem: recorded} if not isinstance(recorded, dict) else recorded
    return values


def _yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10_000)
