"""A fit on the resource itself: one Slurm job for each resource, which runs the same fit there.

What it measures lies in the runs folder as if it had been measured here, so the same command shows it later.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refsam.configuration.schema import RefsamConfig
from refsam.orchestration.fit.command import Options, fit_all, folder_of, requests_of
from refsam.orchestration.fit.measure import Say
from refsam.orchestration.fit.requests import resolve
from refsam.orchestration.slurm.requests import request_text
from refsam.orchestration.submission.pickled_jobs import job_in_queue, submit
from refsam.orchestration.submission.slurm_script import check_folder, parameters

SPARE_MINUTES = 30  # after the time for the search: for the step that is being measured when it is over

Combination = tuple[tuple[str, ...], RefsamConfig]


@dataclass(frozen=True)
class FitJob:
    """The fit of some combinations on the machine that it is called on; picklable, called by submitit."""

    combinations: tuple[tuple[str, ...], ...]
    options: Options
    runs: str

    def __call__(self) -> None:
        resolved = [combination for job in self.combinations for combination in resolve(job)]
        requests, _ = requests_of(resolved, self.options, on_the_resource=True)
        fit_all(requests, self.options, folder_of(Path(self.runs)), lambda line: print(line, flush=True))


def submit_fits(combinations: Sequence[Combination], options: Options, runs: Path, say: Say) -> None:
    """Submit a job for each resource unless it is in the queue, and return.

    Raises ConfigError for what cannot be a job script, SlurmUnavailable where Slurm does not answer, and
    RunFailed with what sbatch said.
    """
    check_folder(runs)
    for resource in dict.fromkeys(config.resource.name for _, config in combinations):
        own = [(job, config) for job, config in combinations if config.resource.name == resource]
        fit = FitJob(tuple(job for job, _ in own), options, str(runs))
        config = own[0][1]
        name = f"refsam-fit-{resource}-{hashlib.sha256(repr(fit).encode()).hexdigest()[:8]}"
        if waiting := job_in_queue(name):
            say(f"{resource}: job {waiting} is in the queue or running already")
            continue
        number = _submit(fit, config, name, runs)
        say(f"{resource}: job {number}, {request_text(config.resource.request)}; the same command shows it")


def _submit(fit: FitJob, config: RefsamConfig, name: str, runs: Path) -> str:
    request = config.resource.request
    if fit.options.minutes is not None:
        request = replace(request, time=str(int(fit.options.minutes) + SPARE_MINUTES))
    values = parameters(request, config.cluster, [], "fit", name)
    values["comment"] = f"refsam fit {config.resource.name}"
    (job,) = submit([fit], folder_of(runs).root / "jobs", values)
    return str(job.job_id)
