"""What Slurm finds out goes into the records; these tests need no Slurm."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from refsam.errors import SlurmUnavailable
from refsam.orchestration.lifecycle.reconcile import reconcile
from refsam.orchestration.slurm.identity import known_job
from refsam.orchestration.slurm.questions import SlurmQuery
from refsam.records.attempts import Attempt, read_attempt, write_attempt
from refsam.records.paths import RunsFolder
from refsam.records.status import Reason, State, Status, read_status, write_status

RUNNING = Status(State.running, attempt=2, job_id="7_0", host="node", started_at="2026-01-01T00:00:00+00:00")


class Slurm:
    """squeue and sacct with given answers; None: they do not answer. Counts the calls."""

    def __init__(self, squeue="", sacct=""):
        self.answers = {"squeue": squeue, "sacct": sacct}
        self.calls = []

    def __call__(self, command):
        self.calls.append(command[0])
        if self.answers[command[0]] is None:
            raise SlurmUnavailable("Connection refused")
        return self.answers[command[0]]


@pytest.fixture
def folder(tmp_path):
    return RunsFolder(tmp_path)


def add_run(folder, status, run_id="a"):
    paths = folder.run(run_id)
    paths.root.mkdir()
    write_status(paths, status)
    return paths


def test_a_killed_job_is_written_down_with_slurm_s_reason(folder):
    paths = add_run(folder, RUNNING)
    write_attempt(paths, 2, Attempt(used={"train.object_chunk": 4}, host="node"))
    query = SlurmQuery(Slurm(sacct="7_0|OUT_OF_MEMORY|0:125|node||refsam-study-0\n"))
    known, _ = reconcile(folder, ["a"], query)
    status = read_status(paths)
    assert known == {"a": status}
    assert (status.state, status.reason, status.attempt) == (State.failed, Reason.out_of_memory, 2)
    assert status.message == "Slurm job 7_0: OUT_OF_MEMORY, exit code 0:125"
    assert status.ended_at is not None
    attempt = read_attempt(paths, 2)
    assert (attempt.state, attempt.reason, attempt.ended_at) == (
        State.failed,
        Reason.out_of_memory,
        status.ended_at,
    )
    assert (attempt.used, attempt.started_at) == ({"train.object_chunk": 4}, RUNNING.started_at)
    calls = len(query.run.calls)
    reconcile(folder, ["a"], query)
    assert len(query.run.calls) == calls  # what is written down is not asked again


def test_a_requeued_job_is_pending_in_its_next_attempt(folder):
    paths = add_run(folder, RUNNING)
    reconcile(folder, ["a"], SlurmQuery(Slurm("7_0|PENDING||BeginTime|||refsam-study-0\n")))
    status = read_status(paths)
    assert (status.state, status.attempt, status.job_id, status.host) == (State.pending, 3, "7_0", None)
    assert (read_attempt(paths, 2).state, read_attempt(paths, 2).reason) == (
        State.failed,
        Reason.node_failure,
    )
    reconcile(folder, ["a"], SlurmQuery(Slurm("7_0|PENDING||BeginTime|||refsam-study-0\n")))
    assert read_status(paths) == status


@pytest.mark.parametrize(
    "status",
    [
        Status(State.completed, job_id="7_0"),
        Status(State.failed, reason=Reason.error, message="its own words", job_id="7_0"),
        Status(State.running),  # on this machine, without Slurm
        Status(),
    ],
)
def test_what_the_record_says_is_left(folder, status):
    paths = add_run(folder, status)
    before = paths.status.stat()
    reconcile(folder, ["a"], SlurmQuery(Slurm(sacct="7_0|TIMEOUT|0:0|n||refsam-study-0\n")))
    assert paths.status.stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    ("squeue", "sacct", "written"),
    [
        ("", None, False),  # nobody knows why: the accounting may, later
        ("7_0|FAILED|n|NonZeroExitCode|||refsam-study-0\n", None, False),
        ("7_0|TIMEOUT|n|TimeLimit|||refsam-study-0\n", None, True),
        (None, None, False),
        ("7_0|RUNNING|n|None|||refsam-study-0\n", "", False),
    ],
)
def test_only_what_is_known_for_certain_is_written(folder, squeue, sacct, written):
    paths = add_run(folder, RUNNING)
    reconcile(folder, ["a"], SlurmQuery(Slurm(squeue, sacct)))
    assert (read_status(paths) != RUNNING) == written


def test_a_run_that_a_process_holds_is_left_to_it(folder):
    paths = add_run(folder, RUNNING)
    program = (
        "import sys; from pathlib import Path; from refsam.records.paths import RunPaths\n"
        "from refsam.records.status import run_lock\n"
        "with run_lock(RunPaths(Path(sys.argv[1]))): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(paths.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        reconcile(folder, ["a"], SlurmQuery(Slurm(sacct="7_0|TIMEOUT|0:0|n||refsam-study-0\n")))
        assert read_status(paths) == RUNNING
        holder.communicate("")


def test_a_word_of_the_process_that_comes_while_slurm_is_asked_wins(folder):
    paths = add_run(folder, RUNNING)
    asked = []

    def slurm(command):
        asked.append(command[0])
        if len(asked) == 4:  # the last question before something is written
            write_status(paths, RUNNING.changed(state=State.completed))
        return "" if command[0] == "squeue" else "7_0|COMPLETED|0:0|n||refsam-study-0\n"

    known, _ = reconcile(folder, ["a"], SlurmQuery(slurm))
    assert len(asked) == 4
    assert read_status(paths).state is State.completed
    assert known["a"].state is State.completed


def test_a_kept_answer_from_before_the_job_started_again_changes_nothing(folder):
    slurm = Slurm("7_0|PENDING||BeginTime|||refsam-study-0\n")
    query = SlurmQuery(slurm)
    query.ask([known_job(RUNNING)])
    paths = add_run(folder, RUNNING)
    slurm.answers["squeue"] = "7_0|RUNNING|node|None|||refsam-study-0\n"
    reconcile(folder, ["a"], query)
    assert read_status(paths) == RUNNING


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_record_that_one_may_not_write_is_still_told():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        Path(name).chmod(0o755)
        paths = add_run(RunsFolder(Path(name)), RUNNING)
        program = (
            "import os, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
            "import test_reconcile as t\n"
            "os.seteuid(65534)\n"
            "query = t.SlurmQuery(t.Slurm(sacct='7_0|TIMEOUT|0:0|n||refsam-study-0\\n'))\n"
            "print(t.reconcile(t.RunsFolder(Path(sys.argv[1])), ['a'], query)[0]['a'].reason)"
        )
        command = [sys.executable, "-c", program, name, str(Path(__file__).parent)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        assert answer.stdout == "timeout\n", answer.stderr
        assert read_status(paths) == RUNNING
