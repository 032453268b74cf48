"""refsam as Hydra sees it: a sweeper, a launcher, and the folder where named sweeps are found.

Any Hydra sweeper can drive the launcher. The sweeper is Hydra's own basic one less two things: it does not
compose every job only to check it, because the launcher's plan checks all of them, and it leaves no
multirun.yaml behind. Hydra imports this file in every Hydra application of the environment, so what is heavy
is imported when it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from refsam.configuration.compose import quote_numbers
from refsam.configuration.resources import folder
from refsam.errors import RunFailed


class RefsamLauncher(Launcher):
    """Plans all jobs of a sweep together and runs what is not done."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs. The return value of each is the run's best validation metric (lower is better)."""
        from rich.console import Console

        from refsam.orchestration.hydra_jobs import plan_jobs
        from refsam.orchestration.submission import submit
        from refsam.records.status import State

        plan = plan_jobs(
            self.hydra_context.config_loader, self.config, [list(overrides) for overrides in job_overrides]
        )
        statuses = submit(plan, Console())
        returns = []
        for run in plan.runs:
            status = statuses.get(run.run_id)
            if status is None:
                continue  # a dry run
            result = JobReturn(overrides=[f"{key}={value}" for key, value in run.overrides.items()])
            if status.state in (State.pending, State.running):
                returns.append(result)  # its status stays UNKNOWN: Slurm has it, and nobody waits for it here
                continue
            completed = status.state == State.completed
            result.status = JobStatus.COMPLETED if completed else JobStatus.FAILED
            result.return_value = (
                status.best_metric if completed else RunFailed(status.message or "not completed")
            )
            returns.append(result)
        return returns


class RefsamSweeper(BasicSweeper):
    """The cartesian product of all values, handed to the launcher at once."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.launcher is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(quote_numbers([*self._parse_config(), *arguments]))
        returns: list[JobReturn] = []
        for batch in self.split_arguments(overrides, self.max_batch_size):
            returns += self.launcher.launch(batch, initial_job_idx=len(returns))
        unfinished = sum(result.status == JobStatus.FAILED for result in returns)
        if unfinished:
            raise RunFailed(f"{unfinished} of {len(returns)} runs have no result; the lines above say why")
        return returns


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


_STORE = ConfigStore.instance()
_STORE.store(group="hydra/sweeper", name="refsam", node=RefsamSweeperConf, provider="refsam")
_STORE.store(group="hydra/launcher", name="refsam", node=RefsamLauncherConf, provider="refsam")
