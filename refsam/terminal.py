"""Standard output and standard error as they are found: a terminal of some width, a pipe, an old encoding."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console  # importing rich takes a tenth of a second

UNLIMITED = 10_000  # columns of a pipe or a file, which has no width that numbers could be cut for
NARROWEST, USUAL = 20, 80  # columns; terminals that tell of none at all have the usual number


def standard_console(*, stderr: bool = False, highlight: bool = True) -> "Console":
    """A console as wide as the terminal, and one that cuts nothing where that is a pipe or a file."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=highlight)
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


def flush_standard_output() -> None:
    """Print what is still in the buffer, while somebody listens to the error that this may be."""
    if sys.stdout is not None:  # None where the shell has closed it
        sys.stdout.flush()


def leave_standard_output() -> None:
    """Nobody reads standard output any more, or it is full: what is still in the buffer goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
