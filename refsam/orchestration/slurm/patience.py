"""Calls to Slurm that are made again while it is away for a moment."""

import time
from collections.abc import Callable
from typing import TypeVar

from refsam.errors import SlurmSilent
from refsam.orchestration.slurm.questions import is_momentary

Say = Callable[[str], None]
Result = TypeVar("Result")

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # between the calls


def patiently(call: Callable[[], Result], say: Say) -> Result:
    """The result of a call to Slurm, made again while Slurm is away for a moment. Raises SlurmSilent."""
    for delay in RETRY_SECONDS:
        try:
            return call()
        except SlurmSilent as error:
            if not is_momentary(str(error)):
                raise
            say(f"{error}; trying again in {delay:.0f} s")
        time.sleep(delay)
    return call()
