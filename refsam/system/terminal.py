"""Standard output and standard error as they are found: a terminal of some width, a pipe, an old encoding."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console  # importing rich takes a tenth of a second

UNLIMITED = 10_000  # columns of a pipe or a file, which has no width that numbers could be cut for
NARROWEST, USUAL = 20, 80  # columns; terminals that tell of none at all have the usual number
GAP = 2  # spaces between the columns of a table


# What commands a terminal: CSI; OSC and other strings; two characters. C1 is another form of the first two.
ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)


def plain(text: str, kept: str = "\n\t") -> str:
    """Text of a record or a log as a terminal may have it: without what would command the terminal.

    Sequences go; other characters that cannot be seen, such as those that turn the direction of writing, are
    spaces.
    """
    without = ESCAPES.sub("", text)
    return "".join(each if each.isprintable() or each in kept else " " for each in without)


class _Plain:
    """A stream of a terminal that gets plain text only; consoles of rich write past it."""

    def __init__(self, stream: TextIO, kept: str) -> None:
        self.stream = stream
        self._kept = kept

    def write(self, text: str) -> int:
        self.stream.write(plain(text.replace("\r\n", "\n"), self._kept))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """What is printed meanwhile is plain where it goes to a terminal, and verbatim elsewhere."""
    before = sys.stdout, sys.stderr
    if sys.stdout is not None and sys.stdout.isatty():
        sys.stdout = cast(TextIO, _Plain(sys.stdout, "\n\t"))
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr = cast(TextIO, _Plain(sys.stderr, "\n\t\r"))  # bars of progress begin their line anew
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def standard_console(*, stderr: bool = False, highlight: bool = True) -> "Console":
    """A console as wide as the terminal, and one that cuts nothing where that is a pipe or a file.

    What it is told to print is plain; only its own styles are sequences of the terminal.
    """
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(plain(text), **options)

    stream = sys.stderr if stderr else sys.stdout
    file = stream.stream if isinstance(stream, _Plain) else None
    console = PlainConsole(file=file, stderr=stderr, highlight=highlight)
    if not console.is_terminal:
        console.width = UNLIMITED
    elif console.width < NARROWEST:
        console.width = USUAL
    return console


@contextlib.contextmanager
def any_encoding() -> Iterator[None]:
    """What the encoding of standard output and standard error lacks is printed as `?` meanwhile."""
    found = [
        (stream, stream.errors) for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)
    ]
    for stream, _ in found:
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in found:
            stream.reconfigure(errors=errors)


def table_width(widths: Iterable[int], gap: int = GAP) -> int:
    """Characters that columns of these widths take side by side."""
    known = list(widths)
    return sum(known) + gap * max(0, len(known) - 1)


def fitting(widths: Mapping[str, int], dispensable: Iterable[str], room: int, gap: int = GAP) -> list[str]:
    """Which columns of a table are shown in `room` characters, in their order.

    Args:
        dispensable: those that are left out, the first one first, until the others fit. The rest stay, even
            where they are wider than the room.
        gap: characters between two columns.
    """
    kept = dict(widths)
    for name in dispensable:
        if table_width(kept.values(), gap) <= room:
            break
        kept.pop(name, None)
    return list(kept)


def left_out_words(names: Iterable[str], option: str) -> str:
    """The sentence about the columns for which there is no room."""
    return f"Not shown, because the terminal is too narrow: {', '.join(names)}; {option}."


def flush_standard_output() -> None:
    """Print what is still in the buffer, while somebody listens to the error that this may be."""
    if sys.stdout is not None:  # None where the shell has closed it
        sys.stdout.flush()


def leave_standard_output() -> None:
    """Nobody reads standard output any more, or it is full: what is still in the buffer goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
