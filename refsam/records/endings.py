"""How an attempt ends: what was seen of it, the reason that follows, and the sentence for a person.

This is the only table of endings. Whoever sees an attempt end chooses a row and writes `failed(status, row)`.
What follows a reason, another attempt or none, is orchestration/lifecycle/retries.py.
"""

from dataclasses import dataclass

from refsam.records.status import Reason, State, Status, now


@dataclass(frozen=True)
class Ending:
    """A row of the table.

    Attributes:
        seen: what was seen, and by whom.
        reason: why the attempt counts as failed.
        sentence: for a person; names in braces are the facts that `failed` is given.
    """

    seen: str
    reason: Reason
    sentence: str


# Seen by the process that computes the run (science/execution.py, in_job/child.py).
BAD_INPUT = Ending("the run raises ConfigError", Reason.error, "{problem}")
RAISED = Ending("the run raises another exception", Reason.error, "{error}: {problem}")
NOT_LOADED = Ending("the run raises before its record is open", Reason.error, "{error}: {problem}; see {log}")
DISK_FULL = Ending(
    "the run raises OSError: no space, or over quota",
    Reason.error,
    "The disk is full or a quota is used up: {what} could not be written.",
)
NO_MEMORY = Ending(
    "the run raises an out-of-memory exception (science/hardware.py, is_out_of_memory)",
    Reason.out_of_memory,
    "The memory did not suffice: {problem}",
)
DIVERGED = Ending(
    "the run raises Diverged: its validation metric is not finite",
    Reason.diverged,
    "The training diverged: {problem}",
)
HELPER_KILLED = Ending(
    "a worker that loads data was killed",
    Reason.lost,
    "A process that loads data was killed from outside: {problem}",
)
STOPPED = Ending(
    "Ctrl-C or SIGTERM; in a job, if Slurm reports it as cancelled or does not answer",
    Reason.cancelled,
    "The run was stopped; the same command continues it.",
)
TIME_LIMIT = Ending(
    "SIGUSR1 or SIGUSR2, sent by Slurm before the time limit", Reason.timeout, "The time limit came."
)

# Seen by whoever started that process (in_job/supervisor.py, submission/local.py).
PREEMPTED = Ending(
    "SIGTERM, and scontrol reports a preemption or a restart",
    Reason.preempted,
    "Slurm took the resources for another job.",
)
NODE_FAILED = Ending("SIGTERM, and sacct reports a node failure", Reason.node_failure, "The node failed.")
KILLED_FOR_MEMORY = Ending(
    "SIGKILL, and the kernel's counter of memory kills grew",
    Reason.out_of_memory,
    "The kernel killed the run because memory was short.",
)
KILLED = Ending(
    "another signal ended the process",
    Reason.lost,
    "The run's process was killed from outside, or its interpreter crashed ({signal}); see {log}",
)
NO_RESULT = Ending(
    "the process ended by itself and wrote no result",
    Reason.error,
    "The run ended with exit status {code} and without a result; see {log}",
)
LAST_LINE = Ending(
    "the same in the local queue, and the log has a last line", Reason.error, "{problem}; see {log}"
)
NOT_STARTED = Ending(
    "the process could not be started", Reason.error, "The run could not be started: {problem}"
)
NOT_WRITTEN = Ending(
    "the last status could not be written", Reason.error, "The last status could not be written: {problem}"
)

# Seen later, of a process that left no word (lifecycle/, operating/sweep_state.py, slurm/questions.py).
REQUEUED = Ending(
    "the record says running, and Slurm has put the job back into its queue",
    Reason.node_failure,
    "Slurm requeued the job, and its process wrote no result",
)
SILENT = Ending(
    "the next attempt begins, and this one wrote no end",
    Reason.lost,
    "The job was killed, and its process wrote no result.",
)
NOBODY = Ending(
    "the record says pending or running, no process holds the run, and it has no job",
    Reason.lost,
    "The process ended without writing a result; refsam retry runs it again",
)
RUNAWAY = Ending(
    "sacct says that the job runs, and the queue does not know it",
    Reason.lost,
    "Slurm job {job}: {words}, according to the accounting: it is not in the queue, and the run wrote no "
    "result",
)
COMPLETED_WITHOUT_RESULT = Ending(
    "Slurm: COMPLETED, and the record says pending or running",
    Reason.lost,
    "Slurm job {job}: {words}, but the run wrote no result",
)
NEVER_BEGAN = Ending(
    "a pending job that neither squeue nor sacct knows",
    Reason.cancelled,
    "Slurm job {job} was cancelled before it began",
)
UNKNOWN_JOB = Ending(
    "a running job that neither squeue nor sacct knows",
    Reason.lost,
    "Slurm knows no job {job}, and the run wrote no result",
)
NO_ACCOUNTING = Ending(
    "a job that squeue does not know, on a cluster without sacct",
    Reason.lost,
    "Slurm job {job} is no longer in the queue; without sacct the reason is not known",
)
_SLURM = "Slurm job {job}: {words}"
SLURM_ENDINGS = {
    state: Ending(f"Slurm: {state}", reason, _SLURM)
    for state, reason in (
        ("BOOT_FAIL", Reason.node_failure),
        ("CANCELLED", Reason.cancelled),
        ("DEADLINE", Reason.timeout),
        ("FAILED", Reason.error),
        ("NODE_FAIL", Reason.node_failure),
        ("OUT_OF_MEMORY", Reason.out_of_memory),
        ("PREEMPTED", Reason.preempted),
        ("REVOKED", Reason.cancelled),
        ("TIMEOUT", Reason.timeout),
    )
}
OTHER_STATE = Ending("Slurm: another state that is not alive", Reason.lost, _SLURM)
# What a process that was asked to stop says, by what Slurm says of its job.
ASKED = {ending.reason: ending for ending in (STOPPED, TIME_LIMIT, PREEMPTED, NODE_FAILED)}


def failed(status: Status, ending: Ending, **facts: object) -> Status:
    """The last status of an attempt that ended so, now as far as is known.

    Args:
        facts: what the sentence names.
    """
    return status.changed(
        state=State.failed,
        reason=ending.reason,
        message=ending.sentence.format(**facts),
        ended_at=now(),
    )
