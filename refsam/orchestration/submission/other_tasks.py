"""The jobs of a Hydra application that is not refsam's: its task function, run for each job as it stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import submitit
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from refsam.configuration.schema import ClusterConfig, RefsamConfig, RequestConfig, ResourceConfig
from refsam.orchestration.in_job.own_pickles import require_own
from refsam.orchestration.submission.pickled_jobs import submit
from refsam.orchestration.submission.slurm_script import parameters
from refsam.records.run import Run


@dataclass(frozen=True)
class Application:
    """A Hydra application as it is handed to a launcher."""

    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig

    def run(self, overrides: Sequence[str], number: int, singletons: Any) -> JobReturn:
        """Inside a Slurm job: compose this job's configuration and call the task function."""
        Singleton.set_state(singletons)
        setup_globals()
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = submitit.JobEnvironment().job_id
            config.hydra.job.num = number
        return run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


def run_here(
    application: Application, jobs: Sequence[Sequence[str]], first_number: int
) -> Sequence[JobReturn]:
    """One job after the other, in this process, as Hydra's own launcher does."""
    launcher = BasicLauncher()
    launcher.setup(
        hydra_context=application.hydra_context,
        task_function=application.task_function,
        config=application.config,
    )
    return launcher.launch(jobs, first_number)


def run_on_slurm(
    application: Application,
    jobs: Sequence[Sequence[str]],
    first_number: int,
    request: RequestConfig,
    cluster: ClusterConfig,
) -> list[JobReturn]:
    """All jobs as one array with the same request; waits for all of them. A lost job is a failed one.

    Raises RunFailed with what sbatch said.
    """
    configure_log(application.config.hydra.hydra_logging, application.config.hydra.verbose)
    sweep = Path(str(application.config.hydra.sweep.dir)).absolute()
    folder = sweep / ".submitit"
    config = RefsamConfig(resource=ResourceConfig(name="any", request=request))
    described = [Run(words, config, words) for words in map(" ".join, jobs)]
    name = str(application.config.hydra.job.name)
    values = parameters(request, cluster, described, name, name)
    singletons = Singleton.get_state()
    calls = [
        partial(application.run, list(overrides), first_number + index, singletons)
        for index, overrides in enumerate(jobs)
    ]
    submitted = submit(calls, folder, values)
    for job in submitted:
        job.wait()
    require_own(folder)  # results are pickles, too
    return [_result(job, list(overrides)) for job, overrides in zip(submitted, jobs, strict=True)]


def _result(job: "submitit.Job[JobReturn]", overrides: list[str]) -> JobReturn:
    try:
        return job.result()
    except Exception as error:  # whatever ended the job is this job's result, and not the others'
        failed = JobReturn(overrides=overrides, status=JobStatus.FAILED)
        failed.return_value = error
        return failed
