"""Starting a test cluster's processes, finding them again from another shell, and ending them."""

import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from refsam.system.files import read_json, write_json

STOP_SECONDS = 20.0  # for a daemon to end after SIGTERM, before it is killed


@dataclass(frozen=True)
class Daemon:
    """A process that stays in the foreground of its own session."""

    name: str
    command: tuple[str, ...]


class Daemons:
    """The processes of the cluster in `root`, by name.

    A process is known by its number and the time when it was made, so that no other one is ever taken for it.
    """

    def __init__(self, root: Path) -> None:
        self._record = root / "processes.json"
        self._root = root

    def find(self, name: str) -> psutil.Process | None:
        """The living process of a daemon."""
        known = self._read().get(name)
        if known is None:
            return None
        try:
            process = psutil.Process(int(known["pid"]))
            same = process.create_time() == known["created"] and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if same else None

    def names(self) -> list[str]:
        """The daemons that live, in the order in which they were started."""
        return [name for name in self._read() if self.find(name) is not None]

    def start(self, daemon: Daemon, environment: dict[str, str]) -> None:
        """Start a daemon unless it lives; what it prints is in log/NAME.out. Raises OSError if it cannot."""
        if self.find(daemon.name) is not None:
            return
        with (self._root / "log" / f"{daemon.name}.out").open("ab") as output:
            child = subprocess.Popen(
                daemon.command,
                cwd=self._root,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        known = self._read()
        known.pop(daemon.name, None)  # so that it comes last again
        created = psutil.Process(child.pid).create_time()
        write_json(self._record, {**known, daemon.name: {"pid": child.pid, "created": created}})

    def stop(self, name: str) -> None:
        """End a daemon, with SIGKILL where SIGTERM is not enough; its record stays."""
        process = self.find(name)
        if process is not None:
            end([process], STOP_SECONDS)

    def _read(self) -> dict[str, dict[str, float]]:
        known: dict[str, dict[str, float]] = read_json(self._record) if self._record.exists() else {}
        return known


def daemons_of(root: Path, database_port: int, nodes: list[str]) -> list[Daemon]:
    """All daemons of the cluster in `root`, in the order in which they are started."""
    munge = root / "munge"
    munged = [
        "munged",
        "--foreground",
        "--force",  # its folders are root's alone, where it would rather have them open to all
        f"--socket={munge / 'socket'}",
        f"--key-file={munge / 'key'}",
        f"--seed-file={munge / 'seed'}",
        f"--log-file={root / 'log' / 'munged.log'}",
        f"--pid-file={root / 'pid' / 'munged'}",
    ]
    database = [
        "mariadbd",
        "--no-defaults",
        "--user=root",
        f"--datadir={root / 'database'}",
        f"--socket={root / 'database.socket'}",
        f"--pid-file={root / 'pid' / 'database'}",
        "--bind-address=127.0.0.1",
        f"--port={database_port}",
        f"--init-file={root / 'database.sql'}",
        "--innodb-lock-wait-timeout=900",  # what slurmdbd asks for
        "--innodb-flush-log-at-trx-commit=0",  # nothing here outlives the machine
    ]
    return [
        Daemon("munged", tuple(munged)),
        Daemon("database", tuple(database)),
        Daemon("slurmdbd", ("slurmdbd", "-D")),
        Daemon("slurmctld", ("slurmctld", "-D")),
        *(Daemon(f"slurmd-{name}", ("slurmd", "-D", "-N", name)) for name in nodes),
    ]


def end(processes: list[psutil.Process], seconds: float) -> None:
    """SIGTERM to all, and SIGKILL to those that have not ended after `seconds`."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, living = psutil.wait_procs(processes, timeout=seconds)
    for process in living:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(living, timeout=seconds)
