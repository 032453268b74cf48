"""What a submitted job executes: one run. A job's pickle refers to this module and to nothing else."""

import faulthandler
import importlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

SCIENCE = "refsam.science.run:execute"


@dataclass(frozen=True)
class RunJob:
    """Execute the run in the directory `root`; picklable, called by submitit inside the job.

    The science is imported by its name, and only inside the job: this module is also loaded by the process
    that submits, which must never import torch, as naming the function itself would.

    Attributes:
        root: the run directory.
        threads: CPU threads for the run; None leaves that to the job's environment.
        devices: CUDA_VISIBLE_DEVICES for the run (the empty string hides every GPU); None leaves it as the
            scheduler set it. submitit's local executor always sets it, to nothing unless GPUs are requested.
        entry_point: `module:function`; the function takes the run directory, holds the run's lock while it
            works, keeps status.json up to date and raises when the run fails.
    """

    root: str
    threads: int | None = None
    devices: str | None = None
    entry_point: str = SCIENCE

    def __call__(self) -> None:
        """Raises whatever the entry point raises, and KeyboardInterrupt when the process gets SIGTERM."""
        faulthandler.enable()  # a crash of the interpreter leaves its stack in the log
        if self.threads is not None:
            os.environ.update(thread_environment(self.threads))
        if self.devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.devices
        # submitit has just made SIGTERM a line in the log. Here it means: save what there is, and end.
        signal.signal(signal.SIGTERM, _interrupt)
        module, function = self.entry_point.split(":")
        getattr(importlib.import_module(module), function)(Path(self.root))


def thread_environment(threads: int) -> dict[str, str]:
    """The environment variables that give a process `threads` CPU threads."""
    return {"REFSAM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Only the first one interrupts: a second must not break into the run while it writes its last status.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt("SIGTERM")
