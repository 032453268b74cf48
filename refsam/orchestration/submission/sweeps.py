"""From a plan to run directories and running jobs.

What executes runs is imported when there is something to execute: a dry run should answer at once.
"""

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

import refsam
from refsam.configuration.frozen import freeze, load
from refsam.configuration.schema import AUTO, ClusterConfig, RefsamConfig
from refsam.errors import ConfigError, DamagedManifest, RunFailed, Unreadable, WrittenByNewer
from refsam.orchestration import machine
from refsam.orchestration.in_job.job import SCIENCE
from refsam.orchestration.planning.estimate import estimate
from refsam.orchestration.planning.plan import Plan, PlannedRun, PlanState
from refsam.orchestration.planning.plan_view import print_expected, print_plan, summary
from refsam.orchestration.planning.preflight import machine_problem, preflight
from refsam.orchestration.slurm.requests import by_jobs
from refsam.records.measurements import extended
from refsam.records.paths import RunPaths, RunsFolder, SweepPaths, default_runs
from refsam.records.recovery import mend, read_record
from refsam.records.run import Run
from refsam.records.status import State, Status, now, run_lock, write_status
from refsam.records.training import read_training
from refsam.results.sweeps import MANIFEST_FORMAT
from refsam.system.cgroups import memory_gib
from refsam.system.files import check_format, read_json, write_json
from refsam.system.names import counted
from refsam.system.own_job import LOCK_SECONDS

WRITERS = 16  # files at a time
# Slurm's commands may be installed where no cluster is.
SLURM_CONFIGURATIONS = (
    Path("/etc/slurm/slurm.conf"),
    Path("/etc/slurm-llnl/slurm.conf"),
    Path("/run/slurm/conf"),
)


def submit(plan: Plan, console: Console, in_process: bool = False) -> dict[str, Status]:
    """Do what a plan asks for and return the final status of each run by its id.

    A dry run prints the plan and returns the statuses as they are. Raises ConfigError before anything is
    written
    when something that the runs need is missing, this machine is not the resource asked for, or the frozen
    configuration of every run to do is damaged.
    """
    asked, (plan, frozen) = plan, _with_frozen(plan)
    config = plan.runs[0].config
    on_slurm = not in_process and where(config) == "slurm"
    if config.cluster.script_only and not on_slurm:
        where_instead = "without -m" if in_process else "with cluster=local"
        raise ConfigError(
            f"cluster.script_only=true, but {where_instead} a run is executed here; expected "
            "-m with cluster=auto, cluster=slurm or a cluster of your own"
        )
    found = preflight(plan, on_slurm)
    if on_slurm:
        found = found.extended(_script_problems(plan))
    elif (problem := machine_problem(plan)) is not None:
        found = found.extended([problem])
    if asked.open and not plan.open:
        found = found.extended([run.note for run in plan.runs if run.plan_state is PlanState.unreadable])
    expected = estimate(by_jobs(plan.todo, plan.folder), plan.folder, on_slurm)
    if config.dry_run:
        print_plan(plan, console, expected, found)
        say(console, _destination(plan, on_slurm))
        if earlier := _earlier_runs(plan):
            say(console, f"Sweep {plan.name} has {earlier} already, which stay in it.")
        return {}
    for note in found.notes:
        say(console, note)
    found.check()
    prepare_folders(plan, frozen)
    console.print(summary(plan), soft_wrap=True)
    print_expected(expected, console)
    todo = plan.todo
    if in_process:
        for run in todo:
            _run_in_this_process(plan.folder.run(run.run_id))
    elif on_slurm and config.cluster.script_only:
        groups = [(config.cluster, plan.todo)]
        hand_over_scripts(groups, plan.folder, plan.folder.sweep(plan.name), console)
    elif on_slurm and plan.open:
        _submit_to_slurm(plan, console)
    elif todo and not on_slurm:
        run_here(plan.folder, todo, console)
    if plan.skipped:
        console.print(
            f"{len(plan.skipped)} combinations were left out; dry_run=true lists them with the reasons."
        )
    for run in plan.runs:
        with contextlib.suppress(OSError):  # another person's run stays as it is
            mend(plan.folder.run(run.run_id))
    statuses = {run.run_id: read_record(plan.folder.run(run.run_id)) for run in plan.runs}
    for run in plan.runs:
        if run.plan_state is PlanState.unreadable:
            say(console, f"Left alone: {run.note}")
            statuses[run.run_id] = Status(State.unreadable, message=run.note)
    say(console, f"The table: refsam collect {_arguments(plan)}")
    return statuses


def _destination(plan: Plan, on_slurm: bool) -> str:
    """Where the runs will be executed."""
    if on_slurm:
        return "Runs go to Slurm."
    gpus = machine.gpus()
    names = ", ".join(gpu.name for gpu in gpus) or "no GPU"
    return f"Runs are executed on this machine: {machine.cores()} cores, {memory_gib():.0f} GiB, {names}."


def _earlier_runs(plan: Plan) -> str:
    """`3 other runs`: those of the sweep's manifest that are not in the plan; empty without any."""
    asked = {run.run_id for run in plan.runs}
    known = _known_manifest(plan.folder.sweep(plan.name)).get("runs", ())
    number = sum(run["run_id"] not in asked for run in known)
    return counted(number, "other run") if number else ""


def _submit_to_slurm(plan: Plan, console: Console) -> None:
    """Submit what is not in the queue, and with wait=true stay until everything has ended."""
    from refsam.orchestration.submission.arrays import submit_to_slurm

    cluster, sweep = plan.runs[0].config.cluster, plan.folder.sweep(plan.name)
    before = {run.run_id: read_record(plan.folder.run(run.run_id)).attempt for run in plan.open}
    # Also those that wait there already: a submission that was killed has left them on hold.
    left = submit_to_slurm(plan.open, plan.folder, sweep, cluster, lambda text: say(console, text))
    if plan.runs[0].config.wait:
        _wait(plan, before, console)
    elif left:
        console.print(
            "The same command submits more of them when others have ended; with wait=true it stays."
        )
    else:
        console.print("The runs are submitted; the same command continues runs that were stopped or failed.")
        say(
            console,
            f"Where they are: refsam status {_arguments(plan)}; live: refsam watch {_arguments(plan)}",
        )


def _wait(plan: Plan, attempts_before: dict[str, int], console: Console) -> None:
    from refsam.orchestration.submission.arrays import submit_to_slurm
    from refsam.orchestration.submission.live_table import make_display
    from refsam.orchestration.submission.waiting import wait_for_runs

    cluster, sweep = plan.runs[0].config.cluster, plan.folder.sweep(plan.name)
    display = make_display(console)
    try:
        say(console, "Waiting until all runs have ended. Ctrl-C leaves the jobs running.")
        wait_for_runs(
            plan.open,
            plan.folder,
            attempts_before,
            display,
            lambda runs: submit_to_slurm(runs, plan.folder, sweep, cluster, display.say),
        )
    except KeyboardInterrupt:
        say(console, f"The jobs continue. To show them: refsam status {_arguments(plan)}")
        say(
            console,
            f"To wait for them again: the same command; to end them: refsam cancel {_arguments(plan)}",
        )
        raise


def hand_over_scripts(
    groups: Sequence[tuple[ClusterConfig, Sequence[Run]]],
    folder: RunsFolder,
    sweep: SweepPaths,
    console: Console,
) -> None:
    """Write the job scripts of the runs, and say how a person submits them."""
    from refsam.orchestration.submission.job_scripts import JobScript, write_scripts

    scripts: list[JobScript] = []
    for cluster, runs in groups:
        scripts += write_scripts(
            runs, folder, sweep, cluster, lambda text: say(console, text), beside=scripts
        )
    if scripts:
        console.print("Nothing was submitted. To submit the runs to do, type once:")
    for script in scripts:
        say(console, f"  {script.command}")


def _script_problems(plan: Plan) -> list[str]:
    """Why the runs to do cannot be made job scripts."""
    from refsam.orchestration.submission.arrays import check_submission

    cluster = plan.runs[0].config.cluster
    try:
        check_submission(plan.todo, plan.folder, plan.folder.sweep(plan.name), cluster)
    except ConfigError as error:
        return [str(error)]
    return []


def where(config: RefsamConfig) -> str:
    """`slurm` or `local`: what `cluster.kind` means on this machine."""
    if config.cluster.kind != AUTO:
        return config.cluster.kind
    if config.cluster.script_only:
        return "slurm"  # perhaps that of another machine
    configured = "SLURM_CONF" in os.environ or any(path.exists() for path in SLURM_CONFIGURATIONS)
    return "slurm" if shutil.which("sbatch") and configured else "local"


def prepare_folders(plan: Plan, frozen: Mapping[str, RefsamConfig]) -> None:
    """Write the manifest of the sweep, and a directory with the frozen configuration for every run to do.

    Raises DamagedManifest and ConfigError, before anything is written, for one that cannot be read.

    Args:
        frozen: the configurations that run directories have already, by run ids.
    """
    sweep = plan.folder.sweep(plan.name)
    manifest = _manifest(plan, _known_manifest(sweep))
    paths = [plan.folder.run(run.run_id) for run in plan.todo]
    # Most of the time goes into waiting for the disk.
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(_prepare_folder, paths, plan.todo, [frozen.get(run.run_id) for run in plan.todo]))
    sweep.root.mkdir(parents=True, exist_ok=True)
    write_json(sweep.manifest, manifest)


def _known_manifest(sweep: SweepPaths) -> dict[str, Any]:
    """What the sweep has been so far; nothing for a new one.

    Raises DamagedManifest, and ConfigError for a manifest that a newer refsam has written.
    """
    remedy = "remove it, and the same command rewrites it"
    try:
        known = read_json(sweep.manifest)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DamagedManifest(f"{error}; {remedy}") from error
    if not isinstance(known, dict) or not all("run_id" in run for run in known.get("runs", ())):
        raise DamagedManifest(f"{sweep.manifest} is damaged: it is not a manifest; {remedy}")
    try:
        check_format(known.get("format", MANIFEST_FORMAT), MANIFEST_FORMAT, sweep.manifest)
    except WrittenByNewer as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise DamagedManifest(f"{error}; {remedy}") from error
    return known


def _with_frozen(plan: Plan) -> tuple[Plan, dict[str, RefsamConfig]]:
    """What the directories of the runs to do have as their configurations, by run ids.

    Returns:
        Beside them the plan, in which a run whose configuration cannot be used is left alone.
    """
    todo = [run.run_id for run in plan.todo]
    with ThreadPoolExecutor(WRITERS) as pool:
        found = dict(zip(todo, pool.map(_frozen, map(plan.folder.run, todo)), strict=True))
    runs = tuple(
        replace(run, plan_state=PlanState.unreadable, note=said) if isinstance(said, str) else run
        for run in plan.runs
        for said in [found.get(run.run_id)]
    )
    configs = {run: config for run, config in found.items() if isinstance(config, RefsamConfig)}
    return replace(plan, runs=runs), configs


def _frozen(paths: RunPaths) -> RefsamConfig | str | None:
    """The configuration that a run directory has already, or why it cannot be used and what to do."""
    try:
        return load(paths.config)
    except FileNotFoundError:
        return None
    except Unreadable as error:
        return str(error)
    except (ValueError, ConfigError, OmegaConfBaseException) as error:
        words = str(error).splitlines()[0]
        named = words if str(paths.config) in words else f"{paths.config} is damaged ({words})"
        return f"{named}; remove the directory of the run, and the same command starts it again"


def _arguments(plan: Plan) -> str:
    """The sweep as the commands take it at this prompt."""
    here = plan.folder.root == Path(default_runs()).expanduser().absolute()
    return plan.name if here else f"{plan.name} --runs {shlex.quote(str(plan.folder.root))}"


def _prepare_folder(paths: RunPaths, run: PlannedRun, frozen: RefsamConfig | None) -> None:
    paths.root.mkdir(parents=True, exist_ok=True)
    config = run.config
    if frozen is not None:
        # What was frozen stays; only what nobody asked to measure before is added.
        config = replace(frozen, evaluate=extended(frozen.evaluate, config.evaluate))
    if config != frozen:
        freeze(paths.config, config)
    if run.plan_state == PlanState.evaluate:
        with run_lock(paths, LOCK_SECONDS):
            write_status(paths, read_record(paths).changed(state=State.planned, phase=None))


def _manifest(plan: Plan, known: dict[str, Any]) -> dict[str, Any]:
    """What a sweep is: all runs that were ever asked for under its name, in the order of asking."""
    runs = [{"run_id": run.run_id, "overrides": run.overrides} for run in plan.runs]
    skipped = [{"overrides": item.overrides, "reason": item.reason} for item in plan.skipped]
    asked = {run["run_id"] for run in runs}
    earlier = [run for run in known.get("runs", []) if run["run_id"] not in asked]
    command = list(plan.command)
    # Of a manifest from before all commands were kept, the last one is known.
    commands = known.get("commands", [known["command"]] if known.get("command") else [])
    return {
        "format": MANIFEST_FORMAT,
        "name": plan.name,
        "command": command,
        "commands": [*(each for each in commands if each != command), command],
        "refsam": refsam.__version__,
        "python": sys.version.split()[0],
        "created": known.get("created", now()),
        "updated": now(),
        "runs": [*earlier, *runs],
        "skipped": [*(item for item in known.get("skipped", []) if item not in skipped), *skipped],
    }


def say(console: Console, sentence: str) -> None:
    """A sentence for the person, as it stands."""
    console.print(escape(sentence), soft_wrap=True)


def _run_in_this_process(paths: RunPaths) -> None:
    from refsam.orchestration.in_job import child
    from refsam.orchestration.lifecycle.attempts import attempt_here

    try:
        attempt_here(paths, lambda root: child.execute(SCIENCE, root))
    except Exception as error:
        message = read_record(paths).message or error
        raise RunFailed(f"{message} (HYDRA_FULL_ERROR=1 shows the traceback)") from error


def run_here(folder: RunsFolder, todo: Sequence[Run], console: Console) -> None:
    """Execute the runs on this machine, as many at a time as fit, and return when all have ended."""
    from refsam.orchestration.submission.live_table import make_display
    from refsam.orchestration.submission.local import run_locally

    cores = machine.cores()
    on_gpus = any(run.config.resource.device != "cpu" for run in todo)
    parallel = machine.parallel_runs(
        todo[0].config.cluster.parallel,
        memory_gb_per_run=max(run.config.model.memory_gb for run in todo),
        cores=min(cores, len(todo)),
        memory_available_gb=machine.memory_available_gb(),
        devices=len(machine.usable_devices()) if on_gpus else 0,
    )
    run_locally(todo, folder, parallel, machine.threads_per_run(parallel, cores), make_display(console))


def objective(paths: RunPaths, status: Status) -> float | None:
    """The best validation metric of a completed run, lower is better; None for one that trained nothing."""
    if status.best_metric is not None or status.state is not State.completed:
        return status.best_metric
    try:
        best: float | None = read_training(paths.training).get("best_metric")
    except (FileNotFoundError, ValueError):  # a baseline; or damaged, which the table of the results says
        return None
    return best


def failed(statuses: dict[str, Status]) -> list[str]:
    """The ids of the runs that ended without a result, or whose records cannot be read."""
    without = (State.failed, State.unreadable)
    return [run_id for run_id, status in statuses.items() if status.state in without]
