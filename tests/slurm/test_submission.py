"""Runs given to a real Slurm: every one with its own request, and none lost."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import StringIO

import pytest
from holder import held
from omegaconf import OmegaConf
from rich.console import Console
from slurm_helpers import (
    CHECKOUT,
    HERE,
    PATIENCE,
    SMALL,
    STAND_IN,
    Run,
    add_run,
    allocated,
    asking,
    nothing_is_left,
    queue,
    slurm,
    starts,
    wait_until,
)

import refsam
from refsam.configuration.schema import ClusterConfig, RequestConfig, ResourceConfig
from refsam.errors import ConfigError, RunFailed
from refsam.orchestration.slurm import patience, questions
from refsam.orchestration.slurm.identity import known_job
from refsam.orchestration.slurm.questions import SlurmQuery, with_slurm
from refsam.orchestration.submission import arrays, waiting
from refsam.orchestration.submission.arrays import submit_to_slurm
from refsam.orchestration.submission.job_scripts import write_scripts
from refsam.orchestration.submission.live_table import PlainLines
from refsam.orchestration.submission.waiting import wait_for_runs
from refsam.records.paths import RunsFolder
from refsam.records.status import Reason, State, Status, read_status, run_lock, write_status
from refsam.system.cgroups import memory_gib
from refsam.system.files import read_json, write_json

CLUSTER = ClusterConfig(kind="slurm", explicit=False, parallel="auto", template="scc")


@pytest.fixture
def folder(slurm_cluster, tmp_path, monkeypatch):
    """A runs folder with a name that a shell would misread, and the stand-in where the jobs find it."""
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{CHECKOUT}")
    root = tmp_path / """my "runs" $(touch executed) `touch executed` für '1'; touch executed #"""
    root.mkdir()
    monkeypatch.chdir(tmp_path)
    yield RunsFolder(root)
    assert not list(tmp_path.rglob("executed"))


def request_of(resource):
    """What conf/resource/RESOURCE.yaml asks for."""
    given = OmegaConf.load(CHECKOUT / "conf" / "resource" / f"{resource}.yaml")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ResourceConfig), given))
    return config.request


def submit(folder, runs, cluster=CLUSTER):
    """Submit the runs as the sweep `study`; what was said."""
    said = []
    submit_to_slurm(runs, folder, folder.sweep("study"), cluster, said.append, STAND_IN)
    return said


def statuses(folder, runs):
    """What a person is told of the runs: their records and what Slurm knows."""
    known, answer = questions.statuses(folder, [run.run_id for run in runs], SlurmQuery())
    assert answer.problems == ()
    return known


def wait_for_state(folder, runs, *states):
    wait_until(lambda: all(status.state in states for status in statuses(folder, runs).values()))
    return statuses(folder, runs)


def test_three_resources_are_three_arrays_and_every_run_gets_what_its_resource_asks_for(folder):
    expected = {
        "gtx1080": {"gres/gpu:gtx1080=1", "cpu=8", "mem=32G"},
        "v100": {"gres/gpu:v100=1", "cpu=8", "mem=32G"},
        "medium_8g": {"cpu=8", "mem=8G"},
    }
    runs = [
        add_run(folder, f"run-n{n}-{resource}", request=request_of(resource))
        for n in (1, 2)
        for resource in expected
    ]
    said = submit(folder, runs)
    assert [line.partition(": ")[2] for line in said] == [
        "2 runs, partition gpu, 1 × GTX1080, 8 cores, 32 GiB, 2-00:00:00",
        "2 runs, partition gpu, 1 × V100, 8 cores, 32 GiB, 2-00:00:00",
        "2 runs, partition medium, no GPU, 8 cores, 8 GiB, 2-00:00:00",
    ]
    done = wait_for_state(folder, runs, State.completed, State.failed)
    arrays = set()
    for run in runs:
        status = done[run.run_id]
        assert (status.state, status.attempt) == (State.completed, 1), status
        assert status.submitted_at is not None
        resource = run.run_id.rpartition("-")[2]
        got = allocated(status.job_id)
        assert expected[resource] <= got
        assert (resource == "medium_8g") == (not any("gpu" in item for item in got))
        seen = read_json(folder.run(run.run_id).root / "seen.json")
        assert (seen["OMP_NUM_THREADS"], seen["SLURM_CPUS_PER_TASK"]) == ("8", "8")
        assert (seen["CUDA_VISIBLE_DEVICES"] == "") == (resource == "medium_8g")
        # The kernel's limit for the job, as the job sees it; a machine may have less than a node claims.
        asked = 8 if resource == "medium_8g" else 32
        assert seen["slurm"]["SLURM_MEM_PER_NODE"] == str(asked * 1024)  # also where there is no such limit
        limit = min(asked, memory_gib())
        assert seen["memory_gb"] == pytest.approx(limit, rel=1e-3)
        arrays.add((status.job_id.partition("_")[0], resource))
        (log,) = folder.run(run.run_id).attempt(1).glob("*.out")
        assert stat.S_IMODE(log.stat().st_mode) & 0o044 == 0o044
    assert len(arrays) == 3
    # Nothing there is loaded or executed by a job.
    assert {path.suffix for path in folder.sweep("study").jobs.rglob("*.*")} == {".json", ".out", ".sh"}


def test_a_job_is_found_again_by_its_name_and_comment_and_carries_the_site_s_choices(folder, tmp_path):
    template = tmp_path / "site's template.sh"
    template.write_text("export FROM_THE_PROLOGUE='it was here'\n")
    cluster = ClusterConfig(
        kind="slurm",
        template=str(template),
        exclude="cpu[2-4]",
        account="nobody's $(touch executed)",
        qos="normal",
        extra=["--mail-user=it's $(touch executed)", "--mail-type=END", "--nice=7", "--no-kill"],
        array_parallelism=2,
    )
    runs = [add_run(folder, f"run{number}", "wait") for number in range(3)]
    submit(folder, runs, cluster)
    wait_until(lambda: len(starts(folder, runs[0].run_id)) + len(starts(folder, runs[1].run_id)) == 2)
    rows = queue("%j", "%k", "%T", "%R")
    assert {row[1] for row in rows} == {"refsam sweep study: run0 run1 run2"}
    assert all(row[0].startswith("refsam-study-") for row in rows)
    (script,) = folder.sweep("study").jobs.glob("*/train.sh")
    assert "#SBATCH --qos=normal\n" in script.read_text()
    account = """'nobody'"'"'s $(touch executed)'"""
    assert f"#SBATCH --account={account}\n" in script.read_text()
    assert "#SBATCH --time=0-00:10:00\n" in script.read_text()
    assert f"\n# made by refsam {refsam.__version__}: " in script.read_text()
    facts = slurm("scontrol", "show", "job", "--oneliner", read_status(folder.run("run0")).job_id)
    assert " Nice=7 " in facts
    assert " MailUser=it's $(touch executed) " in facts
    assert sorted(row[2:] for row in rows) == [
        ["PENDING", "(JobArrayTaskLimit)"],
        ["RUNNING", "cpu1"],
        ["RUNNING", "cpu1"],
    ]
    (folder.root / "go").touch()
    wait_for_state(folder, runs, State.completed)
    assert read_json(folder.run("run2").root / "seen.json")["FROM_THE_PROLOGUE"] == "it was here"


def test_how_a_job_ended_is_known_from_its_record_or_else_from_slurm(folder):
    hungry, failing, unlucky = (
        add_run(folder, "a", "hungry"),
        add_run(folder, "b", "fail"),
        add_run(folder, "c", "wait"),
    )
    killed = add_run(folder, "d", "wait")
    runs = [hungry, failing, unlucky, killed]
    submit(folder, runs)
    wait_until(lambda: starts(folder, unlucky.run_id) and starts(folder, killed.run_id))
    slurm("scancel", read_status(folder.run("c")).job_id)
    os.kill(read_status(folder.run("d")).pid, signal.SIGKILL)
    known = wait_for_state(folder, runs, State.failed)
    assert known["a"].reason is Reason.out_of_memory
    assert (known["b"].reason, known["b"].message) == (Reason.error, "ValueError('the data is not there')")
    assert known["c"].reason is Reason.cancelled
    assert read_status(folder.run("c")).reason is Reason.cancelled
    assert known["d"].reason is Reason.lost
    assert "SIGKILL" in known["d"].message


def test_a_cancelled_task_that_never_ran_is_cancelled(folder):
    cluster = ClusterConfig(kind="slurm", array_parallelism=1)
    first, second = runs = [add_run(folder, "a", "wait"), add_run(folder, "b", "wait")]
    submit(folder, runs, cluster)
    wait_until(lambda: starts(folder, first.run_id))
    job_id = read_status(folder.run("b")).job_id
    assert statuses(folder, runs)["b"].state is State.pending
    slurm("scancel", job_id)
    wait_until(lambda: statuses(folder, runs)["b"].state is State.failed)
    assert statuses(folder, runs)["b"].reason is Reason.cancelled
    (folder.root / "go").touch()
    wait_for_state(folder, [first], State.completed)
    assert starts(folder, second.run_id) == []
    submit(folder, runs, cluster)  # the same command runs just this one
    done = wait_for_state(folder, runs, State.completed)
    assert (done["a"].attempt, done["b"].attempt) == (1, 2)


def test_what_is_in_the_queue_is_not_submitted_again(folder):
    runs = [add_run(folder, name, "wait") for name in "ab"]
    submit(folder, runs)
    extra = add_run(folder, "c", "wait")
    said = submit(folder, [*runs, extra])
    assert said[0] == "2 runs in the queue or running already"
    assert "1 run, partition medium" in said[1]
    assert submit(folder, [*runs, extra]) == ["3 runs in the queue or running already"]
    (folder.root / "go").touch()
    wait_for_state(folder, [*runs, extra], State.completed)
    assert [len(starts(folder, run.run_id)) for run in (*runs, extra)] == [1, 1, 1]
    wait_until(nothing_is_left)
    assert submit(folder, [*runs, extra]) == []


PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
from refsam.records.paths import RunsFolder
import test_submission
folder = RunsFolder(Path(sys.argv[2]))
runs = [test_submission.with_cores(name, 1) for name in sys.argv[4:]]
exec(sys.argv[3])
print(test_submission.submit(folder, runs))
"""


def with_cores(run_id, cores):
    return Run(run_id, asking(replace(SMALL, cores=cores)))


def evaluated_elsewhere(run_id):
    config = asking(SMALL)
    elsewhere = ResourceConfig(name="other", request=replace(SMALL, cores=2))
    return Run(run_id, replace(config, evaluate=replace(config.evaluate, resource=elsewhere)))


def other_shell(folder, before, *run_ids):
    command = [sys.executable, "-c", PROGRAM, str(HERE), str(folder.root), before, *run_ids]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_shells_at_once_submit_each_run_once(folder):
    runs = [add_run(folder, f"run{number}") for number in range(4)]
    shells = [other_shell(folder, "", *(run.run_id for run in runs)) for _ in range(2)]
    outputs = [shell.communicate(timeout=PATIENCE)[0] for shell in shells]
    assert [shell.returncode for shell in shells] == [0, 0], outputs
    wait_for_state(folder, runs, State.completed)
    assert [len(starts(folder, run.run_id)) for run in runs] == [1, 1, 1, 1]


def test_a_run_whose_record_a_stopped_process_holds_is_left_out_alone(folder, monkeypatch):
    runs = [add_run(folder, name) for name in "abc"]
    monkeypatch.setattr(arrays, "LOCK_SECONDS", 0.0)
    with ExitStack() as stopped:
        submit_array = arrays._submit_array

        def hold_first(*arguments):
            stopped.enter_context(held(folder.run("b").root))
            return submit_array(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(arrays, "_submit_array", hold_first)
            first, second = submit(folder, runs)
        assert first.startswith("Left out: run b is already running in another process (number ")
        assert "which is stopped" in first
        assert ": 2 runs, partition medium" in second
        wait_for_state(folder, [runs[0], runs[2]], State.completed)
        wait_until(nothing_is_left)
        assert not folder.run("b").status.exists()
    submit(folder, runs)
    wait_for_state(folder, runs, State.completed)
    assert [len(starts(folder, run.run_id)) for run in runs] == [1, 1, 1]


def test_cancel_waits_for_a_shell_that_submits_and_cancels_all_that_it_has_submitted(folder):
    runs = [add_run(folder, name, "wait") for name in "ab"]
    known = [{"run_id": run.run_id, "overrides": {}} for run in runs]
    folder.sweep("study").root.mkdir(parents=True)
    write_json(folder.sweep("study").manifest, {"format": 1, "name": "study", "runs": known, "skipped": []})
    waits = (
        "import time; from refsam.orchestration.submission import arrays\n"
        "real = arrays._submit_array; calls = []\n"
        "runs = [test_submission.with_cores('a', 1), test_submission.with_cores('b', 2)]\n"
        "def wait(*arguments):\n"
        "    calls.append(1)\n"
        "    while len(calls) == 2 and not (folder.root / 'go on').exists(): time.sleep(0.1)\n"
        "    return real(*arguments)\n"
        "arrays._submit_array = wait"
    )
    shell = other_shell(folder, waits)
    wait_until(lambda: starts(folder, "a"))
    command = [sys.executable, "-m", "refsam.cli", "cancel", "study", "--runs", str(folder.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as cancel:
        assert cancel.stderr.readline().endswith("; waiting for it\n")
        (folder.root / "go on").touch()
        output, complaints = cancel.communicate(timeout=PATIENCE)
    assert shell.communicate(timeout=PATIENCE)[0]
    assert (cancel.returncode, complaints) == (0, "")
    assert output.startswith("2 runs of sweep study cancelled in Slurm")
    wait_until(nothing_is_left)
    known = wait_for_state(folder, runs, State.failed)
    assert {status.reason for status in known.values()} == {Reason.cancelled}


@pytest.mark.parametrize(
    "moment",
    ["arrays._write_pending", "arrays.run_command"],
    ids=["between sbatch and the records", "between the records and the release"],
)
def test_a_submission_that_is_killed_is_taken_back_and_repeated(folder, moment):
    runs = [add_run(folder, name) for name in "ab"]
    die = (
        "import os; from refsam.orchestration.submission import arrays; real = arrays.run_command\n"
        "def kill(*arguments):\n"
        "    if 'run_command' not in MOMENT or arguments[0][:2] == ['scontrol', 'release']:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return real(*arguments)\n"
        f"MOMENT = {moment!r}; {moment} = kill"
    )
    shell = other_shell(folder, die, "a", "b")
    shell.communicate(timeout=PATIENCE)
    assert shell.returncode == -9
    assert {row[1] for row in queue("%T", "%r")} == {"JobHeldUser"}
    submit(folder, runs)
    wait_for_state(folder, runs, State.completed)
    assert [len(starts(folder, run.run_id)) for run in runs] == [1, 1]
    wait_until(nothing_is_left)


def test_a_submission_that_is_killed_before_its_evaluation_is_recorded_leaves_none_of_both(folder):
    """Killed after both calls of sbatch: what waits for a training that is taken back goes with it."""
    die = (
        "import os; from refsam.orchestration.submission import arrays\n"
        "runs = [test_submission.evaluated_elsewhere('a')]\n"
        "arrays._write_pending = lambda *arguments: os.kill(os.getpid(), 9)"
    )
    add_run(folder, "a")
    run = evaluated_elsewhere("a")
    shell = other_shell(folder, die)
    output = shell.communicate(timeout=PATIENCE)[0]
    assert shell.returncode == -9, output
    assert len(queue("%i")) == 2
    (said,) = submit(folder, [run])
    first, _, then = said.removeprefix("Job ").partition(":")[0].partition(" and ")
    wait_until(lambda: {row[0].partition("_")[0] for row in queue("%i")} <= {first, then})
    wait_for_state(folder, [run], State.completed)
    assert len(starts(folder, "a")) == 2  # trained and evaluated
    wait_until(nothing_is_left)


def test_a_submission_that_is_killed_between_two_arrays_is_completed_by_the_same_command(folder):
    other = RequestConfig(partition="medium", cores=2, memory_gb=1, time="0:10:00")
    runs = [add_run(folder, name, request=SMALL if name in "ab" else other) for name in "abcd"]
    die = (
        "import os; from refsam.orchestration.submission import arrays\n"
        "real = arrays._submit_array; calls = []\n"
        "runs = [test_submission.with_cores(name, 1 if name in 'ab' else 2) for name in 'abcd']\n"
        "def kill(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), 9)\n"
        "    return real(*arguments)\n"
        "arrays._submit_array = kill"
    )
    shell = other_shell(folder, die)
    output = shell.communicate(timeout=PATIENCE)[0]
    assert shell.returncode == -9, output
    assert [read_status(folder.run(name)).job_id is not None for name in "abcd"] == [True, True, False, False]
    said = submit(folder, runs)
    assert said[-1].startswith("Job ")
    assert "2 runs, partition medium, no GPU, 2 cores" in said[-1]
    wait_for_state(folder, runs, State.completed)
    assert [len(starts(folder, run.run_id)) for run in runs] == [1, 1, 1, 1]


@pytest.fixture
def first_calls(tmp_path, monkeypatch):
    """A function that makes the first calls of sbatch do what lines of bash say; $sbatch is the real one."""

    def of_sbatch(*lines):
        real, calls = shutil.which("sbatch"), tmp_path / "calls"
        cases = "".join(f"{number}) {line}; exit 1;;\n" for number, line in enumerate(lines, start=1))
        fake = tmp_path / "bin" / "sbatch"
        fake.parent.mkdir()
        fake.write_text(
            f"#!/bin/bash\nsbatch={real}\necho call >> {calls}\n"
            f'case $(wc -l < {calls}) in\n{cases}*) exec $sbatch "$@";;\nesac\n'
        )
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
        monkeypatch.setattr(patience, "RETRY_SECONDS", (0.1, 0.1, 0.1))

    return of_sbatch


NO_ANSWER = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2'
NOT_NOW = 'echo "sbatch: error: Slurm temporarily unable to accept job" >&2'


def test_a_moment_without_slurm_is_waited_out_and_nothing_runs_twice(folder, first_calls):
    runs = [add_run(folder, name) for name in "ab"]
    # The first call goes through and its answer is lost; the second is turned away.
    first_calls(f'$sbatch "$@" > /dev/null; {NO_ANSWER}', NOT_NOW)
    said = submit(folder, runs)
    assert [line.rpartition("; ")[2] for line in said[:2]] == ["trying again in 0 s"] * 2
    wait_for_state(folder, runs, State.completed)
    assert [len(starts(folder, run.run_id)) for run in runs] == [1, 1]
    wait_until(nothing_is_left)


def test_a_call_that_goes_through_after_all_is_taken_back_by_the_next_command(folder, first_calls, tmp_path):
    runs = [add_run(folder, name) for name in "ab"]
    # The first call goes through when its array has been looked for in vain, and submitted again.
    wait = f"until [ -e {tmp_path}/late ]; do sleep 0.1; done"
    first_calls(f'({wait}; $sbatch "$@") > /dev/null 2>&1 & {NO_ANSWER}')
    submit(folder, runs)
    wait_for_state(folder, runs, State.completed)
    wait_until(nothing_is_left)
    (tmp_path / "late").touch()
    wait_until(lambda: queue("%r") == [["JobHeldUser"]] * 2)
    assert submit(folder, runs) == []
    wait_until(nothing_is_left)
    assert [len(starts(folder, run.run_id)) for run in runs] == [1, 1]


def test_a_sweep_is_submitted_and_looked_at_while_the_accounting_is_away(folder, slurm_cluster):
    runs = [add_run(folder, "a"), add_run(folder, "b", "wait")]
    slurm_cluster.daemons.stop("slurmdbd")
    try:
        submit(folder, runs)
        wait_until(
            lambda: starts(folder, runs[1].run_id) and read_status(folder.run("a")).state is State.completed
        )
        answer = SlurmQuery().ask(known_job(read_status(folder.run(name))) for name in "ab")
        assert (answer.queue, answer.accounting) == (True, False)
        assert answer.problems[0].startswith("sacct does not answer")
        assert with_slurm(read_status(folder.run("b")), answer).state is State.running
    finally:
        slurm_cluster.start("slurmdbd")
    (folder.root / "go").touch()
    wait_for_state(folder, runs, State.completed)


def test_a_controller_that_restarts_is_waited_for(folder, slurm_cluster):
    runs = [add_run(folder, "a", "wait"), add_run(folder, "b")]
    submit(folder, runs[:1])
    wait_until(lambda: starts(folder, runs[0].run_id))
    slurm_cluster.daemons.stop("slurmctld")
    shell = other_shell(folder, "", "a", "b")
    try:
        record = read_status(folder.run("a"))
        answer = SlurmQuery().ask([known_job(record)])
        assert not answer.queue
        assert with_slurm(record, answer).state is State.running
    finally:
        slurm_cluster.start("slurmctld")
    output, _ = shell.communicate(timeout=PATIENCE)
    assert shell.returncode == 0, output
    (folder.root / "go").touch()
    wait_for_state(folder, runs, State.completed)
    assert [len(starts(folder, run.run_id)) for run in runs] == [1, 1]


def test_what_slurm_refuses_is_said_and_the_others_are_submitted(folder):
    impossible = RequestConfig(partition="gpu", gpu="A100", gpus=1, cores=8, memory_gb=32, time="1:00:00")
    runs = [add_run(folder, "a", request=impossible), add_run(folder, "b")]
    with pytest.raises(RunFailed, match="Requested node configuration is not available"):
        submit(folder, runs)
    wait_for_state(folder, runs[1:], State.completed)
    assert read_status(folder.run("a")) == Status()


@pytest.mark.parametrize("state", ["drain", "down"])
def test_runs_wait_for_nodes_that_are_away_and_what_no_node_has_is_refused_all_the_same(folder, state):
    """As in a maintenance: sbatch --test-only calls both kinds impossible then."""
    impossible = RequestConfig(partition="gpu", gpu="V100", gpus=3, cores=8, memory_gb=32, time="1:00:00")
    runs = [add_run(folder, "a", request=request_of("v100")), add_run(folder, "b", request=impossible)]
    said = []
    slurm("scontrol", "update", "NodeName=vol1", f"State={state}", "Reason=maintenance")
    try:
        with pytest.raises(RunFailed, match="Requested node configuration is not available"):
            submit_to_slurm(runs, folder, folder.sweep("study"), CLUSTER, said.append, STAND_IN)
        assert [row[0] for row in queue("%T")] == ["PENDING"]
        assert said[0].startswith(
            f"No suitable node is in service (vol1 {'idle+drain' if state == 'drain' else 'down'}"
        )
    finally:
        slurm("scontrol", "update", "NodeName=vol1", "State=resume")
    wait_for_state(folder, runs[:1], State.completed)
    assert read_status(folder.run("b")) == Status()


def test_a_group_that_is_larger_than_an_array_may_be_is_several(folder):
    runs = [add_run(folder, f"run{number}") for number in range(5)]
    said = submit(folder, runs, ClusterConfig(kind="slurm", max_array_size=2))
    assert [line.split(": ")[1].split(",")[0] for line in said] == ["2 runs", "2 runs", "1 run"]
    wait_for_state(folder, runs, State.completed)


@pytest.fixture
def limit(slurm_cluster):
    """A function that lets users have `number` jobs in the queue, by what sacctmgr tells of them or not."""

    def account(entity, *values):
        command = ["sacctmgr", "--immediate", "modify", entity, "where", "name=root", "set", *values]
        subprocess.run(command, check=True, capture_output=True)

    yield account
    account("user", "MaxSubmitJobs=-1")
    account("account", "GrpSubmitJobs=-1")


def test_more_runs_than_the_account_may_have_in_the_queue_are_topped_up(folder, limit):
    runs = [add_run(folder, f"run{number}", "wait" if number < 2 else "complete") for number in range(3)]
    limit("user", "MaxSubmitJobs=2")
    said = submit(folder, runs)
    assert said[0].startswith("Job ")
    assert said[1] == "1 run not submitted yet, because the job limit of your account is reached"
    assert submit(folder, runs)[-1] == said[1]
    assert read_status(folder.run("run2")).state is State.planned
    (folder.root / "go").touch()
    wait_for_state(folder, runs[:2], State.completed)
    wait_until(nothing_is_left)
    submit(folder, runs)
    wait_for_state(folder, runs, State.completed)
    assert [len(starts(folder, run.run_id)) for run in runs] == [1, 1, 1]


def test_a_limit_that_nobody_tells_is_found_by_trying(folder, limit, slurm_cluster):
    configuration = slurm_cluster.root / "slurm.conf"
    before = configuration.read_text()
    limit("account", "GrpSubmitJobs=3")
    try:
        restart_controller(slurm_cluster, before + "AccountingStorageEnforce=limits\n")
        runs = [add_run(folder, f"run{number}", "wait") for number in range(4)]
        said = submit(folder, runs)
        assert [line.partition(": ")[2].split(",")[0] for line in said[:2]] == ["2 runs", "1 run"]
        assert said[2].startswith("1 run not submitted yet")
        assert len(queue("%i")) == 3
        assert read_status(folder.run("run3")) == Status()
    finally:
        restart_controller(slurm_cluster, before)


def restart_controller(slurm_cluster, configuration):
    slurm_cluster.daemons.stop("slurmctld")
    (slurm_cluster.root / "slurm.conf").write_text(configuration)
    slurm_cluster.start("slurmctld")


def test_what_a_person_submits_by_hand_runs_and_is_recorded(folder):
    runs = [add_run(folder, name) for name in "ab"]
    gpu = add_run(folder, "c", request=request_of("v100"))
    sweep = folder.sweep("study")
    scripts = write_scripts([*runs, gpu], folder, sweep, CLUSTER, pytest.fail, STAND_IN)
    assert [script.path.name for script in scripts] == ["1-medium.sh", "2-gpu-V100.sh"]
    for script in scripts:
        subprocess.run(script.command, shell=True, check=True, capture_output=True)
    done = wait_for_state(folder, [*runs, gpu], State.completed)
    assert [status.attempt for status in done.values()] == [1, 1, 1]
    seen = read_json(folder.run("c").root / "seen.json")
    assert (seen["OMP_NUM_THREADS"], seen["SLURM_CPUS_PER_TASK"]) == ("8", "8")
    assert seen["CUDA_VISIBLE_DEVICES"] != ""
    assert read_json(folder.run("a").root / "seen.json")["CUDA_VISIBLE_DEVICES"] == ""
    assert {"gres/gpu:v100=1", "cpu=8", "mem=32G"} <= allocated(starts(folder, gpu.run_id)[0])
    wait_until(nothing_is_left)
    assert submit(folder, [*runs, gpu]) == []


def test_jobs_run_the_code_of_their_submission_whatever_is_edited_meanwhile(folder, tmp_path, monkeypatch):
    checkout = tmp_path / "the checkout"
    for name in ("refsam", "hydra_plugins", "conf", "sweeps", "slurm_templates"):
        shutil.copytree(CHECKOUT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{checkout}")
    monkeypatch.chdir(checkout)
    runs = [add_run(folder, name) for name in "ab"]
    snapshot = (
        "from dataclasses import replace; from functools import partial\n"
        "cluster = replace(test_submission.CLUSTER, snapshot=True)\n"
        "test_submission.submit = partial(test_submission.submit, cluster=cluster)"
    )
    slurm("scontrol", "update", "partition=medium", "state=down")
    try:
        for name in "ab":  # with the same code both times
            shell = other_shell(folder, snapshot, name)
            output = shell.communicate(timeout=PATIENCE)[0]
            assert shell.returncode == 0, output
        shutil.rmtree(checkout / "conf")
        for path in (checkout / "refsam").rglob("*.py"):
            path.write_text("raise RuntimeError('edited')")
    finally:
        slurm("scontrol", "update", "partition=medium", "state=up")
    wait_for_state(folder, runs, State.completed)
    assert len(list((folder.root / "snapshots").iterdir())) == 1


@dataclass(frozen=True)
class Shown(Run):
    """A run as the live table shows it."""

    @property
    def label(self):
        return f"label of {self.run_id}"


def test_who_waits_sees_every_run_end_and_what_did_not_fit_is_submitted_then(folder, limit, monkeypatch):
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.5)
    monkeypatch.setattr(questions, "CACHE_SECONDS", 0.0)
    runs = [Shown(run.run_id, run.config) for run in (add_run(folder, f"run{n}") for n in range(3))]
    fails = add_run(folder, "fails", "fail")
    limit("user", "MaxSubmitJobs=2")
    shown = StringIO()
    runs.insert(0, Shown("fails", fails.config))
    before = {run.run_id: 0 for run in runs}
    submit(folder, runs)
    wait_for_runs(
        runs, folder, before, PlainLines(Console(file=shown)), lambda rest: len(submit(folder, rest))
    )
    assert [read_status(folder.run(run.run_id)).state for run in runs] == [State.failed] + [
        State.completed
    ] * 3
    assert [len(starts(folder, run.run_id)) for run in runs] == [1, 1, 1, 1]
    assert "label of run2: completed" in shown.getvalue()
    assert "3 completed, 0 running, 1 failed" in shown.getvalue()


def test_a_run_that_a_local_process_works_on_is_left_to_it(folder):
    run = add_run(folder, "a")
    program = f"""
import sys, time
from pathlib import Path
from refsam.records.paths import RunPaths
from refsam.records.status import run_lock
with run_lock(RunPaths(Path({str(folder.run("a").root)!r}))):
    print("held", flush=True)
    time.sleep({PATIENCE})
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        assert submit(folder, [run]) == ["1 run in the queue or running already"]
        other.kill()


def test_a_run_that_ends_before_it_is_looked_at_keeps_what_its_record_says(folder):
    run = add_run(folder, "a")
    submit(folder, [run])
    wait_for_state(folder, [run], State.completed)
    wait_until(nothing_is_left)  # the job's own process looks at the record last
    with run_lock(folder.run("a")):
        status = read_status(folder.run("a"))
        write_status(folder.run("a"), status.changed(state=State.running))  # as if it had died in silence
    known = wait_for_state(folder, [run], State.failed)["a"]
    assert known.reason is Reason.lost
    assert "the run wrote no result" in known.message


@pytest.mark.parametrize("name", ["100%", "a\\b", "a\nb"])
def test_a_folder_that_slurm_would_rename_is_refused(slurm_cluster, tmp_path, name):
    folder = RunsFolder(tmp_path / name)
    with pytest.raises(ConfigError, match="runs"):
        submit(folder, [])
