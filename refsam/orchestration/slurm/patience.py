"""Calls to Slurm that are made again while it is away for a moment."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from refsam.errors import SlurmUnavailable
from refsam.orchestration.slurm.questions import answers_within, is_momentary

Say = Callable[[str], None]
Result = TypeVar("Result")

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # between the calls
HURRIED_SECONDS = 5.0  # for a call, where somebody waits for something else
_hurried = ContextVar("hurried", default=False)


def patiently(call: Callable[[], Result], say: Say) -> Result:
    """The result of a call to Slurm, made again while Slurm is away for a moment. Raises SlurmUnavailable."""
    for delay in delays():
        try:
            return call()
        except SlurmUnavailable as error:
            if not is_momentary(str(error)):
                raise
            say(f"{error}; trying again in {delay:.0f} s")
        time.sleep(delay)
    return call()


@contextmanager
def hurried() -> Iterator[None]:
    """Nothing is tried again or waited for meanwhile, neither Slurm nor another submission."""
    before = _hurried.set(True)
    try:
        with answers_within(HURRIED_SECONDS):
            yield
    finally:
        _hurried.reset(before)


def is_hurried() -> bool:
    return _hurried.get()


def delays() -> tuple[float, ...]:
    """Seconds to wait after each call that has failed, but for the last one."""
    return () if is_hurried() else RETRY_SECONDS
