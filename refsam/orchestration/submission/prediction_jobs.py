"""`refsam predict --on RESOURCE`: an array of Slurm jobs, each of which segments its part of the images.

A task is the same command with `--part K/N`, so whatever is complete is skipped when it starts again.
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.errors import MissingConfigException

from refsam.configuration.compose import compose
from refsam.configuration.schema import RefsamConfig
from refsam.errors import ConfigError, RunFailed, nearest
from refsam.orchestration.slurm.requests import request_text
from refsam.orchestration.submission.pickled_jobs import job_in_queue, submit
from refsam.orchestration.submission.slurm_script import check_folder, parameters

IMAGES_PER_TASK = 50  # few enough to be spread over GPUs, and many for the minute that a task takes to start


@dataclass(frozen=True)
class PredictionJob:
    """A task of the array; picklable, called by submitit. Raises RunFailed when the command fails."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        command = [sys.executable, "-m", "refsam.cli", "predict", *self.arguments]
        status = subprocess.run(command, check=False).returncode
        if status:
            raise RunFailed(f"refsam predict ended with status {status}; its words are above")


def submit_predictions(
    arguments: Sequence[str], n_images: int, resource: str, output: Path, say: Callable[[str], object]
) -> None:
    """Submit the array unless one for this output is in the queue, and return.

    Args:
        arguments: of refsam predict, without `--part`; paths are absolute.
        n_images: that are not complete.
        output: folder of the predictions, in which the jobs' logs are.

    Raises:
        ConfigError: when there is no such resource, or its request cannot be a job script.
        SlurmUnavailable: when Slurm does not answer.
        RunFailed: with what sbatch said.
    """
    check_folder(output)
    config = _configuration(resource)
    name = f"refsam-predict-{hashlib.sha256(str(output).encode()).hexdigest()[:8]}"
    if waiting := job_in_queue(name):
        say(f"job {waiting} for {output} is in the queue or running already")
        return
    tasks = -(-n_images // IMAGES_PER_TASK)
    jobs = [PredictionJob((*arguments, "--part", f"{number}/{tasks}")) for number in range(1, tasks + 1)]
    values = parameters(config.resource.request, config.cluster, [], "predict", name)
    values["comment"] = f"refsam predict into {output.name}"
    number = str(submit(jobs, output / "jobs", values)[0].job_id).partition("_")[0]
    words = f"{tasks} tasks" if tasks > 1 else "1 task"
    say(f"job {number}: {words} for {n_images} images, {request_text(config.resource.request)}")
    say(f"the same command without --on says what is there; logs are in {output / 'jobs'}")


def _configuration(resource: str) -> RefsamConfig:
    try:
        return compose([f"resource={resource}", "cluster=slurm"])
    except MissingConfigException as error:
        names = list(error.options or ())
        raise ConfigError(
            f"--on must be {', '.join(names)}, got {resource!r}{nearest(resource, names)}"
        ) from error
