"""`refsam list`, `status` and `watch`: where sweeps are. `status` submits what was killed with its job."""

import argparse
import sys
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from refsam.commands.options import (
    COMPLETED,
    DAMAGED_RECORDS,
    Commands,
    add_command,
    add_json,
    add_wide,
    open_folder,
    print_json,
    say,
)
from refsam.errors import ConfigError, DamagedManifest
from refsam.system.terminal import standard_console

if TYPE_CHECKING:
    from refsam.orchestration.operating.sweep_state import SweepState

STATUS_FIELDS = """\
Fields of --json:
  sweep, runs_folder  the sweep's name, and the folder of its runs
  states              how many runs are planned, pending, running, completed, failed, unreadable
  seconds_left        until the last running one is done, at most; null where one does not know
  slurm               queue, accounting: whether squeue and sacct have answered; null without jobs
  notes               what could not be found out, in sentences
  submitted_again     status: run ids that were killed with their jobs and are in the queue again
  groups              of runs with the same request: request, states, run_ids
  runs                run_id, fields (of the configuration that tell it apart from the others, by
                      dotted names), all fields of its status.json (state, reason, message, attempt, job_id,
                      host, epoch, best_metric, …), elapsed_seconds, seconds_left, damaged: why its
                      record cannot be read, and fault: damaged, unreadable, missing or bad
                      configuration; null where it can be read
Times are UTC in ISO 8601, durations in seconds."""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "list", _list, "list the sweeps and the states of their runs", example="refsam list"
    )
    add_json(parser)

    parser = add_command(
        commands,
        "status",
        _status,
        "where every run of a sweep is",
        "The states of the runs of a sweep: a line for each group with the same request, and one for each\n"
        "run. Queries Slurm once for all of them; without Slurm it shows the records. Your runs that were\n"
        "killed with their jobs are submitted again if the table of retries says so.\n\n" + STATUS_FIELDS,
        "refsam status study --json | jq '.runs[] | select(.state == \"failed\") | .run_id'",
    )
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="name of the sweep (the newest)")
    add_wide(parser)
    add_json(parser)

    parser = add_command(
        commands,
        "watch",
        _watch,
        "where every run of a sweep is, live",
        "The same as status, live, until no run of the sweep is pending or running. q or Ctrl-C stops\n"
        "only the display. In a pipe: a line for every change.\n\n"
        "--json prints the document of refsam status --json on one line, again for every change.",
        "refsam watch study && refsam collect study",
    )
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="name of the sweep (the newest)")
    add_json(parser)


def _list(options: argparse.Namespace) -> int:
    from refsam.results.sweeps import DAMAGED, UNREADABLE, count_states, sweep_names

    folder = open_folder(options)
    names = sweep_names(folder)
    status = COMPLETED
    sweeps: list[dict[str, Any]] = []
    for name in names:
        try:
            sweeps.append({"sweep": name, "states": dict(count_states(folder.sweep(name), folder))})
        except (ConfigError, DamagedManifest) as error:
            say(str(error))
            status = DAMAGED_RECORDS
    if any({DAMAGED, UNREADABLE} & set(sweep["states"]) for sweep in sweeps):
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
    from refsam.orchestration.lifecycle.reconcile import is_due
    from refsam.orchestration.operating.sweep_state import look
    from refsam.orchestration.operating.sweep_view import as_json
    from refsam.orchestration.operating.targets import sweep_target
    from refsam.orchestration.slurm.questions import SlurmQuery, glance

    folder = open_folder(options)
    target = sweep_target(options.sweep, folder)
    state = look(target.sweep.name, folder, target.run_ids, SlurmQuery(glance))
    if not options.json:
        print_state(state, options.wide)
        sys.stdout.flush()  # before anything is done about it
    readable = [run for run in state.runs if run.damaged is None]
    due = [run.run_id for run in readable if is_due(folder.run(run.run_id), run.status)]
    again: tuple[str, ...] = ()
    if due:
        from refsam.orchestration.submission.resubmit import submit_again  # brings what composes

        again = submit_again(due, folder, target.sweep, standard_console(stderr=True, highlight=False))
    if options.json:
        if again:
            state = look(target.sweep.name, folder, target.run_ids, SlurmQuery(glance))
        print_json({**as_json(state), "submitted_again": list(again)})
    return DAMAGED_RECORDS if any(run.is_damaged for run in state.runs) else COMPLETED


def _watch(options: argparse.Namespace) -> int:
    from refsam.orchestration.operating.sweep_state import look
    from refsam.orchestration.operating.targets import sweep_target
    from refsam.orchestration.operating.watch import watch
    from refsam.orchestration.slurm.patience import HURRIED_SECONDS
    from refsam.orchestration.slurm.questions import SlurmQuery, glance, run_command

    folder = open_folder(options)
    sweep = sweep_target(options.sweep, folder).sweep.name  # it stays this one when a newer one comes
    # The first look is shown at once. The others may take longer; they keep their answers for some seconds.
    queries = chain([SlurmQuery(glance)], repeat(SlurmQuery(partial(run_command, seconds=HURRIED_SECONDS))))

    def look_again() -> "SweepState":
        # The sweep may be asked for with further runs meanwhile.
        return look(sweep, folder, sweep_target(sweep, folder).run_ids, next(queries))

    watch(look_again, standard_console(highlight=False), options.json)
    return COMPLETED


def print_state(state: "SweepState", wide: bool = False) -> None:
    """The sweep on standard output, with the columns that fit the terminal; all of them where it is a pipe or
    a file, or where that is asked for.
    """
    from refsam.orchestration.operating.sweep_view import lines
    from refsam.orchestration.submission.live_table import plain_text

    console = standard_console(highlight=False)
    if console.is_terminal:
        for line in lines(state, None if wide else console.width):
            console.print(plain_text(line.text), style=line.style, soft_wrap=True)
    else:
        print("\n".join(line.text for line in lines(state)))
    say(*state.notes)
