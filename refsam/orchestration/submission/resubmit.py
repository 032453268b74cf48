"""Running runs again, from the configurations frozen in their directories: nothing is composed anew."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from refsam.configuration.evaluation_place import used_resources
from refsam.configuration.frozen import from_values
from refsam.configuration.run_names import check_name
from refsam.configuration.schema import ClusterConfig, RefsamConfig
from refsam.errors import ConfigError, RunFailed, SlurmUnavailable, os_problem
from refsam.orchestration import machine
from refsam.orchestration.planning.fetched import not_fetched
from refsam.orchestration.planning.preflight import Preflight, preflight_of
from refsam.orchestration.slurm import patience
from refsam.orchestration.submission.sweeps import hand_over_scripts, run_here, say, where
from refsam.records.paths import RunPaths, RunsFolder, SweepPaths
from refsam.records.recovery import read_record
from refsam.records.run import Run
from refsam.records.settings import labels, setting_values
from refsam.records.status import State
from refsam.system.files import read_yaml


def frozen_runs(configs: Mapping[str, RefsamConfig]) -> list[Run]:
    """Runs by their ids, with names that tell them apart."""
    names = labels({run_id: setting_values(config) for run_id, config in configs.items()})
    return [Run(run_id, config, names[run_id]) for run_id, config in configs.items()]


@dataclass(frozen=True)
class Outside:
    """How many runs are not in Slurm's queue.

    Attributes:
        no_room: because the site allows no more jobs at a time.
        by_hand: because a person submits them, whose job scripts were written.
    """

    no_room: int
    by_hand: int


def resubmit(
    run_ids: Sequence[str], folder: RunsFolder, sweep: SweepPaths, console: Console, look: bool = True
) -> Outside:
    """Give the runs to Slurm, or execute them here, as their configurations say. Each must have one.

    What is done, in the queue, or executed by another process is left alone.

    Args:
        look: first at what the runs need, as before they were submitted for the first time.

    Raises:
        ConfigError: when this machine is not what a run asks for, a configuration is damaged, or something
            that the runs need is missing.
        RunFailed: when runs could not be submitted.
    """
    runs = frozen_runs({run_id: frozen(folder.run(run_id)) for run_id in run_ids})
    for run in runs:
        if run.config.cluster.explicit or where(run.config) != "local":
            continue
        for problem in map(machine.matches, used_resources(run.config)):
            if problem is not None:
                raise ConfigError(problem)
    if look:
        look_at(runs, folder, console)
    here, no_room = [], 0
    by_hand: list[tuple[ClusterConfig, list[Run]]] = []
    for group in _by_cluster(runs):
        cluster = group[0].config.cluster
        if where(group[0].config) == "local":
            here += group
            continue
        if cluster.script_only:
            by_hand.append((cluster, group))
            continue
        from refsam.orchestration.submission.arrays import submit_to_slurm

        no_room += submit_to_slurm(group, folder, sweep, cluster, lambda sentence: say(console, sentence))
    if here:
        run_here(folder, here, console)
    if by_hand:
        hand_over_scripts(by_hand, folder, sweep, console)
    return Outside(no_room, sum(len(group) for _, group in by_hand))


def look_at(runs: Sequence[Run], folder: RunsFolder, console: Console) -> None:
    """Say what could not be looked at. Raises ConfigError that names all that the runs need and is
    missing.
    """
    problems: dict[str, None] = {}
    for group in _by_cluster(runs):
        missing = not_fetched(run.config for run in group)
        on_slurm = where(group[0].config) == "slurm"
        found = preflight_of(group, folder, missing, on_slurm, group[0].config.cluster)
        problems |= dict.fromkeys(found.problems)
        for note in found.notes:
            say(console, note)
    Preflight(tuple(problems), ()).check()


def _by_cluster(runs: Sequence[Run]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(run.config.cluster), []).append(run)
    return list(groups.values())


def frozen(paths: RunPaths) -> RefsamConfig:
    """The configuration in a run's directory. Raises ConfigError when it is damaged."""
    try:
        # Checked when it was frozen, and again by the job; OmegaConf takes a second for thirty of them.
        values = read_yaml(paths.config)
        config = from_values(RefsamConfig, values)
        check_name(paths.config, values)
        return config
    except (AttributeError, ConfigError, FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{paths.config} cannot be used: {error}") from error


def submit_again(
    due: Sequence[str], folder: RunsFolder, sweep: SweepPaths, console: Console
) -> tuple[str, ...]:
    """Submit again the runs of which `is_due` holds; the ids of those that are in the queue then.

    Their jobs were killed whole, so that nothing in them could begin the next attempt (in_job.supervisor), or
    Slurm did not take them back. Only runs of this user, and where refsam itself may submit. Nothing is
    waited for and nothing raised: what cannot be submitted now is said, and due again the next time that
    somebody looks.
    """

    def say(problem: Exception) -> None:
        why = os_problem(problem) if isinstance(problem, OSError) else problem
        console.print(f"refsam: not submitted again now: {why}", markup=False, soft_wrap=True)

    ours = []
    for run_id in due:
        try:
            if _is_ours(folder.run(run_id)):
                ours.append(run_id)
        except (ConfigError, OSError) as error:  # of its configuration; the others go on
            say(error)
    if not ours:
        return ()
    console.print(f"Killed with their jobs: {', '.join(ours)}", markup=False, soft_wrap=True)
    try:
        with patience.hurried():
            # Looking at a sweep shall not fail for what is missing now: the attempt says it.
            resubmit(ours, folder, sweep, console, look=False)
    except (ConfigError, RunFailed, SlurmUnavailable, OSError) as error:
        say(error)
    return tuple(run_id for run_id in ours if read_record(folder.run(run_id)).state is State.pending)


def _is_ours(paths: RunPaths) -> bool:
    try:
        config = frozen(paths)
    except ConfigError:
        return False  # a configuration of no use is named by whoever looks
    submits = where(config) == "slurm" and not config.cluster.script_only
    return submits and paths.root.stat().st_uid == os.geteuid()
