"""What a job asks Slurm about itself, where another job has its number now; without any Slurm."""

import signal

import pytest

from refsam.errors import SlurmUnavailable
from refsam.orchestration.slurm import inside_job
from refsam.records.status import Reason
from refsam.system import own_job

FACTS = (
    "JobId=7 ArrayJobId=7 ArrayTaskId=3 JobName={name} UserId=me(1000) Restarts=1 PreemptTime=None\n"
    "JobId=10 ArrayJobId=7 ArrayTaskId=2 JobName={name} UserId=me(1000) Restarts=0 PreemptTime=None\n"
)


@pytest.fixture
def asked(monkeypatch):
    """The commands that task 3 of array 7 gives, whose job name in Slurm is the first of the list."""
    commands = []

    def answer(command):
        commands.append(command[1:])
        return FACTS.format(name=names[0]) if command[1] == "show" else ""

    names = ["refsam-study-ab12"]
    monkeypatch.setattr(inside_job, "run_command", answer)
    monkeypatch.setattr(inside_job, "REQUEUE_DELAYS", ())
    variables = {"JOB_ID": "7", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "3", "JOB_NAME": names[0]}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    with own_job.own_job():
        yield names, commands


def test_a_task_requeues_itself(asked):
    inside_job.requeue()
    assert asked[1] == [["show", "job", "--oneliner", "7_3"], ["requeue", "7_3"]]
    assert inside_job.why_ended(signal.SIGTERM) == (Reason.preempted, True)


@pytest.mark.parametrize("name", ["somebody's job", "refsam-study-cd34"])
def test_a_job_that_has_this_one_s_number_now_is_neither_requeued_nor_believed(asked, name):
    asked[0][0] = name
    with pytest.raises(SlurmUnavailable, match="Slurm does not know job 7_3 any more"):
        inside_job.requeue()
    assert ["requeue", "7_3"] not in asked[1]
    assert inside_job.why_ended(signal.SIGTERM) == (Reason.cancelled, False)


def test_a_name_with_spaces_is_the_job_s_name(asked, monkeypatch):
    asked[0][0] = "two words"
    monkeypatch.setenv("SLURM_JOB_NAME", "two words")
    inside_job.requeue()
    assert ["requeue", "7_3"] in asked[1]
