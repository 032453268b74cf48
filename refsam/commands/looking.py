"""`refsam list`, `status`, `show`, `logs`: where sweeps and runs are. They change nothing."""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from refsam.commands.options import (
    COMPLETED,
    DAMAGED_RECORDS,
    Commands,
    add_command,
    add_json,
    open_folder,
    print_json,
)
from refsam.errors import BadInput, DamagedManifest

if TYPE_CHECKING:
    from refsam.orchestration.sweep_state import SweepState
    from refsam.records.paths import RunPaths, RunsFolder

STATUS_FIELDS = """\
Fields of --json:
  sweep, runs_folder  the sweep's name, and the folder of its runs
  states              how many runs are planned, pending, running, completed, failed
  seconds_left        until the last running one is done, at most; null where one does not know
  slurm               queue, accounting: whether squeue and sacct have answered; null without jobs
  notes               what could not be found out, in sentences
  groups              of runs with the same request: request, states, run_ids
  runs                run_id, all fields of its status.json (state, reason, message, attempt, job_id,
                      host, epoch, best_metric, …), elapsed_seconds, seconds_left, and damaged: why
                      its record cannot be read, null where it can
Times are UTC in ISO 8601, durations in seconds."""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "list", _list, "the sweeps there are, and the states of their runs", example="refsam list"
    )
    add_json(parser)

    parser = add_command(
        commands,
        "status",
        _status,
        "where every run of a sweep is",
        "Where the runs of a sweep are: a line for each group with the same request, and one for\n"
        "each run. Asks Slurm once for all of them; without Slurm the records speak alone.\n\n"
        + STATUS_FIELDS,
        "refsam status study --json | jq '.runs[] | select(.state == \"failed\") | .run_id'",
    )
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="name of the sweep (the newest)")
    add_json(parser)

    parser = add_command(
        commands,
        "show",
        _show,
        "everything about one run: what it is, its attempts, its results",
        "Everything that the record of one run holds.\n\n"
        "Fields of --json: run_id, path, status, attempts, metrics, training, environment,\n"
        "configuration; each as its file in the run directory has it, null where there is none.",
        "refsam show vit_b-lora-n5-v100",
    )
    _add_run(parser)
    add_json(parser)

    parser = add_command(
        commands,
        "logs",
        _logs,
        "the log of a run, also while it is written",
        "Print the log of a run's last attempt. With --follow go on until the run has ended;\n"
        "Ctrl-C ends the looking and not the run.\n\nFields of --json: run_id, attempt, path, text.",
        "refsam logs vit_b-lora-n5-v100 --follow --lines 20",
    )
    _add_run(parser)
    parser.add_argument("--follow", "-f", action="store_true", help="go on as the log is written")
    parser.add_argument("--attempt", type=int, metavar="K", help="the attempt (the last one with a log)")
    parser.add_argument("--lines", type=int, metavar="N", help="of what is there, only the last N lines")
    add_json(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_name", metavar="RUN", help="run id, or a part of it that no other run has")


def _list(options: argparse.Namespace) -> int:
    from refsam.results.sweeps import count_states, sweep_names

    folder = open_folder(options)
    names = sweep_names(folder)
    status = COMPLETED
    sweeps: list[dict[str, Any]] = []
    for name in names:
        try:
            sweeps.append({"sweep": name, "states": dict(count_states(folder.sweep(name), folder))})
        except DamagedManifest as error:
            print(f"refsam: {error}", file=sys.stderr)
            status = DAMAGED_RECORDS
    if options.json:
        print_json({"runs_folder": str(folder.root.absolute()), "sweeps": sweeps})
        return status
    if not names:
        print(f"There are no sweeps in {folder.root}.")
    width = max(map(len, names), default=0)
    for sweep in sweeps:
        states = ", ".join(f"{count} {state}" for state, count in sweep["states"].items()) or "no runs"
        print(f"{sweep['sweep']:{width}}  {states}")
    return status


def _status(options: argparse.Namespace) -> int:
    from refsam.orchestration.slurm_query import SlurmQuery
    from refsam.orchestration.sweep_state import look
    from refsam.orchestration.sweep_view import as_json
    from refsam.orchestration.targets import sweep_target

    folder = open_folder(options)
    target = sweep_target(options.sweep, folder)
    state = look(target.sweep.name, folder, target.run_ids, SlurmQuery())
    if options.json:
        print_json(as_json(state))
    else:
        print_state(state)
    return DAMAGED_RECORDS if any(run.damaged for run in state.runs) else COMPLETED


def print_state(state: "SweepState") -> None:
    """The sweep on standard output: as wide as the terminal, and uncut where that is a pipe or a file."""
    from rich.console import Console

    from refsam.orchestration.display import plain_text
    from refsam.orchestration.sweep_view import lines

    console = Console(highlight=False)
    if console.is_terminal:
        for line in lines(state, console.width):
            console.print(plain_text(line.text), style=line.style, soft_wrap=True)
    else:
        print("\n".join(line.text for line in lines(state)))
    for note in state.notes:
        print(f"refsam: {note}", file=sys.stderr)


def _show(options: argparse.Namespace) -> int:
    from refsam.orchestration.run_details import details, print_details
    from refsam.orchestration.slurm_query import SlurmQuery
    from refsam.orchestration.sweep_state import look
    from refsam.orchestration.targets import find_run

    folder = open_folder(options)
    paths = find_run(options.run_name, folder)
    state = look("", folder, [paths.run_id], SlurmQuery())
    found = details(paths, state.runs[0])
    if options.json:
        print_json(found.values)
    else:
        print_details(found)
    for note in (*state.notes, *found.problems):
        print(f"refsam: {note}", file=sys.stderr)
    return DAMAGED_RECORDS if found.problems else COMPLETED


def _logs(options: argparse.Namespace) -> int:
    from refsam.orchestration.logs import find_log, last, read_log
    from refsam.orchestration.targets import find_run

    if options.lines is not None and options.lines < 0:
        raise BadInput(f"--lines: {options.lines} was given, allowed is a whole number from 0")
    if options.follow and options.json:
        raise BadInput("--follow: a log that goes on is no JSON document; give --follow or --json")
    folder = open_folder(options)
    paths = find_run(options.run_name, folder)
    if options.follow:
        return _follow(folder, paths, options)
    found = find_log(paths, options.attempt)
    if options.json:
        attempt, path = found or (options.attempt, None)
        text = None if path is None else last(read_log(path), options.lines)
        print_json(
            {
                "run_id": paths.run_id,
                "attempt": attempt,
                "path": None if path is None else str(path),
                "text": text,
            }
        )
    elif found is None:
        print(f"refsam: run {paths.run_id} has no log yet", file=sys.stderr)
    else:
        sys.stdout.write(last(read_log(found[1]), options.lines))
    return COMPLETED


def _follow(folder: "RunsFolder", paths: "RunPaths", options: argparse.Namespace) -> int:
    from refsam.orchestration.logs import find_log, follow
    from refsam.orchestration.slurm_query import SlurmQuery
    from refsam.orchestration.sweep_state import OPEN, look

    query = SlurmQuery()  # keeps its answers for some seconds, however often it is asked

    def is_open() -> bool:
        return look("", folder, [paths.run_id], query).runs[0].status.state in OPEN

    if find_log(paths, options.attempt) is None and is_open():
        print(f"refsam: run {paths.run_id} has no log yet; waiting for it", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):  # that is how a person ends it
        for text in follow(paths, options.attempt, is_open, options.lines):
            sys.stdout.write(text)
            sys.stdout.flush()
    return COMPLETED
