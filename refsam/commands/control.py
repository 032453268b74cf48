"""`refsam cancel`, `retry`, `continue`: what changes the runs of a sweep."""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from refsam.commands.options import (
    COMPLETED,
    FAILED,
    Commands,
    add_command,
    add_json,
    open_folder,
    print_json,
    say,
)
from refsam.errors import ConfigError, nearest
from refsam.system.terminal import standard_console

if TYPE_CHECKING:
    from refsam.orchestration.operating.sweep_state import RunState, SweepState
    from refsam.orchestration.operating.targets import Target
    from refsam.records.paths import RunsFolder

AGAIN_FIELDS = """\
Fields of --json:
  sweep     the sweep that the runs are a part of
  runs      run_id, and the state before: those that were given to Slurm or executed here
  left_out  run_id, state, reason: all others
  states    of the runs that were given, afterwards
  notes     what could not be found out, in sentences"""


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "cancel",
        _cancel,
        "cancel the pending and running jobs of a sweep, or one run",
        "Cancel pending and running runs. A running one first saves a checkpoint; refsam continue resumes\n"
        "it. Local runs must be cancelled on the machine that executes them. If another process is\n"
        "submitting runs, cancel waits for it, at most two minutes.\n\n"
        "Fields of --json: sweep; cancelled: run_id, state, job_id of the cancelled runs; left: ids of the\n"
        "runs that are still in Slurm's queue; impossible and notes: sentences.\n"
        "Exit status 1 if a run was not cancelled.",
        "refsam cancel study",
    )
    _add_target(parser, required=True)
    add_json(parser)

    parser = add_command(
        commands,
        "retry",
        _retry,
        "run only the failed runs again",
        "Run failed runs again, from the configuration they were submitted with and from their last\n"
        "checkpoint. What is completed, in the queue or running is left alone.\n\n" + AGAIN_FIELDS,
        "refsam retry study --reason out_of_memory,node_failure",
    )
    _add_target(parser, required=False)
    parser.add_argument(
        "--reason", metavar="REASON,…", help="only those that failed for these reasons (all reasons)"
    )
    add_json(parser)

    parser = add_command(
        commands,
        "continue",
        _continue,
        "run everything of a sweep that is neither done nor in the queue",
        "Run everything of a sweep that is neither done nor in the queue: what failed, what was\n"
        "cancelled, what was never submitted. The runs are those of the sweep's manifest, with their\n"
        "frozen configurations.\n\n" + AGAIN_FIELDS,
        "refsam continue study",
    )
    parser.add_argument("target", metavar="SWEEP", help="name of the sweep")
    add_json(parser)


def _add_target(parser: argparse.ArgumentParser, required: bool) -> None:
    words = "name of a sweep, or a part of a run id that no other run has"
    if required:
        parser.add_argument("target", metavar="SWEEP|RUN", help=words)
    else:
        parser.add_argument("target", nargs="?", metavar="SWEEP|RUN", help=f"{words} (the newest sweep)")


def _cancel(options: argparse.Namespace) -> int:
    from refsam.orchestration.operating.cancel import cancel
    from refsam.orchestration.operating.targets import find_target

    folder = open_folder(options)
    target = find_target(options.target, folder)
    done = cancel(lambda: _look(target, folder), folder, not target.is_run, say)
    unknown = [f"run {run.run_id} is left alone: {run.damaged}" for run in done.runs if _is_unreadable(run)]
    if done.jobs:
        _look(target, folder)  # those that never ran cannot write their last word; it is written here
    if options.json:
        ended = {*done.jobs, *done.asked}
        cancelled = [
            {"run_id": run.run_id, "state": run.status.state, "job_id": run.status.job_id}
            for run in done.runs
            if run.run_id in ended
        ]
        values = {"sweep": target.sweep.name, "cancelled": cancelled, "left": list(done.left)}
        print_json({**values, "impossible": list(done.impossible), "notes": [*unknown, *done.notes]})
    else:
        if not (done.jobs or done.asked or done.impossible):
            print(f"Nothing of {target.words} waits or runs.")
        if done.jobs:
            print(
                f"{_count(done.jobs)} of {target.words} cancelled in Slurm; what ran saves its state first."
            )
        if done.asked:
            print(f"{_count(done.asked)} of {target.words} on this machine asked to stop.")
    say(*done.impossible, *unknown, *done.notes)
    return FAILED if done.impossible or unknown else COMPLETED


def _is_unreadable(run: "RunState") -> bool:
    from refsam.records.status import State

    return run.status.state is State.unreadable


def _retry(options: argparse.Namespace) -> int:
    from refsam.orchestration.operating.targets import find_target
    from refsam.records.status import State

    reasons = None if options.reason is None else _reasons(options.reason)
    folder = open_folder(options)
    target = find_target(options.target, folder)

    def wanted(run: "RunState") -> bool:
        chosen = reasons is None or run.status.reason in reasons
        return run.status.state is State.failed and chosen

    return _again(options, target, folder, wanted, "failed" if reasons is None else options.reason)


def _continue(options: argparse.Namespace) -> int:
    from refsam.orchestration.operating.targets import sweep_target
    from refsam.records.status import OPEN, State

    folder = open_folder(options)
    target = sweep_target(options.target, folder)

    def wanted(run: "RunState") -> bool:
        return run.status.state is not State.completed and run.status.state not in OPEN

    return _again(options, target, folder, wanted, "neither done nor in the queue")


def _again(
    options: argparse.Namespace,
    target: "Target",
    folder: "RunsFolder",
    wanted: "Callable[[RunState], bool]",
    words: str,
) -> int:
    state = _look(target, folder)
    _mend(state.runs, folder)
    chosen, outside = [run for run in state.runs if wanted(run) and run.can_start], 0
    impossible = [f"run {run.run_id} is left out: {run.damaged}" for run in state.runs if not run.can_start]
    say(*impossible, *state.notes)
    console = standard_console(stderr=options.json, highlight=False)
    if chosen:
        from refsam.orchestration.submission.resubmit import resubmit

        console.print(f"{target.words}: {_count(chosen)} again ({words})", markup=False, soft_wrap=True)
        rest = resubmit([run.run_id for run in chosen], folder, target.sweep, console)
        outside = rest.no_room + rest.by_hand
        if rest.no_room:
            words = f"refsam continue {target.sweep.name} submits more when others have ended"
            sentence = f"{rest.no_room} of them wait outside of the queue; {words}"
            console.print(sentence, markup=False, soft_wrap=True)
    elif not options.json:
        print(f"Nothing of {target.words} is to be run again ({words}).")
    after = _look(target, folder) if chosen else state
    ids = {run.run_id for run in chosen}
    ended = [run for run in after.runs if run.run_id in ids]
    if options.json:
        from refsam.orchestration.operating.sweep_state import count

        left_out = [run for run in state.runs if run.run_id not in ids]
        print_json(
            {
                "sweep": target.sweep.name,
                "runs": [{"run_id": run.run_id, "state": run.status.state} for run in chosen],
                "left_out": [
                    {"run_id": run.run_id, "state": run.status.state, "reason": run.status.reason}
                    for run in left_out
                ],
                "states": dict(count(ended)),
                "notes": [*impossible, *state.notes],
            }
        )
    failed = sum(str(run.status.state) == "failed" for run in ended)
    return FAILED if failed > outside or impossible else COMPLETED


def _mend(runs: "Sequence[RunState]", folder: "RunsFolder") -> None:
    """Write the damaged status of a run anew, as its attempts and results tell it."""
    from refsam.records.recovery import mend

    for run in runs:
        if run.is_damaged and run.can_start:
            with contextlib.suppress(OSError):  # another person's run stays as it is
                mend(folder.run(run.run_id))


def _look(target: "Target", folder: "RunsFolder") -> "SweepState":
    from refsam.orchestration.operating.sweep_state import look
    from refsam.orchestration.slurm.questions import SlurmQuery

    return look(target.sweep.name, folder, target.run_ids, SlurmQuery())


def _reasons(text: str) -> set[str]:
    from refsam.records.status import Reason

    allowed = [str(reason) for reason in Reason]
    given = {part.strip() for part in text.split(",") if part.strip()}
    for reason in sorted(given):
        if reason not in allowed:
            hint = nearest(reason, allowed)
            raise ConfigError(f"--reason must be one of {', '.join(allowed)}, got {reason}{hint}")
    if not given:
        raise ConfigError(f"--reason must be one of {', '.join(allowed)}, got nothing")
    return given


def _count(runs: Sequence[object]) -> str:
    return "1 run" if len(runs) == 1 else f"{len(runs)} runs"
