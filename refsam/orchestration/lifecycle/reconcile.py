"""Writing into the records what only Slurm knows: how jobs ended that left no word of their own.

What a job's process has written wins: a record is changed only while nobody holds the run, and only if it
still says what it said before Slurm was asked.
"""

from collections.abc import Sequence
from dataclasses import replace

from refsam.orchestration.lifecycle import retries
from refsam.orchestration.lifecycle.attempt_records import end_attempt, known_attempts
from refsam.orchestration.slurm.identity import known_job
from refsam.orchestration.slurm.questions import Answer, SlurmQuery, statuses, with_slurm
from refsam.records.attempts import requeued
from refsam.records.endings import REQUEUED, failed
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.recovery import read_record
from refsam.records.status import OPEN, AlreadyRunning, Reason, State, Status, now, run_lock, write_status


def reconcile(
    folder: RunsFolder, run_ids: Sequence[str], query: SlurmQuery
) -> tuple[dict[str, Status], Answer]:
    """What `statuses` says, after the records of runs were completed whose jobs ended or were requeued.

    An open run whose job has ended becomes failed, with Slurm's reason, and so does the record of its
    attempt. A running one whose job waits again has lost its node: its attempt has ended, and it is pending
    in its next one. Asks Slurm once for all runs, and once more for those to be changed. A record that this
    user may not write, or that a full disk does not take, stays as it is.
    """
    known, answer = statuses(folder, run_ids, query)
    before = {run_id: read_record(folder.run(run_id)) for run_id in run_ids}
    changing = [run_id for run_id in run_ids if _to_be_changed(before[run_id], known[run_id], answer)]
    if not changing:
        return known, answer
    # An answer that was kept may be older than the record, such as one from before a job started again.
    jobs = (known_job(before[run_id]) for run_id in changing)
    fresh = SlurmQuery(query.run).ask(job for job in jobs if job is not None)
    for run_id in changing:
        known[run_id] = _reconciled(folder.run(run_id), before[run_id], fresh)
    return known, answer


def _reconciled(paths: RunPaths, before: Status, answer: Answer) -> Status:
    """The status of one run, written if it is not what its record says."""
    try:
        with run_lock(paths):
            record = read_record(paths)
            status = with_slurm(record, answer)
            if record != before or not _to_be_changed(record, status, answer):
                return status
            if status.state is State.failed:
                status = replace(status, ended_at=now(), seconds_left=None)
                attempt = end_attempt(paths, status)
                if attempt.reason is not None:  # its own process knew better
                    status = replace(status, reason=attempt.reason, message=attempt.message)
            else:
                end_attempt(paths, failed(record, REQUEUED))
                status = requeued(record, status.message or REQUEUED.sentence)
            write_status(paths, status)
            return status
    except (AlreadyRunning, OSError, ValueError):
        return with_slurm(read_record(paths), answer)


def is_due(paths: RunPaths, status: Status) -> bool:
    """Whether a run's last job has failed for a reason after which the run goes on by itself.

    What runs inside a job sees to that. So the job was killed whole, or Slurm did not take it back.
    """
    if status.state is not State.failed or status.job_id is None or status.attempt == 0:
        return False
    return status.reason in retries.TABLE and retries.decide(known_attempts(paths, status.attempt)).again


def _to_be_changed(record: Status, status: Status, answer: Answer) -> bool:
    if record.state not in OPEN:
        return False
    if status.state is State.failed:
        # Out of memory looks like an error, and everything like a loss, until the accounting is asked.
        return answer.accounting or status.reason not in (Reason.error, Reason.lost)
    return record.state is State.running and status.state is State.pending
