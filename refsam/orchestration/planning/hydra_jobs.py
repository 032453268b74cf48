"""The plan of the jobs of a Hydra application."""

import sys

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from refsam.configuration.compose import Composer, without_hydra
from refsam.datasets.index import default_cache
from refsam.orchestration.planning.plan import Plan, Planner


def plan_jobs(loader: ConfigLoader, master: DictConfig, jobs: list[list[str]]) -> Plan:
    """Plan `jobs`, each a list of overrides of the application whose composed configuration is `master`.

    A sweep that has a file of its own (`--config-name NAME`) is named after it. Raises as Planner.plan does.
    """
    composer = Composer(
        load=lambda overrides: without_hydra(loader.load_sweep_config(master, overrides)),
        is_group=lambda key: bool(loader.get_group_options(key)),
    )
    config_name = OmegaConf.select(master, "hydra.job.config_name")
    named = None if config_name in (None, "config") else str(config_name)
    return Planner(composer, default_cache()).plan(jobs, sys.argv, named)
