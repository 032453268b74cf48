"""Job scripts for sites where Python may not submit: a person reads them and hands them to sbatch."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refsam.configuration.schema import ClusterConfig, RequestConfig
from refsam.errors import SlurmUnavailable
from refsam.orchestration.in_job.job import SCIENCE
from refsam.orchestration.lifecycle.attempts import LOG
from refsam.orchestration.slurm import site
from refsam.orchestration.slurm.patience import Say
from refsam.orchestration.slurm.requests import by_jobs, request_text
from refsam.orchestration.submission.slurm_script import check_folder, follow, parameters
from refsam.orchestration.submission.snapshot import take_snapshot
from refsam.records.paths import RunsFolder, SweepPaths, file_name
from refsam.records.run import Run
from refsam.system.files import write_text

USUAL_ARRAY_SIZE = 1000  # Slurm's own default of MaxArraySize is 1001
# Parameters of submitit that are no options of sbatch.
_NOT_OPTIONS = frozenset(
    {"additional_parameters", "array_parallelism", "setup", "signal_delay_s", "srun_args", "stderr_to_stdout"}
)
SIGNAL_SECONDS = 90  # before the time limit, where the parameters do not say


@dataclass(frozen=True)
class JobScript:
    """A script that a person submits.

    Attributes:
        then: the script of the array that evaluates what this one trains, task by task.
    """

    path: Path
    then: Path | None

    @property
    def command(self) -> str:
        """What the person types."""
        first = shlex.quote(str(self.path.absolute()))
        if self.then is None:
            return f"sbatch {first}"
        then = shlex.quote(str(self.then.absolute()))
        return f'sbatch --dependency="aftercorr:$(sbatch --parsable {first})" {then}'


def write_scripts(
    runs: Sequence[Run],
    folder: RunsFolder,
    sweep: SweepPaths,
    cluster: ClusterConfig,
    say: Say,
    entry_point: str = SCIENCE,
    beside: Sequence[JobScript] = (),
) -> list[JobScript]:
    """Write one job script per request (more where an array may not have so many tasks) and return them.

    Runs that are evaluated on another resource have a second one. The scripts of an earlier call are
    replaced, but for those to be left `beside` the new ones. Raises ConfigError for what a job script cannot
    carry.
    """
    check_folder(folder.root)
    largest = _largest_array(cluster, say)
    snapshot = take_snapshot(folder) if cluster.snapshot else None
    if not beside:
        shutil.rmtree(sweep.scripts, ignore_errors=True)
    logs = sweep.jobs / "scripts"
    for path in (sweep.scripts, logs):
        path.mkdir(parents=True, exist_ok=True)
    written: list[JobScript] = []
    for jobs, group in by_jobs(runs, folder):
        for start in range(0, len(group), largest):
            part = group[start : start + largest]
            paths: list[Path] = []
            for request in jobs.requests:
                is_evaluation = bool(paths)
                number = len(beside) + len(written) + 1
                name = f"{number}-{_name(request)}{'-evaluation' if is_evaluation else ''}"
                values = parameters(
                    request, cluster, part, sweep.name, f"refsam-{sweep.name}-{name}", snapshot
                )
                if is_evaluation:
                    follow(values, None)
                arguments = ["--train"] if jobs.then is not None and not is_evaluation else []
                text = script_text(request, values, part, folder, logs, entry_point, arguments)
                paths.append(sweep.scripts / f"{name}.sh")
                write_text(paths[-1], text)
            written.append(JobScript(paths[0], paths[1] if len(paths) > 1 else None))
    return written


def script_text(
    request: RequestConfig,
    values: dict[str, Any],
    runs: Sequence[Run],
    folder: RunsFolder,
    logs: Path,
    entry_point: str,
    arguments: Sequence[str],
) -> str:
    """The text of an array's script: options, prologue, the run directories, and one line that runs one.

    Args:
        logs: the folder of the logs, ARRAY_TASK.out.
    """
    options = {name: value for name, value in values.items() if name not in _NOT_OPTIONS}
    options |= {name: value for name, value in values["additional_parameters"].items() if name != "hold"}
    options["array"] = f"0-{len(runs) - 1}%{min(values['array_parallelism'], len(runs))}"
    options["output"] = str(logs.absolute() / "%A_%a.out")
    options["open_mode"] = "append"
    options["signal"] = f"USR2@{values.get('signal_delay_s', SIGNAL_SECONDS)}"
    log = f"{shlex.quote(str(logs.absolute()))}/${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}.out"
    directories = [shlex.quote(str(folder.run(run.run_id).root.absolute())) for run in runs]
    module = shlex.join([sys.executable, "-u", "-m", "refsam.orchestration.in_job.run_job", *arguments])
    other = [] if entry_point == SCIENCE else [shlex.quote(entry_point)]
    srun = shlex.join(["srun", "--unbuffered", *values["srun_args"]])
    lines = [
        "#!/bin/bash",
        f"# {len(runs)} of refsam's runs, each a task of this array: {request_text(request)}",
        *(_option(name, value) for name, value in sorted(options.items())),
        "",
        *values["setup"],
        f"export {LOG}={log}",
        *([] if request.gpus else ["export CUDA_VISIBLE_DEVICES=  # nothing was asked for"]),
        "",
        "runs=(",
        *(f"    {directory}" for directory in directories),
        ")",
        " ".join([srun, module, '"${runs[$SLURM_ARRAY_TASK_ID]}"', *other]),
    ]
    return "\n".join(lines) + "\n"


def _option(name: str, value: Any) -> str:
    option = name.replace("_", "-")
    return f"#SBATCH --{option}" if value is True else f"#SBATCH --{option}={shlex.quote(str(value))}"


def _name(request: RequestConfig) -> str:
    """A file name that says what the script asks for: `gpu-V100`."""
    words = [request.partition or "default", *([request.gpu or "gpu"] if request.gpus else [])]
    return file_name("-".join(words))


def _largest_array(cluster: ClusterConfig, say: Say) -> int:
    if cluster.max_array_size is not None:
        return cluster.max_array_size
    try:
        return site.max_array_size(lambda words: None)
    except SlurmUnavailable:
        say(
            f"scontrol does not answer: arrays have {USUAL_ARRAY_SIZE} runs at most; cluster.max_array_size=…"
        )
        return USUAL_ARRAY_SIZE
