"""Limits of memory on real processes, and that nothing of them stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from refsam.orchestration.fit import limits
from refsam.orchestration.fit.limits import Ended, memory_limit
from refsam.system.cgroups import cgroup_folders

PATIENCE = 30
TAKES_300_MIB = [sys.executable, "-S", "-c", "len(bytearray(300 * 2**20))"]


@pytest.fixture(params=["cgroup", "rlimit"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to set a limit; without the right to make a cgroup there is one."""
    if request.param == "rlimit":
        monkeypatch.setattr(limits, "_make_group", lambda limit: None)
    elif os.geteuid() != 0:
        pytest.skip("only root makes cgroups")
    return str(request.param)


def run(gib: float, command: list[str], log: Path, seconds: float = PATIENCE) -> tuple[str, Ended]:
    with memory_limit(gib) as limit:
        return limit.kind, limit.run(command, dict(os.environ), log, seconds)


def groups() -> list[Path]:
    return [
        group for parent in cgroup_folders("memory") for group in parent.glob(f"{limits.PREFIX}{os.getpid()}")
    ]


def test_a_process_that_outgrows_its_limit_ends_and_another_does_not(kind: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    used, ended = run(0.1, TAKES_300_MIB, log)
    assert used == kind
    if kind == "cgroup":
        assert ended == Ended(-signal.SIGKILL, killed_for_memory=True, timed_out=False)
    else:
        assert ended.status == 1
        assert "MemoryError" in log.read_text()
    assert run(0.6, TAKES_300_MIB, log)[1] == Ended(0, killed_for_memory=False, timed_out=False)
    assert groups() == []


def test_a_process_that_somebody_kills_did_not_run_out_of_memory(kind: str, tmp_path: Path) -> None:
    suicide = [sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)"]
    assert run(0.5, suicide, tmp_path / "log")[1] == Ended(-9, killed_for_memory=False, timed_out=False)


def test_what_takes_too_long_is_ended_with_its_children(kind: str, tmp_path: Path) -> None:
    program = (
        "import os, subprocess, sys; child = subprocess.Popen(['sleep', '60']); "
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); child.wait()"
    )
    ended = run(0.5, [sys.executable, "-S", "-c", program], tmp_path / "log", seconds=3)[1]
    assert ended.timed_out
    assert gone(int((tmp_path / "child").read_text()))
    assert groups() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_survives_the_one_that_started_it(number: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import os; from pathlib import Path; from refsam.orchestration.fit.limits import memory_limit\n"
        "with memory_limit(0.5) as limit:\n"
        "    limit.run(['bash', '-c', 'echo $$; exec sleep 60'], dict(os.environ), Path('log'), 60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.DEVNULL) as parent:
        log = tmp_path / "log"
        deadline = time.monotonic() + PATIENCE
        while not (log.exists() and log.read_text().strip()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.send_signal(number)
    assert gone(int(log.read_text()))
    if os.geteuid() == 0:
        with memory_limit(0.5):  # removes what a killed one could not
            left = [
                group
                for folder in cgroup_folders("memory")
                for group in folder.glob(f"{limits.PREFIX}{parent.pid}")
            ]
        assert left == []


def gone(number: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
