"""`refsam report`: everything about sweeps in one HTML file, to send to somebody."""

import argparse
import math

from refsam.commands.options import Commands, add_command, add_json, print_json
from refsam.commands.selection import add_selection, name_problems, selected
from refsam.errors import ConfigError


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "report",
        _report,
        "everything about sweeps in one HTML file: tables, figures, failures, cost",
        "Write report.html into the sweep's folder (runs/joined/ for several): what was run and how, states\n"
        "and failures with the ends of their logs, tables to sort and filter, figures, segmentations, cost\n"
        "and the command that does it again. One file that needs no network.\n\n"
        "Fields of --json: report, results_csv, bytes, rows, states (how many runs are in which), damaged\n"
        "and conflicts (sentences).",
        "refsam report study --pue 1.3",
    )
    add_selection(parser)
    parser.add_argument(
        "--pue",
        type=float,
        metavar="FACTOR",
        help="power usage effectiveness of your data centre, for the estimate of energy (1.67)",
    )
    parser.add_argument(
        "--gpu-watts",
        type=float,
        metavar="W",
        help="power of your GPU, instead of the figure of its data sheet",
    )
    parser.add_argument(
        "--paths", action="store_true", help="name the folders of this machine, which are left out otherwise"
    )
    add_json(parser)


def _report(options: argparse.Namespace) -> int:
    for name, value, least in (("--pue", options.pue, 1.0), ("--gpu-watts", options.gpu_watts, 0.0)):
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"{name} must be a number from {least:g}, got {value:g}")
    chosen = selected(options)
    from refsam.results.collect import damaged, write_results
    from refsam.results.report.cost import read_power
    from refsam.results.report.overview import states
    from refsam.results.report.write import Asked, write_report

    results = write_results(chosen.output, chosen.frame, chosen.is_joined)[0]
    power = read_power(options.pue, options.gpu_watts)
    path = write_report(
        Asked(
            chosen.frame,
            chosen.directories,
            chosen.sweeps,
            chosen.output,
            chosen.problems,
            power,
            paths=options.paths,
        )
    )
    size = path.stat().st_size
    if options.json:
        print_json(
            {
                "report": str(path),
                "results_csv": str(results),
                "bytes": size,
                "rows": len(chosen.frame),
                "states": {each.state: each.runs for each in states(chosen.frame)},
                "damaged": damaged(chosen.frame),
                "conflicts": chosen.problems,
            }
        )
    else:
        print(f"{path} ({size / 1e6:.1f} MB)")
        if not (chosen.frame["status"] == "completed").any():
            print(f"No run of sweep {', '.join(chosen.names)} is completed yet; the report says so.")
    return name_problems(chosen)
