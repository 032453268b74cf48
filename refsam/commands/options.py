"""What the commands have in common: their exit statuses, their help, the options that many of them take."""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refsam.errors import ConfigError
from refsam.records.paths import default_runs

if TYPE_CHECKING:
    from refsam.configuration.schema import RefsamConfig
    from refsam.records.paths import RunsFolder
    from refsam.results.figures.page import Page

COMPLETED, BAD_INPUT, SLURM_UNAVAILABLE, INTERRUPTED = 0, 2, 3, 130
DAMAGED_RECORDS = FAILED = 1
COMPLETING = "_ARGCOMPLETE"  # in the environment where a shell asks how a command line may go on
EXIT_STATUSES = (
    "Exit status: 0 done; 1 records are damaged, or a run or a submission failed; 2 bad input; 3 Slurm does "
    "not answer and was needed; 130 stopped by Ctrl-C."
)

Commands = Any  # argparse's class of subparsers has no public name
Command = Callable[[argparse.Namespace], int]


def add_command(
    commands: Commands, name: str, run: Command, summary: str, description: str = "", example: str = ""
) -> argparse.ArgumentParser:
    """A command with the option --runs, and a help that says what it does and shows an example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"Example:\n  {example}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--runs",
        default=default_runs(),
        metavar="FOLDER",
        help="folder of the run directories (what REFSAM_RUNS names, else runs)",
    )
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def add_wide(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wide", action="store_true", help="show all columns, also where the terminal is narrower"
    )


def add_page(parser: argparse.ArgumentParser) -> None:
    """The options that `page_of` reads."""
    parser.add_argument(
        "--width", type=int, choices=(1, 2), default=2, help="columns of a page that a figure takes (2)"
    )
    parser.add_argument(
        "--style", type=Path, metavar="FILE", help="a matplotlib style file on top of refsam's"
    )


def page_of(options: argparse.Namespace) -> "Page":
    """The page that figures are for. Raises ConfigError where the style is not a file."""
    if options.style is not None and not options.style.is_file():
        raise ConfigError(f"--style {str(options.style)!r} is not a file")
    from refsam.results.figures.page import Page

    return Page(columns=options.width, style=options.style)


def open_folder(options: argparse.Namespace) -> "RunsFolder":
    """The folder of --runs. Raises ConfigError where there is none."""
    from refsam.results.sweeps import runs_folder

    return runs_folder(options.runs)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def say(*sentences: str) -> None:
    """Tell on standard error what is beside the answer."""
    for sentence in sentences:
        print(f"refsam: {sentence}", file=sys.stderr)


def positive(option: str) -> Callable[[str], float]:
    """What reads a number above 0 from an option's text. Raises ConfigError for anything else."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise ConfigError(f"{option} must be a number > 0, got {text!r}")
        return number

    return read


def whole(option: str) -> Callable[[str], int]:
    """What reads an integer from 1 from an option's text. Raises ConfigError for anything else."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < 1:
            raise ConfigError(f"{option} must be an integer >= 1, got {text!r}")
        return int(text)

    return read


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The options that `configurations` reads: one command line for all commands that take overrides."""
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for a sweep, such as model=vit_b,vit_b_lm"
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="as for a sweep; changes nothing, commas are enough"
    )
    parser.add_argument("--config-name", metavar="NAME", help="a named sweep")
    parser.add_argument("--config-dir", metavar="FOLDER", help="where your own choices are")


def configurations(options: argparse.Namespace) -> list["RefsamConfig"]:
    """The configurations of all runs that were asked for. Raises ConfigError for what cannot be composed."""
    from refsam.configuration.compose import compose_sweep
    from refsam.configuration.composition_errors import explained

    with explained():
        return list(compose_sweep(options.overrides, options.config_name, options.config_dir))
