"""What runs have cost, from what sacct says; these tests need no Slurm."""

import pytest

from refsam.errors import SlurmUnavailable
from refsam.orchestration.slurm import accounting
from refsam.orchestration.slurm.accounting import parse_costs, record_costs
from refsam.records.attempts import Attempt, write_attempt
from refsam.records.paths import RunsFolder
from refsam.records.status import Reason, State, Status, write_status
from refsam.system.files import read_json

GPU = "billing=8,cpu=8,gres/gpu:v100=1,gres/gpu=1,mem=32G,node=1"
# A job that was requeued once, and ran 30 minutes, then an hour.
SACCT = f"""\
7_0|NODE_FAIL|1800|1000|1060|2860||{GPU}|gpu1|refsam-study-0
7_0.batch|CANCELLED|1800|1060|1060|2860|524288K|cpu=8|gpu1|refsam-study-0
7_0|COMPLETED|3600|2860|3000|6600||{GPU}|gpu2|refsam-study-0
7_0.batch|COMPLETED|3600|3000|3000|6600|1.5G|cpu=8|gpu2|refsam-study-0
7_0.0|COMPLETED|3600|3000|3000|6600|2097152K|cpu=8|gpu2|refsam-study-0
7_1|CANCELLED by 0|0|1000|Unknown|2000||cpu=8,mem=8G|None assigned|refsam-study-0
7_2|RUNNING|60|1000|1060|Unknown||cpu=8,gres/gpu:v100=2|gpu1|refsam-study-0
"""
BEGUN = "2026-01-01T00:00:00+00:00"


@pytest.fixture
def folder(tmp_path):
    return RunsFolder(tmp_path)


def add_run(folder, run_id, job_id, state=State.completed, attempts=(), **changes):
    paths = folder.run(run_id)
    paths.root.mkdir()
    for number, attempt in enumerate(attempts, start=1):
        write_attempt(paths, number, attempt)
    status = Status(state, attempt=len(attempts) + 1, job_id=job_id, started_at=BEGUN)
    write_status(paths, status.changed(**changes))
    return paths


def test_every_start_of_a_job_has_its_own_cost():
    costs = parse_costs(SACCT)
    first, second = costs["7_0"]
    assert (first.state, first.node, first.queue_seconds, first.max_rss_gib) == ("NODE_FAIL", "gpu1", 60, 0.5)
    assert (second.queue_seconds, second.gpu_hours, second.cpu_hours) == (140, 1.0, 8.0)
    assert second.max_rss_gib == 2.0  # of its hungriest step
    (never,) = costs["7_1"]
    assert (never.state, never.queue_seconds, never.gpu_hours, never.node) == ("CANCELLED", None, 0.0, None)
    assert costs["7_2"][0].gpu_hours == pytest.approx(2 / 60)


def test_a_sweep_is_one_sacct_and_what_is_written_is_not_asked_again(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(accounting, "run_command", lambda command: asked.append(command) or SACCT)
    done = add_run(folder, "a", "7_0", attempts=[Attempt(job_id="7_0", started_at=BEGUN)])
    never = add_run(folder, "b", "7_1", State.failed, started_at=None, reason=Reason.cancelled)
    unsettled = add_run(folder, "c", "7_2")  # it has written its last word, and Slurm lets it end
    local = add_run(folder, "d", None)
    assert record_costs(folder, "abcd") is None
    assert [each.costs.exists() for each in (done, never, unsettled, local)] == [True, False, False, False]
    costs = read_json(done.costs)
    assert (costs["elapsed_seconds"], costs["queue_seconds"], costs["gpu_hours"]) == (5400, 200, 1.5)
    assert (costs["max_rss_gib"], len(costs["jobs"])) == (2.0, 2)
    assert len(asked) == 1
    assert "--jobs=7" in asked[0]
    record_costs(folder, "ab")
    assert len(asked) == 1
    write_status(done, Status(State.completed, attempt=3, job_id="7_0", started_at=BEGUN))
    record_costs(folder, "ab")  # it has run again since
    assert len(asked) == 2
    assert read_json(done.costs)["attempts"] == 3


def test_what_slurm_has_done_of_a_run_that_was_completed_elsewhere_has_its_cost(folder, monkeypatch):
    monkeypatch.setattr(accounting, "run_command", lambda command: SACCT)
    paths = add_run(folder, "a", None, attempts=[Attempt(job_id="7_0", started_at=BEGUN)])
    assert record_costs(folder, ["a"]) is None
    assert read_json(paths.costs)["gpu_hours"] == 1.5


def test_another_job_with_the_number_of_a_run_s_is_no_cost_of_the_run(folder, monkeypatch):
    monkeypatch.setattr(accounting, "run_command", lambda command: SACCT + SACCT.replace("refsam-", "my-"))
    known = add_run(folder, "a", "7_0", job_name="refsam-study-0")
    unknown = add_run(folder, "b", "7_0", job_name="refsam-study-1")
    assert record_costs(folder, "ab") is None
    costs = read_json(known.costs)
    assert (costs["elapsed_seconds"], costs["max_rss_gib"], len(costs["jobs"])) == (5400, 2.0, 2)
    assert not unknown.costs.exists()


def test_costs_wait_for_the_accounting(folder, monkeypatch):
    def away(command):
        raise SlurmUnavailable("Connection refused")

    paths = add_run(folder, "a", "7_0")
    monkeypatch.setattr(accounting, "run_command", away)
    assert "Connection refused" in record_costs(folder, ["a"])
    monkeypatch.setattr(accounting, "run_command", lambda command: "")  # it knows nothing yet
    assert record_costs(folder, ["a"]) is None
    assert not paths.costs.exists()
