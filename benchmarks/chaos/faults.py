"""What goes wrong: each fault is done when its context is entered, and undone when it is left.

A fault that finds nothing to hit raises one of MISSED. Which fault comes when, for how long, and which of its
targets it hits are drawn before it happens, so that a seed means the same sequence on every machine.
"""

import random
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import psutil

from benchmarks.chaos.world import DISK, NODES, World
from refsam.records.paths import RunPaths

Fault = Callable[[World, float], AbstractContextManager[object]]  # what it has hit
T = TypeVar("T")

SECONDS = (1.0, 8.0)  # that a fault lasts
PAUSE = (0.1, 1.3)  # between two faults
# What a status.json may be, besides half of itself.
GARBAGE = (
    "",
    "\0{]",
    "[]",
    '{"state": "running", "attempt": "many", "job_id": 7}',
    '{"state": "eaten", "attempt": 1}',
)


class NoTarget(Exception):
    """Nothing is there that the fault could hit."""


MISSED = (NoTarget, OSError, psutil.Error)


@dataclass(frozen=True)
class Drawn:
    """One fault of the sequence: what, after which pause, for how long, and which target (from 0 to 1)."""

    name: str
    pause: float
    seconds: float
    pick: float


def sequence(seed: int) -> Iterator[Drawn]:
    """The faults of a seed, without an end."""
    rng = random.Random(seed)
    while True:
        name = rng.choice(list(FAULTS))
        yield Drawn(name, rng.uniform(*PAUSE), rng.uniform(*SECONDS), rng.random())


def _one_of(targets: Sequence[T], pick: float) -> T:
    if not targets:
        raise NoTarget
    return targets[int(pick * len(targets))]


def _kill(process: psutil.Process | None) -> list[str]:
    """SIGKILL; the command of the process."""
    if process is None:
        raise NoTarget
    command = process.cmdline()
    process.kill()
    return command[-1:]


@contextmanager
def _process(world: World, pick: float) -> Iterator[object]:
    yield _kill(_one_of(world.processes(), pick))


@contextmanager
def _supervisor(world: World, pick: float) -> Iterator[object]:
    yield _kill(_one_of(world.processes(), pick).parent())


@contextmanager
def _supervisor_and_process(world: World, pick: float) -> Iterator[object]:
    process = _one_of(world.processes(), pick)
    yield _kill(process.parent()), _kill(process)


@contextmanager
def _stepd(world: World, pick: float) -> Iterator[object]:
    """The daemon of a run's step, or that of its job's script."""
    job_id = _one_of(world.processes(), pick).environ().get("SLURM_JOB_ID")
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "slurmstepd" and f"[{job_id}." in " ".join(process.cmdline()):
                found.append(process)
    yield _kill(_one_of(found, pick * 1009 % 1))


def _daemon(name: str) -> Fault:
    @contextmanager
    def fault(world: World, pick: float) -> Iterator[object]:
        chosen = f"{name}-{_one_of(NODES, pick)}" if name == "slurmd" else name
        _kill(world.cluster.daemons.find(chosen))
        world.down.append(chosen)
        try:
            yield chosen
        finally:
            world.down.remove(chosen)

    return fault


def _told(states: Sequence[str], command: Sequence[str], undo: Sequence[str] = ()) -> Fault:
    """Slurm is told something of a task in one of these states, and later that it is over."""

    @contextmanager
    def fault(world: World, pick: float) -> Iterator[object]:
        task = _one_of([task for task in world.tasks() or () if task.state in states], pick)
        if world.slurm(*command, task.job_id) is None:
            raise NoTarget
        yield task
        if undo:
            world.slurm(*undo, task.job_id)

    return fault


def _node(state: str) -> Fault:
    @contextmanager
    def fault(world: World, pick: float) -> Iterator[object]:
        node = f"NodeName={_one_of(NODES, pick)}"
        if world.slurm("scontrol", "update", node, f"State={state}", "Reason=chaos") is None:
            raise NoTarget
        yield node
        world.slurm("scontrol", "update", node, "State=RESUME")

    return fault


@contextmanager
def _disk_full(world: World, pick: float) -> Iterator[object]:
    """The disk is made as large as what lies on it."""
    usage = psutil.disk_usage(str(world.disk))
    _remount(world, f"size={max(1, usage.used)}")
    yield usage
    _remount(world, DISK)


def _remount(world: World, options: str) -> None:
    command = ["mount", "-o", f"remount,{options}", str(world.disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        raise NoTarget


@contextmanager
def _record(world: World, pick: float) -> Iterator[RunPaths]:
    """The record of a run that nothing else is done to meanwhile."""
    run_id = _one_of([run_id for run_id in world.run_ids() if run_id not in world.touched], pick)
    world.touched.add(run_id)
    try:
        yield world.folder.run(run_id)
    finally:
        world.touched.remove(run_id)


@contextmanager
def _status_broken(world: World, pick: float) -> Iterator[object]:
    """A status.json is written over; whoever can is to mend it."""
    with _record(world, pick) as paths:
        text = paths.status.read_text(encoding="utf-8")
        content = (text[: len(text) // 2], *GARBAGE)[int(pick * 1009 % 1 * (1 + len(GARBAGE)))]
        paths.status.write_text(content, encoding="utf-8")
        yield paths.run_id, content


@contextmanager
def _status_away(world: World, pick: float) -> Iterator[object]:
    """A status.json is renamed; it comes back unless another one was written meanwhile."""
    with _record(world, pick) as paths:
        hidden = world.disk / f"hidden-status-{paths.run_id}"
        paths.status.rename(hidden)
        yield paths.run_id
        with suppress(FileExistsError):
            paths.status.hardlink_to(hidden)
        hidden.unlink()


@contextmanager
def _configuration_broken(world: World, pick: float) -> Iterator[object]:
    """A config.yaml is cut off and has garbage at its end; whoever did it puts the right one back."""
    with _record(world, pick) as paths:
        content = paths.config.read_bytes()
        hidden = world.disk / f"hidden-config-{paths.run_id}"
        paths.config.rename(hidden)
        with suppress(OSError):  # nothing is left of it then
            paths.config.write_bytes(content[: int(pick * len(content))] + b"\n\t]{")
        yield paths.run_id
        hidden.rename(paths.config)


@contextmanager
def _run_away(world: World, pick: float) -> Iterator[object]:
    """A run directory is renamed and comes back, as one on a server that is away."""
    if not world.making.acquire(blocking=False):
        raise NoTarget
    try:
        with _record(world, pick) as paths:
            hidden = world.disk / f"hidden-{paths.run_id}"
            paths.root.rename(hidden)
            yield paths.run_id
            if paths.root.exists():
                paths.root.rename(world.disk / f"instead-of-{paths.run_id}-{pick}")
                world.note(f"another {paths.run_id} was made while it was away")
            hidden.rename(paths.root)
    finally:
        world.making.release()


@contextmanager
def _run_unreadable(world: World, pick: float) -> Iterator[object]:
    """What lies in a run directory can be neither read nor written, not even by root: it leads to itself."""
    with _record(world, pick) as paths:
        hidden = world.disk / f"hidden-{paths.run_id}"
        paths.root.rename(hidden)
        paths.root.symlink_to(paths.root)
        yield paths.run_id
        paths.root.unlink()
        hidden.rename(paths.root)


@contextmanager
def _read_only(world: World, pick: float) -> Iterator[object]:
    """A run directory cannot be written; what is open stays open."""
    with _record(world, pick) as paths:
        root = str(paths.root)
        commands = (["mount", "--bind", root, root], ["mount", "-o", "remount,ro,bind", root])
        if any(subprocess.run(command, capture_output=True, check=False).returncode for command in commands):
            raise NoTarget
        yield paths.run_id
        subprocess.run(["umount", "--lazy", root], check=True)


FAULTS: dict[str, Fault] = {
    "SIGKILL of a run's process": _process,
    "SIGKILL of a supervisor": _supervisor,
    "SIGKILL of both": _supervisor_and_process,
    "SIGKILL of slurmstepd": _stepd,
    "SIGKILL of slurmd": _daemon("slurmd"),
    "SIGKILL of slurmctld": _daemon("slurmctld"),
    "SIGKILL of slurmdbd": _daemon("slurmdbd"),
    "SIGKILL of the database": _daemon("database"),
    "scancel": _told(("RUNNING", "PENDING"), ("scancel",)),
    "time limit's signal": _told(("RUNNING",), ("scancel", f"--signal={signal.SIGUSR2.name[3:]}")),
    "requeue": _told(("RUNNING",), ("scontrol", "requeue")),
    "requeuehold, release": _told(("RUNNING",), ("scontrol", "requeuehold"), ("scontrol", "release")),
    "hold, release": _told(("PENDING",), ("scontrol", "hold"), ("scontrol", "release")),
    "suspend, resume": _told(("RUNNING",), ("scontrol", "suspend"), ("scontrol", "resume")),
    "node drained": _node("DRAIN"),
    "node down": _node("DOWN"),
    "disk full": _disk_full,
    "status.json broken": _status_broken,
    "status.json away": _status_away,
    "config.yaml broken": _configuration_broken,
    "run directory away": _run_away,
    "run directory unreadable": _run_unreadable,
    "run directory read-only": _read_only,
}
