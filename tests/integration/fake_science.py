"""A stand-in for the science: it keeps the contract of the record, and does what `behaviour.txt` says.

Also a program: `python fake_science.py RUNS PARALLEL GRACE RUN_ID...` executes runs through the local queue,
with plain lines on standard output, and ends with 130 when it was stopped. With HANG_AT_IMPORT set to a path
it writes this file and hangs where it is imported, as a job does that is still loading its libraries.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from refsam.configuration.schema import RefsamConfig
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.status import TRAINED, Reason, State, now, read_status, run_lock, write_status

ENTRY_POINT = "fake_science:execute"
PATIENCE = 60  # seconds after which a stand-in gives up, so that a broken test does not hang


if __name__ == "fake_science" and "HANG_AT_IMPORT" in os.environ:
    Path(os.environ["HANG_AT_IMPORT"]).touch()
    time.sleep(PATIENCE)


@dataclass(frozen=True)
class FakeRun:
    """A planned run as the queue sees it."""

    run_id: str
    config: RefsamConfig = field(default_factory=RefsamConfig)

    @property
    def label(self) -> str:
        return f"label of {self.run_id}"


def execute(root: Path) -> None:
    paths = RunPaths(root)
    with run_lock(paths):
        host = os.uname().nodename
        # One that is trained already says nothing of its training.
        trains = (root / "behaviour.txt").read_text().strip() != "evaluate"
        before = read_status(paths).changed(**({"epochs": 3} if trains else {}))
        status = before.changed(state=State.running, started_at=now(), host=host, pid=os.getpid())
        write_status(paths, status)
        note(
            root.parent,
            f"start {root.name} {os.environ['OMP_NUM_THREADS']} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}",
        )
        try:
            behave(root)
        except BaseException as error:
            reason = Reason.cancelled if isinstance(error, KeyboardInterrupt) else Reason.error
            if "helper" in str(error):
                reason = Reason.lost
            if "without a word" not in str(error):
                message = f"{type(error).__name__}: {error}"
                write_status(
                    paths, status.changed(state=State.failed, reason=reason, message=message, ended_at=now())
                )
            raise
        finally:
            note(root.parent, f"end {root.name}")
        if os.environ.get("REFSAM_TRAINS_ONLY") == "1":
            write_status(paths, status.changed(phase=TRAINED))
        else:
            said = {"epoch": 3, "loss": 0.25} if trains else {}
            write_status(paths, status.changed(state=State.completed, ended_at=now(), **said))


def behave(root: Path) -> None:
    behaviour = (root / "behaviour.txt").read_text().strip()
    print(f"behaviour: {behaviour}")
    if behaviour == "fail":
        raise ValueError("the [bold]data[/bold] is not there")
    if behaviour == "fail silently":
        raise ValueError("without a word")
    if behaviour == "fail for want of a helper":
        raise RuntimeError("a helper was killed")
    if behaviour == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "crash by itself":
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour == "meet":  # ends when two runs have been seen at work
        wait_for(lambda: len(starts(root.parent)) >= 2)
        time.sleep(0.7)
    if behaviour in ("wait", "stubborn"):
        helper = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({PATIENCE})"])
        if behaviour == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (root / "ready").touch()
        try:
            wait_for((root.parent / "go").exists)
        finally:
            helper.kill()
            helper.wait()


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("nothing happened")
        time.sleep(0.05)


def note(folder: Path, line: str) -> None:
    with (folder / "events.txt").open("a") as file:
        file.write(line + "\n")


def events(folder: Path) -> list[list[str]]:
    path = folder / "events.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def starts(folder: Path) -> list[str]:
    return [event[1] for event in events(folder) if event[0] == "start"]


def main(folder: str, parallel: str, grace: str, *run_ids: str) -> int:
    from rich.console import Console

    from refsam.orchestration.submission import local
    from refsam.orchestration.submission.live_table import make_display

    local.GRACE_SECONDS = float(grace)
    runs = [FakeRun(run_id) for run_id in run_ids]
    try:
        local.run_locally(
            runs, RunsFolder(Path(folder)), int(parallel), 1, make_display(Console()), ENTRY_POINT
        )
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
