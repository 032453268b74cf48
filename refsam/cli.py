"""The command `refsam`: what a person asks at a prompt about sweeps and data. Answers fast, imports late."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import refsam
from refsam.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

    from refsam.records.paths import SweepPaths

COMPLETED, DAMAGED_RECORDS, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done; 1: records are damaged, or a run of `refsam sweep` failed; 2: bad input; 130: Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["sweep"]:  # Hydra has its own --help, -m and overrides
            return _sweep(given[1:])
        options = _parser().parse_args(given)
        status: int = options.run(options)
        return status
    except BadInput as error:
        print(f"refsam: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("refsam: stopped by Ctrl-C", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refsam",
        description="Finetune Segment Anything over resources, models, strategies and numbers of images.",
    )
    parser.add_argument("--version", action="version", version=f"refsam {refsam.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    collect = commands.add_parser("collect", help="write results.csv of a sweep and print the table")
    _add_sweep(collect)
    collect.add_argument("--json", action="store_true", help="print the rows as JSON instead of the table")
    collect.set_defaults(run=_collect)

    plot = commands.add_parser("plot", help="draw SA50 over the number of training images, as PNG and PDF")
    _add_sweep(plot)
    plot.set_defaults(run=_plot)

    list_sweeps = commands.add_parser("list", help="the sweeps there are, and the states of their runs")
    _add_runs(list_sweeps)
    list_sweeps.set_defaults(run=_list)

    prepare = commands.add_parser(
        "prepare",
        help="fetch the data set and the weights that runs need",
        description="Fetch the data set that the overrides name (dataset=nuclei), the weights of the model "
        "that they name (model=vit_b_lm), or both; without either, those of the defaults. Needs the network.",
    )
    prepare.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for a run, such as dataset=nuclei"
    )
    prepare.set_defaults(run=_prepare)

    commands.add_parser("sweep", help="run a sweep: the same as python -m refsam.sweep", add_help=False)
    return parser


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="SWEEP", help="name of the sweep")
    _add_runs(parser)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", default="runs", metavar="FOLDER", help="folder of the run directories (runs)"
    )


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


def _read(options: argparse.Namespace) -> "tuple[SweepPaths, pd.DataFrame]":
    """The sweep that was asked for and its rows. Looks the name up before pandas is imported."""
    from refsam.results.sweeps import DamagedManifest, find_sweep, read_manifest, runs_folder

    folder = runs_folder(options.runs)
    sweep = find_sweep(options.sweep, folder)
    from refsam.orchestration.reconcile import reconcile
    from refsam.orchestration.slurm_query import SlurmQuery
    from refsam.results.collect import collect

    try:
        # What Slurm knows of jobs that were killed belongs into the table.
        reconcile(folder, [run.run_id for run in read_manifest(sweep).runs], SlurmQuery())
        return sweep, collect(sweep, folder)
    except DamagedManifest as error:
        print(f"refsam: {error}", file=sys.stderr)
        sys.exit(DAMAGED_RECORDS)


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


def _list(options: argparse.Namespace) -> int:
    from refsam.results.sweeps import DamagedManifest, count_states, runs_folder, sweep_names

    folder = runs_folder(options.runs)
    names = sweep_names(folder)
    if not names:
        print(f"There are no sweeps in {folder.root}.")
    status = COMPLETED
    width = max(map(len, names), default=0)
    for name in names:
        try:
            counts = count_states(folder.sweep(name), folder)
        except DamagedManifest as error:
            print(f"refsam: {error}", file=sys.stderr)
            status = DAMAGED_RECORDS
            continue
        states = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no runs"
        print(f"{name:{width}}  {states}")
    return status


def _prepare(options: argparse.Namespace) -> int:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from refsam.configuration.compose import compose
    from refsam.configuration.composition_errors import explain

    try:
        config = compose(options.overrides)
    except (HydraException, OmegaConfBaseException) as error:
        sentence = explain(error)
        if sentence is None:
            raise
        raise BadInput(sentence) from error
    named = {override.lstrip("+~").partition("=")[0].partition(".")[0] for override in options.overrides}
    both = not named & {"dataset", "model"}
    # By name: the command itself must not bring torch along.
    if both or "dataset" in named:
        import_module("refsam.datasets.prepare").prepare(config.dataset)
    if config.model.weights == "pretrained" and (both or "model" in named):
        path = import_module("refsam.science.fetch").fetch_weights(config.model.name)
        print(f"weights {config.model.name} are ready: {path}")
    return COMPLETED


def _sweep(arguments: list[str]) -> int:
    import_module("refsam.sweep").main(arguments)
    return COMPLETED


if __name__ == "__main__":
    sys.exit(main())
