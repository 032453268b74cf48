"""Tables on a terminal: the columns that fit, and in one line those that do not. No number is ever cut."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from refsam.errors import ConfigError, nearest
from refsam.system.terminal import GAP, UNLIMITED, fitting, left_out_words, table_width

NARROWEST_WORD = 8  # characters of a column of words that is broken into several lines


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: what --columns calls it.
        title: its heading, in one line or several.
        cells: one for each row.
        words: whether its cells may be broken into lines; numbers may not.
        left: whether they are aligned to the left, as words always are.
    """

    name: str
    title: str
    cells: Sequence[str]
    words: bool = False
    left: bool = False

    @property
    def width(self) -> int:
        return max(map(len, (*self.title.split("\n"), *self.cells)))


@dataclass(frozen=True)
class Shown:
    """Which columns a person asks for: by their names, or all however wide; by default those that fit.

    Attributes:
        option: how the columns that do not fit can be asked for.
    """

    names: tuple[str, ...] | None = None
    wide: bool = False
    option: str = "--wide shows all"


def print_columns(
    columns: Sequence[Column],
    dispensable: Sequence[str],
    console: Console,
    shown: Shown,
    sections: Collection[int] = (),
) -> None:
    """Print a table, and below it which columns were left out.

    Args:
        dispensable: the columns that a narrow terminal goes without, the first one first; names that are
            none are ignored. The others tell the rows apart or are what the table is about; they stay.
        sections: the numbers of the rows before which a line is empty.

    Raises:
        ConfigError: where a name that was asked for is none of the columns.
    """
    chosen = _chosen(columns, dispensable, shown)
    widths = {column.name: column.width for column in chosen}
    fixed = shown.wide or shown.names is not None
    names = list(widths) if fixed else fitting(widths, dispensable, console.width)
    kept = [column for column in chosen if column.name in names]
    least = [min(column.width, NARROWEST_WORD) if column.words else column.width for column in kept]
    terminal = console.width
    if shown.wide or table_width(least) > terminal:
        console.width = UNLIMITED  # the terminal breaks the lines: nothing is cut
    try:
        console.print(_table(kept, sections))
    finally:
        console.width = terminal
    if not fixed and len(kept) < len(columns):
        left_out = [column.name for column in columns if column not in kept]
        console.print(Text(left_out_words(left_out, shown.option)))


def _chosen(columns: Sequence[Column], dispensable: Sequence[str], shown: Shown) -> list[Column]:
    """What was asked for by name, beside the columns that tell the rows apart."""
    if shown.names is None:
        return list(columns)
    known = [column.name for column in columns]
    for name in shown.names:
        if name not in known:
            raise ConfigError(
                f"--columns: {name!r} is not a column of this table{nearest(name, known)}; there are "
                f"{', '.join(known)}"
            )
    return [column for column in columns if column.name in shown.names or column.name not in dispensable]


def _table(columns: Sequence[Column], sections: Collection[int]) -> Table:
    padding = (0, GAP - 1, 0, 0)  # beside the one character that the box has between columns
    table = Table(header_style="bold", box=SIMPLE_HEAD, show_edge=False, padding=padding, pad_edge=False)
    for column in columns:
        table.add_column(
            column.title,
            justify="left" if column.words or column.left else "right",
            no_wrap=not column.words,
            overflow="fold",
            min_width=None if column.words else column.width,
        )
    for number, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        if number in sections:
            table.add_section()
        # Text, so that square brackets are not taken for rich's markup
        table.add_row(*map(Text, cells))
    return table


def are_words(cells: Sequence[str]) -> bool:
    """Whether cells hold anything but numbers and nothing."""
    try:
        return any(math.isnan(float(cell)) for cell in cells if cell)
    except ValueError:
        return True
