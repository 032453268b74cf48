"""Where the runs of a sweep are: their records, what Slurm says of their jobs, and who holds their locks.

What Slurm says of ended jobs goes into the records on the way (orchestration.slurm.reconcile). Nothing else
is written: that a local run has lost its process is only said.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from refsam.configuration.run_names import check_name
from refsam.errors import Unreadable, os_problem
from refsam.orchestration.lifecycle.reconcile import reconcile
from refsam.orchestration.slurm.questions import Answer, SlurmQuery
from refsam.records.endings import NOBODY, failed
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.recovery import look_up, read_record
from refsam.records.settings import SECTIONS, Setting, recorded_sections
from refsam.records.status import OPEN, State, Status, is_held
from refsam.system.files import read_yaml_sections


class Fault(StrEnum):
    """What is wrong with a run's directory."""

    damaged = "damaged"  # status.json is, or is gone; the status follows from attempts and results
    unreadable = "unreadable"  # a file is there and cannot be read now
    missing = "missing"  # there is no configuration: the directory was removed
    configuration = "bad configuration"


@dataclass(frozen=True)
class RunState:
    """One run as it is now.

    Attributes:
        status: its record, and where that cannot know, what Slurm and the run's lock tell.
        request: what Slurm is asked for (the section resource.request of its configuration); None before the
            run has a directory.
        elapsed: seconds of all its attempts, of the present one to now or to its end; None: not known.
        left: seconds until all epochs are done or all images evaluated, an upper limit; None: not known.
        damaged: why its record cannot be read; None: it can.
        setting: what decides its result (configuration.settings); empty before the run has a directory.
        fault: what is wrong with it, where something is.
    """

    run_id: str
    status: Status
    request: dict[str, Any] | None
    elapsed: float | None
    left: float | None
    damaged: str | None
    setting: Setting = field(default_factory=dict)
    fault: Fault | None = None

    @property
    def is_damaged(self) -> bool:
        """Whether a record is there that cannot be used; a directory that was removed is none."""
        return self.fault not in (None, Fault.missing)

    @property
    def can_start(self) -> bool:
        """Whether the run could be started: without a status it can be, without a configuration not."""
        return self.fault in (None, Fault.damaged)


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
    if status.job_id is not None or status.state not in OPEN:
        return status
    try:
        if is_held(paths):
            return status
    except OSError as error:
        return status.changed(message=f"Whether it lives cannot be seen: {os_problem(error)}")
    if status.host in (None, os.uname().nodename):
        status = read_record(paths)  # it may have ended between the two looks
        if status.state not in OPEN:
            return status
        return replace(failed(status, NOBODY), ended_at=status.ended_at)
    words = f"On {status.host}, says its record; only there can be seen whether it still lives"
    return status.changed(message=words)


def _run_state(paths: RunPaths, status: Status, now: datetime) -> RunState:
    found = _records(paths)
    record, status = found.status, with_lock(paths, status)
    left = None
    elapsed = status.seconds_before
    if status.started_at is not None and status.ended_at is not None:
        elapsed = status.seconds_spent
    elif status.started_at is not None and status.state is State.running:
        elapsed = (elapsed or 0.0) + (now - _time(status.started_at)).total_seconds()
        if record.seconds_left is not None and record.updated_at is not None:
            # The record is older than now by what has passed since the last step that it tells of.
            left = max(0.0, record.seconds_left - (now - _time(record.updated_at)).total_seconds())
    return replace(found, status=status, elapsed=elapsed, left=left)


def _records(paths: RunPaths) -> RunState:
    """The run by its own record and its configuration alone."""
    record = look_up(paths)
    run = RunState(paths.run_id, record.status, None, None, None, record.problem)
    if record.status.state is State.unreadable:
        return replace(run, fault=Fault.unreadable)
    try:
        sections = read_yaml_sections(paths.config, *SECTIONS)
        values = dict(zip(SECTIONS, sections, strict=True))
        check_name(paths.config, values)
        request = values["resource"]["request"]
        if not isinstance(request, dict):
            raise TypeError("resource.request is not a mapping")
    except FileNotFoundError:
        words = f"{paths.config} is gone; the command that made the sweep makes it again"
        return replace(run, damaged=words, fault=Fault.missing)
    except Unreadable as error:
        return replace(run, damaged=str(error), fault=Fault.unreadable)
    except (ValueError, KeyError, TypeError) as error:
        named = str(paths.config) in str(error)
        words = str(error) if named else f"{paths.config} is damaged: {type(error).__name__} {error}"
        return replace(run, damaged=words, fault=Fault.configuration)
    fault = None if record.problem is None else Fault.damaged
    return replace(run, request=request, fault=fault, setting=recorded_sections(sections))


def _notes(answer: Answer) -> tuple[str, ...]:
    if answer.queue or answer.accounting:
        return answer.problems
    why = answer.problems[0].partition("(")[2].partition(")")[0]
    return (f"Slurm does not answer ({why}): states are from the records and may be out of date",)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
