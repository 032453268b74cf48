"""Where this process works on a run: in which Slurm job, if that is the run's own, and on which machine.

A run that somebody starts by hand in an interactive job does not own that job: nobody may cancel, requeue or
ask for it in the run's name. So only what a job of the run executes says so, and its children inherit it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_OWN_JOB = "REFSAM_OWN_JOB"
# In the environment of what a queue on this machine executes: how many runs it executes at a time.
LOCAL_QUEUE = "REFSAM_LOCAL_QUEUE"
LOCK_SECONDS = 10.0  # for whoever corrects a record at this moment
JOB_LOCK_SECONDS = 600.0


@contextmanager
def own_job() -> Iterator[None]:
    """This process and its children are the run's own job meanwhile, where it is Slurm that executes them."""
    before = os.environ.pop(_OWN_JOB, None)
    if LOCAL_QUEUE not in os.environ:
        os.environ[_OWN_JOB] = "1"
    try:
        yield
    finally:
        os.environ.pop(_OWN_JOB, None)
        if before is not None:
            os.environ[_OWN_JOB] = before


def job_id() -> str | None:
    """The job as sacct and scancel name it, `123_4` in an array; None outside of a job of the run."""
    if _OWN_JOB not in os.environ:
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def job_name() -> str | None:
    """What this job is called; None outside of a job of the run."""
    return None if job_id() is None else os.environ.get("SLURM_JOB_NAME")


def lock_seconds() -> float:
    """How long to wait for a run that another process holds, which may be stopped while it corrects a record.

    A job would lose its place in the queue; a person is told at once.
    """
    return LOCK_SECONDS if job_id() is None else JOB_LOCK_SECONDS


def host() -> str:
    """The machine; in a job of the run by the name that Slurm gives to the node."""
    node = os.environ.get("SLURMD_NODENAME") if job_id() else None
    return node or os.uname().nodename
