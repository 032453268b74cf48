"""`refsam cite`: what to cite for the runs of sweeps, as BibTeX."""

import argparse
from pathlib import Path

from refsam.commands.options import Commands, add_command
from refsam.commands.selection import add_selection, add_where, assignments, name_problems, selected
from refsam.errors import ConfigError


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "cite",
        _cite,
        "what to cite for the runs of sweeps, as BibTeX",
        "Print BibTeX entries for what the runs of sweeps use: Segment Anything, micro-sam, the models, the\n"
        "finetuning strategies, the data sets and the libraries. What has no known source, such as your own\n"
        "images, is a comment.",
        "refsam cite study --output study.bib",
    )
    add_selection(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write them to a file instead")
    add_where(parser)


def _cite(options: argparse.Namespace) -> int:
    if options.output is not None:
        if not options.output.absolute().parent.is_dir():
            raise ConfigError(f"--output {str(options.output)!r}: {options.output.parent} is not a folder")
        if options.output.is_dir():
            raise ConfigError(f"--output {str(options.output)!r} is a folder; give the name of a file")
    chosen = selected(options)
    from refsam.results.citations.cite import citations
    from refsam.results.tables.wide import choose
    from refsam.system.files import write_text

    frame = choose(chosen.frame, assignments(options.where))
    found = citations(frame, chosen.directories)
    if options.output is None:
        print(found.text, end="")
    else:
        write_text(options.output, found.text)
        print(f"{len(found.entries)} entries in {options.output}")
        for sentence in found.unknown:
            print(sentence)
    return name_problems(chosen)
