"""One test cluster, below one folder: started, looked at, stopped."""

import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from refsam.errors import ConfigError
from refsam.system.files import read_json, write_json
from tools.test_cluster.daemons import STOP_SECONDS, Daemon, Daemons, daemons_of, end
from tools.test_cluster.jobs import end_jobs, job_processes
from tools.test_cluster.packages import check_machine
from tools.test_cluster.settings import Settings, choose_settings, gpu_files, node_names, write_configuration

START_SECONDS = 300.0  # for each step of the start; all take a few seconds on two cores that are free
JOBS_END_SECONDS = 20.0  # for cancelled jobs to end by themselves
POLL_SECONDS = 0.2
# 107 bytes of a socket's path, less /spool/cpu1/cpu1_67043327.4294967291, which a job's first step makes.
LONGEST_ROOT = 107 - 36


class StartFailed(RuntimeError):
    """A part of the cluster did not come up. The message is one sentence that names the log."""


class Cluster:
    """The test cluster in the folder `root`, which it makes and removes."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.daemons = Daemons(self.root)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to speak with this cluster."""
        return {"SLURM_CONF": str(self.root / "slurm.conf")}

    @property
    def settings(self) -> Settings:
        """Raises FileNotFoundError where no cluster was started."""
        return Settings(**read_json(self.root / "cluster.json"))

    def all_daemons(self) -> list[Daemon]:
        """In the order in which they are started."""
        return daemons_of(self.root, self.settings.ports["database"], node_names())

    def is_up(self) -> bool:
        """Whether every process of it lives."""
        try:
            return all(self.daemons.find(daemon.name) is not None for daemon in self.all_daemons())
        except FileNotFoundError:
            return False

    def up(self) -> None:
        """Start what does not run, and return when all nodes are idle.

        Raises ConfigError when this machine or `root` cannot be used, and StartFailed when a part does not
        come up, with everything stopped again and the logs left.
        """
        check_machine()
        self._check_root()
        with _one_start_at_a_time():
            self._start_everything()

    def _start_everything(self) -> None:
        if self.root.exists() and not self.daemons.names():
            shutil.rmtree(self.root)  # what a failed start or a restart of the machine has left
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if not (self.root / "cluster.json").exists():
                self._prepare()
            for daemon in self.all_daemons():
                self.start(daemon.name)
            self._wait_for("slurmctld", "not all nodes became idle", self._all_idle)
        except BaseException:
            self._stop_everything()
            raise

    def start(self, name: str) -> None:
        """Start one daemon unless it lives, and wait until it answers (a node: until it lives).

        The controller has started when the nodes that live are registered: until then it refuses jobs that
        ask for GPUs. Raises StartFailed.
        """
        daemon = next(daemon for daemon in self.all_daemons() if daemon.name == name)
        self.daemons.start(daemon, self.environment)
        answers: Callable[[], bool] = {
            "munged": lambda: (self.root / "munge" / "socket").exists(),
            "database": lambda: self._listens("database"),
            "slurmdbd": lambda: self._listens("slurmdbd"),
            "slurmctld": self._all_registered,
        }.get(name, lambda: True)
        self._wait_for(name, f"{name} does not answer", answers)
        if name == "slurmdbd":
            self._register()

    def cancel_jobs(self) -> None:
        """Cancel all jobs. They need a moment to end."""
        self._ask("scancel", "--me")

    def make_idle(self) -> None:
        """Cancel all jobs, start what does not run, and return when nothing is left and all nodes are idle.

        Nodes that Slurm has given up come back. Raises StartFailed.
        """
        for daemon in self.all_daemons():
            self.start(daemon.name)
        self.cancel_jobs()
        given_up = [name for name, state in self.nodes().items() if state.startswith(("down", "drain"))]
        for name in given_up:
            self._ask("scontrol", "update", f"NodeName={name}", "State=RESUME")
        self._wait_for("slurmctld", "not all jobs ended", lambda: self._all_idle() and self._no_job_is_left())

    def down(self) -> None:
        """Cancel all jobs, stop every process and remove the folder."""
        if not (self.root / "cluster.json").exists():
            self._check_root()
            return
        self._stop_everything()
        shutil.rmtree(self.root)

    def nodes(self) -> dict[str, str]:
        """The state of every node as sinfo says it; empty where the controller does not answer."""
        answer = self._ask("sinfo", "--noheader", "--Node", "--format=%N %T")
        if answer.returncode != 0:
            return {}
        pairs = (line.split() for line in answer.stdout.splitlines())
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

    def _check_root(self) -> None:
        """Root's own folder, made by this program or not there: its content will be removed one day."""
        if len(os.fsencode(self.root)) > LONGEST_ROOT:
            raise ConfigError(
                f"--root must be a path of {LONGEST_ROOT} bytes at most (Slurm makes sockets below "
                f"it), got {self.root}"
            )
        if not self.root.exists():
            return
        facts = self.root.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            raise ConfigError(f"--root: {self.root} is not a folder of this user")
        if not (self.root / "cluster.json").exists() and any(self.root.iterdir()):
            raise ConfigError(
                f"--root: {self.root} is neither empty nor a test cluster's; expected a folder of its own"
            )

    def _prepare(self) -> None:
        settings = choose_settings()
        # First of all: it marks the folder as one that may be removed.
        write_json(self.root / "cluster.json", asdict(settings))
        write_configuration(self.root, settings)
        for path in gpu_files(self.root):
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # /dev/null by another name
        command = ["mariadb-install-db", "--no-defaults", "--user=root", "--skip-test-db"]
        command += [f"--datadir={self.root / 'database'}", "--auth-root-authentication-method=normal"]
        log = self.root / "log" / "mariadb-install-db.out"
        with log.open("wb") as output:
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            raise StartFailed(f"the database could not be made; see {log}")

    def _register(self) -> None:
        """Make the cluster known to its accounting, which must be before the controller starts."""
        known = self._ask("sacctmgr", "--noheader", "list", "cluster", "format=cluster%40")
        if "scc" in known.stdout.split():
            return
        answer = self._ask("sacctmgr", "--immediate", "add", "cluster", "scc")
        if answer.returncode != 0:
            log = self.root / "log" / "slurmdbd.log"
            raise StartFailed(f"the accounting did not take the cluster: {answer.stderr.strip()}; see {log}")

    def _all_idle(self) -> bool:
        states = self.nodes()
        return set(states) == set(node_names()) and all(state == "idle" for state in states.values())

    def _all_registered(self) -> bool:
        """Whether the controller answers and has heard of every node that lives; a version comes with it."""
        answer = self._ask("scontrol", "show", "node", "--oneliner")
        known = [line for line in answer.stdout.splitlines() if " Version=" in line and "UNKNOWN" not in line]
        registered = {line.split()[0].removeprefix("NodeName=") for line in known}
        living = {name for name in node_names() if self.daemons.find(f"slurmd-{name}") is not None}
        return answer.returncode == 0 and living <= registered

    def _no_job_is_left(self) -> bool:
        answer = self._ask("squeue", "--noheader")  # those that are just ending included
        return answer.returncode == 0 and answer.stdout == ""

    def _wait_for(self, name: str, complaint: str, holds: Callable[[], bool]) -> None:
        logs = self.root / "log"
        log = next((path for path in (logs / f"{name}.log", logs / f"{name}.out") if path.exists()), logs)
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            if self.daemons.find(name) is None:
                raise StartFailed(f"{name} ended at once; see {log}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{complaint} within {START_SECONDS:.0f} seconds; see {log}")
            time.sleep(POLL_SECONDS)

    def _listens(self, service: str) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.settings.ports[service]), timeout=1):
                return True
        except OSError:
            return False

    def _ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A question to Slurm; an answer that does not come is a failed one."""
        environment = {**os.environ, **self.environment}
        try:
            return subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=30, check=False
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", f"{command[0]} does not answer")

    def _stop_everything(self) -> None:
        if self.daemons.find("slurmctld") is not None:
            self.cancel_jobs()
            deadline = time.monotonic() + JOBS_END_SECONDS
            while job_processes(self.settings) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        names = self.daemons.names()
        nodes = [self.daemons.find(name) for name in names if name.startswith("slurmd-")]
        end([process for process in nodes if process is not None], STOP_SECONDS)
        for name in reversed([name for name in names if not name.startswith("slurmd-")]):
            self.daemons.stop(name)
        end_jobs(self.settings)


@contextmanager
def _one_start_at_a_time() -> Iterator[None]:
    """Two clusters that start together would choose the same free ports. The claim ends with the process."""
    with socket.socket(socket.AF_UNIX) as claim:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                claim.bind("\0refsam-test-cluster-starts")
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise StartFailed("another test cluster has been starting for too long") from error
            time.sleep(POLL_SECONDS)
        yield
