"""What must not have happened, whatever went wrong. Journals are believed, and records compared with them."""

import json
import time
from collections import Counter
from pathlib import Path

from benchmarks.chaos.stand_in import measured, score
from benchmarks.chaos.world import HELD, OTHERS, OTHERS_TASKS, POLL_SECONDS, World
from refsam.records.status import State, read_status

INVARIANTS = {
    "lost": "results lost",
    "again": "executed again after completion",
    "two": "two processes in one run at once",
    "others": "jobs of others touched",
    "hung": "commands that hung",
    "traceback": "commands that printed a traceback",
    "reason": "runs that ended neither completed nor with a reason",
}
OTHERS_SECONDS = 300.0  # for the jobs of others to end once they may


def is_finished(world: World, run_id: str) -> bool:
    """Whether the record says completed."""
    try:
        return read_status(world.folder.run(run_id)).state is State.completed
    except (OSError, ValueError):
        return False


def check_settled(world: World, printed: Path) -> None:
    """When no job is left, every run is completed, was never begun, or has failed with a reason.

    Args:
        printed: what `refsam status --json` has printed.
    """
    try:
        runs = json.loads(printed.read_text(encoding="utf-8"))["runs"]
    except (KeyError, ValueError):
        world.violated("reason", f"no status after everything was healed: {printed}")
        return
    for run in runs:
        has_ended = run["state"] in ("completed", "planned") or (run["state"] == "failed" and run["reason"])
        if not has_ended:
            world.violated("reason", f"{run['run_id']} is {run['state']}, {run['damaged'] or run['reason']}")


def still_damaged(printed: Path) -> list[str]:
    """The runs whose record is damaged, of what `refsam status --json` has printed; looking mends none."""
    runs = json.loads(printed.read_text(encoding="utf-8"))["runs"]
    return [f"{run['run_id']}: {run['damaged']}" for run in runs if run["damaged"]]


def check_runs(world: World) -> None:
    """At the end every run is completed, with its own result, and its journal tells of one execution."""
    for run_id in world.run_ids():
        paths = world.folder.run(run_id)
        if not is_finished(world, run_id) or measured(paths) != score(run_id):
            world.violated("lost", f"{run_id} is not completed, or has another result")
        events = world.journal(run_id).events()
        kept, completed = 0, False
        for event in events:
            words = f"{run_id}: {event}"
            if event.kind == "two":
                world.violated("two", words)
            if event.kind == "start" and completed:
                world.violated("again", words)
            if event.kind in ("start", "saved") and event.count < kept:
                world.violated("lost", f"{words}, and {kept} was saved")
            kept = max(kept, event.count)
            completed = completed or event.kind == "completed"


def check_others(world: World) -> None:
    """Jobs of others have begun once, wait until now, and end by themselves."""
    tasks = [f"{name}-{task}" for name in OTHERS for task in range(OTHERS_TASKS)]
    begun = [f"begin {task}" for task in tasks if not task.startswith(HELD)]
    _compare(world, begun, world.others())
    (world.work / "go").touch()
    held = (world.slurm("squeue", "--noheader", f"--name={HELD}", "--format=%F") or "").split()
    world.slurm("scontrol", "release", *set(held))
    expected = [f"{word} {task}" for word in ("begin", "end") for task in tasks]
    deadline = time.monotonic() + OTHERS_SECONDS
    while len(world.others()) < len(expected) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    _compare(world, expected, world.others())


def _compare(world: World, expected: list[str], found: list[str]) -> None:
    for line, times in (Counter(found) - Counter(expected)).items():
        world.violated("others", f"{line}: {times} times too often")
    for line in Counter(expected) - Counter(found):
        world.violated("others", f"{line}: did not happen")
