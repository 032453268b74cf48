"""Jobs that are no runs: fits, predictions, and the jobs of other Hydra applications, pickled by submitit."""

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from refsam.errors import RunFailed
from refsam.orchestration.in_job.own_pickles import PYTHON
from refsam.orchestration.slurm.environment import cleaned
from refsam.orchestration.slurm.questions import run_command


def job_in_queue(name: str) -> str | None:
    """The id of a job of this name that is pending or running. Raises SlurmUnavailable."""
    waiting = run_command(["squeue", "--noheader", f"--name={name}", "--format=%A"]).split()
    return waiting[0] if waiting else None


def submit(
    calls: Sequence[Callable[[], object]], folder: Path, values: dict[str, Any]
) -> "list[submitit.Job[Any]]":
    """One job, or an array of several, at once and not on hold.

    Args:
        folder: for the pickles and the logs.
        values: refsam.orchestration.submission.slurm_script.parameters.

    Raises:
        RunFailed: with what sbatch said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # jobs unpickle what lies here: nobody else may write it
    extra = {name: value for name, value in values["additional_parameters"].items() if name != "hold"}
    parallel = values["array_parallelism"] or len(calls)
    executor = submitit.SlurmExecutor(folder, python=PYTHON)
    executor.update_parameters(**{**values, "additional_parameters": extra, "array_parallelism": parallel})
    try:
        # submitit prints what sbatch says before it raises it.
        with cleaned(), contextlib.redirect_stderr(io.StringIO()), executor.batch():
            return [executor.submit(call) for call in calls]
    except (FailedJobError, FailedSubmissionError) as error:
        raise RunFailed((str(error).strip().splitlines() or ["sbatch failed"])[-1]) from error
