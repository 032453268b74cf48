"""What a job asks Slurm about itself, and tells it. Outside of a job there is nobody to ask."""

import os
import re
import signal
import time
from contextlib import suppress

from refsam.errors import SlurmUnavailable
from refsam.orchestration.slurm.questions import parse_sacct, run_command, sacct_command
from refsam.records.status import Reason
from refsam.system.own_job import job_id, job_name

TIME_LIMIT_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
REQUEUE_DELAYS = (1.0, 4.0)  # seconds between the attempts to requeue; the job has not much time left


def restarts() -> int:
    """How often Slurm has started this job again; never, where it is a person's."""
    return 0 if job_id() is None else int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def why_ended(number: signal.Signals) -> tuple[Reason, bool]:
    """Why this process was asked to stop, and whether Slurm starts the job again by itself.

    Slurm sends SIGTERM when a job is cancelled, preempted, requeued, and at its time limit. Where it does not
    tell which, the run counts as cancelled, which is never undone by itself.
    """
    own = job_id()
    if own is None:
        return Reason.timeout if number in TIME_LIMIT_SIGNALS else Reason.cancelled, False
    facts = {}
    with suppress(SlurmUnavailable):
        facts = _facts(own)
    if int(facts.get("Restarts", "0")) > restarts():
        return Reason.preempted, True
    if facts.get("PreemptTime", "None") != "None":
        return Reason.preempted, False
    if number in TIME_LIMIT_SIGNALS:
        return Reason.timeout, False
    return _accounted_reason(own) or Reason.cancelled, False


def requeue() -> None:
    """Send this job back into the queue, of an array only this task; Slurm ends it then. Raises
    SlurmUnavailable.

    One task of every array has the array's number as its SLURM_JOB_ID, which for scontrol means all tasks.
    """
    own = job_id()
    assert own is not None
    for delay in (*REQUEUE_DELAYS, None):
        try:
            if not _facts(own):
                raise SlurmUnavailable(f"Slurm does not know job {own} any more")
            run_command(["scontrol", "requeue", own])
            return
        except SlurmUnavailable:
            if delay is None:
                raise
        time.sleep(delay)


def _facts(own: str) -> dict[str, str]:
    """What the controller says of the job `own`; empty where it does not know it, though perhaps another one
    that has its number now. Raises SlurmUnavailable.
    """
    text = run_command(["scontrol", "show", "job", "--oneliner", own])
    jobs = (dict(re.findall(r"(?:^|\s)(\w+)=(.*?)(?=\s\w+=|\s*$)", line)) for line in text.splitlines())
    return next((facts for facts in jobs if (_number(facts), facts.get("JobName")) == (own, job_name())), {})


def _number(facts: dict[str, str]) -> str:
    """The job as `job_id` writes it."""
    array, task = facts.get("ArrayJobId"), facts.get("ArrayTaskId")
    return f"{array}_{task}" if array and task else facts.get("JobId", "")


def _accounted_reason(own: str) -> Reason | None:
    try:
        starts = parse_sacct(run_command(sacct_command(own))).get(own)
    except SlurmUnavailable:
        return None
    reason = starts[-1].reason if starts else None
    stopped = (Reason.cancelled, Reason.preempted, Reason.timeout, Reason.node_failure)
    return reason if reason in stopped else None
