"""The runs that failed: why, in which attempts, and how their logs end."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from refsam.errors import os_reason
from refsam.records.attempts import Attempt, read_attempts
from refsam.records.logs import find_log, log_end
from refsam.records.paths import RunPaths
from refsam.results.report.sources import printable
from refsam.results.tables.table import run_words, varying_axes

FAILED = "failed"
LINES, BYTES = 60, 6_000  # of a log's end
MOST = 100  # failed runs with a section of their own: with more, the report would be too large to send


@dataclass(frozen=True)
class Failure:
    """A failed run.

    Attributes:
        anchor: the id of its section in the page.
        what: what tells it apart from the others of the sweep.
        log: the end of its log; None: there is no log.
        log_path: where the whole log stands.
    """

    anchor: str
    run_id: str
    what: str
    reason: str
    message: str
    job_id: str
    host: str
    ended_at: str
    attempts: list[Attempt]
    log: str | None
    log_path: str | None


@dataclass(frozen=True)
class Failures:
    """The failed runs, the first MOST of them one by one, and how many there are."""

    shown: list[Failure]
    total: int


def failures(frame: pd.DataFrame, runs: Mapping[str, RunPaths]) -> Failures:
    """The failed runs, in the order of the table."""
    axes = varying_axes(frame)
    failed = frame[(frame["status"] == FAILED) & frame["run_id"].notna()].drop_duplicates("run_id")
    found = []
    for number, row in enumerate(failed.head(MOST).to_dict("records")):
        paths = runs[row["run_id"]]
        log, log_path = _log(paths)
        last = 0 if pd.isna(row["attempts"]) else int(row["attempts"])
        found.append(
            Failure(
                anchor=f"run-{number + 1}",
                run_id=row["run_id"],
                what=run_words({str(key): value for key, value in row.items()}, axes),
                reason=_words(row["reason"]) or "not known",
                message=printable(_words(row["message"])),
                job_id=_words(row["job_id"]),
                host=_words(row["host"]),
                ended_at=_words(row["ended_at"]),
                attempts=[
                    replace(each, message=printable(each.message or ""))
                    for each in read_attempts(paths, last)
                ],
                log=log,
                log_path=log_path,
            )
        )
    return Failures(found, len(failed))


def _log(paths: RunPaths) -> tuple[str | None, str | None]:
    found = find_log(paths)
    if found is None:
        return None, None
    path = str(found[1].absolute())
    try:
        return printable(log_end(found[1], LINES, BYTES)), path
    except OSError as error:  # another person's log may not be readable
        return f"It cannot be read: {os_reason(error)}.", path


def _words(value: Any) -> str:
    """A value of the table as text; nothing for a missing one."""
    return "" if value is None or pd.isna(value) else str(value)
