"""The state of a sweep as a person reads it, and as a program does. Shows what it is given."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from omegaconf import MISSING

from refsam.configuration.schema import RequestConfig
from refsam.orchestration.operating.sweep_state import RunState, SweepState, count, longest_left
from refsam.orchestration.slurm.requests import request_text
from refsam.orchestration.submission import live_table
from refsam.orchestration.submission.live_table import duration, plain_text
from refsam.records.settings import Setting, differing, labels
from refsam.records.status import State
from refsam.system.names import counted
from refsam.system.terminal import GAP, fitting, left_out_words, table_width

MESSAGE_WIDTH = 20  # characters below which a message is rather left out
# What a narrow terminal goes without, in this order.
DISPENSABLE = ("message", "node", "job", "best", "left", "elapsed", "epoch")
OF_NUMBERS = "0123456789.:"
ALIGNED_RIGHT = ("epoch", "best", "elapsed", "left")


@dataclass(frozen=True)
class StyledLine:
    """One line of text, and its style as rich names it."""

    text: str
    style: str = ""


def lines(state: SweepState, width: int | None = None, room: int | None = None) -> list[StyledLine]:
    """The sweep as a line for each group of runs with the same request, one for each run, and the sums.

    Args:
        width: of the terminal, characters: columns that do not fit are left out, and named. None: as wide as
            it gets.
        room: lines at most: of more runs those that run, then those that failed, and no line is wider than
            the terminal. None: all of them.
    """
    cut = width if room is not None else None
    names = labels({run.run_id: run.setting for run in state.runs})
    rows = {run.run_id: _cells(run, names[run.run_id]) for run in state.runs}
    full = _widths([*rows.values()], None)
    widths = _widths([*rows.values()], width)
    if cut is not None:
        over = table_width(widths.values()) - cut
        widths["run"] = max(len("run"), widths["run"] - max(0, over))
    shown = [StyledLine(_joined({name: name for name in widths}, widths), "bold")]
    groups = state.groups()
    left_out = _left_out(state.runs, None if room is None else room - len(groups) - 3)
    for group in groups:
        shown.append(StyledLine(_cut(f"{_request(group.request)}: {_counts(group.runs)}", cut), "bold cyan"))
        for run in group.runs:
            if run.run_id in left_out:
                continue
            style = live_table.STYLES.get(str(run.status.state), "")
            shown.append(StyledLine(_cut(_joined(rows[run.run_id], widths), cut), style))
    if left_out:
        shown.append(StyledLine(_cut(f"and {len(left_out)} more", cut), "dim"))
    if "best" in widths and room is None:
        shown.append(StyledLine(f"best: {live_table.BEST} (its epoch)", "dim"))
    if len(widths) < len(full) and room is None:
        narrow = [name for name in full if name not in widths]
        shown.append(StyledLine(left_out_words(narrow, "--wide shows all"), "dim"))
    shown.append(StyledLine(_cut(totals(state), cut), "bold"))
    return shown if room is None else shown[-max(1, room) :]


def totals(state: SweepState) -> str:
    """`Sweep study: 9 runs, 4 completed, 2 running, 3 pending; left 1:02:03 at most for those that run`."""
    text = f"Sweep {state.name}: {_counts(state.runs)}"
    left = longest_left(state.runs)
    return text if left is None else f"{text}; left {duration(left)} at most for those that run"


def as_json(state: SweepState) -> dict[str, Any]:
    """What `refsam status --json` prints; its fields are documented there. Times in seconds."""
    has_jobs = any(run.status.job_id for run in state.runs)
    return {
        "sweep": state.name,
        "runs_folder": str(state.folder.root.absolute()),
        "states": dict(count(state.runs)),
        "seconds_left": longest_left(state.runs),
        "slurm": {"queue": state.slurm.queue, "accounting": state.slurm.accounting} if has_jobs else None,
        "notes": list(state.notes),
        "groups": [
            {
                "request": group.request,
                "states": dict(count(group.runs)),
                "run_ids": [run.run_id for run in group.runs],
            }
            for group in state.groups()
        ],
        "runs": [
            run_json(run, fields)
            for run, fields in zip(state.runs, differing([run.setting for run in state.runs]), strict=True)
        ],
    }


def run_json(run: RunState, fields: Setting | None = None) -> dict[str, Any]:
    """One run: the fields of its status.json, how long it took and takes, and what is wrong with it.

    Args:
        fields: of the configuration that tell it apart from the others of its sweep.
    """
    return {
        "run_id": run.run_id,
        **({} if fields is None else {"fields": fields}),
        **asdict(run.status),
        "elapsed_seconds": run.elapsed,
        "seconds_left": run.left,
        "damaged": run.damaged,
        "fault": run.fault,
    }


def state_words(run: RunState) -> str:
    """`pending`, `starting`, `running (training)`, `completed`, `failed (out_of_memory)`, …"""
    status = run.status
    if run.fault is not None:
        return str(run.fault)
    if status.state is State.pending and status.job_id is None:
        return "starting"  # a process of some machine loads what computes the run
    if status.state is State.running:
        begun = "starting" if status.started_at is None else str(State.running)
        return f"{State.running} ({status.phase})" if status.phase else begun
    return f"failed ({status.reason})" if status.reason else str(status.state)


def _left_out(runs: Sequence[RunState], room: int | None) -> set[str]:
    """The runs for which there is no room: first those that are completed, last those that run."""
    if room is None or len(runs) <= room:
        return set()
    urgency = [State.running, State.failed, State.unreadable, State.pending, State.planned, State.completed]
    ordered = sorted(runs, key=lambda run: urgency.index(run.status.state))
    return {run.run_id for run in ordered[max(0, room) :]}


def _cells(run: RunState, name: str) -> dict[str, str]:
    status = run.status
    return {
        "run": name,
        "state": state_words(run),
        "epoch": live_table.epoch_text(status),
        "best": live_table.best_text(status),
        "elapsed": "" if run.elapsed is None else duration(run.elapsed),
        "left": "" if run.left is None else duration(run.left),
        "job": status.job_id or "",
        "node": (status.host or "") if status.state is not State.pending else "",
        "message": " ".join(plain_text(run.damaged or status.message or "").plain.split()),
    }


def _widths(rows: Sequence[dict[str, str]], width: int | None) -> dict[str, int]:
    """The columns that are shown, in order, and their widths: those that say anything, while they fit."""
    names = list(rows[0]) if rows else ["run", "state"]
    widths = {name: max((len(row[name]) for row in rows), default=0) for name in names}
    widths = {name: max(size, len(name)) for name, size in widths.items() if size or name == "run"}
    if width is None:
        return widths
    message = widths.get("message", 0)
    least = {**widths, "message": min(MESSAGE_WIDTH, message)} if message else widths
    shown = {name: least[name] for name in fitting(least, DISPENSABLE, width)}
    if "message" in shown:
        shown["message"] = min(message, MESSAGE_WIDTH + width - table_width(shown.values()))
    return shown


def _joined(cells: dict[str, str], widths: dict[str, int]) -> str:
    parts = [
        _cut(cells[name], size).rjust(size) if name in ALIGNED_RIGHT else _cut(cells[name], size).ljust(size)
        for name, size in widths.items()
    ]
    return (" " * GAP).join(parts).rstrip()


def _cut(text: str, width: int | None) -> str:
    """A text in so many characters. A number at the cut goes as a whole: a part of it is another number."""
    if width is None or len(text) <= width:
        return text
    head = text[: max(0, width - 1)]
    return f"{head.rstrip(OF_NUMBERS) if text[len(head)] in OF_NUMBERS else head}…"


def _counts(runs: Sequence[RunState]) -> str:
    order = (State.completed, State.running, State.pending, State.planned, State.failed, State.unreadable)
    counts = count(runs)
    parts = [f"{counts[state]} {state}" for state in order if counts[state]]
    return ", ".join([counted(len(runs), "run"), *parts])


def _request(request: dict[str, Any] | None) -> str:
    """What a frozen configuration asks for; it may be a person's edit, or of another version of refsam."""
    known = {field.name: (request or {}).get(field.name, field.default) for field in fields(RequestConfig)}
    return "request not known" if MISSING in known.values() else request_text(RequestConfig(**known))
