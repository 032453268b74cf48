"""What is left of a cluster's jobs, found in their cgroups: Slurm's step daemons and what they started."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from tools.test_cluster.daemons import STOP_SECONDS
from tools.test_cluster.settings import CGROUPS, Settings, node_names

POLL_SECONDS = 0.2


def job_processes(settings: Settings) -> list[int]:
    """The numbers of the living processes."""
    numbers: set[int] = set()
    for folder in _job_cgroups(settings):
        for path, _, _ in os.walk(folder):  # passes over folders that go away meanwhile
            with suppress(OSError):  # the step has just ended, and its cgroup with it
                text = (Path(path) / "cgroup.procs").read_text(encoding="utf-8")
                numbers.update(int(line) for line in text.split())
    return [number for number in numbers if psutil.pid_exists(number)]


def end_jobs(settings: Settings) -> None:
    """Kill them, and remove the cgroups of the nodes, which keep nothing but their names."""
    deadline = time.monotonic() + STOP_SECONDS
    while (processes := job_processes(settings)) and time.monotonic() < deadline:
        thaw(settings)
        for number in processes:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    for name in node_names():
        for folder in list(CGROUPS.rglob(f"*slurm_{name}")):
            for path, _, _ in os.walk(folder, topdown=False):
                with suppress(OSError):  # a job of another cluster with the same nodes is in it
                    Path(path).rmdir()


def thaw(settings: Settings) -> None:
    """Let frozen processes go on: those of a suspended job take no signal, not even the one that kills."""
    for folder in _job_cgroups(settings):
        for path, _, _ in os.walk(folder):
            for switch, on in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):  # versions 1 and 2
                file = Path(path) / switch
                with suppress(OSError):  # the step has just ended, and its cgroup with it
                    if file.exists():
                        file.write_text(on, encoding="utf-8")


def _job_cgroups(settings: Settings) -> Iterator[Path]:
    for path, folders, _ in os.walk(CGROUPS):
        if "slurm" not in path:
            continue
        for name in folders:
            job = re.fullmatch(r"job_(\d+)", name)
            if job is not None and settings.owns_job(int(job[1])):
                yield Path(path) / name
