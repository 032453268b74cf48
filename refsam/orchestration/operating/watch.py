"""A sweep while it goes on: redrawn in place on a terminal, a line for every change elsewhere.

It only looks: however it ends, the runs go on.
"""

import contextlib
import json
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from refsam.orchestration.operating.sweep_state import RunState, SweepState
from refsam.orchestration.operating.sweep_view import as_json, lines, state_words, totals
from refsam.orchestration.submission.live_table import plain_text
from refsam.records.status import OPEN

SECONDS = 1.0  # between two looks
LOOKING_SHARE = 10  # times as long as a look takes is waited at least: a login node has other work
QUIT = "q"
HELP = "q or Ctrl-C stops only the display"

Look = Callable[[], SweepState]


def watch(look: Look, console: Console, as_documents: bool = False) -> None:
    """Show the sweep until nothing of it waits or runs any more, or a person ends it with q or Ctrl-C.

    Args:
        as_documents: print a JSON document on a line of its own for every change instead.
    """
    with contextlib.suppress(KeyboardInterrupt):
        if as_documents:
            _watch_documents(look)
        elif console.is_terminal and not console.is_dumb_terminal:
            _watch_terminal(look, console)
        else:
            _watch_lines(look)


def _watch_terminal(look: Look, console: Console) -> None:
    with _single_keys() as key, Live(console=console, auto_refresh=False, transient=True) as live:
        for state in _states(look, key):
            live.update(_screen(state, console), refresh=True)
    for line in lines(state, console.width):
        console.print(plain_text(line.text), style=line.style, soft_wrap=True)


def _screen(state: SweepState, console: Console) -> Text:
    notes = [Text(f"{note}\n", style="yellow") for note in state.notes]
    room = max(1, console.height - len(notes) - 2)
    shown = [Text(f"{plain_text(line.text)}\n", line.style) for line in lines(state, console.width, room)]
    return Text.assemble(*shown, *notes, Text(HELP, style="dim"), overflow="ellipsis", no_wrap=True)


def _watch_lines(look: Look) -> None:
    told: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    for state in _states(look, _no_key):
        for run in state.runs:
            words = _words(run)
            if told.get(run.run_id) != words:
                told[run.run_id] = words
                print(f"{run.run_id}: {words}", flush=True)
        for note in state.notes:
            if note not in notes:
                print(f"refsam: {note}", file=sys.stderr)
        notes = state.notes
    print(totals(state), flush=True)


def _watch_documents(look: Look) -> None:
    told = None
    for state in _states(look, _no_key):
        words = [(run.run_id, _words(run), run.status.epoch) for run in state.runs]
        if words != told:
            told = words
            print(json.dumps(as_json(state), ensure_ascii=False), flush=True)


def _states(look: Look, key: Callable[[float], str]) -> Iterator[SweepState]:
    """The sweep again and again, until two looks in a row have seen nothing open, or the key is q.

    Between two runs of a queue on this machine there is a moment when none is open.
    """
    idle = 0
    while idle < 2:
        began = time.monotonic()
        state = look()
        took = time.monotonic() - began
        idle = 0 if any(run.status.state in OPEN for run in state.runs) else idle + 1
        yield state
        if idle < 2 and key(max(SECONDS, LOOKING_SHARE * took)) == QUIT:
            return


def _words(run: RunState) -> str:
    message = run.damaged or (run.status.message if run.status.reason else None)
    return f"{state_words(run)}: {message}" if message else state_words(run)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""


@contextlib.contextmanager
def _single_keys() -> Iterator[Callable[[float], str]]:
    """A function that waits for a key so many seconds; the terminal gives keys without Enter meanwhile."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    before = termios.tcgetattr(sys.stdin)

    def key(seconds: float) -> str:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return sys.stdin.read(1) if ready else ""

    try:
        tty.setcbreak(sys.stdin)
        yield key
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
