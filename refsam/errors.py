"""The errors that a person can mend. The commands print their one sentence and exit with status 2."""

import difflib
import os
from collections.abc import Iterable, Sequence


class ConfigError(Exception):
    """A value that cannot be used. The message names the field, what was given and what is allowed."""


class RunFailed(RuntimeError):
    """A run ended without a result; its record says why. The commands exit with status 1."""


class SlurmUnavailable(RuntimeError):
    """A Slurm command failed or gave no answer in time. The message is the first line of what it said."""


class Unreadable(ValueError):
    """A file is there and cannot be read now. The message names the file and says why."""


class WrittenByNewer(Unreadable):
    """A file that only a newer refsam can read, so that this one leaves it and its run alone."""

    def __init__(self, path: object, why: str) -> None:
        super().__init__(f"{path} was written by a newer version of refsam ({why}); update refsam")


class DamagedManifest(ValueError):
    """A sweep's manifest cannot be read. The message names the file. The commands exit with status 1."""


def os_problem(error: OSError) -> str:
    """What went wrong with which file, in one sentence, for an error that no other sentence is about."""
    what = os_reason(error)
    return what if error.filename is None else f"{error.filename} cannot be read or written: {what}"


def os_reason(error: OSError) -> str:
    """What went wrong, without the file; libraries raise errors that have no text of the system's."""
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error)) or type(error).__name__


def some(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, and a sign where there are more; `none` of no name."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "") or "none"


def nearest(given: str, allowed: Iterable[str]) -> str:
    """` (did you mean X?)` when something like `given` is allowed, else the empty string."""
    close = difflib.get_close_matches(given, list(allowed), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
