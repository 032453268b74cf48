"""Runs whose job was killed whole, so that nothing in it could begin their next attempt: submitted again.

A job's own process does what the table of retries says (in_job.supervisor). Where it was killed, too, or
Slurm did not take its job back, whoever looks at the sweep next does it.
"""

import os
from collections.abc import Sequence

from rich.console import Console

from refsam.errors import BadInput, RunFailed
from refsam.orchestration.submission.resubmit import frozen, resubmit
from refsam.orchestration.submission.sweeps import where
from refsam.records.paths import RunPaths, RunsFolder, SweepPaths
from refsam.records.recovery import read_record
from refsam.records.status import State


def submit_again(
    due: Sequence[str], folder: RunsFolder, sweep: SweepPaths, console: Console
) -> tuple[str, ...]:
    """Submit the runs of which `is_due` holds; the ids of those that are in the queue then.

    Only runs of this user, and where refsam itself may submit. What Slurm does not take now is due again the
    next time that somebody looks.
    """
    ours = [run_id for run_id in due if _is_ours(folder.run(run_id))]
    if not ours:
        return ()
    console.print(f"Killed with their jobs: {', '.join(ours)}", markup=False, soft_wrap=True)
    try:
        # Looking at a sweep shall not fail for what is missing now: the attempt says it.
        resubmit(ours, folder, sweep, console, look=False)
    except RunFailed as error:
        console.print(f"refsam: {error}", markup=False, soft_wrap=True)
    return tuple(run_id for run_id in ours if read_record(folder.run(run_id)).state is State.pending)


def _is_ours(paths: RunPaths) -> bool:
    try:
        config = frozen(paths)
    except BadInput:
        return False  # a configuration of no use is named by whoever looks
    submits = where(config) == "slurm" and not config.cluster.script_only
    return submits and paths.root.stat().st_uid == os.geteuid()
