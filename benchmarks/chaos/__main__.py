"""Sweeps under faults on a real Slurm: python -m benchmarks.chaos --runs 200 --minutes 10 --seed 0

Starts a test cluster (root, Debian; see tools.test_cluster) or uses the one in --root, submits a sweep whose
jobs count instead of training, and lets things go wrong: processes, daemons and commands are killed, jobs
cancelled, requeued and suspended, nodes drained and lost, the disk fills up, records are damaged or away,
while refsam's commands are typed in two shells at once. Then everything is healed, and the same command and
`refsam continue` finish the sweep. Prints a table of what went wrong and of what must not have happened.
Exit status 1 where it has; what was printed meanwhile is kept then, in a folder that is named.

A seed draws the faults, when they come, and what they hit among what is there at that moment.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.chaos.faults import FAULTS, MISSED, sequence
from benchmarks.chaos.invariants import (
    INVARIANTS,
    check_others,
    check_runs,
    check_settled,
    is_finished,
    still_damaged,
)
from benchmarks.chaos.world import NODES, OTHERS, PARALLEL, POLL_SECONDS, SWEEP, Task, World, typing
from tools.test_cluster.cluster import Cluster
from tools.test_cluster.jobs import thaw

SHELLS = 2
TELL_SECONDS = 15.0
SETTLE_SECONDS = 900.0  # for jobs to end when everything is healed
FORGOTTEN_SECONDS = 20.0  # that a job runs without a process until it is requeued
ROUNDS = 6  # of `continue` until a sweep is given up
COMMAND_KILLED = "SIGKILL of a refsam command"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--runs", type=int, default=200, help="how many (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="that things go wrong (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sequence of faults (%(default)s)")
    parser.add_argument("--root", type=Path, help="of a test cluster that runs already; its other jobs stay")
    options = parser.parse_args(arguments)
    work = Path(tempfile.mkdtemp(prefix="refsam-chaos-"))
    print(f"Seed {options.seed}, everything in {work}", flush=True)
    with ExitStack() as stack:
        cluster = Cluster(options.root or work / "cluster")
        if options.root is None:
            stack.callback(cluster.down)
            cluster.up()
        world = World(cluster, work, options.runs)
        world.prepare(_seconds_of_run(options.runs, options.minutes))
        stack.callback(world.end)
        faults = run_chaos(world, options.minutes, options.seed)
        print(table(world, faults))
        if world.violations:
            keep(world)
            for invariant, words in world.violations:
                print(f"{invariant}: {words}")
            print(f"Seed {options.seed}. What was typed, what happened and the runs are kept in {world.log}")
            return 1
    shutil.rmtree(work)
    return 0


def _seconds_of_run(runs: int, minutes: float) -> float:
    """So that without faults the sweep would take half the time."""
    return min(60.0, max(4.0, minutes * 60 / 2 * 2 * PARALLEL / runs))


def run_chaos(world: World, minutes: float, seed: int) -> Counter[str]:
    """Submit, disturb, heal, finish, and check; how often each fault was injected."""
    world.enter(["prepare", "dataset=synthetic", "model=vit_nano"])
    others = iter(OTHERS)
    for command in world.sweeps():
        world.submit_others(next(others))
        world.enter(command)
    for name in others:
        world.submit_others(name)
    faults = disturb(world, minutes, seed)
    print("Healing", flush=True)
    heal(world)
    finish(world)
    check_runs(world)
    check_others(world)
    return faults


def disturb(world: World, minutes: float, seed: int) -> Counter[str]:
    """Inject faults for some minutes, while commands are typed; how often each was injected."""
    injected: Counter[str] = Counter()
    deadline, told = time.monotonic() + minutes * 60, time.monotonic()
    lasting: list[tuple[float, ExitStack]] = []
    with shells(world, seed):
        for drawn in sequence(seed):
            time.sleep(drawn.pause)
            now = time.monotonic()
            for end, undo in [each for each in lasting if each[0] < now or now > deadline]:
                lasting.remove((end, undo))
                undo.close()
            world.revive()
            if now > deadline:
                break
            undo = ExitStack()
            try:
                hit = undo.enter_context(FAULTS[drawn.name](world, drawn.pick))
            except MISSED:
                continue
            world.note(f"{drawn.name} for {drawn.seconds:.1f} s: {hit}")
            injected[drawn.name] += 1
            lasting.append((now + drawn.seconds, undo))
            if now - told > TELL_SECONDS:
                told = now
                done = sum(is_finished(world, run_id) for run_id in world.run_ids())
                words = f"{injected.total()} faults, {world.typed.total()} commands"
                print(f"{words}, {done} of {world.runs} runs completed", flush=True)
    return injected + Counter({COMMAND_KILLED: world.killed})


@contextmanager
def shells(world: World, seed: int) -> Iterator[None]:
    """Commands are typed meanwhile, in two shells at once; what runs at the end is waited for."""
    stop = threading.Event()

    def shell(number: int) -> None:
        for _ in typing(world, random.Random(f"{seed}, shell {number}"), stop):
            pass

    threads = [threading.Thread(target=shell, args=[number]) for number in range(SHELLS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        while any(thread.is_alive() for thread in threads):
            world.revive()
            time.sleep(POLL_SECONDS)


def heal(world: World) -> None:
    """Start what does not run, and bring the nodes back.

    A suspended job whose step daemon was killed stays frozen, with the lock of its run, until its node is
    started anew; here that is a thaw.
    """
    for daemon in world.cluster.all_daemons():
        world.cluster.start(daemon.name)
    for node in NODES:
        world.slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")
    thaw(world.cluster.settings)


def finish(world: World) -> None:
    """The same command and `refsam continue` in turn, until the sweep is done."""
    for number in range(ROUNDS):
        if not settle(world):
            world.violated("reason", f"jobs do not end: {world.tasks()}")
            return
        printed = world.refsam("status", SWEEP, "--json")
        if number == 0:
            check_settled(world, printed)
        damaged = still_damaged(printed)
        if not damaged and all(is_finished(world, run_id) for run_id in world.run_ids()):
            return
        print(f"Round {number + 1}: the sweep again", flush=True)
        if number % 2:
            for command in world.sweeps():
                world.enter(command)
        else:
            world.refsam("continue", SWEEP)
    for words in damaged:
        world.violated("reason", f"nothing mends {words}")


def settle(world: World) -> bool:
    """Wait until no job of the sweep is left; False where that takes too long."""
    deadline, at_work = time.monotonic() + SETTLE_SECONDS, time.monotonic()
    while time.monotonic() < deadline:
        tasks = world.tasks()
        processes = world.processes()
        if tasks == [] and not processes:
            return True
        if tasks:
            bring_on(world, tasks)
        else:
            world.thaw()
        if processes or not any(task.state in ("RUNNING", "COMPLETING") for task in tasks or []):
            at_work = time.monotonic()
        elif time.monotonic() - at_work > FORGOTTEN_SECONDS:
            # A controller that was killed has forgotten its last seconds, and believes that these still run.
            for task in tasks or []:
                world.slurm("scontrol", "requeue", task.job_id)
            at_work = time.monotonic()
        time.sleep(POLL_SECONDS)
    return False


def bring_on(world: World, tasks: list[Task]) -> None:
    """Let jobs start at once that were requeued, held or suspended."""
    for task in tasks:
        if task.state == "SUSPENDED":
            world.slurm("scontrol", "resume", task.job_id)
        elif "held" in task.reason.lower():
            world.slurm("scontrol", "release", task.job_id)
        elif task.reason == "BeginTime":
            world.slurm("scontrol", "update", f"JobId={task.job_id}", "StartTime=now")


def keep(world: World) -> None:
    """Keep what Slurm knows and the runs where the commands' output is."""
    shutil.copytree(world.folder.root, world.log / "runs", symlinks=True)
    shutil.copytree(world.cluster.root / "log", world.log / "cluster")
    for name, command in (
        ("squeue", ("squeue", "--array", "--states=all")),
        ("sacct", ("sacct", "--duplicates", "--format=JobID,JobName,State,ExitCode,Start,End,NodeList")),
    ):
        (world.log / f"{name}.txt").write_text(world.slurm(*command) or "no answer", encoding="utf-8")


def table(world: World, faults: Counter[str]) -> str:
    """What went wrong, what was typed, and what must not have happened."""
    lines = [f"{'faults':54}{faults.total():6}"]
    lines += [f"  {name:52}{count:6}" for name, count in sorted(faults.items())]
    lines += [f"{'commands':54}{world.typed.total():6}"]
    lines += [f"  {name:52}{count:6}" for name, count in sorted(world.typed.items())]
    found = Counter(invariant for invariant, _ in world.violations)
    lines += [f"{words:54}{found[name]:6}" for name, words in INVARIANTS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and takes the cluster down
    sys.exit(main())
