"""`refsam track`: finished runs in TensorBoard, MLflow or Weights & Biases."""

import argparse
from typing import TYPE_CHECKING

from refsam.commands.options import Commands, add_command
from refsam.commands.selection import Selection, add_selection, name_problems, selected
from refsam.errors import ConfigError

if TYPE_CHECKING:
    from refsam.results.trackers.tracker import Tracker

TRACKERS = ("tensorboard", "mlflow", "wandb")


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "track",
        _track,
        "export finished runs to TensorBoard, MLflow or Weights & Biases",
        "Export the completed runs of sweeps to an experiment tracker: configuration, values of each epoch,\n"
        "final metrics in every mode, and provenance. Only new and changed runs are exported.\n"
        "  tensorboard  a folder of event files for each run\n"
        "  mlflow       an experiment on a server or in an SQLite file\n"
        "  wandb        a project, offline: `wandb sync` uploads it to a server",
        "refsam track study --to mlflow --destination https://mlflow.example.org",
    )
    add_selection(parser)
    parser.add_argument("--to", required=True, choices=TRACKERS, dest="target", help="the tracker")
    parser.add_argument(
        "--destination",
        metavar="PLACE",
        help="a folder, or for mlflow a URI or an SQLite file (in the sweep's folder, trackers)",
    )
    parser.add_argument("--name", help="of MLflow's experiment or the project (the sweep's)")


def _track(options: argparse.Namespace) -> int:
    if options.name is not None and options.target == "tensorboard":
        raise ConfigError("--name: TensorBoard has no experiments; give --destination instead")
    chosen = selected(options)
    from refsam.results.trackers.tracked import tracked_run
    from refsam.results.trackers.tracker import tell

    tracker = _tracker(options, chosen)
    completed = chosen.frame[chosen.frame["status"] == "completed"]
    runs = []
    for run_id, rows in completed.groupby("run_id", sort=False):
        try:
            runs.append(tracked_run(rows, chosen.directories[str(run_id)]))
        except ValueError as error:
            chosen.problems.append(str(error))
    told = tell(runs, tracker)
    number = chosen.frame["run_id"].nunique()
    others = number - completed["run_id"].nunique()
    if others:
        print(f"Left out because they are not completed: {others} of {number} runs")
    if not runs:
        print("No run of this sweep is completed yet, so there is nothing to export.")
    else:
        print(
            f"New in {tracker.destination}: {told.new}; updated: {told.changed}; unchanged: {told.unchanged}"
        )
        print(f"Look at them with: {tracker.hint}")
    return name_problems(chosen)


def _tracker(options: argparse.Namespace, chosen: Selection) -> "Tracker":
    name = options.name or chosen.output.name
    folder = chosen.output.trackers
    if options.target == "mlflow":
        from refsam.results.trackers.to_mlflow import MLflow

        return MLflow(options.destination, name, folder / "mlflow.db")
    if options.target == "wandb":
        from refsam.results.trackers.to_wandb import WeightsAndBiases

        return WeightsAndBiases(options.destination, name, folder / "wandb")
    from refsam.results.trackers.to_tensorboard import TensorBoard

    return TensorBoard(options.destination, folder / "tensorboard")
