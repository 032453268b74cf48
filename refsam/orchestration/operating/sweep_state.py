"""Where the runs of a sweep are: their records, what Slurm says of their jobs, and who holds their locks.

What Slurm says of ended jobs goes into the records on the way (orchestration.slurm.reconcile). Nothing else
is written: that a local run has lost its process is only said.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from refsam.configuration.settings import Setting, read_setting
from refsam.orchestration.slurm.questions import Answer, SlurmQuery
from refsam.orchestration.slurm.reconcile import reconcile
from refsam.records.files import read_yaml_sections
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.status import Reason, State, Status, is_held, read_status

OPEN = (State.pending, State.running)


@dataclass(frozen=True)
class RunState:
    """One run as it is now.

    Attributes:
        status: its record, and where that cannot know, what Slurm and the run's lock tell.
        request: what Slurm is asked for (the section resource.request of its configuration); None before the
            run has a directory.
        elapsed: seconds from its start to now or to its end, None where one of them is not known.
        left: seconds until all epochs are done or all images evaluated, an upper limit; None: not known.
        damaged: why its record cannot be read; None: it can.
        setting: what decides its result (configuration.settings); empty before the run has a directory.
    """

    run_id: str
    status: Status
    request: dict[str, Any] | None
    elapsed: float | None
    left: float | None
    damaged: str | None
    setting: Setting = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """The runs of a sweep with the same request."""

    request: dict[str, Any] | None
    runs: tuple[RunState, ...]


@dataclass(frozen=True)
class SweepState:
    """All runs that were asked about, in the sweep's order, and what could not be found out, in sentences."""

    name: str
    folder: RunsFolder
    runs: tuple[RunState, ...]
    slurm: Answer
    notes: tuple[str, ...]

    def groups(self) -> list[Group]:
        """The runs by their request, in order of appearance."""
        groups: dict[str, list[RunState]] = {}
        for run in self.runs:
            groups.setdefault(repr(run.request), []).append(run)
        return [Group(runs[0].request, tuple(runs)) for runs in groups.values()]


def look(name: str, folder: RunsFolder, run_ids: Sequence[str], query: SlurmQuery) -> SweepState:
    """Look at the runs of the sweep `name`: one squeue and one sacct for all of them, where any has a job."""
    known, answer = reconcile(folder, run_ids, query)
    now = datetime.now(UTC)
    runs = tuple(_run_state(folder.run(run_id), known[run_id], now) for run_id in run_ids)
    return SweepState(name, folder, runs, answer, _notes(answer))


def count(runs: Sequence[RunState]) -> Counter[str]:
    """How many runs are in which state."""
    return Counter(str(run.status.state) for run in runs)


def longest_left(runs: Sequence[RunState]) -> float | None:
    """Seconds until the last of the running runs is done, None where one does not know or none runs."""
    left = [run.left for run in runs if run.status.state is State.running]
    known = [seconds for seconds in left if seconds is not None]
    return max(known) if known and len(known) == len(left) else None


def with_lock(paths: RunPaths, status: Status) -> Status:
    """The status of a run that no Slurm job works on: one that nobody works on any more is lost.

    Whether a process of another machine lives, this one sees only where the file system shares locks.
    """
    if status.job_id is not None or status.state not in OPEN or is_held(paths):
        return status
    if status.host in (None, os.uname().nodename):
        status = _records(paths)[0]  # it may have ended between the two looks
        if status.state not in OPEN:
            return status
        words = "No process works on it any more, and it wrote no last word; refsam retry runs it again"
        return status.changed(state=State.failed, reason=Reason.lost, message=words)
    words = f"On {status.host}, says its record; only there can be seen whether it still lives"
    return status.changed(message=words)


def _run_state(paths: RunPaths, status: Status, now: datetime) -> RunState:
    record, request, damaged = _records(paths)
    status = with_lock(paths, status)
    elapsed = left = None
    if status.started_at is not None and status.ended_at is not None:
        elapsed = (_time(status.ended_at) - _time(status.started_at)).total_seconds()
    elif status.started_at is not None and status.state is State.running:
        elapsed = (now - _time(status.started_at)).total_seconds()
        if record.seconds_left is not None and record.updated_at is not None:
            # The record is older than now by what has passed since the last step that it tells of.
            left = max(0.0, record.seconds_left - (now - _time(record.updated_at)).total_seconds())
    setting = {} if damaged else read_setting(paths.config)
    return RunState(paths.run_id, status, request, elapsed, left, damaged, setting)


def _records(paths: RunPaths) -> tuple[Status, dict[str, Any] | None, str | None]:
    """The run's own status, its request, and why one of them cannot be read."""
    status = Status()
    try:
        status = read_status(paths)
        (resource,) = read_yaml_sections(paths.config, "resource")
        return status, resource["request"], None
    except FileNotFoundError:
        return status, None, None  # planned, and never submitted
    except (ValueError, KeyError, TypeError) as error:
        return status, None, str(error)


def _notes(answer: Answer) -> tuple[str, ...]:
    if answer.queue or answer.accounting:
        return answer.problems
    why = answer.problems[0].partition("(")[2].partition(")")[0]
    return (f"Slurm does not answer ({why}): states are what the records say, and may be old",)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
