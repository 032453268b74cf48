"""refsam as Hydra sees it: a sweeper, a launcher, and the folder where named sweeps are found.

Any Hydra sweeper can drive the launcher. The sweeper is Hydra's own basic one less two things: it does not
compose every job only to check it, because the launcher's plan checks all of them, and it leaves no
multirun.yaml behind. Hydra imports this file in every Hydra application of the environment, so what is heavy
is imported when it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from refsam.configuration.resources import folder
from refsam.configuration.schema import ClusterConfig, RequestConfig, ResourceConfig
from refsam.configuration.text_values import quote_text
from refsam.datasets.pair import DataMissing
from refsam.errors import ConfigError, RunFailed
from refsam.system.terminal import standard_console

if TYPE_CHECKING:
    from refsam.records.status import Status


class RefsamLauncher(Launcher):
    """Plans all jobs of a sweep together and runs what is not done.

    The jobs of an application that is not refsam's are run as they are; only for them are:

    Args:
        kind: local (in this process) or slurm.
        request: what Slurm is asked for, for each job.
        cluster: account, QOS and so on, as in refsam's cluster group.
    """

    def __init__(self, kind: str, request: DictConfig, cluster: DictConfig) -> None:
        self.kind = kind
        self.request = request
        self.cluster = cluster
        self.unfinished = 0  # runs without a result, baselines included, which no job asked for

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; one value for each, in their order: the best validation metric (lower is better), of
        folds their mean.

        The status stays UNKNOWN for a run that Slurm has and nobody waits for. A combination that cannot run
        is FAILED with ConfigError.
        """
        if not _is_refsam(self.config):
            return self._launch_others(job_overrides, initial_job_idx)
        from refsam.orchestration.planning.hydra_jobs import plan_jobs
        from refsam.orchestration.submission.sweeps import failed, objective, submit

        plan = plan_jobs(
            self.hydra_context.config_loader, self.config, [list(overrides) for overrides in job_overrides]
        )
        statuses = submit(plan, standard_console())
        self.unfinished += len(failed(statuses))
        if not statuses:
            return []  # a dry run
        returns = []
        for overrides, run_ids in zip(job_overrides, plan.jobs, strict=True):
            metrics = [objective(plan.folder.run(run), statuses[run]) for run in run_ids]
            returns.append(_job_return(list(overrides), [statuses[run] for run in run_ids], metrics))
        return returns

    def _launch_others(self, job_overrides: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        from refsam.orchestration.submission.other_tasks import Application, run_here, run_on_slurm

        application = Application(self.hydra_context, self.task_function, self.config)
        if self.kind == "local":
            return run_here(application, job_overrides, first)
        if self.kind != "slurm":
            raise ConfigError(f"hydra.launcher.kind must be local or slurm, got {self.kind}")
        request, cluster = OmegaConf.to_object(self.request), OmegaConf.to_object(self.cluster)
        assert isinstance(request, RequestConfig)
        assert isinstance(cluster, ClusterConfig)
        return run_on_slurm(application, job_overrides, first, request, cluster)


def _is_refsam(config: DictConfig | None) -> bool:
    """Whether an application composes refsam's configuration."""
    if config is None or "resource" not in config:
        return False
    return OmegaConf.get_type(config, "resource") is ResourceConfig


def _job_return(
    overrides: list[str], statuses: "Sequence[Status]", metrics: Sequence[float | None]
) -> JobReturn:
    """Of a run, or of all folds of one; of none where the combination cannot run."""
    result = JobReturn(overrides=overrides)
    ended = [status for status in statuses if status.state.value in ("failed", "unreadable")]
    if not statuses:
        result.status = JobStatus.FAILED
        result.return_value = ConfigError("the combination cannot run; dry_run=true says why")
    elif ended:
        result.status = JobStatus.FAILED
        result.return_value = RunFailed(ended[0].message or "not completed")
    elif all(status.state.value == "completed" for status in statuses):
        known = [metric for metric in metrics if metric is not None]
        result.status = JobStatus.COMPLETED
        result.return_value = sum(known) / len(known) if len(known) == len(metrics) else None
    return result


class RefsamSweeper(BasicSweeper):
    """The cartesian product of all values, handed to the launcher at once."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.launcher is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = [*self._parse_config(), *arguments]
        overrides = parser.parse_overrides(quote_text(given) if _is_refsam(self.config) else given)
        for override in overrides:
            if override.is_interval_sweep():  # an interval has no number of values
                value = str(override.input_line).partition("=")[2]
                raise ConfigError(
                    f"{override.get_key_element()} must be values with commas, choice(…), range(…) or "
                    f"glob(…), got {value}"
                )
        returns: list[JobReturn] = []
        try:
            for batch in self.split_arguments(overrides, self.max_batch_size):
                returns += self.launcher.launch(batch, initial_job_idx=len(returns))
        except DataMissing as error:
            raise ConfigError(f"{error}{_comma_hint(overrides)}") from error
        unfinished = getattr(self.launcher, "unfinished", 0)
        if unfinished:
            raise RunFailed(f"{unfinished} of the runs have no result; the lines above say why")
        return returns


def _comma_hint(overrides: Sequence[Override]) -> str:
    """How to write a folder of images whose name has a comma, which -m takes for several folders."""
    for override in overrides:
        if override.get_key_element() == "dataset.root" and override.is_sweep_override():
            value = str(override.input_line).partition("=")[2]
            return f"; one folder with a comma in its name: \"dataset.root='{value}'\""
    return ""


class RefsamSearchPath(SearchPathPlugin):
    """Named sweeps are found beside the configuration, for `--config-name NAME`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        configuration = str(folder("conf"))
        if any(element.path.removeprefix("file://") == configuration for element in search_path.get_path()):
            search_path.append(provider="refsam", path=f"file://{folder('sweeps')}")


@dataclass
class RefsamSweeperConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.refsam_hydra.RefsamSweeper"


@dataclass
class RefsamLauncherConf:
    _target_: str = "hydra_plugins.refsam_hydra.RefsamLauncher"
    kind: str = "local"
    request: RequestConfig = field(
        default_factory=lambda: RequestConfig(cores=1, memory_gb=4, time="1:00:00")
    )
    cluster: ClusterConfig = field(
        default_factory=lambda: ClusterConfig("slurm", explicit=False, parallel="auto", template="default")
    )


_STORE = ConfigStore.instance()
_STORE.store(group="hydra/sweeper", name="refsam", node=RefsamSweeperConf, provider="refsam")
_STORE.store(group="hydra/launcher", name="refsam", node=RefsamLauncherConf, provider="refsam")
