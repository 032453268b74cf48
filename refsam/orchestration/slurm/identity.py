"""Whether a job of Slurm is the one that a record means.

Slurm gives numbers again: a controller that has lost its state begins anew, and an accounting may know jobs
of an older cluster. A job is told by its name, which has a token of its submission, and by when it was
submitted.
"""

from dataclasses import dataclass
from datetime import datetime

from refsam.records.status import Status

CLOCK_SECONDS = 900.0  # clocks of two machines differ by less: munge allows 300
PREFIX = "refsam-"  # of the names of all jobs
EVALUATION = "-evaluation"  # follows the name of the job that trains what this one evaluates


@dataclass(frozen=True)
class KnownJob:
    """What a record knows of a job.

    Attributes:
        job_id: as sacct and scancel name it, `123_4` in an array.
        name: None in a record of refsam 0.1.
        submitted: when it was first submitted, in seconds since 1970; None: not known.
    """

    job_id: str
    name: str | None
    submitted: float | None

    def is_called(self, name: str, submitted: float | None) -> bool:
        """Whether a job with this number, name and time of submission is the one.

        The time is not compared upwards: a job that was requeued counts as submitted then.
        """
        if self.name is None:
            named = name.startswith(PREFIX)
        else:
            named = name.removesuffix(EVALUATION) == self.name.removesuffix(EVALUATION)
        if not named or submitted is None or self.submitted is None:
            return named
        return submitted >= self.submitted - CLOCK_SECONDS


def known_job(status: Status) -> KnownJob | None:
    """The job that a run's record names; None where it names none."""
    return None if status.job_id is None else KnownJob(status.job_id, status.job_name, _submitted(status))


def known_jobs(status: Status) -> list[KnownJob]:
    """The same, and the job that evaluates the run after it."""
    numbers = dict.fromkeys((status.job_id, status.evaluation_job_id))
    submitted = _submitted(status)
    return [KnownJob(number, status.job_name, submitted) for number in numbers if number is not None]


def seconds(time: str) -> float:
    """A time of a record in seconds since 1970."""
    return datetime.fromisoformat(time).timestamp()


def _submitted(status: Status) -> float | None:
    return None if status.submitted_at is None else seconds(status.submitted_at)
