"""attempts/<k>/attempt.json: how each execution of a run went, and with what settings.

config.yaml stays as it was submitted; what an attempt does differently stands here. The writer is the holder
of the run's lock.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from refsam.records.files import read_json, write_json
from refsam.records.paths import RunPaths
from refsam.records.status import Reason, State, Status, now


@dataclass(frozen=True)
class Attempt:
    """One execution of a run. Times are UTC in ISO 8601.

    Attributes:
        settings: values that replace those of config.yaml, by their dotted names.
        used: the savings that were really used, by dotted names, `auto` resolved; empty until they are known.
        steps: training steps that latest.pt held at last.
        measured: images times modes that were evaluated at last.
        state: completed or failed when the attempt has ended.
        message: one sentence for a person.
        peak_memory_gib: the largest main memory of one of its processes, without what the kernel shares.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    used: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    measured: int = 0
    job_id: str | None = None
    host: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    state: State | None = None
    reason: Reason | None = None
    message: str | None = None
    peak_memory_gib: float | None = None

    @property
    def progress(self) -> tuple[int, int]:
        """Grows with what is saved."""
        return self.steps, self.measured

    def ended(self, status: Status, **changes: Any) -> "Attempt":
        """This attempt as it ended, by the last status of the run."""
        return replace(
            self,
            job_id=self.job_id or status.job_id,
            host=self.host or status.host,
            started_at=self.started_at or status.started_at,
            ended_at=status.ended_at or now(),
            state=status.state,
            reason=status.reason,
            message=status.message,
            **changes,
        )


def read_attempt(paths: RunPaths, number: int) -> Attempt:
    """The record of attempt `number`; an empty one where there is none, or a damaged one."""
    try:
        values = read_json(paths.attempt_record(number))
        values = {item.name: values[item.name] for item in fields(Attempt) if item.name in values}
        for name, kind in (("state", State), ("reason", Reason)):
            values[name] = None if values.get(name) is None else kind(values[name])
        return Attempt(**values)
    except (FileNotFoundError, TypeError, ValueError):
        return Attempt()  # it tells how an attempt went; nothing of the result depends on it


def write_attempt(paths: RunPaths, number: int, attempt: Attempt) -> None:
    """Replace the record of attempt `number`."""
    paths.attempt(number).mkdir(parents=True, exist_ok=True)
    write_json(paths.attempt_record(number), asdict(attempt), paths.reserve)


def end_attempt(paths: RunPaths, status: Status, **changes: Any) -> Attempt:
    """Write how the attempt of `status` ended, unless that is written already, and return its record."""
    number = status.attempt
    attempt = read_attempt(paths, number)
    if number > 0 and attempt.ended_at is None:  # 0: the run was never begun
        steps = max(status.steps or 0, read_attempt(paths, number - 1).steps)
        attempt = attempt.ended(status, steps=steps, measured=_measured(paths), **changes)
        write_attempt(paths, number, attempt)
    return attempt


def _measured(paths: RunPaths) -> int:
    """The rows of per_image.csv below its header."""
    try:
        return max(0, len(paths.per_image.read_text(encoding="utf-8").splitlines()) - 1)
    except (FileNotFoundError, UnicodeDecodeError):
        return 0


def read_attempts(paths: RunPaths, last: int) -> list[Attempt]:
    """The records of the attempts 1 to `last`."""
    return [read_attempt(paths, number) for number in range(1, last + 1)]


def requeued(status: Status, message: str) -> Status:
    """The status of a run whose job will start again: pending, in its next attempt."""
    return status.changed(
        state=State.pending,
        reason=None,
        message=message,
        attempt=status.attempt + 1,
        host=None,
        pid=None,
        phase=None,
        seconds_left=None,
        started_at=None,
        ended_at=None,
    )
