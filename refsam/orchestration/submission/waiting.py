"""Staying with runs that Slurm executes, until all of them have ended. They do not need it."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from refsam.errors import RunFailed
from refsam.orchestration.lifecycle.reconcile import is_due, reconcile
from refsam.orchestration.slurm.questions import SlurmQuery
from refsam.orchestration.submission.live_table import Display, Location, Row
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.run import Run
from refsam.records.status import State, Status

POLL_SECONDS = 10.0  # between two questions to Slurm
TOP_UP_SECONDS = 60.0  # between two tries to submit what the site has not taken yet


def wait_for_runs(
    runs: Sequence[Run],
    folder: RunsFolder,
    attempts_before: Mapping[str, int],
    display: Display,
    submit: Callable[[list[Run]], int],
) -> None:
    """Show the runs until all have ended, and submit those that the site has not taken yet when others end.

    Runs that were killed with their jobs are submitted again where the table of retries says so.

    Args:
        attempts_before: how many attempts each run had before anything was submitted, by its id.
        submit: submits some runs and returns how many are left, as submit_to_slurm does.

    Raises:
        KeyboardInterrupt: after Ctrl-C. The jobs go on.
    """
    query = SlurmQuery()
    told: tuple[str, ...] = ()
    ended, left, tried_at = 0, len(runs), time.monotonic()
    with display:
        while True:
            known, answer = reconcile(folder, [run.run_id for run in runs], query)
            if answer.problems != told:
                told = answer.problems
                for sentence in told:
                    display.say(sentence)
            rest = [
                run
                for run in runs
                if _not_submitted(known[run.run_id], attempts_before[run.run_id])
                or is_due(folder.run(run.run_id), known[run.run_id])
            ]
            waiting = {run.run_id for run in rest}
            rows = [
                _row(run, folder.run(run.run_id), known[run.run_id], run.run_id in waiting) for run in runs
            ]
            display.show(rows, max(1, sum(row.place is Location.here for row in rows)))
            ended_now = sum(row.place is Location.ended for row in rows)
            if ended_now == len(runs):
                return
            more = ended_now > ended or len(rest) > left
            if rest and (more or time.monotonic() - tried_at >= TOP_UP_SECONDS):
                tried_at = time.monotonic()
                try:
                    submit(rest)
                except RunFailed as error:  # of some arrays; the others go on
                    display.say(str(error))
                    if len(rest) + ended_now == len(runs):
                        return
            ended, left = ended_now, len(rest)
            time.sleep(POLL_SECONDS)


def _not_submitted(status: Status, attempts_before: int) -> bool:
    return status.attempt == attempts_before and status.state in (State.planned, State.failed)


def _row(run: Run, paths: RunPaths, status: Status, not_submitted: bool) -> Row:
    place = {State.running: Location.here, State.completed: Location.ended, State.failed: Location.ended}
    place[State.unreadable] = Location.ended
    where = Location.waiting if not_submitted else place.get(status.state, Location.waiting)
    return Row(run.label, where, status, _log(paths, status))


def _log(paths: RunPaths, status: Status) -> Path | None:
    return next(iter(sorted(paths.attempt(status.attempt).glob("*.out"))), None) if status.attempt else None
