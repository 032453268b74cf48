"""Whose Slurm job this process is, and on which machine."""

import os

import pytest

from refsam.system import own_job


@pytest.fixture(autouse=True)
def in_a_job_of_slurm(monkeypatch):
    """As in any job: the variables that Slurm sets, on a node whose name is not the machine's."""
    for name in (own_job.LOCAL_QUEUE, "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.setenv("SLURMD_NODENAME", "cpu1")


def test_somebody_s_interactive_job_is_not_the_run_s():
    assert (own_job.job_id(), own_job.host()) == (None, os.uname().nodename)


def test_a_local_queue_in_somebody_s_interactive_job_has_no_job(monkeypatch):
    monkeypatch.setenv(own_job.LOCAL_QUEUE, "1")
    with own_job.own_job():
        assert (own_job.job_id(), own_job.host()) == (None, os.uname().nodename)


def test_a_job_of_the_run_is_named_as_scancel_takes_it(monkeypatch):
    with own_job.own_job():
        assert (own_job.job_id(), own_job.host()) == ("99", "cpu1")
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
        assert own_job.job_id() == "7_3"
    assert own_job.job_id() is None
