"""Runs whose job was killed whole, so that nothing in it could begin their next attempt: submitted again.

A job's own process does what the table of retries says (in_job.supervisor). Where it was killed, too, or
Slurm did not take its job back, whoever looks at the sweep next does it.
"""

import os
from collections.abc import Sequence

from rich.console import Console

from refsam.errors import ConfigError, RunFailed, SlurmUnavailable, os_problem
from refsam.orchestration.slurm import patience
from refsam.orchestration.submission.resubmit import frozen, resubmit
from refsam.orchestration.submission.sweeps import where
from refsam.records.paths import RunPaths, RunsFolder, SweepPaths
from refsam.records.recovery import read_record
from refsam.records.status import State


def submit_again(
    due: Sequence[str], folder: RunsFolder, sweep: SweepPaths, console: Console
) -> tuple[str, ...]:
    """Submit the runs of which `is_due` holds; the ids of those that are in the queue then.

    Only runs of this user, and where refsam itself may submit. Nothing is waited for and nothing raised: what
    cannot be submitted now is said, and due again the next time that somebody looks.
    """

    def say(problem: Exception) -> None:
        why = os_problem(problem) if isinstance(problem, OSError) else problem
        console.print(f"refsam: not submitted again now: {why}", markup=False, soft_wrap=True)

    ours = []
    for run_id in due:
        try:
            if _is_ours(folder.run(run_id)):
                ours.append(run_id)
        except (ConfigError, OSError) as error:  # of its configuration; the others go on
            say(error)
    if not ours:
        return ()
    console.print(f"Killed with their jobs: {', '.join(ours)}", markup=False, soft_wrap=True)
    try:
        with patience.hurried():
            # Looking at a sweep shall not fail for what is missing now: the attempt says it.
            resubmit(ours, folder, sweep, console, look=False)
    except (ConfigError, RunFailed, SlurmUnavailable, OSError) as error:
        say(error)
    return tuple(run_id for run_id in ours if read_record(folder.run(run_id)).state is State.pending)


def _is_ours(paths: RunPaths) -> bool:
    try:
        config = frozen(paths)
    except ConfigError:
        return False  # a configuration of no use is named by whoever looks
    submits = where(config) == "slurm" and not config.cluster.script_only
    return submits and paths.root.stat().st_uid == os.geteuid()
