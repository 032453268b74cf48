"""`refsam show` and `refsam logs`: one run."""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from refsam.commands.options import (
    COMPLETED,
    DAMAGED_RECORDS,
    Commands,
    add_command,
    add_json,
    open_folder,
    print_json,
    say,
)
from refsam.errors import ConfigError
from refsam.records.logs import find_log

if TYPE_CHECKING:
    from refsam.records.paths import RunPaths, RunsFolder


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "show",
        _show,
        "one run in five lines, or everything about it",
        "One run: its state, its training, what was measured, where it lies. With --full everything\n"
        "that its record holds: attempts, metrics, training, costs, environment, configuration.\n\n"
        "Fields of --json: run_id, path, status, attempts, metrics, training, costs, environment,\n"
        "configuration; each as its file in the run directory has it, null where there is none.",
        "refsam show vit_b-lora-n5-v100",
    )
    _add_run(parser)
    parser.add_argument("--full", action="store_true", help="everything that the record holds")
    add_json(parser)

    parser = add_command(
        commands,
        "logs",
        _logs,
        "the log of a run, also while it is written",
        "Print the log of a run's last attempt. With --follow, continue until the run has\n"
        "ended; Ctrl-C stops the display, not the run.\n\nFields of --json: run_id, attempt, path, text.",
        "refsam logs vit_b-lora-n5-v100 --follow --lines 20",
    )
    _add_run(parser)
    parser.add_argument("--follow", "-f", action="store_true", help="continue as the log is written")
    parser.add_argument("--attempt", type=int, metavar="K", help="the attempt (the last one with a log)")
    parser.add_argument("--lines", type=int, metavar="N", help="only the last N lines")
    add_json(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_name", metavar="RUN", help="run id, or a part of it that no other run has")


def _show(options: argparse.Namespace) -> int:
    from refsam.orchestration.operating.run_details import details, print_details, print_summary
    from refsam.orchestration.operating.sweep_state import look
    from refsam.orchestration.operating.targets import find_run
    from refsam.orchestration.slurm.accounting import record_costs
    from refsam.orchestration.slurm.questions import GLANCE_SECONDS, SlurmQuery, answers_within, glance

    folder = open_folder(options)
    paths = find_run(options.run_name, folder)
    state = look("", folder, [paths.run_id], SlurmQuery(glance))
    with answers_within(GLANCE_SECONDS):
        problem = record_costs(folder, [paths.run_id])
    found = details(paths, state.runs[0])
    if options.json:
        print_json(found.values)
    else:
        (print_details if options.full else print_summary)(found)
    say(*state.notes, *([problem] if problem else []), *found.problems)
    return DAMAGED_RECORDS if found.problems else COMPLETED


def _logs(options: argparse.Namespace) -> int:
    from refsam.orchestration.operating.logs import last, read_log
    from refsam.orchestration.operating.targets import find_run

    if options.lines is not None and options.lines < 0:
        raise ConfigError(f"--lines must be an integer >= 0, got {options.lines}")
    if options.follow and options.json:
        raise ConfigError("--follow and --json cannot be combined; give one of them")
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
        say(f"run {paths.run_id} has no log yet")
    else:
        sys.stdout.write(last(read_log(found[1]), options.lines))
    return COMPLETED


def _follow(folder: "RunsFolder", paths: "RunPaths", options: argparse.Namespace) -> int:
    from refsam.orchestration.operating.logs import follow
    from refsam.orchestration.operating.sweep_state import look
    from refsam.orchestration.slurm.questions import SlurmQuery, glance
    from refsam.records.status import OPEN

    query = SlurmQuery(glance)  # keeps its answers for some seconds, however often it is asked

    def is_open() -> bool:
        return look("", folder, [paths.run_id], query).runs[0].status.state in OPEN

    if find_log(paths, options.attempt) is None and is_open():
        say(f"run {paths.run_id} has no log yet; waiting for it")
    with contextlib.suppress(KeyboardInterrupt):  # that is how a person ends it
        for text in follow(paths, options.attempt, is_open, options.lines):
            sys.stdout.write(text)
            sys.stdout.flush()
    return COMPLETED
