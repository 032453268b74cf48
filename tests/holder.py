"""A process that holds a run's lock, and may be stopped while it does."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PROGRAM = (
    "import sys; from pathlib import Path; from refsam.records.paths import RunPaths\n"
    "from refsam.records.status import run_lock\n"
    "with run_lock(RunPaths(Path(sys.argv[1]))): print('held', flush=True); sys.stdin.read()"
)


@contextmanager
def held(root: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process holds the lock of the run in the directory `root`, and is stopped."""
    command = [sys.executable, "-c", PROGRAM, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        while psutil.Process(holder.pid).status() != psutil.STATUS_STOPPED:
            pass
        try:
            yield holder
        finally:
            holder.kill()
