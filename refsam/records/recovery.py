"""The status of a run by everything that its directory holds.

status.json is the first word. Where it is damaged or gone, attempts/ and results/ tell what it said: no
attempt is forgotten, and nothing that is computed is computed again.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from refsam.errors import ConfigError, Unreadable, os_reason
from refsam.records.attempts import Attempt, read_attempt
from refsam.records.logs import attempt_numbers
from refsam.records.metrics import read_metrics
from refsam.records.paths import RunPaths
from refsam.records.status import (
    AlreadyRunning,
    Reason,
    State,
    Status,
    is_held,
    read_status,
    run_lock,
    write_status,
)
from refsam.records.training import read_training
from refsam.system.files import read_yaml_sections

# The log of a job, 123_4.out; of earlier versions, 123_4_0_log.out.
_LOG_OF_JOB = re.compile(r"(\d+(?:_\d+)?)(?:_0_log)?\.out")
# After these a job does not go on by itself.
_FINAL = (Reason.error, Reason.cancelled, Reason.lost)


@dataclass(frozen=True)
class Record:
    """The status of a run, and a sentence where status.json has not told it."""

    status: Status
    problem: str | None = None


def look_up(paths: RunPaths) -> Record:
    """The status of a run. Raises nothing for what its directory holds: the state may be `unreadable`."""
    try:
        try:
            status = read_status(paths)
            begun = status == Status() and (attempt_numbers(paths) or paths.metrics.exists())
            if not begun or paths.status.exists():
                return Record(status)
            problem = f"{paths.status} is gone"
        except Unreadable:
            raise
        except ValueError as error:
            problem = str(error)
        return Record(_derived(paths, problem), problem)
    except Unreadable as error:
        sentence = str(error)
    except OSError as error:
        sentence = f"{error.filename or paths.status} cannot be read: {os_reason(error)}"
    return Record(Status(State.unreadable, message=sentence), sentence)


def read_record(paths: RunPaths) -> Status:
    """The status of a run; `unreadable`, with a message, where that cannot be known now."""
    return look_up(paths).status


def mend(paths: RunPaths) -> None:
    """Write status.json anew where it is damaged or gone, and nobody works on the run. Raises OSError."""
    if not _is_mendable(look_up(paths)) or is_held(paths):
        return
    try:
        with run_lock(paths):
            record = look_up(paths)
            if _is_mendable(record):
                write_status(paths, record.status.changed())
    except AlreadyRunning:
        return  # whoever has taken it meanwhile writes it


def _is_mendable(record: Record) -> bool:
    return record.problem is not None and record.status.state is not State.unreadable


def _derived(paths: RunPaths, problem: str) -> Status:
    """What attempts and results say of a run."""
    number = max(attempt_numbers(paths), default=0)
    attempt = read_attempt(paths, number)
    status = Status(
        message=f"{problem}; this state follows from the run's attempts and results",
        attempt=number,
        job_id=attempt.job_id or _job_of_log(paths, number),
        job_name=attempt.job_name,
        host=attempt.host,
        steps=attempt.steps or None,
        started_at=attempt.started_at,
        ended_at=attempt.ended_at,
        **_training(paths),
    )
    if _is_complete(paths):
        return replace(status, state=State.completed)
    if attempt.state is State.completed:  # it has trained, and another job evaluates
        waiting = replace(status, job_id=attempt.evaluation_job_id, host=None)
        return replace(waiting, state=State.planned if waiting.job_id is None else State.pending)
    return _unfinished(status, attempt)


def _unfinished(status: Status, attempt: Attempt) -> Status:
    """Of a run that is not complete. While it is open Slurm is asked, which may have requeued its job."""
    if attempt.ended_at is not None and (status.job_id is None or attempt.reason in _FINAL):
        message = attempt.message or status.message
        return replace(status, state=State.failed, reason=attempt.reason, message=message)
    if attempt.ended_at is not None:
        return replace(status, state=State.pending, host=None, started_at=None, ended_at=None)
    if attempt.started_at is not None:
        return replace(status, state=State.running)
    return replace(status, state=State.planned if status.attempt == 0 else State.pending)


def _job_of_log(paths: RunPaths, number: int) -> str | None:
    """The job that an attempt was submitted as: its log is linked before the job has begun."""
    if number == 0:
        return None
    logs = [_LOG_OF_JOB.fullmatch(path.name) for path in paths.attempt(number).iterdir() if path.is_symlink()]
    return next((log[1] for log in logs if log is not None), None)


def _training(paths: RunPaths) -> dict[str, Any]:
    """What the finished training says of itself."""
    try:
        values = read_training(paths.training)
    except Unreadable:
        raise
    except (FileNotFoundError, ValueError):
        return {}
    names = {"epoch": "epochs", "best_epoch": "best_epoch", "best_metric": "best_metric"}
    return {name: values.get(key) for name, key in names.items()}


def _is_complete(paths: RunPaths) -> bool:
    """Whether everything was trained and measured that the configuration asks for."""
    # They bring OmegaConf, which is needed for damaged records only.
    from refsam.configuration.frozen import from_values
    from refsam.configuration.schema import EvaluateConfig, Kind
    from refsam.records.measurements import missing

    try:
        kind, evaluate = read_yaml_sections(paths.config, "kind", "evaluate")
        if kind != Kind.baseline and not paths.training.exists():
            return False
        return not missing(from_values(EvaluateConfig, evaluate), read_metrics(paths.metrics))
    except Unreadable:
        raise
    except (FileNotFoundError, AttributeError, KeyError, TypeError, ValueError, ConfigError):
        return False
