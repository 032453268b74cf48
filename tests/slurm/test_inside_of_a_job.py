"""Submitting from a shell inside of a Slurm job, and from one whose environment has options for sbatch."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from slurm_helpers import (
    CHECKOUT,
    HERE,
    SMALL,
    STAND_IN,
    add_run,
    asking,
    nothing_is_left,
    queue,
    slurm,
    starts,
    wait_until,
)

from refsam.configuration.schema import ClusterConfig, RequestConfig
from refsam.orchestration.fit import jobs as fit_jobs
from refsam.orchestration.slurm import environment
from refsam.orchestration.slurm.identity import known_job
from refsam.orchestration.slurm.questions import SlurmQuery, run_command
from refsam.orchestration.slurm.site import nodes, partitions, request_problem
from refsam.orchestration.submission.arrays import submit_to_slurm
from refsam.orchestration.submission.job_scripts import write_scripts
from refsam.records.status import State, read_status
from refsam.system import own_job
from refsam.system.files import read_json

CLUSTER = ClusterConfig(kind="slurm", explicit=False, parallel="auto", template="default")
GPU = RequestConfig(partition="gpu", gpu="V100", gpus=1, cores=2, memory_gb=1, time="0:10:00")
STEPS = {
    "srun": ["srun", "-n2", "--cpus-per-task=2", "--mem-per-cpu=500M"],
    "a job with GPUs": [
        "srun",
        "-p",
        "gpu",
        "-n1",
        "--gpus-per-task=1",
        "--cpus-per-gpu=3",
        "--hint=nomultithread",
    ],
}


@pytest.fixture
def folder(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{CHECKOUT}")
    return folder


@pytest.fixture(params=STEPS)
def inside(request, slurm_cluster, monkeypatch, tmp_path):
    """The environment of this process is that of a task of such a job."""
    monkeypatch.chdir(tmp_path)
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    printed = slurm(*STEPS[request.param], "--output=task%t.json", sys.executable, "-c", program)
    assert printed == ""
    there = read_json(tmp_path / "task0.json")
    assert there["SLURM_STEP_ID"] == "0"
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.setenv(name, "3")  # of a task of an array that was requeued
    return there


def submit(folder, runs, cluster=CLUSTER):
    submit_to_slurm(runs, folder, folder.sweep("study"), cluster, lambda said: None, STAND_IN)


def completed(folder, runs):
    wait_until(
        lambda: all(
            read_status(folder.run(run.run_id)).state in (State.completed, State.failed) for run in runs
        )
    )
    wait_until(nothing_is_left)
    assert [read_status(folder.run(run.run_id)).message for run in runs] == [None] * len(runs)
    return [read_json(folder.run(run.run_id).root / "seen.json") for run in runs]


def test_runs_that_are_submitted_inside_of_a_job_start_with_what_they_ask_for(folder, inside):
    several, alone = [add_run(folder, name) for name in "ab"], [add_run(folder, "gpu", request=GPU)]
    submit(folder, [*several, *alone])
    seen = completed(folder, [*several, *alone])
    assert [run["SLURM_CPUS_PER_TASK"] for run in seen] == ["1", "1", "2"]
    for run, job in zip((*several, *alone), seen, strict=True):
        left = {"SLURM_GPUS_PER_TASK", "SLURM_CPUS_PER_GPU", "SLURM_HINT", "SLURM_RESTART_COUNT"}
        assert left.isdisjoint(job["slurm"])
        assert job["slurm"]["SLURM_NTASKS"] == "1"  # of the run's own step
        assert job["slurm"]["SLURM_JOB_ID"] == starts(folder, run.run_id)[0] != inside["SLURM_JOB_ID"]
    # A single run is the only task of an array of its own, whatever the surrounding job is.
    own = read_status(folder.run("gpu")).job_id
    assert own == f"{seen[2]['slurm']['SLURM_ARRAY_JOB_ID']}_0"
    assert os.environ["SLURM_JOB_ID"] == inside["SLURM_JOB_ID"]


def test_job_scripts_that_are_submitted_by_hand_inside_of_a_job_start(folder, inside):
    runs = [add_run(folder, "a"), add_run(folder, "gpu", request=GPU)]
    for script in write_scripts(runs, folder, folder.sweep("study"), CLUSTER, pytest.fail, STAND_IN):
        subprocess.run(script.command, shell=True, check=True, capture_output=True)
    assert [run["SLURM_CPUS_PER_TASK"] for run in completed(folder, runs)] == ["1", "2"]


@dataclass(frozen=True)
class Report:
    """Stands in for a fit: it writes what it sees."""

    path: str
    options = SimpleNamespace(minutes=None)

    def __call__(self):
        Path(self.path).write_text(" ".join(os.environ))


def test_the_job_of_a_fit_starts_inside_of_a_job(folder, inside, tmp_path):
    report = tmp_path / "report.txt"
    fit_jobs._submit(Report(str(report)), asking(SMALL), "refsam-fit-x", folder.root)
    wait_until(nothing_is_left)
    assert "SLURM_RESTART_COUNT" not in report.read_text().split()


APPLICATION = """
import hydra, os
@hydra.main(version_base="1.3", config_path=None)
def application(config):
    open("seen.txt", "w").write(" ".join(os.environ))
application()
"""


def test_the_jobs_of_another_application_start_inside_of_a_job(folder, inside, tmp_path):
    (tmp_path / "application.py").write_text(APPLICATION)
    overrides = ["hydra/launcher=refsam", "hydra.launcher.kind=slurm", "hydra.launcher.request.cores=1"]
    overrides += ["hydra.launcher.request.memory_gb=1", "hydra.launcher.request.time=0:05:00"]
    overrides += ["hydra.sweep.dir=out", "hydra.job.chdir=true", "+x=1,2"]
    subprocess.run([sys.executable, "application.py", "-m", *overrides], cwd=tmp_path, check=True)
    seen = [path.read_text().split() for path in (tmp_path / "out").rglob("seen.txt")]
    assert len(seen) == 2
    assert not any("SLURM_RESTART_COUNT" in names for names in seen)


def test_a_run_of_this_machine_does_not_take_the_surrounding_job_for_its_own(inside, monkeypatch):
    monkeypatch.setenv(own_job.LOCAL_QUEUE, "1")
    with own_job.own_job():
        assert (own_job.job_id(), own_job.host()) == (None, os.uname().nodename)


def test_options_of_the_shell_never_replace_those_of_a_run(folder, monkeypatch):
    for name, value in (
        ("SBATCH_TIMELIMIT", "1"),
        ("SBATCH_ARRAY_INX", "0-7"),
        ("SBATCH_JOB_NAME", "mine"),
        ("SBATCH_PARTITION", "gpu"),
        ("SBATCH_OUTPUT", "mine.out"),
        ("SQUEUE_PARTITION", "gpu"),
        ("SQUEUE_STATES", "COMPLETED"),
        ("SLURM_TIME_FORMAT", "relative"),
    ):
        monkeypatch.setenv(name, value)
    runs = [add_run(folder, name, "wait") for name in "ab"]
    submit(folder, runs)
    command = ["squeue", "--noheader", "--array", "--format=%P|%l|%j"]
    rows = [line.split("|") for line in run_command(command).splitlines()]
    assert [row[:2] for row in rows] == [["medium", "10:00"]] * 2
    assert all(row[2].startswith("refsam-study-") for row in rows)
    jobs = {known_job(read_status(folder.run(run.run_id))) for run in runs}
    assert set(SlurmQuery().ask(jobs).jobs) == jobs
    for name in ("SQUEUE_PARTITION", "SQUEUE_STATES"):
        monkeypatch.delenv(name)  # the test itself asks squeue, too
    (folder.root / "go").touch()
    completed(folder, runs)


def test_what_the_configuration_leaves_open_is_the_shell_s_choice(folder, monkeypatch):
    for name, value in (
        ("SBATCH_PARTITION", "gpu"),
        ("SBATCH_ACCOUNT", "root"),
        ("SBATCH_QOS", "normal"),
    ):
        monkeypatch.setenv(name, value)
    anywhere = RequestConfig(partition=None, cores=1, memory_gb=1, time="0:10:00")
    run = add_run(folder, "a", "wait", request=anywhere)
    submit(folder, [run])
    assert queue("%P", "%a", "%q") == [["gpu", "root", "normal"]]
    assert (
        request_problem(RequestConfig(gpus=1, cores=1, memory_gb=1, time="1"), partitions(), nodes()) is None
    )
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    # In a job only the account is the person's: of the others nobody knows.
    assert [environment.chosen(option) for option in ("partition", "qos", "account")] == [None, None, "root"]
