"""The log of a run's attempt, and what is written to it while one looks."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from refsam.records.logs import find_log
from refsam.records.paths import RunPaths

POLL_SECONDS = 0.5


def read_log(path: Path) -> str:
    """The text of a log; what is no UTF-8 in it is replaced."""
    return path.read_text(encoding="utf-8", errors="replace")


def follow(
    paths: RunPaths, attempt: int | None, is_open: Callable[[], bool], last_lines: int | None
) -> Iterator[str]:
    """The text of a log as it is written, until the run has ended; a later attempt's log comes after it.

    Args:
        attempt: only this one's; None: the last one's, and then those that begin meanwhile.
        is_open: whether the run may still write; asked twice a second.
        last_lines: of what is there already, only so many lines; None: all.
    """
    current: Path | None = None
    at = 0
    while True:
        goes_on = is_open()  # asked before the last look, so that the last lines are not missed
        found = find_log(paths, attempt)
        if found is not None and found[1] != current:
            if current is None:
                at = _start(found[1], last_lines)
            else:
                yield f"{_new_text(current, at)[0]}--- attempt {found[0]}\n"
                at = 0
            current = found[1]
        if current is not None:
            text, at = _new_text(current, at)
            if text:
                yield text
        if not goes_on:
            return
        time.sleep(POLL_SECONDS)


def last(text: str, lines: int | None) -> str:
    """The last lines of a text; None: all of it."""
    return text if lines is None else "".join(text.splitlines(keepends=True)[-lines:] if lines else [])


def _start(path: Path, last_lines: int | None) -> int:
    data = path.read_bytes()
    if last_lines is None:
        return 0
    kept = data.splitlines(keepends=True)[-last_lines:] if last_lines else []
    return len(data) - sum(map(len, kept))


def _new_text(path: Path, at: int) -> tuple[str, int]:
    """What was written since position `at`, and the new position. A log that was begun anew is read anew."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(at if at <= size else 0)
        data = file.read()
        return data.decode("utf-8", errors="replace"), file.tell()
