"""What a submitted job executes: one run."""

import os
from dataclasses import dataclass
from pathlib import Path

from refsam.orchestration.in_job.supervisor import supervise
from refsam.records.paths import RunPaths
from refsam.system import own_job

SCIENCE = "refsam.science.run:execute"
TRAINS_ONLY = "REFSAM_TRAINS_ONLY"  # in the environment of a run that another job evaluates


@dataclass(frozen=True)
class RunJob:
    """Execute the run in the directory `root`, called inside the job.

    The science is a child process and imported there by its name: this module is also loaded by the process
    that submits, which must never import torch, and a job's own process stays small and survives the child.

    Attributes:
        root: the run directory.
        threads: CPU threads for the run; None leaves that to the job's environment.
        devices: CUDA_VISIBLE_DEVICES for the run (the empty string hides every GPU); None leaves it as the
            scheduler set it. submitit's local executor always sets it, to nothing unless GPUs are requested.
        entry_point: `module:function`; the function takes the run directory, holds the run's lock while it
            works, keeps status.json up to date and raises when the run fails.
        trains_only: whether another job evaluates the run.
    """

    root: str
    threads: int | None = None
    devices: str | None = None
    entry_point: str = SCIENCE
    trains_only: bool = False

    def __call__(self) -> None:
        """Raises what `supervise` raises."""
        if self.threads is not None:
            os.environ.update(thread_environment(self.threads))
        if self.devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.devices
        if self.trains_only:
            os.environ[TRAINS_ONLY] = "1"
        with own_job.own_job():
            supervise(RunPaths(Path(self.root)), self.entry_point)


def thread_environment(threads: int) -> dict[str, str]:
    """The environment variables that give a process `threads` CPU threads."""
    return {"REFSAM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
