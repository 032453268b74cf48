"""The test cluster: that it is the real thing, and that nothing of it stays."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from slurm_helpers import PATIENCE, slurm, wait_until

from tools.test_cluster.settings import node_names

ALIVE = ("PENDING", "RUNNING")


def run_job(*arguments):
    """Submit a job, wait for its end, and read the accounting: the job's line and those of its steps."""
    job_id = slurm("sbatch", "--parsable", "--output=/dev/null", *arguments).strip()
    wait_until(lambda: accounted(job_id) and all(row[0] not in ALIVE for row in accounted(job_id)))
    return accounted(job_id)


def accounted(job_id):
    fields = "--format=State,ExitCode,AllocTRES"
    text = slurm("sacct", "--noheader", "--parsable2", fields, "--jobs", job_id)
    return [line.split("|") for line in text.splitlines()]


@pytest.mark.parametrize("gpu", ["GTX1080", "RTX5000", "V100"])
def test_a_job_gets_the_type_of_gpu_that_it_asks_for(slurm_cluster, gpu):
    rows = run_job("--partition=gpu", f"--gpus={gpu}:1", "--cpus-per-task=8", "--mem=32G", "--wrap=true")
    state, _, allocated = rows[0]
    assert state == "COMPLETED"
    assert {f"gres/gpu:{gpu.lower()}=1", "cpu=8", "mem=32G"} <= set(allocated.split(","))


def test_a_job_that_outgrows_its_memory_is_killed(slurm_cluster):
    hungry = f"exec {sys.executable} -c 'bytearray(400 * 1024**2)'"
    rows = run_job("--partition=medium", "--mem=150M", f"--wrap={hungry}")
    assert rows[0][:2] == ["OUT_OF_MEMORY", "0:125"]
    enough = run_job("--partition=medium", "--mem=800M", f"--wrap={hungry}")
    assert enough[0][:2] == ["COMPLETED", "0:0"]


def test_a_node_that_does_not_have_what_is_asked_for_takes_no_job(slurm_cluster):
    command = ["sbatch", "--partition=gpu", "--gpus=A100:1", "--wrap=true"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert "Requested node configuration is not available" in answer.stderr


def command_line(*arguments):
    command = [sys.executable, "-m", "tools.test_cluster", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE, check=False)


@pytest.fixture
def short_path():
    """A folder for a cluster of a test's own: Slurm makes sockets below it, whose paths are limited."""
    with tempfile.TemporaryDirectory(prefix="refsam-") as name:
        yield Path(name)


def test_two_ups_are_one_cluster_and_down_leaves_nothing(slurm_machine, short_path):
    root = short_path / "cluster"
    assert command_line("status", "--root", root).returncode == 1
    first = command_line("up", "--root", root)
    assert first.returncode == 0, first.stderr
    try:
        assert f"export SLURM_CONF={root}/slurm.conf" in first.stdout
        processes = of_cluster(root)
        assert {process.name() for process in processes} >= {
            "munged",
            "mariadbd",
            "slurmdbd",
            "slurmctld",
            "slurmd",
        }
        assert "runs already" in command_line("up", "--root", root).stdout
        status = command_line("status", "--root", root)
        assert [line.split() for line in status.stdout.splitlines()] == [
            [name, "idle"] for name in node_names()
        ]

        environment = {**os.environ, "SLURM_CONF": f"{root}/slurm.conf"}
        job = [
            "sbatch",
            "--parsable",
            "--mem=100M",
            f"--output={short_path}/job",
            "--open-mode=append",
            "--wrap=echo on; exec sleep 600",
        ]
        subprocess.run(job, env=environment, check=True, capture_output=True)
        wait_until(lambda: (short_path / "job").exists() and (short_path / "job").read_text())
        (sleeping,) = (process for process in of_cluster(root) if process.name() == "sleep")
        # Another one is suspended, and what could wake it is killed.
        second = subprocess.run(job, env=environment, check=True, capture_output=True, text=True).stdout
        wait_until(lambda: (short_path / "job").read_text().count("on") == 2)
        (frozen,) = (
            process
            for process in of_cluster(root)
            if process.name() == "sleep" and process.pid != sleeping.pid
        )
        subprocess.run(["scontrol", "suspend", second.strip()], env=environment, check=True)
        wait_until(lambda: frozen.status() == psutil.STATUS_DISK_SLEEP)
        frozen.parent().kill()
    finally:
        down = command_line("down", "--root", root)
    assert down.returncode == 0, down.stderr
    assert of_cluster(root) == []
    assert not root.exists()
    assert command_line("down", "--root", root).returncode == 0  # nothing to do


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(slurm_machine, short_path):
    (short_path / "thesis.tex").touch()
    for command in ("up", "down"):
        answer = command_line(command, "--root", short_path)
        assert answer.returncode == 2
        assert f"--root: {short_path} is neither empty nor a test cluster's" in answer.stderr
    assert [path.name for path in short_path.iterdir()] == ["thesis.tex"]


def test_a_folder_whose_path_leaves_no_room_for_sockets_is_refused(slurm_machine, tmp_path):
    root = tmp_path / ("long" * 20)
    answer = command_line("up", "--root", root)
    assert answer.returncode == 2
    assert "must be a path of 71 bytes at most" in answer.stderr
    assert not root.exists()


def of_cluster(root):
    """The processes that were started below `root`, or with its configuration in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            named = [*process.cmdline(), *process.environ().values(), process.cwd()]
        except psutil.Error:  # it has just ended, or nobody may look at it (the init of a container)
            continue
        if any(str(root) in text for text in named):
            found.append(process)
    return [process for process in found if process.pid not in own_family()]


def own_family():
    return {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
