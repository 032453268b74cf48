"""The process that computes a run. The supervisor starts it.

It listens to signals before it loads anything heavy, and leaves a last word in the record where the function
could not: when its module cannot be imported, for instance.
"""

import faulthandler
import importlib
import sys
from contextlib import suppress
from pathlib import Path

from refsam.records.endings import NOT_LOADED, failed
from refsam.records.paths import RunPaths
from refsam.records.recovery import read_record
from refsam.records.status import OPEN, AlreadyRunning, run_lock, write_status
from refsam.system import signals
from refsam.system.exits import leaving_at_once
from refsam.system.own_job import LOCK_SECONDS

STOPPED = 130  # exit status after a signal that asked it to stop


def execute(entry_point: str, root: Path) -> None:
    """Call the entry point with the run directory. Raises what it raises."""
    module, function = entry_point.split(":")
    try:
        with signals.listening():
            getattr(importlib.import_module(module), function)(root)
    except AlreadyRunning:
        raise
    except BaseException as error:
        with suppress(AlreadyRunning):  # the supervisor says it
            _leave_word(RunPaths(root), error)
        raise


def _leave_word(paths: RunPaths, error: BaseException) -> None:
    with run_lock(paths, LOCK_SECONDS):
        status = read_record(paths)
        if status.state not in OPEN or isinstance(error, KeyboardInterrupt):
            return  # it has said so itself; or it was asked to stop, which who asked it knows
        problem = (str(error).strip().splitlines() or [""])[0]
        facts = {"error": type(error).__name__, "problem": problem, "log": paths.attempt(status.attempt)}
        write_status(paths, failed(status, NOT_LOADED, **facts), is_last_word=True)


def main(entry_point: str, root: str) -> None:
    """Execute the run in the directory `root` by `module:function`."""
    faulthandler.enable()  # a crash of the interpreter leaves its stack in the log
    with suppress(OSError):  # when memory is short the kernel is to kill this process, not its supervisor
        Path("/proc/self/oom_score_adj").write_text("500")
    with leaving_at_once():
        try:
            execute(entry_point, Path(root))
        except KeyboardInterrupt:
            sys.exit(STOPPED)  # who asked it to stop says so in the log, which needs no stack
