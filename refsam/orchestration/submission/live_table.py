"""The runs of a sweep while they are executed: a live table on a terminal, plain lines elsewhere.

Shows what it is given; reads no files and starts nothing.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from refsam.records.status import State, Status
from refsam.system.terminal import fitting, plain, standard_console, table_width

PROGRESS_SECONDS = 30  # between two plain lines about a run that goes on
LINES_AROUND_TABLE = 8  # header, rules, two lines below and the prompt
PROGRESS = ("epoch", "loss", "best (epoch)", "elapsed", "left")
# What a narrow terminal goes without, in this order.
DISPENSABLE = ("elapsed", "best (epoch)", "loss", "left", "epoch")
LABEL = 18  # characters of a label's line at least: before it is broken into shorter ones, a column goes
BORDER, CELL_BORDER = 1, 3  # characters of rich's lines: of a table, and of each of its columns


class Location(StrEnum):
    """Where a run of this sweep is, as the process that shows it knows."""

    waiting = "waiting"  # for its turn here
    here = "here"  # in a process that this queue started
    elsewhere = "elsewhere"  # another process has it
    ended = "ended"  # nothing more will happen to it here


BEST = "best validation metric so far, lower is better"  # of micro-sam's training
STYLES = {
    "planned": "dim",
    "pending": "dim",
    "starting": "cyan",
    "completed": "green",
    "failed": "red",
    "running elsewhere": "magenta",
}


@dataclass(frozen=True)
class Row:
    """One run: a short readable label, where it is, its last known status, and its log where it has one."""

    label: str
    place: Location
    status: Status
    log: Path | None = None


@dataclass(frozen=True)
class Overall:
    """Counts of runs, and seconds since the start and to go (None: nothing to judge it by)."""

    done: int
    running: int
    failed: int
    waiting: int
    pending: int  # of those that wait, in Slurm's queue
    elsewhere: int
    elapsed: float
    left: float | None


class LiveTable:
    """A table that is redrawn in place, for terminals."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._rows: Sequence[Row] = ()
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._live.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._live.stop()
        _print_failures(self._console, self._rows)

    def show(self, rows: Sequence[Row], parallel: int) -> None:
        """Take the present state of all runs, `parallel` of which are executed at a time."""
        self._rows = rows
        elapsed = time.monotonic() - self._started
        room = max(1, self._console.size.height - LINES_AROUND_TABLE)
        sums = overall(rows, elapsed, parallel, _utc_now())
        self._live.update(table(rows, sums, _utc_now(), room, self._console.width))

    def say(self, sentence: str) -> None:
        """A sentence for the person, beside the runs."""
        self._console.print(plain_text(sentence))


class PlainLines:
    """One line for each change of a run's state, and one per half minute for a run that goes on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: Sequence[Row] = ()
        self._started = time.monotonic()
        self._shown: dict[int, tuple[str, float]] = {}

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        return self

    def __exit__(self, *failure: object) -> None:
        elapsed = time.monotonic() - self._started
        self.say(overall_line(overall(self._rows, elapsed, 1, _utc_now())))
        _print_failures(self._console, self._rows)

    def show(self, rows: Sequence[Row], parallel: int) -> None:
        self._rows = rows
        now = time.monotonic()
        for index, row in enumerate(rows):
            state = _state_and_reason(row)
            before, at = self._shown.get(index, (_not_begun(row), now))
            progressed = row.place is Location.here and now - at >= PROGRESS_SECONDS
            if state != before or progressed:
                self._shown[index] = (state, now)
                self.say(plain_line(row, _utc_now()))

    def say(self, sentence: str) -> None:
        # No wrapping: a line of a log file is as long as it is.
        self._console.print(plain_text(sentence), soft_wrap=True)


# What a queue shows its runs on: entered before the first run, left after the last.
Display = LiveTable | PlainLines


def make_display(console: Console | None = None) -> Display:
    """The live table where the output is a terminal, else plain lines. Default: standard output."""
    console = standard_console() if console is None else console
    return LiveTable(console) if console.is_terminal and not console.is_dumb_terminal else PlainLines(console)


def shown_state(row: Row) -> str:
    """The word for a row's state, that `refsam status` has: `planned`, `pending`, `starting`, `running`, …"""
    if row.place is Location.waiting:
        return State.pending.value if row.status.state is State.pending else State.planned.value
    if row.place is Location.elsewhere:
        return "running elsewhere"
    if row.place is Location.here and row.status.state in (State.planned, State.pending):
        return "starting"
    return row.status.state.value


def overall(rows: Sequence[Row], elapsed: float, parallel: int, now: datetime) -> Overall:
    """Count the runs, and estimate what is left from those that have ended or tell their remaining time.

    Args:
        elapsed: seconds since the queue began.
        parallel: runs at a time.
        now: the present time, with its time zone.
    """
    done = sum(row.place is Location.ended and row.status.state is State.completed for row in rows)
    failed = sum(row.place is Location.ended and row.status.state is State.failed for row in rows)
    waiting = sum(row.place is Location.waiting for row in rows)
    elsewhere = sum(row.place is Location.elsewhere for row in rows)
    running = [row for row in rows if row.place is Location.here]
    return Overall(
        done=done,
        running=len(running),
        failed=failed,
        waiting=waiting,
        pending=sum(row.place is Location.waiting and row.status.state is State.pending for row in rows),
        elsewhere=elsewhere,
        elapsed=elapsed,
        left=_expected_left(rows, running, waiting, parallel, now),
    )


def _expected_left(
    rows: Sequence[Row], running: Sequence[Row], waiting: int, parallel: int, now: datetime
) -> float | None:
    if not running and not waiting:
        return 0.0
    lengths = [
        length
        for row in rows
        if row.place is Location.ended and row.status.state is State.completed
        if (length := _seconds_between(row.status.started_at, row.status.ended_at)) is not None
    ]
    left = []
    for row in running:
        spent = _seconds_since(row.status.started_at, now)
        if row.status.seconds_left is not None and spent is not None:
            # The record is older than now by what has passed since its last epoch.
            aged = _seconds_since(row.status.updated_at, now) or 0.0
            left.append(max(0.0, row.status.seconds_left - aged))
            lengths.append(spent + left[-1])
    if not lengths:
        return None
    typical = sum(lengths) / len(lengths)
    unknown = len(running) - len(left)
    return max([sum(left) + (waiting + unknown) * typical, *(each * parallel for each in left)]) / parallel


def table(rows: Sequence[Row], sums: Overall, now: datetime, room: int, width: int) -> Table:
    """The rich table of the runs, in `room` lines: of more those that are running, then waiting or failed.

    Where `width` characters are too narrow, it goes without what is least needed.
    """
    progress = [dict(zip(PROGRESS, _progress(row, now), strict=True)) for row in rows]
    titles, lines = _fitting(rows, progress, width)
    caption = overall_line(sums) + (f"\n{PROGRESS[2]}: {BEST}" if PROGRESS[2] in titles else "")
    grid = Table(expand=False, caption=Text(caption), caption_justify="left")
    grid.add_column("run", overflow="fold")
    grid.add_column("state", overflow="fold")
    for title in titles:
        grid.add_column(title, justify="right", no_wrap=True)
    shown: Sequence[int] = range(len(rows))
    if lines * len(rows) > room:
        order = {Location.here: 0, Location.waiting: 2, Location.elsewhere: 3, Location.ended: 4}
        urgency = [1 if row.status.state is State.failed else order[row.place] for row in rows]
        by_urgency = sorted(shown, key=lambda index: (urgency[index], index))
        shown = sorted(by_urgency[: max(1, (room - 1) // lines)])
    for index in shown:
        row = rows[index]
        texts = [row.label, _state_and_reason(row), *(progress[index][title] for title in titles)]
        grid.add_row(*map(plain_text, texts), style=STYLES.get(shown_state(row), ""))
    if len(shown) < len(rows):
        grid.add_row(Text(f"and {len(rows) - len(shown)} more"), style="dim")
    return grid


def _fitting(rows: Sequence[Row], progress: Sequence[Mapping[str, str]], width: int) -> tuple[list[str], int]:
    """Which of PROGRESS have room beside label and state, and how many lines a label is then broken into."""
    sizes = {title: max(map(len, (title, *(cells[title] for cells in progress)))) for title in PROGRESS}
    label = max((len(row.label) for row in rows), default=1)
    state = max(map(len, " ".join(["state", *map(_state_and_reason, rows)]).split()))

    columns = {"label": min(LABEL, label), "state": state, **sizes}
    titles = fitting(columns, DISPENSABLE, width - BORDER - CELL_BORDER, CELL_BORDER)[2:]
    others = table_width([state, *(sizes[title] for title in titles), 0], CELL_BORDER)
    return titles, math.ceil(label / max(1, width - BORDER - CELL_BORDER - others))


def overall_line(sums: Overall) -> str:
    """`3 completed, 2 running, 0 failed, 4 planned; elapsed 1:02:03, left about 0:40:00`."""
    counts = f"{sums.done} completed, {sums.running} running, {sums.failed} failed"
    waiting = {State.planned: sums.waiting - sums.pending, State.pending: sums.pending}
    counts += "".join(f", {number} {state}" for state, number in waiting.items() if number)
    if sums.elsewhere:
        counts += f", {sums.elsewhere} running elsewhere"
    times = f"elapsed {duration(sums.elapsed)}"
    if sums.left is not None and (sums.running or sums.waiting):
        times += f", left about {duration(sums.left)}"
    return f"{counts}; {times}"


def _not_begun(row: Row) -> str:
    """The state that a row has had before anything was shown of it."""
    return shown_state(replace(row, place=Location.waiting))


def plain_line(row: Row, now: datetime) -> str:
    """One line of text about a run: `label: running (training), epoch 3/100, loss 0.1234, …`."""
    names = ("epoch", "loss", "best validation metric (lower is better)", "elapsed", "left")
    facts = [f"{name} {value}" for name, value in zip(names, _progress(row, now), strict=True) if value]
    return ", ".join([f"{row.label}: {_state_and_reason(row)}", *facts])


def failure_line(row: Row) -> str:
    """Why a run failed, in one line: reason, sentence, log."""
    reason = row.status.reason.value if row.status.reason else "error"
    parts = [f"{row.label}: failed ({reason})", row.status.message or "no message was recorded"]
    # Sentences of this package name the log already.
    if row.log is not None and str(row.log) not in parts[1]:
        parts.append(f"log: {row.log}")
    return "; ".join(" ".join(part.split()) for part in parts)


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: `0:01:05`."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def epoch_text(status: Status) -> str:
    """`3/100`: epochs finished, of at most so many; empty before the first one."""
    return "" if status.epoch is None else f"{status.epoch}/{status.epochs or '?'}"


def best_text(status: Status) -> str:
    """`0.1234 (2)`: the best validation metric so far, and its epoch; empty where there is none."""
    if status.best_metric is None:
        return ""
    return f"{status.best_metric:.4f}" + ("" if status.best_epoch is None else f" ({status.best_epoch})")


def plain_text(text: str) -> Text:
    """Text as it stands: a record holds no markup, no names of emoji and no escape codes of a terminal."""
    return Text(plain(text, kept=""))


def _print_failures(console: Console, rows: Sequence[Row]) -> None:
    for row in rows:
        if row.place is Location.ended and row.status.state is State.failed:
            console.print(plain_text(failure_line(row)), style="red", soft_wrap=True)


def _state_and_reason(row: Row) -> str:
    state = shown_state(row)
    if state == State.failed and row.status.reason:
        return f"{state} ({row.status.reason.value})"
    return f"{state} ({row.status.phase})" if state == State.running and row.status.phase else state


def _progress(row: Row, now: datetime) -> tuple[str, str, str, str, str]:
    """Epoch, loss, best metric, elapsed and left, each empty where nothing is known."""
    status = row.status
    if row.place is Location.waiting or status.state in (State.planned, State.pending):
        return ("", "", "", "", "")
    loss = "" if status.loss is None else f"{status.loss:.4f}"
    spent = _seconds_between(status.started_at, status.ended_at)
    if spent is None and status.state is State.running:
        spent = _seconds_since(status.started_at, now)
    running = status.state is State.running and status.seconds_left is not None
    left = duration(status.seconds_left) if running and status.seconds_left is not None else ""
    return (epoch_text(status), loss, best_text(status), "" if spent is None else duration(spent), left)


def _seconds_since(start: str | None, now: datetime) -> float | None:
    return None if start is None else (now - datetime.fromisoformat(start)).total_seconds()


def _seconds_between(start: str | None, end: str | None) -> float | None:
    return None if end is None else _seconds_since(start, datetime.fromisoformat(end))


def _utc_now() -> datetime:
    return datetime.now(UTC)
