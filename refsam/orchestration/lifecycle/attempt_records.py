"""The attempts of a run as they really were: their records, and what else tells of one without a record.

By the savings that an attempt has used the next one saves more.
"""

from datetime import datetime
from typing import Any

from refsam.orchestration.lifecycle import retries
from refsam.records.attempts import (
    BATCH,
    CHECKPOINTING,
    CHECKPOINTING_DECODER,
    CHUNK,
    HARDWARE_PRECISION,
    PRECISION,
    Attempt,
    read_attempts,
    write_attempt,
)
from refsam.records.paths import RunPaths
from refsam.records.status import Reason, Status
from refsam.records.training import read_savings

SAVINGS = {
    "object_chunk": CHUNK,
    "checkpoint_every": CHECKPOINTING,
    "checkpoint_decoder": CHECKPOINTING_DECODER,
    "precision": PRECISION,
    "hardware_precision": HARDWARE_PRECISION,
}


def known_attempts(paths: RunPaths, last: int) -> list[Attempt]:
    """The attempts 1 to `last`; one without a record had the settings that follow from those before it."""
    known: list[Attempt] = []
    for attempt in read_attempts(paths, last):
        if attempt == Attempt():
            attempt = Attempt(settings=retries.settings_of_next(known))
        known.append(attempt)
    return known


def end_attempt(paths: RunPaths, status: Status, trained: bool | None = None, **changes: Any) -> Attempt:
    """Write how the attempt of `status` ended, unless that is written already, and return its record.

    Args:
        trained: whether it has written results/savings.json; None: as the time of that file tells.
        changes: further values of the record.
    """
    number = status.attempt
    if number == 0:  # the run was never begun
        return Attempt()
    *earlier, attempt = known_attempts(paths, number)
    if attempt.ended_at is None:
        steps = max([status.steps or 0, *(each.steps for each in earlier[-1:])])
        began = attempt.started_at or status.started_at
        if trained is None:
            trained = _is_newer(paths, began)
        used = attempt.used or _used_savings(paths, status, attempt, trained)
        attempt = attempt.ended(status, steps=steps, measured=_measured(paths), used=used, **changes)
        write_attempt(paths, number, attempt)
    return attempt


def _used_savings(paths: RunPaths, status: Status, attempt: Attempt, trained: bool) -> dict[str, Any]:
    """What the training of an attempt wrote down, or the batch of its evaluation."""
    try:
        if status.reason is Reason.out_of_memory and paths.config.exists():
            # Both bring OmegaConf, which few attempts need.
            from refsam.configuration.frozen import load, with_settings
            from refsam.configuration.schema import Kind

            config = with_settings(load(paths.config), attempt.settings)
            if paths.training.exists() or config.kind is Kind.baseline:
                return {BATCH: config.evaluate.batch_size}
        if not trained:
            return {}
        values = read_savings(paths.savings)
        return {name: values[key] for key, name in SAVINGS.items() if key in values}
    except (AttributeError, OSError, TypeError, ValueError):
        return {}  # damaged, as the table of the results says; how the attempt ended is written all the same


def _is_newer(paths: RunPaths, began: str | None) -> bool:
    """Whether results/savings.json was written since an attempt began, so that its training has begun."""
    try:
        written = paths.savings.stat().st_mtime
    except OSError:
        return False
    return began is not None and written >= datetime.fromisoformat(began).timestamp()


def _measured(paths: RunPaths) -> int:
    """The rows of per_image.csv below its header."""
    try:
        return max(0, len(paths.per_image.read_text(encoding="utf-8").splitlines()) - 1)
    except (OSError, UnicodeDecodeError):
        return 0
