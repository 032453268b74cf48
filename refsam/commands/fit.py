"""`refsam fit`: what of a model's training fits into the memory of a resource, measured."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from refsam.commands.options import COMPLETED, Commands, add_command, add_json, positive, print_json, whole
from refsam.errors import ConfigError
from refsam.records.paths import default_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refsam.orchestration.fit.command import Options
    from refsam.orchestration.fit.jobs import Combination
    from refsam.records.fits import Fit


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "fit",
        _fit,
        "find what fits: the most objects, the best chunk, seconds per step",
        "Measure real training steps, each in a process of its own under a limit of memory, and\n"
        "find the largest n_objects with micro-sam's step and with refsam's, the fastest chunk of\n"
        "objects that fits, seconds per step and peak memory. Values separated by commas make a\n"
        "row each. What was measured is kept: the same command goes on where it was stopped.\n"
        "With --forecast no step is taken: what it would allocate is counted, also of a GPU that\n"
        "is not here.",
        "refsam fit resource=medium_8g,medium_16g model=vit_t,vit_b peft=full n_objects=10",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for a sweep")
    parser.add_argument(
        "--limit-gb",
        type=positive("--limit-gb and --minutes"),
        metavar="GIB",
        help="memory, in place of the resource's (simulated)",
    )
    parser.add_argument(
        "--max-objects",
        type=whole("--max-objects"),
        default=45,
        metavar="N",
        help="look for no more objects (45)",
    )
    parser.add_argument(
        "--minutes",
        type=positive("--limit-gb and --minutes"),
        metavar="M",
        help="begin no step after M minutes",
    )
    parser.add_argument(
        "--engine", choices=("refsam", "micro_sam"), help="only one of the two steps; without: both"
    )
    parser.add_argument("--again", action="store_true", help="measure also what was measured before")
    parser.add_argument(
        "--forecast",
        action="store_true",
        help="take no step: count what it would allocate, for any resource, on any machine",
    )
    parser.add_argument("--slurm", action="store_true", help="as a job on the resource (cluster=slurm)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be fitted, and where")
    parser.add_argument(
        "--table", action="store_true", help="measure nothing; the table of all resources and known fits"
    )
    add_json(parser)


def _fit(options: argparse.Namespace) -> int:
    if options.table:
        return _table(options)
    for word, given in (("--slurm", options.slurm), ("--minutes", options.minutes is not None)):
        if options.forecast and given:
            raise ConfigError(f"{word} must be left out with --forecast, which takes no step and no job")
    from refsam.orchestration.fit.command import ENGINES, Options, fit_all, folder_of, plan_lines, requests_of
    from refsam.orchestration.fit.requests import resolve

    combinations = resolve([*options.overrides, *(["cluster=slurm"] if options.slurm else [])])
    runs = _runs(options, combinations)
    chosen = Options(
        limit_gib=options.limit_gb,
        most_objects=options.max_objects,
        minutes=options.minutes,
        engines=ENGINES if options.engine is None else (options.engine,),
        again=options.again,
        forecast=options.forecast,
    )
    if combinations[0][1].cluster.kind == "slurm" and not options.forecast:
        return _on_slurm(combinations, chosen, runs, options.dry_run)
    requests, left_out = requests_of(combinations, chosen, on_the_resource=False)
    if options.dry_run:
        print("\n".join(plan_lines(requests, left_out, folder_of(runs))))
        return COMPLETED
    for item in left_out:
        _say(f"left out: {item.reason}")
    fits = fit_all(requests, chosen, folder_of(runs), _say)
    _show(options, fits, runs)
    return COMPLETED


def _on_slurm(combinations: "Sequence[Combination]", chosen: "Options", runs: Path, dry_run: bool) -> int:
    from refsam.orchestration.fit.jobs import submit_fits

    if dry_run:
        for job, _ in combinations:
            print(f"in a job on the resource: {' '.join(job)}")
        return COMPLETED
    submit_fits(combinations, chosen, runs, _say)
    return COMPLETED


def _table(options: argparse.Namespace) -> int:
    """All resources with what is known of them: the table of the README."""
    from refsam.configuration.compose import compose
    from refsam.configuration.resources import folder
    from refsam.orchestration.fit.command import folder_of
    from refsam.records.fits import known_fits
    from refsam.results.tables.fit_table import markdown, rows, write_table

    runs = Path(options.runs).absolute()
    names = sorted(path.stem for path in (folder("conf") / "resource").glob("*.yaml"))
    # `medium` is another name of medium_32g; `local` is every machine.
    configs = [compose([f"resource={name}"]) for name in names if name not in ("medium", "local")]
    table = rows(known_fits(runs), configs)
    if options.json:
        print_json(table)
    else:
        print(markdown(table), end="")
    for path in write_table(table, folder_of(runs).table):
        _say(f"written: {path}")
    return COMPLETED


def _show(options: argparse.Namespace, fits: "Sequence[Fit]", runs: Path) -> None:
    from refsam.orchestration.fit.command import folder_of
    from refsam.results.tables.fit_table import markdown, rows, write_table

    if options.json:
        print_json(rows(fits))
    else:
        print(markdown(rows(fits)), end="")
    written = write_table(rows(folder_of(runs).read_fits()), folder_of(runs).table)
    _say(f"written: {' and '.join(map(str, written))}")


def _runs(options: argparse.Namespace, combinations: "Sequence[Combination]") -> Path:
    """--runs, or the override `runs=`, as for a sweep."""
    given = Path(options.runs)
    chosen = given if options.runs != default_runs() else Path(combinations[0][1].runs)
    return chosen.expanduser().absolute()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
