"""What the tests on a real Slurm share: runs to give to it, questions to ask it, and how to wait for it.

Waits end as soon as what they wait for is there. How long they would go on is no part of any test: machines
are slow when others use them.
"""

import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from refsam.configuration.schema import RefsamConfig, RequestConfig, ResourceConfig
from refsam.records.paths import RunsFolder

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
PATIENCE = 300  # seconds until a wait is given up
POLL_SECONDS = 0.2
LOG_LINES = 60
STAND_IN = "stand_in:execute"
SMALL = RequestConfig(partition="medium", cores=1, memory_gb=1, time="0:10:00")


@dataclass(frozen=True)
class Run:
    """A planned run as the submission sees it."""

    run_id: str
    config: RefsamConfig


def asking(request: RequestConfig) -> RefsamConfig:
    """The configuration of a run that asks for this."""
    return RefsamConfig(resource=ResourceConfig(name="any", request=request))


def add_run(
    folder: RunsFolder, run_id: str, behaviour: str = "complete", request: RequestConfig = SMALL
) -> Run:
    """A run directory for the stand-in, which does there what `behaviour` says."""
    paths = folder.run(run_id)
    paths.root.mkdir()
    (paths.root / "behaviour.txt").write_text(behaviour)
    return Run(run_id, asking(request))


def starts(folder: RunsFolder, run_id: str) -> list[str]:
    """The jobs that have started the stand-in in this run, one for each start."""
    path = folder.run(run_id).root / "starts.txt"
    return path.read_text().split() if path.exists() else []


def wait_until(condition: Callable[[], object]) -> None:
    """Return when the condition holds; where it never does the failure says what Slurm was doing."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened in {PATIENCE} seconds\n{what_slurm_does()}"
        time.sleep(POLL_SECONDS)


def slurm(*command: str) -> str:
    """What a command of Slurm prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}\n{what_slurm_does()}"
    return done.stdout


def queue(*fields: str) -> list[list[str]]:
    """The jobs that wait or run, one row for each array task, in squeue's fields."""
    command = ["squeue", "--noheader", "--array", "--states=PENDING,RUNNING", f"--format={'|'.join(fields)}"]
    return [line.split("|") for line in slurm(*command).splitlines()]


def nothing_is_left() -> bool:
    """Whether the queue is empty: a run is completed some moments before its job's own process has ended."""
    return slurm("squeue", "--noheader") == ""


def allocated(job_id: str) -> set[str]:
    """What Slurm gave a job: `cpu=8`, `mem=32G`, `gres/gpu:v100=1`.

    The controller is asked: it knows one job by this number, where the accounting may still know another one
    too, from before a restart. For an array's number it shows all tasks, which are given the same.
    """
    shown = slurm("scontrol", "show", "job", job_id)
    (given,) = set(re.findall(r"\b(?:Alloc)?TRES=(\S+)", shown))
    return set(given.split(","))


def what_slurm_does() -> str:
    """Queue, nodes and the end of the controller's log, for the message of a failure."""
    configuration = os.environ.get("SLURM_CONF")
    if configuration is None:
        return "no cluster runs"
    parts = []
    for command in (
        ["squeue", "--array", "--states=all", "--format=%i %j %T %r %N %S"],
        ["sinfo", "--list-reasons"],
        ["sinfo", "--Node", "--format=%N %T %C %e"],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            parts.append(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}")
        except subprocess.TimeoutExpired:
            parts.append(f"$ {' '.join(command)}\nno answer")
    log = Path(configuration).parent / "log" / "slurmctld.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else ["there is none"]
    return "\n".join([*parts, f"$ tail {log}", *lines[-LOG_LINES:]])
