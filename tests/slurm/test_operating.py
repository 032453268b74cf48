"""A sweep on a real Slurm, as a person operates it: seen, cancelled, tried again, also without Slurm."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from slurm_helpers import PATIENCE, SMALL, nothing_is_left, queue, slurm, starts, wait_until

from refsam import cli
from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze, load
from refsam.orchestration.lifecycle.attempt_records import end_attempt
from refsam.orchestration.operating.cancel import cancel
from refsam.orchestration.operating.sweep_state import RunState, SweepState
from refsam.orchestration.slurm import questions
from refsam.orchestration.slurm.questions import Answer
from refsam.orchestration.submission.arrays import submit_to_slurm
from refsam.records.attempts import read_attempt
from refsam.records.run import Run
from refsam.records.status import Reason, State, read_status, write_status
from refsam.system.files import read_json, write_json
from tools.test_cluster.jobs import job_processes


@pytest.fixture(scope="module")
def config(synthetic):
    """A complete configuration for Slurm, as a run has it frozen."""
    config = compose(["resource=medium_8g", "model=vit_nano", "cluster=slurm"])
    return replace(config, dataset=synthetic, resource=replace(config.resource, request=SMALL))


def submit(folder, config, parallel=None, **behaviours):
    """Submit runs, named with what they do, as a part of the sweep `study`."""
    sweep = folder.sweep("study")
    sweep.root.mkdir(parents=True, exist_ok=True)
    config = replace(config, cluster=replace(config.cluster, array_parallelism=parallel))
    runs = []
    for name, behaviour in behaviours.items():
        paths = folder.run(f"{name}-0")
        paths.root.mkdir()
        (paths.root / "behaviour.txt").write_text(behaviour)
        freeze(paths.config, config)
        runs.append(Run(paths.run_id, config, name))
    known = [{"run_id": path.name, "overrides": {}} for path in sorted(folder.root.glob("*-0"))]
    write_json(sweep.manifest, {"format": 1, "name": "study", "runs": known, "skipped": []})
    submit_to_slurm(runs, folder, sweep, config.cluster, lambda sentence: None)


def states(refsam):
    """State and reason of every run by its name."""
    runs = refsam("status", "study")["runs"]
    return {run["run_id"][0]: (run["state"], run["reason"]) for run in runs}


def count_starts(folder, name):
    return len(starts(folder, f"{name}-0"))


def job_id(folder, name):
    return read_status(folder.run(f"{name}-0")).job_id


def attempts(folder):
    return {path.name[0]: read_status(folder.run(path.name)).attempt for path in folder.root.glob("*-0")}


def test_every_state_is_shown_and_what_was_cancelled_outside_is_retried_alone(folder, config, refsam, capsys):
    submit(folder, config, a="complete", b="fail")
    submit(folder, config, parallel=1, c="wait", d="wait")
    completed, failed = ("completed", None), ("failed", "error")
    pending, running, cancelled = ("pending", None), ("running", None), ("failed", "cancelled")
    wait_until(lambda: count_starts(folder, "c") == 1)  # and has said so itself
    wait_until(lambda: states(refsam) == {"a": completed, "b": failed, "c": running, "d": pending})
    status = refsam("status")
    assert status["states"] == {"completed": 1, "failed": 1, "running": 1, "pending": 1}
    assert status["slurm"] == {"queue": True, "accounting": True}
    (group,) = status["groups"]
    assert group["request"] == vars(SMALL)
    run = status["runs"][2]
    assert (run["job_id"], run["host"] is not None) == (job_id(folder, "c"), True)
    assert run["elapsed_seconds"] >= 0
    assert "JobArrayTaskLimit" in status["runs"][3]["message"]
    assert cli.main(["status", "--runs", str(folder.root)]) == 0
    assert "Sweep study: 4 runs, 1 completed, 1 running, 1 pending, 1 failed" in capsys.readouterr().out

    # One task that runs and one that waits are cancelled, and not by refsam.
    slurm("scancel", job_id(folder, "d"))
    slurm("scancel", job_id(folder, "c"))
    wait_until(lambda: states(refsam) == {"a": completed, "b": failed, "c": cancelled, "d": cancelled})
    assert read_status(folder.run("d-0")).state is State.failed  # the record has learned it
    wait_until(nothing_is_left)
    again = refsam("retry", "--reason", "cancelled")
    assert [run["run_id"] for run in again["runs"]] == ["c-0", "d-0"]
    assert sum(again["states"].values()) == 2
    assert set(again["states"]) <= {"pending", "running"}  # Slurm may have started them before they were read
    assert refsam("retry", "--reason", "cancelled")["runs"] == []  # both are in the queue
    (folder.root / "go").touch()
    wait_until(lambda: states(refsam) == {"a": completed, "b": failed, "c": completed, "d": completed})
    assert attempts(folder) == {"a": 1, "b": 1, "c": 2, "d": 2}
    assert [count_starts(folder, name) for name in "abcd"] == [1, 1, 2, 1]

    # The accounting is some seconds late with what they have cost.
    wait_until(lambda: all(row["elapsed_seconds"] is not None for row in refsam("collect", "study")))
    costs = read_json(folder.run("c-0").costs)
    assert costs["jobs"][-1]["job_id"] == job_id(folder, "c")
    assert costs["jobs"][-1]["state"] == "COMPLETED"
    assert costs["cpu_hours"] == pytest.approx(costs["elapsed_seconds"] / 3600)  # on one core
    assert (costs["gpu_hours"], costs["queue_seconds"] >= 0) == (0, True)


def test_what_a_job_with_a_gpu_has_cost_is_what_the_accounting_says(folder, config, refsam):
    request = replace(SMALL, partition="gpu", gpu="V100", gpus=1)
    submit(folder, replace(config, resource=replace(config.resource, request=request)), a="wait")
    wait_until(lambda: count_starts(folder, "a") == 1)
    time.sleep(3)  # the memory is looked at every second
    (folder.root / "go").touch()
    wait_until(lambda: states(refsam) == {"a": ("completed", None)})
    wait_until(lambda: refsam("collect", "study")[0]["elapsed_seconds"] is not None)
    costs = read_json(folder.run("a-0").costs)
    assert costs["elapsed_seconds"] >= 3
    assert costs["gpu_hours"] == pytest.approx(costs["elapsed_seconds"] / 3600)
    assert 0 < costs["max_rss_gib"] < 1


def test_a_whole_array_is_cancelled_and_continued_and_nothing_twice(folder, config, refsam):
    submit(folder, config, a="complete")
    submit(folder, config, parallel=1, b="wait", c="wait", d="wait")
    wait_until(lambda: states(refsam)["a"] == ("completed", None) and count_starts(folder, "b") == 1)
    one = refsam("cancel", "c-0")
    assert [run["run_id"] for run in one["cancelled"]] == ["c-0"]
    wait_until(lambda: states(refsam)["c"] == ("failed", "cancelled"))
    assert states(refsam)["d"] == ("pending", None)
    slurm("scancel", job_id(folder, "b").partition("_")[0])  # the whole array
    wait_until(lambda: [states(refsam)[name] for name in "bcd"] == [("failed", "cancelled")] * 3)
    wait_until(nothing_is_left)
    assert [run["run_id"] for run in refsam("retry", "d")["runs"]] == ["d-0"]
    again = refsam("continue", "study")
    assert [run["run_id"] for run in again["runs"]] == ["b-0", "c-0"]
    assert next((run["run_id"], run["state"]) for run in again["left_out"]) == ("a-0", "completed")
    everything = refsam("cancel", "study")
    assert {run["run_id"] for run in everything["cancelled"]} == {"b-0", "c-0", "d-0"}
    wait_until(lambda: [states(refsam)[name] for name in "bcd"] == [("failed", "cancelled")] * 3)
    assert refsam("cancel", "study")["cancelled"] == []
    wait_until(nothing_is_left)
    (folder.root / "go").touch()
    assert len(refsam("continue", "study")["runs"]) == 3
    wait_until(lambda: set(states(refsam).values()) == {("completed", None)})
    assert attempts(folder) == {"a": 1, "b": 3, "c": 3, "d": 3}
    assert count_starts(folder, "a") == 1


# On a node of its own: the run's job may still be ending, and Slurm drains nodes with two jobs of one number.
SOMEBODY_S = (
    *("--parsable", "--job-name=somebody's", "--array=0-1", "--mem=100M", "--nodelist=cpu2"),
    *("--output=/dev/null", "--wrap=sleep 900"),
)


def lose_the_state(cluster):
    """Let the controller begin anew: it knows no job any more, and gives its first number again."""
    cluster.daemons.stop("slurmctld")
    shutil.rmtree(cluster.root / "state")
    (cluster.root / "state").mkdir()
    cluster.make_idle()
    wait_until(lambda: not job_processes(cluster.settings))


def test_a_number_that_slurm_gives_again_is_not_the_run_s_job(folder, config, refsam, slurm_cluster):
    lose_the_state(slurm_cluster)
    submit(folder, config, a="wait", b="wait")
    wait_until(lambda: count_starts(folder, "a") == count_starts(folder, "b") == 1)
    lose_the_state(slurm_cluster)
    array = slurm("sbatch", *SOMEBODY_S).strip()
    assert job_id(folder, "a") == f"{array}_0"
    others_run = [[f"{array}_{task}", "RUNNING"] for task in (0, 1)]
    wait_until(lambda: sorted(queue("%i", "%T")) == others_run)
    assert refsam("cancel", "study")["cancelled"] == []
    assert {state for state, _ in states(refsam).values()} == {"failed"}
    (folder.root / "go").touch()
    assert len(refsam("continue", "study")["runs"]) == 2
    wait_until(lambda: set(states(refsam).values()) == {("completed", None)})
    wait_until(lambda: sorted(queue("%i", "%T")) == others_run)
    assert attempts(folder) == {"a": 2, "b": 2}


def test_what_has_a_run_s_number_and_is_not_its_job_is_not_cancelled(folder, config):
    array = slurm("sbatch", *SOMEBODY_S).strip()
    submit(folder, config, a="wait")
    record = read_status(folder.run("a-0"))
    taken = replace(record, job_id=f"{array}_1", evaluation_job_id=record.job_id)
    run = RunState("a-0", taken, None, None, None, None)
    state = SweepState("study", folder, (run,), Answer({}, False, False, ()), ())
    done = cancel(lambda: state, folder, True, lambda sentence: None)
    assert (done.jobs, done.impossible) == (("a-0",), ())
    wait_until(lambda: {row[0].partition("_")[0] for row in queue("%i")} == {array})
    assert len(queue("%i")) == 2


@pytest.fixture
def as_another_user(tmp_path, monkeypatch):
    """scancel as nobody, who may read every file, since the cluster's are root's."""
    nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups"
    reads = "--inh-caps=+dac_override --ambient-caps=+dac_override"
    program = tmp_path / "bin" / "scancel"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {nobody} {reads} {shutil.which("scancel")} "$@"\n')
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        yield


def test_what_another_user_s_jobs_are_not_cancelled_for_is_what_scancel_says(
    folder, config, refsam, as_another_user, capsys
):
    submit(folder, config, a="wait", b="wait")
    assert refsam("cancel", "study", status=1)["left"] == ["a-0", "b-0"]
    assert cli.main(["cancel", "study", "--runs", str(folder.root)]) == 1
    number = job_id(folder, "a").partition("_")[0]
    assert capsys.readouterr().err == (
        f"refsam: 2 runs are still in Slurm's queue (job {number}_[0-1]): Kill job error on job id "
        f"{number}_[0-1]: Access/permission denied\n"
    )
    assert {state for state, _ in states(refsam).values()} <= {"pending", "running"}


def test_a_failed_run_whose_job_an_administrator_requeues_is_not_submitted_again(folder, config, refsam):
    submit(folder, config, a="fail", b="wait")
    wait_until(lambda: states(refsam)["a"] == ("failed", "error"))
    job = job_id(folder, "a")
    wait_until(lambda: job not in [row[0] for row in queue("%i")])
    slurm("scontrol", "requeue", job)
    wait_until(lambda: states(refsam)["a"] == ("pending", None))
    assert refsam("retry", "study")["runs"] == []
    assert refsam("continue", "study")["runs"] == []
    (folder.run("a-0").root / "behaviour.txt").write_text("complete")
    # Not in the second of its requeue: slurmd revokes credentials by the second.
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    wait_until(lambda: states(refsam)["a"] == ("completed", None))
    assert (job_id(folder, "a"), attempts(folder)["a"], count_starts(folder, "a")) == (job, 2, 2)


def test_a_sweep_that_the_site_takes_in_parts_is_topped_up_by_continue(folder, config, refsam):
    config = replace(config, cluster=replace(config.cluster, max_submit_jobs=2))
    submit(folder, config, a="wait", b="wait", c="complete")
    assert states(refsam)["c"] == ("planned", None)
    assert refsam("continue", "study")["states"] == {"planned": 1}  # there is no room yet
    (folder.root / "go").touch()
    wait_until(lambda: [states(refsam)[name] for name in "ab"] == [("completed", None)] * 2)
    wait_until(nothing_is_left)
    assert [run["run_id"] for run in refsam("continue", "study")["runs"]] == ["c-0"]
    wait_until(lambda: states(refsam)["c"] == ("completed", None))
    assert attempts(folder) == {"a": 1, "b": 1, "c": 1}


def test_what_no_node_has_is_not_submitted_again(folder, config, capsys):
    impossible = replace(SMALL, memory_gb=4000)
    folder.sweep("study").root.mkdir(parents=True)
    paths = folder.run("a-0")
    paths.root.mkdir()
    freeze(paths.config, replace(config, resource=replace(config.resource, request=impossible)))
    known = {"format": 1, "name": "study", "runs": [{"run_id": "a-0", "overrides": {}}], "skipped": []}
    write_json(folder.sweep("study").manifest, known)
    assert cli.main(["continue", "study", "--runs", str(folder.root)]) == 2
    assert "memory_gb" in capsys.readouterr().err
    assert read_status(paths).state is State.planned


def test_a_job_that_is_killed_whole_for_its_memory_is_submitted_again_by_whoever_looks(
    folder, config, refsam
):
    submit(folder, config, a="hungry by the chunk, its supervisor first")
    wait_until(lambda: refsam("status", "study")["submitted_again"] == ["a-0"])
    wait_until(lambda: states(refsam) == {"a": ("completed", None)})
    first, second = (read_attempt(folder.run("a-0"), number) for number in (1, 2))
    assert (first.reason, first.used["train.object_chunk"]) == (Reason.out_of_memory, 5)
    assert second.settings == {"train.object_chunk": 2}
    assert len(set(starts(folder, "a-0"))) == 2  # jobs


@contextmanager
def template_is_gone(folder, slurm_cluster):
    freeze(folder.run("a-0").config, with_template(load(folder.run("a-0").config), "/gone.sh"))
    yield "cluster.template must be"


def with_template(config, template):
    return replace(config, cluster=replace(config.cluster, template=template))


@contextmanager
def jobs_folder_cannot_be_used(folder, slurm_cluster):
    shutil.rmtree(folder.sweep("study").jobs)
    folder.sweep("study").jobs.touch()
    yield f"{folder.sweep('study').jobs} cannot be read or written: File exists"


@contextmanager
def another_process_submits(folder, slurm_cluster):
    """And is stopped: it will never end."""
    program = (
        "import os, pathlib, signal, sys; from refsam.records.paths import RunPaths\n"
        "from refsam.records.status import run_lock\n"
        "with run_lock(RunPaths(pathlib.Path(sys.argv[1]))):\n"
        "    print(os.getpid(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)"
    )
    with subprocess.Popen([sys.executable, "-c", program, folder.root], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        yield f"another process (number {holder.pid}, which is stopped"
        holder.kill()


@contextmanager
def controller_is_away(folder, slurm_cluster):
    slurm_cluster.daemons.stop("slurmctld")
    try:
        yield "Slurm does not answer"
    finally:
        slurm_cluster.start("slurmctld")


@pytest.mark.parametrize(
    "fault", [template_is_gone, jobs_folder_cannot_be_used, another_process_submits, controller_is_away]
)
def test_a_sweep_is_shown_before_anything_is_submitted_again(folder, config, slurm_cluster, fault):
    submit(folder, config, a="complete", b="complete")
    wait_until(lambda: [read_status(folder.run(name)).state for name in ("a-0", "b-0")] == ["completed"] * 2)
    wait_until(nothing_is_left)  # the jobs' own processes look at the records last
    paths = folder.run("a-0")
    preempted = replace(read_status(paths), state=State.failed, reason=Reason.preempted)  # and not taken back
    paths.attempt_record(1).unlink(missing_ok=True)
    end_attempt(paths, preempted)
    write_status(paths, preempted)
    command = [sys.executable, "-m", "refsam.cli", "status", "study", "--runs", folder.root]
    with fault(folder, slurm_cluster) as why:
        status = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        first = status.stderr.readline().decode()
        shown = os.read(status.stdout.fileno(), 100_000).decode()  # before the first word about submitting
        rest = status.communicate(timeout=PATIENCE)[1].decode()
    assert "Sweep study: 2 runs, 1 completed, 1 failed" in shown
    assert "failed (preempted)" in shown
    assert status.returncode == 0
    assert first == "Killed with their jobs: a-0\n"
    (note,) = rest.splitlines()
    assert note.startswith(f"refsam: not submitted again now: {why}")
    assert read_status(paths) == preempted


@pytest.mark.parametrize("command", ["squeue", "sacct"])
def test_a_part_of_slurm_that_hangs_is_waited_for_a_moment_only(
    folder, config, refsam, command, tmp_path, monkeypatch, capsys
):
    submit(folder, config, a="wait")
    wait_until(lambda: count_starts(folder, "a") == 1)
    hanging = tmp_path / "bin" / command
    hanging.parent.mkdir()
    hanging.write_text("#!/bin/sh\nexec sleep 1000\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(questions, "GLANCE_SECONDS", 0.5)
    with monkeypatch.context() as hangs:
        hangs.setenv("PATH", f"{hanging.parent}:{os.environ['PATH']}")
        status = refsam("status", "study")
        assert status["states"] == {"running": 1}
        assert any(
            f"{command} does not answer (nothing within 0.5 seconds)" in note for note in status["notes"]
        )
        shown = refsam("show", "a")
        assert shown["status"]["state"] == "running"
    (folder.root / "go").touch()
    wait_until(lambda: read_status(folder.run("a-0")).state is State.completed)
    if command == "sacct":
        with monkeypatch.context() as hangs:
            hangs.setenv("PATH", f"{hanging.parent}:{os.environ['PATH']}")
            assert cli.main(["show", "a", "--runs", str(folder.root)]) == 0
            assert "sacct does not answer (nothing within 0.5 seconds)" in capsys.readouterr().err


def test_a_sweep_is_seen_and_cancelled_while_the_accounting_is_away(folder, config, refsam, slurm_cluster):
    submit(folder, config, parallel=1, a="wait", b="wait")
    wait_until(lambda: count_starts(folder, "a") == 1)
    slurm_cluster.daemons.stop("slurmdbd")
    try:
        status = refsam("status")
        assert status["states"] == {"running": 1, "pending": 1}
        assert status["slurm"] == {"queue": True, "accounting": False}
        (note,) = status["notes"]
        assert note.startswith("sacct does not answer")
        refsam("cancel", "study")
        wait_until(lambda: set(states(refsam).values()) == {("failed", "cancelled")})
    finally:
        slurm_cluster.start("slurmdbd")


def test_a_sweep_is_seen_while_the_controller_restarts_and_cancelled_after_it(
    folder, config, refsam, slurm_cluster, monkeypatch
):
    submit(folder, config, parallel=1, a="wait", b="wait")
    wait_until(lambda: count_starts(folder, "a") == 1)
    slurm_cluster.daemons.stop("slurmctld")
    try:
        status = refsam("status")
        assert status["states"] == {"running": 1, "pending": 1}
        assert not status["slurm"]["queue"]
        with monkeypatch.context() as impatient:
            impatient.setattr("refsam.orchestration.operating.cancel.RETRY_SECONDS", ())
            assert cli.main(["cancel", "study", "--runs", str(folder.root)]) == 3  # and says so
        with monkeypatch.context() as without_slurm:
            without_slurm.setenv("PATH", "/nowhere")
            assert states(refsam) == {"a": ("running", None), "b": ("pending", None)}
    finally:
        slurm_cluster.start("slurmctld")
    refsam("cancel", "study")
    wait_until(lambda: set(states(refsam).values()) == {("failed", "cancelled")})
