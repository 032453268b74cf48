"""What sbatch is told about an array: a request, a site and some runs as submitit's parameters."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import refsam
from refsam.configuration.resources import folder
from refsam.configuration.schema import ClusterConfig, RequestConfig
from refsam.errors import ConfigError, nearest
from refsam.orchestration.in_job.job import thread_environment
from refsam.orchestration.slurm.environment import chosen, prologue_line
from refsam.orchestration.slurm.requests import minutes, slurm_time
from refsam.orchestration.submission.snapshot import prologue_lines
from refsam.records.run import Run

COMMENT_LENGTH = 1000  # characters; slurmctld refuses more than 1024
# Options of sbatch that refsam sets from the configuration, or that would make a job another thing than an
# array of runs.
_OWN = {
    "account": "cluster.account",
    "array": "cluster.array_parallelism",
    "constraint": "cluster.constraint",
    "cores-per-socket": "resource.request.cores",
    "cpus-per-task": "resource.request.cores",
    "cpus-per-gpu": "resource.request.cores",
    "exclude": "cluster.exclude",
    "gpus": "resource.request.gpus",
    "gpus-per-node": "resource.request.gpus",
    "gpus-per-socket": "resource.request.gpus",
    "gpus-per-task": "resource.request.gpus",
    "mem": "resource.request.memory_gb",
    "mem-per-cpu": "resource.request.memory_gb",
    "mem-per-gpu": "resource.request.memory_gb",
    "partition": "resource.request.partition",
    "qos": "cluster.qos",
    "signal": "cluster.signal_seconds",
    "time": "resource.request.time",
    **dict.fromkeys(
        (
            *("chdir", "cluster", "clusters", "comment", "dependency", "error", "export", "export-file"),
            *("help", "hold", "input", "job-name", "kill-on-invalid-dep", "no-requeue", "nodes", "ntasks"),
            *("ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket", "open-mode"),
            *("output", "parsable", "quiet", "requeue", "test-only", "uid", "usage", "verbose", "version"),
            *("wait", "wrap"),
        )
    ),
}


def parameters(
    request: RequestConfig,
    cluster: ClusterConfig,
    runs: Sequence[Run],
    sweep: str,
    job_name: str,
    snapshot: Path | None = None,
) -> dict[str, Any]:
    """Parameters of submitit.SlurmExecutor for the array of `runs`, which is submitted on hold.

    Jobs take their code from `snapshot`, where there is one, and not from where it is edited.

    Raises ConfigError for a time that Slurm does not know, a further option that is none or refsam's own, a
    template that is not there, and text that a job script cannot carry.
    """
    comment = f"refsam sweep {sweep}: {' '.join(run.run_id for run in runs)}"
    threads = thread_environment(request.cores)
    optional = {
        "partition": request.partition or chosen("partition"),
        "account": cluster.account or chosen("account"),
        "qos": cluster.qos or chosen("qos"),
        "constraint": cluster.constraint or chosen("constraint"),
        "exclude": cluster.exclude,
        # In units of 1024 for sbatch, so GiB.
        "mem": None if request.memory_gb is None else f"{request.memory_gb}G",
    }
    # A job is put back into the queue when it is interrupted, also where the site's default is not to.
    extra: dict[str, Any] = {"hold": True, "requeue": True, "time": slurm_time(minutes(request.time))}
    if reservation := chosen("reservation"):
        extra["reservation"] = reservation
    extra |= dict(map(parse_option, cluster.extra))
    if request.gpus:
        extra["gpus"] = str(request.gpus) if request.gpu is None else f"{request.gpu}:{request.gpus}"
    values: dict[str, Any] = {
        "job_name": job_name,
        "comment": comment if len(comment) <= COMMENT_LENGTH else comment[: COMMENT_LENGTH - 1] + "…",
        **{name: value for name, value in optional.items() if value is not None},
        "cpus_per_task": request.cores,
        "time": minutes(request.time),  # for submitit; sbatch is given the one above
        "signal_delay_s": min(cluster.signal_seconds, minutes(request.time) * 60 // 4),
        "array_parallelism": cluster.array_parallelism or len(runs),
        # numpy fixes its number of threads when it is imported, which is before the run begins.
        "setup": [
            made_by(),
            prologue_line(frozenset(extra)),
            *(f"export {name}={value}" for name, value in threads.items()),
            *([] if snapshot is None else prologue_lines(snapshot)),
            *prologue(cluster.template),
        ],
        # Since Slurm 22.05 srun no longer takes this over from the job.
        "srun_args": [f"--cpus-per-task={request.cores}"],
        "stderr_to_stdout": True,
        "additional_parameters": extra,
    }
    for name, value in {**values, **extra}.items():
        if isinstance(value, str):
            _check_text(name, value)
    return values


def parse_option(option: str) -> tuple[str, str | bool]:
    """Name and value (True where it has none) of a further option of sbatch (cluster.extra).

    Raises ConfigError for what cannot be one.
    """
    field = f"cluster.extra: {option!r} was given"
    if re.fullmatch(r"--[a-z][a-z-]*[a-z](=.+)?", option) is None or not option.isprintable():
        raise ConfigError(f"{field}; expected an option of sbatch in one line, as --name=value or --name")
    name, equals, value = option.removeprefix("--").partition("=")
    # sbatch also takes the beginning of a name.
    own = name if name in _OWN else next((each for each in _OWN if each.startswith(name)), None)
    if own is not None:
        instead = f"; give {_OWN[own]}" if _OWN[own] else ""
        raise ConfigError(f"{field}, but refsam sets --{own} itself{instead}")
    if name == "gres" and re.search(r"(^|,)(gres[/:])?gpu\b", value):
        raise ConfigError(f"{field}, but refsam asks for GPUs itself; give resource.request.gpu and .gpus")
    return name, value if equals else True


def made_by() -> str:
    """A comment of bash that names the command and the version that made a script."""
    command = shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])
    words = f"# made by refsam {refsam.__version__}: {command}"
    return "".join(character if character.isprintable() else " " for character in words)


def follow(values: dict[str, Any], array: str | None) -> None:
    """Let an array with these parameters begin after another one: each task when the other one's task of the
    same number has succeeded. Where that can no longer be, Slurm cancels the task.

    It needs not be put on hold, since the other one is.

    Args:
        array: the other one's number; None where who submits the array says it.
    """
    extra = values["additional_parameters"]
    del extra["hold"]
    extra["kill_on_invalid_dep"] = "yes"
    if array is not None:
        extra["dependency"] = f"aftercorr:{array}"


def check_folder(path: Path) -> None:
    """Raise ConfigError for a folder whose name means something else in a job script than in the shell."""
    _check_text("runs", str(path))
    if "%" in str(path) or "\\" in str(path):
        raise ConfigError(f"runs={path}, but Slurm replaces % and \\ in the names of its log files")


def prologue(template: str | None) -> list[str]:
    """The lines of a site's template: what a job does before its run. Raises ConfigError where it is
    missing.
    """
    if template is None:
        return []
    known = {path.stem: path for path in sorted(folder("slurm_templates").glob("*.sh"))}
    path = known.get(template, Path(template).expanduser())
    if not path.is_file():
        raise ConfigError(
            f"cluster.template must be {', '.join(known)} or the path of a file, got {template}"
            f"{nearest(template, known)}"
        )
    return path.read_text(encoding="utf-8").splitlines()


def _check_text(name: str, value: str) -> None:
    if not value.isprintable():  # a line break would end the comment that a line for sbatch is
        raise ConfigError(f"{name} must be text of one line without control characters, got {value!r}")
