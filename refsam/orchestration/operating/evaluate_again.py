"""Finished runs measured in what is asked for beyond what was measured, from their frozen configurations."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from rich.console import Console

from refsam.configuration.frozen import freeze
from refsam.configuration.schema import EvaluateConfig, RefsamConfig
from refsam.errors import ConfigError, Unreadable
from refsam.orchestration.operating.targets import Target
from refsam.orchestration.planning.plan import measured_rows
from refsam.orchestration.slurm.questions import SlurmQuery, statuses
from refsam.orchestration.submission.resubmit import frozen, frozen_runs, look_at, resubmit
from refsam.records.measurements import extended, missing
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.recovery import read_record
from refsam.records.status import State, run_lock, write_status
from refsam.system.names import counted
from refsam.system.own_job import LOCK_SECONDS


@dataclass(frozen=True)
class Evaluated:
    """What became of the runs that were asked for.

    Attributes:
        missing: what is measured, in words, by run.
        complete: runs that have everything.
        unfinished: runs that are not trained, or at work.
        unusable: a sentence for each run whose configuration or results are of no use.
        states: of the runs that were given to Slurm or executed here, afterwards.
    """

    missing: dict[str, tuple[str, ...]]
    complete: tuple[str, ...]
    unfinished: tuple[str, ...]
    unusable: tuple[str, ...]
    states: dict[str, str]


def evaluate_again(
    target: Target, folder: RunsFolder, wanted: EvaluateConfig, named: Collection[str], console: Console
) -> Evaluated:
    """Measure what the fields `named` of `wanted` ask for, of runs that are completed, and is missing.

    Raises as `resubmit` does.
    """
    known, _ = statuses(folder, list(target.run_ids), SlurmQuery())
    complete, unfinished, unusable, configs = [], [], [], {}
    absent: dict[str, tuple[str, ...]] = {}
    for run_id in target.run_ids:
        paths = folder.run(run_id)
        if known[run_id].state is not State.completed:
            unfinished.append(run_id)
            continue
        try:
            config = _with(frozen(paths), wanted, named)
            left = missing(config.evaluate, measured_rows(paths))
        except (ConfigError, Unreadable) as error:
            unusable.append(f"run {run_id} is left out: {error}")
            continue
        if left:
            absent[run_id] = tuple(each.words for each in left)
            configs[run_id] = config
        else:
            complete.append(run_id)
    # Before the records of finished runs are opened.
    look_at(frozen_runs(configs), folder, console)
    for run_id, config in configs.items():
        _reopen(folder.run(run_id), config)
    if configs:
        runs = counted(len(configs), "run")
        console.print(f"{target.words}: {runs} to evaluate", markup=False, soft_wrap=True)
        resubmit(list(configs), folder, target.sweep, console, look=False)
    states = {run_id: str(read_record(folder.run(run_id)).state) for run_id in configs}
    return Evaluated(absent, tuple(complete), tuple(unfinished), tuple(unusable), states)


def _with(config: RefsamConfig, wanted: EvaluateConfig, named: Collection[str]) -> RefsamConfig:
    names = {*named, *(["resource"] if "where" in named else [])}
    given = replace(config.evaluate, **{name: getattr(wanted, name) for name in names})
    return replace(config, evaluate=extended(config.evaluate, given))


def _reopen(paths: RunPaths, config: RefsamConfig) -> None:
    freeze(paths.config, config)
    with run_lock(paths, LOCK_SECONDS):
        write_status(paths, read_record(paths).changed(state=State.planned, phase=None))
