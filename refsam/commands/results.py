"""`refsam collect`, `plot` and `strategies`: tables and the figure of a sweep."""

import argparse
import sys
from typing import TYPE_CHECKING

from refsam.commands.options import COMPLETED, DAMAGED_RECORDS, Commands, add_command, add_json, open_folder

if TYPE_CHECKING:
    import pandas as pd

    from refsam.records.paths import SweepPaths


def add(commands: Commands) -> None:
    collect = add_command(
        commands,
        "collect",
        _collect,
        "write results.csv of a sweep and print the table",
        example="refsam collect study",
    )
    plot = add_command(
        commands,
        "plot",
        _plot,
        "draw SA50 over the number of training images, as PNG and PDF",
        example="refsam plot study",
    )
    strategies = add_command(
        commands,
        "strategies",
        _strategies,
        "what each strategy reaches and costs: mIoU, mF1 over seeds, inference, parameters, memory",
        "Print mIoU and mF1 of each model and strategy, their mean and deviation over seeds, the\n"
        "milliseconds of inference, the trained parameters and the peak memory of training, and write\n"
        "strategies.csv.\n\n"
        "Fields of --json: those of strategies.csv.",
        "refsam strategies peft_trashcan",
    )
    strategies.add_argument("--mode", help="of the evaluation (the first of box, point, others)")
    strategies.add_argument("--markdown", action="store_true", help="print the table for a document")
    add_json(strategies)
    for parser in (collect, plot, strategies):
        parser.add_argument("sweep", metavar="SWEEP", help="name of the sweep")
    add_json(collect)


def _collect(options: argparse.Namespace) -> int:
    sweep, frame = _read(options)
    from refsam.results.collect import write_results
    from refsam.results.table import print_table

    path = write_results(sweep, frame)
    if options.json:
        print(frame.to_json(orient="records", indent=2, double_precision=15))
    else:
        print_table(frame)
        print(f"{len(frame)} rows in {path}")
    return _name_damaged(frame)


def _plot(options: argparse.Namespace) -> int:
    sweep, frame = _read(options)
    from refsam.results.figure import figure

    paths = figure(frame, sweep.figures)
    for path in paths:
        print(path)
    if not paths:
        print(f"No run of sweep {sweep.name} has results yet, so there is nothing to draw.")
    return _name_damaged(frame)


def _strategies(options: argparse.Namespace) -> int:
    sweep, frame = _read(options)
    from refsam.results.strategies import markdown, over_seeds, print_strategies, write_strategies

    table = over_seeds(frame, options.mode)
    path = write_strategies(sweep, table)
    if options.json:
        print(table.to_json(orient="records", indent=2, double_precision=15))
    elif options.markdown:
        print(markdown(table), end="")
    else:
        print_strategies(table)
        print(f"{len(table)} rows in {path}")
    return _name_damaged(frame)


def _read(options: argparse.Namespace) -> "tuple[SweepPaths, pd.DataFrame]":
    """The sweep that was asked for and its rows. Looks the name up before pandas is imported."""
    from refsam.results.sweeps import find_sweep, read_manifest

    folder = open_folder(options)
    sweep = find_sweep(options.sweep, folder)
    from refsam.orchestration.slurm.accounting import record_costs
    from refsam.orchestration.slurm.questions import SlurmQuery
    from refsam.orchestration.slurm.reconcile import reconcile
    from refsam.results.collect import collect

    # What Slurm knows of jobs that were killed belongs into the table, and what all of them have cost.
    run_ids = [run.run_id for run in read_manifest(sweep).runs]
    reconcile(folder, run_ids, SlurmQuery())
    problem = record_costs(folder, run_ids)
    if problem is not None:
        print(f"refsam: {problem}", file=sys.stderr)
    return sweep, collect(sweep, folder)


def _name_damaged(frame: "pd.DataFrame") -> int:
    from refsam.results.collect import damaged

    sentences = damaged(frame)
    for sentence in sentences:
        print(f"refsam: {sentence}", file=sys.stderr)
    if not sentences:
        return COMPLETED
    runs = frame["run_id"].nunique()
    print(f"refsam: runs with damaged records: {len(sentences)} of {runs}", file=sys.stderr)
    return DAMAGED_RECORDS
