"""A child process that may use less memory than the machine has, and whether that killed it.

By a cgroup of its own where that can be made (root, version 1 or 2), which counts what is really in memory;
elsewhere by RLIMIT_DATA, which counts what was asked for and is therefore the stricter one.
"""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from refsam.orchestration import machine
from refsam.system.cgroups import GIB, cgroup_folders, kernel_text

CGROUP, RLIMIT, CUDA = "cgroup", "rlimit", "cuda"
PREFIX = "refsam-fit-"
# Where a version of cgroups has its files: the limit, that of memory and swap, and the count of kills.
VERSION_1 = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control")
VERSION_2 = ("memory.max", "memory.swap.max", "memory.events")
REMOVE_SECONDS = 5.0
KILL_FIRST = "1000"  # of all processes, when the machine itself gets short of memory
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    status: int  # as subprocess has it; negative: the signal
    killed_for_memory: bool
    timed_out: bool


class Limit:
    """At most `gib` GiB for the processes that `run` starts. None sets no limit of main memory."""

    def __init__(self, gib: float | None, group: Path | None) -> None:
        self._bytes = None if gib is None else int(gib * GIB)
        self._group = group

    @property
    def kind(self) -> str:
        return RLIMIT if self._group is None else CGROUP

    def run(self, command: Sequence[str], environment: dict[str, str], log: Path, seconds: float) -> Ended:
        """Run `command` to its end, at most `seconds`; whatever happens here, nothing of it stays."""
        kills_before = self._kills()
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for this process alone
                preexec_fn=self._enter,
            )
            timed_out = False
            try:
                child.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:
                _kill(child)
        killed = child.returncode == -signal.SIGKILL and not timed_out and self._kills() > kills_before
        return Ended(child.returncode, killed, timed_out)

    def _enter(self) -> None:
        """In the child, before the command is there: so all of its memory counts."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(KILL_FIRST, encoding="utf-8")
        if self._group is not None:
            (self._group / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")
        elif self._bytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (self._bytes, self._bytes))

    def _kills(self) -> int:
        if self._group is None:
            return machine.out_of_memory_kills()
        return machine.out_of_memory_kills_in(self._group) or 0


@contextlib.contextmanager
def memory_limit(gib: float | None) -> Iterator[Limit]:
    """A limit of main memory; its cgroup, where it has one, is there as long as the context is open."""
    group = None if gib is None else _make_group(int(gib * GIB))
    try:
        yield Limit(gib, group)
    finally:
        if group is not None:
            _remove(group)


def _make_group(limit: int) -> Path | None:
    """A new cgroup with a limit in bytes; None where this process may not make one."""
    for parent in cgroup_folders("memory"):
        version = VERSION_1 if (parent / VERSION_1[0]).exists() else VERSION_2
        if version is VERSION_2 and "memory" not in kernel_text(parent / "cgroup.subtree_control").split():
            continue  # a group that has processes cannot have groups with limits: one above it can
        _remove_leftovers(parent)
        group = parent / f"{PREFIX}{os.getpid()}"
        try:
            group.mkdir(exist_ok=True)
            (group / version[0]).write_text(str(limit), encoding="utf-8")
            with contextlib.suppress(OSError):  # version 1 has it only where swap is accounted for
                swap = limit if version is VERSION_1 else 0
                (group / version[1]).write_text(str(swap), encoding="utf-8")
        except OSError:
            _remove(group)
            return None
        return group
    return None


def _remove_leftovers(parent: Path) -> None:
    """Groups of processes that were killed before they could remove them."""
    for group in parent.glob(f"{PREFIX}*"):
        number = group.name.removeprefix(PREFIX)
        if number.isdigit() and not psutil.pid_exists(int(number)):
            _remove(group)


def _remove(group: Path) -> None:
    """Remove a group; what was killed takes a moment to leave it."""
    deadline = time.monotonic() + REMOVE_SECONDS
    while group.exists():
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                return  # the next fit removes it
            time.sleep(0.05)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it has started; it is the leader of a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
