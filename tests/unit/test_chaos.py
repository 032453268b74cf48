"""What the chaos of benchmarks.chaos takes for a violation: each invariant can be violated."""

import json

import pytest

from benchmarks.chaos.faults import FAULTS, sequence
from benchmarks.chaos.invariants import check_runs, check_settled, still_damaged
from benchmarks.chaos.stand_in import STEPS, score
from benchmarks.chaos.world import SWEEP, World
from refsam.records.recovery import look_up
from refsam.records.status import State, Status, write_status
from refsam.system.files import write_json
from tools.test_cluster.cluster import Cluster

RUN = "vit_nano-full-n1-s0"


@pytest.fixture
def world(tmp_path):
    """A chaos in which one run has been interrupted, and was completed in its second attempt."""
    world = World(Cluster(tmp_path / "cluster"), tmp_path, runs=1)
    paths = world.folder.run(RUN)
    paths.results.mkdir(parents=True)
    (tmp_path / "journals").mkdir()
    sweep = world.folder.sweep(SWEEP)
    sweep.root.mkdir(parents=True)
    write_json(sweep.manifest, {"runs": [{"run_id": RUN}]})
    write_status(paths, Status(State.completed, attempt=2))
    write_json(paths.metrics, {"rows": [{"SA50": score(RUN)}]})
    journal = world.journal(RUN)
    for kind, count in (("start", 0), ("saved", 1), ("start", 1), ("saved", STEPS), ("completed", STEPS)):
        journal.add(kind, count)
    return world


def violated(world):
    check_runs(world)
    return [invariant for invariant, _ in world.violations]


def test_a_run_that_was_interrupted_and_completed_violates_nothing(world):
    assert violated(world) == []


@pytest.mark.parametrize(
    ("kind", "count", "invariant"),
    [("start", STEPS, "again"), ("start", STEPS - 1, "lost"), ("saved", 1, "lost"), ("two", STEPS, "two")],
)
def test_a_journal_that_tells_of_too_much_or_of_lost_steps_is_a_violation(world, kind, count, invariant):
    world.journal(RUN).add(kind, count)
    assert invariant in violated(world)


def test_a_second_process_is_written_down(world):
    journal = world.journal(RUN)
    with journal.alone(), pytest.raises(RuntimeError, match="another process"), journal.alone():
        pass
    assert violated(world) == ["two"]


@pytest.mark.parametrize("result", [None, 0.25])
def test_a_result_that_is_missing_or_of_another_run_is_lost(world, result):
    paths = world.folder.run(RUN)
    paths.metrics.unlink()
    if result is not None:
        write_json(paths.metrics, {"rows": [{"SA50": result}]})
    assert violated(world) == ["lost"]


def test_a_run_that_is_not_completed_is_lost(world):
    write_status(world.folder.run(RUN), Status(State.running, attempt=1))
    assert violated(world) == ["lost"]


@pytest.mark.parametrize(
    ("run", "is_violation"),
    [
        ({"state": "completed", "reason": None, "damaged": None}, False),
        ({"state": "failed", "reason": "cancelled", "damaged": None}, False),
        ({"state": "failed", "reason": None, "damaged": None}, True),
        ({"state": "running", "reason": None, "damaged": None}, True),
        # Its record follows from what is there, until a command that acts writes it anew.
        ({"state": "completed", "reason": None, "damaged": "status.json is damaged"}, False),
    ],
)
def test_when_no_job_is_left_a_run_has_ended_and_says_why(world, run, is_violation):
    printed = world.work / "status.txt"
    printed.write_text(json.dumps({"runs": [{"run_id": RUN, **run}]}))
    check_settled(world, printed)
    assert bool(world.violations) is is_violation
    assert still_damaged(printed) == ([f"{RUN}: {run['damaged']}"] if run["damaged"] else [])


def test_a_seed_draws_the_same_faults_every_time():
    first, second = ([drawn for drawn, _ in zip(sequence(3), range(200), strict=False)] for _ in range(2))
    assert first == second
    assert {drawn.name for drawn in first} == set(FAULTS)


@pytest.mark.parametrize(
    ("program", "invariants"),
    [
        ("raise SystemExit(3)", []),
        ("raise SystemExit(7)", ["traceback"]),
        ("raise RuntimeError", ["traceback"]),
        ("import time; time.sleep(600)", ["hung"]),
    ],
)
def test_a_command_that_breaks_or_never_ends_is_a_violation(world, monkeypatch, program, invariants):
    monkeypatch.setattr("benchmarks.chaos.world.HANGS", 1.0 if "sleep" in program else 60.0)
    package = world.work / "benchmarks" / "chaos"  # found before the project's own
    package.mkdir(parents=True)
    for file in (package.parent / "__init__.py", package / "__init__.py"):
        file.touch()
    (package / "command.py").write_text(program)
    world.log.mkdir()
    world.enter(["status", SWEEP])
    assert [invariant for invariant, _ in world.violations] == invariants


def test_a_run_directory_that_cannot_be_read_is_unreadable_for_root_too_until_it_is_healed(world):
    paths = world.folder.run(RUN)
    with FAULTS["run directory unreadable"](world, 0.5):
        assert look_up(paths).status.state is State.unreadable
    assert look_up(paths).status.state is State.completed
