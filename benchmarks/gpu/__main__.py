"""What only a GPU can tell, measured on one: `python -m benchmarks.gpu`.

Random weights of the right shapes and drawn images: nothing is fetched. Each row is measured in a process
that may hang or be killed; what fails is a row with its error, and the rest goes on. Rows that say most come
first, and a row for which no time is left says so. Written are NAME.json and NAME.md, both complete after
every row, and NAME.log with the tracebacks. Without a GPU that PyTorch can use the exit status is 2.
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.gpu.page import NO_TIME, Page, Result, cell
from benchmarks.gpu.rows import FULL, SMALL, rows
from benchmarks.gpu.worker import NoGpu, Worker, worker_command
from benchmarks.rows import RESULTS

LEAST_SECONDS = 2.0  # with less no row is begun


def say(result: Result, seconds: float) -> None:
    print(f"{seconds:4.0f} s  {result.row}: {result.sentence or result.outcome}", flush=True)
    for line in result.lines:
        words = (f"{name} {cell(value)}" for name, value in line.items() if cell(value))
        print(f"          {', '.join(words)}", flush=True)


def measure(arguments: argparse.Namespace) -> Page:
    """All rows that are asked for and for which there is time.

    Raises:
        NoGpu: before anything is written but the log.
    """
    started = time.monotonic()
    scale = SMALL if arguments.small else FULL
    asked_for = [row for row in rows(scale) if arguments.rows is None or row.kind in arguments.rows]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    log = arguments.folder / f"{arguments.name}.log"
    with Worker(worker_command(arguments.small), scale.patience, log) as worker:
        page = Page(arguments.folder, arguments.name, asked_for)
        for row in asked_for:
            left = 60 * arguments.minutes - (time.monotonic() - started)
            result = Result(row.name, NO_TIME)
            if left > LEAST_SECONDS:
                result = worker.measure(row, left)
            page.add(result)
            say(result, time.monotonic() - started)
    return page


def main() -> None:
    kinds = list(dict.fromkeys(row.kind for row in rows(FULL)))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--rows", nargs="+", choices=kinds, metavar="KIND", help=f"only these: {', '.join(kinds)}"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="after which no row is begun or waited for"
    )
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the command")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the two files")
    parser.add_argument("--name", default="gpu", help="of the two files")
    arguments = parser.parse_args()
    try:
        page = measure(arguments)
    except NoGpu as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"written: {page.json} and {page.markdown}")


if __name__ == "__main__":
    main()
