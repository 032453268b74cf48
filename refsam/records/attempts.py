"""attempts/<k>/attempt.json: how each execution of a run went, and with what settings.

config.yaml stays as it was submitted; what an attempt does differently stands here. The writer is the holder
of the run's lock.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from refsam.records.logs import attempt_numbers
from refsam.records.paths import RunPaths
from refsam.records.status import Reason, State, Status, now
from refsam.records.typed import Count, Seconds, Time, checked, from_record, usable, usable_record
from refsam.system.files import read_json, write_json

# What attempts do differently, by dotted names of the configuration.
CHUNK = "train.object_chunk"
CHECKPOINTING = "train.checkpoint_encoder"
CHECKPOINTING_DECODER = "train.checkpoint_decoder"
PRECISION = "train.precision"
HARDWARE_PRECISION = "hardware_precision"  # what train.precision=auto is on the device of the run
BATCH = "evaluate.batch_size"

_SETTINGS = {CHUNK: Count, CHECKPOINTING: str, CHECKPOINTING_DECODER: str, PRECISION: str, BATCH: Count}
_USED = {
    CHUNK: Count | None,
    CHECKPOINTING: Count | None,
    CHECKPOINTING_DECODER: bool | None,
    PRECISION: str | None,
    HARDWARE_PRECISION: str,
    BATCH: Count,
}


@dataclass(frozen=True)
class Attempt:
    """One execution of a run. Times are UTC in ISO 8601.

    Attributes:
        settings: values that replace those of config.yaml, by their dotted names.
        used: the savings that were really used, by dotted names, `auto` resolved; empty until they are known.
        steps: training steps that latest.pt held at last.
        measured: images times modes that were evaluated at last.
        evaluation_job_id: of the job that evaluates what this attempt has trained.
        state: completed or failed when the attempt has ended.
        message: one sentence for a person.
        peak_memory_gib: the largest main memory of one of its processes, without what the kernel shares.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    used: dict[str, Any] = field(default_factory=dict)
    steps: Count = 0
    measured: Count = 0
    job_id: str | None = None
    job_name: str | None = None
    evaluation_job_id: str | None = None
    host: str | None = None
    started_at: Time | None = None
    ended_at: Time | None = None
    state: State | None = None
    reason: Reason | None = None
    message: str | None = None
    peak_memory_gib: Seconds | None = None

    @property
    def progress(self) -> tuple[int, int]:
        """Grows with what is saved."""
        return self.steps, self.measured

    def ended(self, status: Status, **changes: Any) -> "Attempt":
        """This attempt as it ended, by the last status of the run."""
        return replace(
            self,
            job_id=self.job_id or status.job_id,
            job_name=self.job_name or status.job_name,
            host=self.host or status.host,
            started_at=self.started_at or status.started_at,
            ended_at=status.ended_at or now(),
            state=status.state,
            reason=status.reason,
            message=status.message,
            **changes,
        )


def parse_attempt(paths: RunPaths, number: int) -> Attempt:
    """The record of attempt `number`. Raises OSError, and ValueError when it is damaged."""
    path = paths.attempt_record(number)
    attempt = from_record(Attempt, read_json(path), path)
    settings = attempt.settings | checked(attempt.settings, _SETTINGS, path, "settings.")
    used = attempt.used | checked(attempt.used, _USED, path, "used.")
    return replace(attempt, settings=settings, used=used)


def read_attempt(paths: RunPaths, number: int) -> Attempt:
    """What can be used of the record of attempt `number`; an empty one where there is none.

    It tells how an attempt went: nothing of the result depends on it.
    """
    path = paths.attempt_record(number)
    try:
        return parse_attempt(paths, number)
    except FileNotFoundError:
        return Attempt()
    except ValueError:
        pass
    try:
        attempt = usable_record(Attempt, read_json(path), path)
    except (FileNotFoundError, ValueError):
        return Attempt()
    settings = usable(attempt.settings, _SETTINGS, path)
    return replace(attempt, settings=settings, used=usable(attempt.used, _USED, path))


def write_attempt(paths: RunPaths, number: int, attempt: Attempt) -> None:
    """Replace the record of attempt `number`."""
    paths.attempt(number).mkdir(parents=True, exist_ok=True)
    write_json(paths.attempt_record(number), asdict(attempt), paths.reserve)


def read_attempts(paths: RunPaths, last: int) -> list[Attempt]:
    """The records of the attempts 1 to `last`."""
    there = set(attempt_numbers(paths))
    return [read_attempt(paths, number) if number in there else Attempt() for number in range(1, last + 1)]


def free_number(paths: RunPaths, least: int) -> int:
    """The number of the next attempt: `least`, or a larger one where that would overwrite a record."""
    begun = [number for number in attempt_numbers(paths) if paths.attempt_record(number).exists()]
    return max([least, *(number + 1 for number in begun)])


def requeued(status: Status, message: str) -> Status:
    """The status of a run whose job will start again: pending, in its next attempt."""
    return status.again(
        state=State.pending,
        message=message,
        attempt=status.attempt + 1,
        job_id=status.job_id,
        evaluation_job_id=status.evaluation_job_id,
        device=status.device,
        submitted_at=status.submitted_at,
    )
