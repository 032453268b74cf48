"""Where the chaos happens: a cluster, a disk with the runs on it, what is typed there, and others' jobs."""

import os
import pwd
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.chaos.command import STAND_IN
from benchmarks.chaos.stand_in import STEPS, Journal
from refsam.records.paths import RunsFolder
from refsam.system.files import read_json
from tools.test_cluster.cluster import Cluster
from tools.test_cluster.settings import CGROUPS

ROOT = Path(__file__).resolve().parents[2]
SWEEP = "chaos"
DISK = "size=16g"  # nothing of it is taken before it is written
NODES = ("cpu1", "cpu2", "cpu3", "cpu4")  # of the partition where the runs are; those of others' jobs stay
PARALLEL = 10  # runs of one array at a time
HANGS = 300.0  # seconds after which a command counts as one that never ends
SLURM_SECONDS = 15.0  # for a command of Slurm, which its daemons may not answer
POLL_SECONDS = 1.0
TRACEBACK = "Traceback (most recent call last)"
KNOWN_STATUSES = (0, 1, 2, 3)
# Jobs of others: on nodes that are left alone, and on hold where the runs are; one of another user of the
# machine, who is there as long as the chaos.
HELD = "held"
USER = "refsam-chaos"
OTHERS = {
    "array-of-another": ("--partition=gpu",),
    "refsam-of-another": ("--partition=gpu",),
    "array-of-another-user": ("--partition=gpu", f"--uid={USER}"),
    HELD: ("--partition=medium", "--hold"),
}
OTHERS_TASKS = 4
OTHERS_JOB = """#!/bin/sh
task=$SLURM_JOB_NAME-$SLURM_ARRAY_TASK_ID
echo "begin $task" >> {journal}
while [ ! -e {go} ]; do sleep 1; done
echo "end $task" >> {journal}
"""


@dataclass(frozen=True)
class Task:
    """A job of the sweep as squeue shows it."""

    job_id: str
    state: str
    reason: str


@dataclass
class World:
    """One chaos: its cluster and its folder.

    Attributes:
        violations: what must not be, each with its invariant.
        typed: how often each command of refsam was typed.
        killed: how many of them were killed on purpose.
        down: daemons that were killed, and are not to be started yet.
        touched: runs whose records are just being damaged.
        making: held while a sweep is made, and while a run directory is away, which it would make anew.
    """

    cluster: Cluster
    work: Path
    runs: int
    violations: list[tuple[str, str]] = field(default_factory=list)
    typed: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    down: list[str] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    making: threading.Lock = field(default_factory=threading.Lock)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def disk(self) -> Path:
        return self.work / "disk"

    @property
    def folder(self) -> RunsFolder:
        return RunsFolder(self.disk / "runs")

    @property
    def log(self) -> Path:
        return self.work / "log"

    @property
    def environment(self) -> dict[str, str]:
        own = {"REFSAM_DATA": str(self.work / "data"), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        return {**os.environ, **self.cluster.environment, **own}

    def prepare(self, seconds_of_run: float) -> None:
        """Make the folders, the disk, and the other user, who has to come to the spool and to a journal."""
        for path in (self.disk, self.log, self.work / "journals", self.work / "data"):
            path.mkdir(parents=True)
        if USER not in {entry.pw_name for entry in pwd.getpwall()}:  # a chaos that was killed has left it
            subprocess.run(["useradd", "--system", "--no-create-home", USER], check=True)
        for path in (self.work, self.cluster.root):
            path.chmod(0o711)
        self.journal_of_others.touch()
        self.journal_of_others.chmod(0o666)
        (self.work / "journals" / "pause").write_text(str(seconds_of_run / STEPS), encoding="utf-8")
        subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(self.disk)], check=True)

    def end(self) -> None:
        """Take the disk and the other user away."""
        subprocess.run(["umount", "--lazy", str(self.disk)], check=True)
        subprocess.run(["userdel", "--force", USER], check=True)

    @property
    def journal_of_others(self) -> Path:
        return self.work / "others"

    def run_ids(self) -> list[str]:
        return [run["run_id"] for run in read_json(self.folder.sweep(SWEEP).manifest)["runs"]]

    def journal(self, run_id: str) -> Journal:
        return Journal.of(self.folder.run(run_id).root)

    def violated(self, invariant: str, words: str) -> None:
        self.violations.append((invariant, words))

    # What is typed

    def sweeps(self) -> list[list[str]]:
        """The commands of the sweep: two arrays with requests of their own."""
        half = self.runs // 2
        asked = ["cluster=slurm", "resource=medium_8g", "model=vit_nano", "dataset=synthetic", "train=quick"]
        asked += ["n_images=1", "n_objects=1", "baseline=false", "evaluate.modes=[box]"]
        asked += [
            "evaluate.max_images=1",
            "evaluate.pictures=0",
            "resource.request.cores=1",
            "resource.request.time=1:00:00",
        ]
        asked += [f"name={SWEEP}", f"runs={self.folder.root}", f"cluster.array_parallelism={PARALLEL}"]
        return [
            ["sweep", "-m", *asked, f"resource.request.memory_gb={memory}", f"seed={_numbers(seeds)}"]
            for memory, seeds in ((1, range(half)), (2, range(half, self.runs)))
        ]

    def enter(self, arguments: Sequence[str], kill_after: float | None = None) -> Path:
        """Type a command of refsam; the file with what it has printed on standard output.

        A traceback, an unknown exit status and no end are violations.

        Args:
            kill_after: seconds after which it is killed on purpose.
        """
        with self._lock:
            number = self.typed.total()
            self.typed[arguments[0]] += 1
        printed = self.log / f"{number:04}-{arguments[0]}.txt"
        errors = printed.with_suffix(".err")
        command = [sys.executable, "-m", "benchmarks.chaos.command", *arguments]
        began = time.time()
        making = self.making if arguments[0] == "sweep" else nullcontext()
        with making, printed.open("wb") as output, errors.open("wb") as error_output:
            child = subprocess.Popen(
                command, stdout=output, stderr=error_output, cwd=self.work, env=self.environment
            )
            try:
                status: int | None = child.wait(kill_after or HANGS)
            except subprocess.TimeoutExpired:
                status = None
                child.kill()
                child.wait()
        words = f"{' '.join(arguments[:3])}, exit status {status}: {printed}"
        if status is None and kill_after is None:
            self.violated("hung", f"{words}, after {HANGS:.0f} s")
        elif status is None:
            self.killed += 1
        text = errors.read_text(encoding="utf-8", errors="replace")
        if arguments[0] != "logs":  # which prints those of a run
            text += printed.read_text(encoding="utf-8", errors="replace")
        if TRACEBACK in text or (status is not None and status not in KNOWN_STATUSES):
            self.violated("traceback", words)
        self.note(f"typed {number:04} for {time.time() - began:.1f} s, exit status {status}: {arguments}")
        return printed

    def refsam(self, *arguments: str) -> Path:
        return self.enter([*arguments, "--runs", str(self.folder.root)])

    def note(self, words: str) -> None:
        with (self.log / "history.txt").open("a", encoding="utf-8") as history:
            history.write(f"{time.time():.2f} {words}\n")

    # What Slurm is told and says

    def slurm(self, *command: str) -> str | None:
        """What a command of Slurm prints; None where it fails."""
        if "slurmctld" in self.down:
            return None  # it would be waited for
        try:
            done = subprocess.run(
                command,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=SLURM_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
        return done.stdout if done.returncode == 0 else None

    def tasks(self) -> list[Task] | None:
        """The jobs of the sweep; None where Slurm does not answer."""
        text = self.slurm("squeue", "--noheader", "--array", "--format=%i|%T|%r|%j")
        if text is None:
            return None
        rows = [line.split("|") for line in text.splitlines()]
        return [Task(*row[:3]) for row in rows if row[3].startswith(f"refsam-{SWEEP}-")]

    def processes(self) -> list[psutil.Process]:
        """The processes that execute runs."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = process.cmdline()
                if STAND_IN in command and command[-1].startswith(str(self.folder.root)):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def revive(self) -> None:
        """Start the daemons that are to run and do not, such as a controller that found no database."""
        for daemon in self.cluster.all_daemons():
            if daemon.name not in self.down and self.cluster.daemons.find(daemon.name) is None:
                self.cluster.daemons.start(daemon, self.cluster.environment)

    def thaw(self) -> None:
        """Let processes go on whose job was suspended when its step's daemon was killed: nobody else will."""
        for process in self.processes():
            groups = Path(f"/proc/{process.pid}/cgroup").read_text(encoding="utf-8").splitlines()
            for line in groups:
                _, controllers, path = line.split(":", 2)
                if controllers == "freezer":
                    (CGROUPS / f"freezer{path}" / "freezer.state").write_text("THAWED", encoding="utf-8")
                elif not controllers and (freeze := CGROUPS / path[1:] / "cgroup.freeze").exists():
                    freeze.write_text("0", encoding="utf-8")
            process.resume()

    # Jobs of others

    def submit_others(self, name: str) -> None:
        """An array of somebody else, which lasts until everything is healed."""
        script = OTHERS_JOB.format(journal=self.journal_of_others, go=self.work / "go")
        command = ["sbatch", f"--job-name={name}", f"--array=0-{OTHERS_TASKS - 1}", *OTHERS[name]]
        command += ["--output=/dev/null", "--mem=50", "--chdir=/"]
        subprocess.run(
            command, input=script, text=True, env=self.environment, check=True, stdout=subprocess.DEVNULL
        )

    def others(self) -> list[str]:
        """What the jobs of others have written: `begin` or `end`, and which."""
        return self.journal_of_others.read_text(encoding="utf-8").splitlines()


def _numbers(numbers: range) -> str:
    return ",".join(map(str, numbers))


def typing(world: World, rng: random.Random, stop: threading.Event) -> Iterator[str]:
    """Type one command after the other, as somebody who does not trust what he sees; their names."""
    names = (
        *("status", "status", "list", "show", "logs", "collect", "watch", "cancel"),
        *("continue", "continue", "retry", "sweep"),
    )
    while not stop.is_set():
        name, pick, pause, kill = rng.choice(names), rng.random(), rng.uniform(0, 3), rng.random()
        run_ids = world.run_ids()
        run = run_ids[int(pick * len(run_ids))]
        folder = ["--runs", str(world.folder.root)]
        arguments = {
            "list": ["list", *folder],
            "show": ["show", run, *folder],
            "logs": ["logs", run, *folder],
            "cancel": ["cancel", run, *folder],
            "watch": ["watch", SWEEP, "--json", *folder],
            "sweep": world.sweeps()[int(pick * 2)],
        }.get(name, [name, SWEEP, *folder])
        changes = name in ("continue", "retry", "sweep", "cancel")
        kill_after = 1 + 4 * pick if name == "watch" or (changes and kill < 0.15) else None
        world.enter(arguments, kill_after)
        yield name
        stop.wait(pause)
