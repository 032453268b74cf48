"""A wide table as CSV, Markdown, LaTeX (booktabs, siunitx) and Excel. Text only where text is meant."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from refsam.results.provenance import one_line, write_sidecar
from refsam.results.tables.wide import Cell, WideTable, cell_text, value_text
from refsam.system.files import write_atomically, write_text

WIDEST_CELL = 80  # characters of a column in Excel; longer texts flow over
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
}


def write_table(table: WideTable, path: Path, formats: tuple[str, ...], origin: dict[str, Any]) -> list[Path]:
    """Write `path`.csv, .md, .tex and .xlsx as asked for; replaced atomically, in this order.

    Where they come from stands in the files whose format has a place for it, and in `path`.json.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for name in formats:
        target = path.with_name(f"{path.name}.{SUFFIXES[name]}")
        if name == "excel":
            write_atomically(target, lambda file: _excel(table, file, origin))
        else:
            write_text(target, COMMENTS[name](one_line(origin)) + TEXTS[name](table))
        written.append(target)
    write_sidecar(path, origin, written)
    return written


def as_csv(table: WideTable) -> str:
    """Means and deviations as numbers of their own columns, with all digits."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    spread = [
        any((cell := row[number]) is not None and cell.deviation is not None for row in table.cells)
        for number in range(len(table.columns))
    ]
    heading = list(table.row_axes)
    for name, with_deviation in zip(table.headings, spread, strict=True):
        heading += [name, f"{name} std"] if with_deviation else [name]
    writer.writerow(heading)
    for names, cells in zip(table.rows, table.cells, strict=True):
        line: list[object] = list(names)
        for cell, with_deviation in zip(cells, spread, strict=True):
            line.append("" if cell is None else cell.mean if cell.text is None else cell.text)
            if with_deviation:
                line.append("" if cell is None or cell.deviation is None else cell.deviation)
        writer.writerow(line)
    return text.getvalue()


def as_markdown(table: WideTable) -> str:
    """For a README; the best value per row is bold."""

    lines = []
    for names, cells in zip(table.rows, table.cells, strict=True):
        texts = []
        for cell, metric in zip(cells, table.metrics, strict=True):
            text = cell_text(cell, metric)
            texts.append(f"**{text}**" if cell is not None and cell.best else text)
        lines.append((*names, *texts))
    text = markdown_table([*table.row_axes, *table.headings], lines, len(table.row_axes))
    return text + "".join(f"\n{note}\n" for note in table.notes)


def markdown_table(
    headings: Sequence[str], lines: Iterable[Sequence[str]], n_names: int | None = None
) -> str:
    """Rows of texts as Markdown has them.

    Args:
        n_names: how many of the columns are words; the others are aligned as numbers. None: all.
    """

    def row(texts: Iterable[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in texts) + " |\n"

    n_words = len(headings) if n_names is None else n_names
    rules = ["---"] * n_words + ["---:"] * (len(headings) - n_words)
    return "".join(map(row, [headings, rules, *lines]))


def as_latex(table: WideTable) -> str:
    """For a paper: \\usepackage{booktabs,siunitx}. Numbers stand below each other by their decimal points."""
    names = "l" * len(table.row_axes)
    columns = "".join(_column_format(table, number) for number in range(len(table.columns)))
    headings = [*(escape_latex(axis.replace("_", " ")) for axis in table.row_axes)]
    headings += [f"{{{escape_latex(name.replace('_', ' '))}}}" for name in table.headings]
    lines = [
        r"% \usepackage{booktabs}",
        r"% \usepackage{siunitx}",
        # What is bold keeps its place in the column.
        r"\sisetup{detect-weight=true, separate-uncertainty=true, mode=text}",
        rf"\begin{{tabular}}{{{names}{columns}}}",
        r"\toprule",
        " & ".join(headings) + r" \\",
        r"\midrule",
    ]
    for row, cells in zip(table.rows, table.cells, strict=True):
        texts = [escape_latex(name) for name in row]
        texts += [_latex_cell(cell, metric) for cell, metric in zip(cells, table.metrics, strict=True)]
        lines.append(" & ".join(texts) + r" \\")
    notes = [f"% {note}" for note in table.notes]
    return "\n".join([*notes, *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it."""
    return re.sub(r"[&%$#_{}~^\\±]", lambda found: _LATEX[found[0]], text)


def _column_format(table: WideTable, number: int) -> str:
    """siunitx's column with as many digits before and after the point as its numbers need."""
    metric = table.metrics[number]
    if any((cell := row[number]) is not None and cell.text is not None for row in table.cells):
        return "r"
    means = [value_text(cell.mean, metric) for row in table.cells if (cell := row[number]) is not None]
    deviations = [
        value_text(cell.deviation, metric)
        for row in table.cells
        if (cell := row[number]) is not None and cell.deviation is not None
    ]
    whole = max((len(text.partition(".")[0]) for text in means), default=1)
    digits = max((len(text.partition(".")[2]) for text in [*means, *deviations]), default=0)
    uncertain = (
        f"({max(len(text.replace('.', '').lstrip('0')) or 1 for text in deviations)})" if deviations else ""
    )
    return f"S[table-format={whole}.{digits}{uncertain}]"


def _latex_cell(cell: Cell | None, metric: str) -> str:
    if cell is None:
        return "{--}"
    if cell.text is not None:
        return escape_latex(cell.text)
    text = value_text(cell.mean, metric)
    if cell.deviation is not None:
        text += rf" \pm {value_text(cell.deviation, metric)}"
    return rf"\bfseries {text}" if cell.best else text


def _excel(table: WideTable, file: BinaryIO, origin: dict[str, Any]) -> None:
    from openpyxl import Workbook
    from openpyxl.styles import Alignment, Font
    from openpyxl.utils import get_column_letter

    book = Workbook()
    book.properties.creator = origin["made_by"]
    book.properties.title = table.title or None
    book.properties.description = one_line(origin)
    sheet = book.active
    sheet.title = "table"
    headings = [*table.row_axes, *table.headings]
    for number, heading in enumerate(headings, start=1):
        cell = sheet.cell(1, number, heading)
        cell.data_type = "s"  # never a formula
        cell.font = Font(bold=True)
        cell.alignment = Alignment(wrap_text=True, vertical="top")
        # Headings wrap, what is below them must fit: a number that does not is shown as ####.
        width = max(map(len, (*_texts(table, number - 1), *heading.split())), default=0)
        sheet.column_dimensions[get_column_letter(number)].width = min(width, WIDEST_CELL) + 2
    for line, (names, cells) in enumerate(zip(table.rows, table.cells, strict=True), start=2):
        for number, name in enumerate(names, start=1):
            sheet.cell(line, number, name).data_type = "s"
        for number, (value, metric) in enumerate(
            zip(cells, table.metrics, strict=True), start=len(names) + 1
        ):
            if value is None:
                continue
            target = sheet.cell(line, number, value.mean if value.text is None else value.text)
            if value.text is not None:
                target.data_type = "s"
                continue
            target.number_format = _excel_format(value, metric)
            target.font = Font(bold=value.best)
    for number, note in enumerate(table.notes, start=len(table.rows) + 3):
        sheet.cell(number, 1, note).data_type = "s"
    sheet.freeze_panes = sheet.cell(2, len(table.row_axes) + 1)
    book.save(file)


def _texts(table: WideTable, number: int) -> Iterator[str]:
    """What the cells of a column show, the names of rows first among the columns."""
    for names, cells in zip(table.rows, table.cells, strict=True):
        if number < len(names):
            yield names[number]
        else:
            column = number - len(names)
            yield cell_text(cells[column], table.metrics[column])


def _excel_format(cell: Cell, metric: str) -> str:
    digits = len(value_text(cell.mean, metric).partition(".")[2])
    number = f"0.{'0' * digits}" if digits else "0"
    return number if cell.deviation is None else f'{number}" ± {value_text(cell.deviation, metric)}"'


TEXTS: Mapping[str, Callable[[WideTable], str]] = {"csv": as_csv, "markdown": as_markdown, "latex": as_latex}
# A CSV file has no comments that every reader leaves out.
COMMENTS: Mapping[str, Callable[[str], str]] = {
    "csv": lambda line: "",
    "markdown": lambda line: f"<!-- {line.replace('-->', '')} -->\n\n",
    "latex": lambda line: f"% {line}\n",
}
SUFFIXES = {"csv": "csv", "markdown": "md", "latex": "tex", "excel": "xlsx"}
