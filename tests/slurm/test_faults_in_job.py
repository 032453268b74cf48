"""What can happen to a job on a real Slurm, and that the run survives it."""

import csv
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from holder import held
from slurm_helpers import (
    CHECKOUT,
    HERE,
    SMALL,
    STAND_IN,
    Run,
    add_run,
    nothing_is_left,
    queue,
    slurm,
    starts,
    wait_until,
)

from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze, load
from refsam.configuration.schema import ClusterConfig
from refsam.orchestration.in_job.job import SCIENCE, thread_environment
from refsam.orchestration.lifecycle.reconcile import reconcile
from refsam.orchestration.slurm.questions import SlurmQuery
from refsam.orchestration.submission.arrays import submit_to_slurm
from refsam.records.attempts import read_attempt
from refsam.records.paths import RunsFolder
from refsam.records.status import Reason, State, read_status
from refsam.science.training.checkpoints import previous_latest
from tools.test_cluster.jobs import job_processes

CLUSTER = ClusterConfig(kind="slurm", explicit=False, parallel="auto", template="default")


@pytest.fixture
def folder(slurm_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(CHECKOUT)]))
    return RunsFolder(tmp_path)


def submit(folder, runs, entry_point=STAND_IN):
    submit_to_slurm(runs, folder, folder.sweep("study"), CLUSTER, lambda said: None, entry_point)


def wait_for(folder, run_id, *states):
    """The record of a run, when it says one of the states and its attempt has ended; Slurm is not asked.

    Where that never comes, the failure shows the record and the logs.
    """
    paths = folder.run(run_id)

    def ended():
        status = read_status(paths)
        number = status.attempt - 1 if status.state is State.pending else status.attempt
        return status.state in states and read_attempt(paths, number).ended_at is not None

    try:
        wait_until(ended)
    except AssertionError as error:
        logs = "".join(log.read_text()[-4000:] for log in sorted(paths.root.rglob("*.out")))
        raise AssertionError(f"{read_status(paths)}\n{logs}\n{error}") from error
    return read_status(paths)


def start_again_now(folder, run_id):
    """Slurm lets a requeued job wait for two minutes; its time limit is what was asked for, again.

    It may not start in the second of its requeue: slurmd revokes credentials by the second.
    """
    job_id = read_status(folder.run(run_id)).job_id
    wait_until(lambda: "PENDING" in slurm("squeue", "--noheader", f"--jobs={job_id}", "--format=%T"))
    slurm("scontrol", "update", f"JobId={job_id}", "StartTime=now+3", f"TimeLimit={SMALL.time}")


def test_a_job_that_outgrows_its_memory_goes_on_with_a_smaller_chunk_without_queueing_again(folder):
    run = add_run(folder, "a", "hungry by the chunk")
    submit(folder, [run])
    status = wait_for(folder, "a", State.completed, State.failed)
    assert (status.state, status.attempt) == (State.completed, 2), status
    first, second = (read_attempt(folder.run("a"), number) for number in (1, 2))
    assert (first.reason, first.used["train.object_chunk"], first.settings) == (Reason.out_of_memory, 5, {})
    assert "The kernel killed the run" in first.message
    assert (second.state, second.settings) == (State.completed, {"train.object_chunk": 2})
    assert len(set(starts(folder, "a"))) == 1  # one job
    assert len(starts(folder, "a")) == 2
    for number in (1, 2):
        (log,) = folder.run("a").attempt(number).glob("*.out")
        assert "Next attempt: train.object_chunk=2" in log.read_text()


def test_a_run_that_no_setting_makes_fit_is_out_of_memory(folder):
    run = add_run(folder, "a", "hungry")
    submit(folder, [run])
    status = wait_for(folder, "a", State.failed)
    assert (status.reason, status.attempt) == (Reason.out_of_memory, 1)
    assert status.message.endswith("Not tried again: nothing is left that would save memory.")


@pytest.mark.parametrize("who", ["scancel", "scontrol requeue"])
def test_a_job_that_slurm_ends_says_why(folder, who):
    """Slurm requeues a job in the same way when it takes the resources for another one."""
    run = add_run(folder, "a", "wait")
    submit(folder, [run])
    wait_until(lambda: starts(folder, "a"))
    job_id = read_status(folder.run("a")).job_id
    slurm(*who.split(), job_id)
    if who == "scancel":
        status = wait_for(folder, "a", State.failed)
        assert (status.reason, status.attempt) == (Reason.cancelled, 1)
        assert read_attempt(folder.run("a"), 1).reason is Reason.cancelled
        return
    status = wait_for(folder, "a", State.pending)
    assert (status.attempt, read_attempt(folder.run("a"), 1).reason) == (2, Reason.preempted)
    start_again_now(folder, "a")
    wait_until(lambda: len(starts(folder, "a")) == 2)
    (folder.root / "go").touch()
    assert wait_for(folder, "a", State.completed).attempt == 2


def test_a_time_limit_that_saves_nothing_is_not_tried_for_ever(folder):
    run = add_run(folder, "a", "wait")
    submit(folder, [run])
    wait_until(lambda: starts(folder, "a"))
    slurm("scancel", "--signal=USR2", read_status(folder.run("a")).job_id)
    status = wait_for(folder, "a", State.failed)
    assert (status.reason, status.attempt) == (Reason.timeout, 1)
    assert status.message == (
        "The time limit came. Not tried again: no new checkpoint was saved since the previous attempt."
    )


@pytest.fixture
def mixed_array(folder):
    """An array of four: one task has failed, one was cancelled, two run; by the letters of the runs.

    The last one, d, has what every array has in one of its tasks: the array's number as its own job id.
    """
    behaviours = {"a": "fail", "b": "wait", "c": "wait", "d": "save and wait"}
    submit(folder, [add_run(folder, name, behaviour) for name, behaviour in behaviours.items()])
    wait_until(lambda: all(starts(folder, name) for name in "abcd"))
    jobs = {name: read_status(folder.run(name)).job_id for name in "abcd"}
    assert starts(folder, "d") == [jobs["d"].partition("_")[0]]
    slurm("scancel", jobs["b"])
    assert wait_for(folder, "a", State.failed).reason is Reason.error
    assert wait_for(folder, "b", State.failed).reason is Reason.cancelled
    wait_until(lambda: {row[0] for row in queue("%i")} == {jobs["c"], jobs["d"]})
    return jobs


def only_the_last_one_waits_again(folder, jobs):
    status = wait_for(folder, "d", State.pending)
    assert (status.attempt, status.job_id) == (2, jobs["d"])
    wait_until(lambda: [jobs["d"], "PENDING"] in queue("%i", "%T"))
    assert queue("%i", "%T") == [[jobs["d"], "PENDING"], [jobs["c"], "RUNNING"]]
    known, _ = reconcile(folder, list(jobs), SlurmQuery())
    assert {name: known[name].state for name in "abcd"} == {
        **dict.fromkeys("ab", State.failed),
        "c": State.running,
        "d": State.pending,
    }
    start_again_now(folder, "d")
    wait_until(lambda: len(starts(folder, "d")) == 2)
    (folder.root / "go").touch()
    for name, attempt in (("c", 1), ("d", 2)):
        assert wait_for(folder, name, State.completed).attempt == attempt
    assert {name: len(starts(folder, name)) for name in "abcd"} == {"a": 1, "b": 1, "c": 1, "d": 2}
    assert [read_status(folder.run(name)).reason for name in "ab"] == [Reason.error, Reason.cancelled]


def test_the_time_limit_of_one_task_requeues_only_this_task(folder, mixed_array):
    slurm("scancel", "--signal=USR2", mixed_array["d"])
    only_the_last_one_waits_again(folder, mixed_array)
    assert read_attempt(folder.run("d"), 1).reason is Reason.timeout


def test_a_requeued_task_asks_slurm_about_itself_and_not_about_its_array(folder, mixed_array):
    slurm("scontrol", "requeue", mixed_array["d"])
    only_the_last_one_waits_again(folder, mixed_array)
    assert read_attempt(folder.run("d"), 1).reason is Reason.preempted


def test_a_job_that_is_killed_whole_is_written_down_by_whoever_looks(folder, slurm_cluster):
    run = add_run(folder, "a", "wait")
    submit(folder, [run])
    wait_until(lambda: starts(folder, "a"))
    for number in job_processes(slurm_cluster.settings):
        with suppress(psutil.NoSuchProcess):  # it has ended with another one
            if "slurmstepd" not in psutil.Process(number).name():
                psutil.Process(number).kill()

    def look():
        return reconcile(folder, ["a"], SlurmQuery())[0]["a"]

    wait_until(lambda: look().state is State.failed)
    status = read_status(folder.run("a"))
    assert (status.state, status.reason) == (State.failed, Reason.error)
    assert status.message.startswith(f"Slurm job {status.job_id}: ")
    assert read_attempt(folder.run("a"), 1).message == status.message


def test_a_job_waits_for_a_process_that_is_stopped_while_it_holds_its_run(folder):
    runs = [add_run(folder, "first", "wait"), add_run(folder, "a")]
    one_at_a_time = replace(CLUSTER, array_parallelism=1)
    submit_to_slurm(runs, folder, folder.sweep("study"), one_at_a_time, lambda said: None, STAND_IN)
    wait_until(lambda: starts(folder, "first"))
    job_id = read_status(folder.run("a")).job_id
    with held(folder.run("a").root):
        (folder.root / "go").touch()
        wait_until(lambda: [job_id, "RUNNING"] in queue("%i", "%T"))
        time.sleep(15)  # longer than a person waits
        assert starts(folder, "a") == []
    assert wait_for(folder, "a", State.completed).attempt == 1


def test_a_run_whose_node_dies_is_resumed_on_another_one(folder, slurm_cluster):
    run = add_run(folder, "a", "wait")
    submit(folder, [run])
    wait_until(lambda: starts(folder, "a"))
    node = slurm("squeue", "--noheader", "--format=%N").strip()
    slurm_cluster.daemons.find(f"slurmd-{node}").kill()
    for number in job_processes(slurm_cluster.settings):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(number).kill()
    # What Slurm does itself after SlurmdTimeout, which is long, for the sake of busy machines.
    slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=died")

    def look():
        return reconcile(folder, ["a"], SlurmQuery())[0]["a"]

    wait_until(lambda: look().state is State.pending)
    assert read_status(folder.run("a")).attempt == 2
    assert read_attempt(folder.run("a"), 1).reason is Reason.node_failure
    start_again_now(folder, "a")
    wait_until(lambda: len(starts(folder, "a")) == 2)
    assert slurm("squeue", "--noheader", "--format=%N").strip() != node
    (folder.root / "go").touch()
    assert wait_for(folder, "a", State.completed).attempt == 2


TRAINING = (
    *("model=vit_nano", "peft=full", "model.custom.image_size=64", "model.custom.patch_size=8"),
    *("model.custom.embed_dim=16", "model.custom.depth=2", "model.custom.num_heads=2"),
    *("model.custom.global_attn_indexes=[1]", "model.custom.window_size=4", "model.custom.unetr_features=2"),
    *("model.custom.prompt_embed_dim=16", "model.custom.decoder_mlp_dim=16"),
    *(
        "model.custom.decoder_num_heads=2",
        "resource=local",
        "resource.device=cpu",
        "n_objects=2",
        "n_images=1",
    ),
    *("train.patch_shape=[160,160]", "train.min_samples=5", "train.validation_samples=1", "train.lr=1e-3"),
    *("train.n_sub_iterations=2", "train.precision=float32", "train.epochs=60", "train.early_stopping=null"),
    *("evaluate.max_images=1", "evaluate.modes=[box]"),
)


def add_training(folder, run_id, dataset, partition):
    config = replace(compose(list(TRAINING)), dataset=dataset)
    request = replace(SMALL, memory_gb=4, partition=partition)
    paths = folder.run(run_id)
    paths.root.mkdir()
    freeze(paths.config, replace(config, resource=replace(config.resource, request=request)))
    return Run(run_id, load(paths.config))


def history(folder, run_id):
    with folder.run(run_id).history.open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key not in ("seconds", "train_time")}
            for row in csv.DictReader(file)
        ]


def has_trained(folder, run_id, epochs):
    """Whether the run trains now, after so many epochs; a run that waits knows how far it was."""
    status = read_status(folder.run(run_id))
    assert status.state in (State.pending, State.running), status
    return status.state is State.running and (status.epoch or 0) >= epochs


def meet_time_limit(status):
    """Let Slurm's time limit be so near that its signal comes at the next of its looks, every 30 s.

    The training is held meanwhile, so that on a fast machine it is not done before.
    """
    os.kill(status.pid, signal.SIGSTOP)
    minutes = int(slurm("squeue", "--noheader", f"--jobs={status.job_id}", "--format=%M").split(":")[0])
    slurm("scontrol", "update", f"JobId={status.job_id}", f"TimeLimit={minutes + 2}")
    wait_until(lambda: waits_for(status.pid, signal.SIGUSR2))
    os.kill(status.pid, signal.SIGCONT)


def waits_for(process, number):
    """Whether a signal has been sent to a process that is held."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (number - 1) & 1 for mask in pending)


def take_node(status):
    """A job of a partition with a higher priority that wants the whole node; its id."""
    job_id = status.job_id
    (node,) = slurm("squeue", "--noheader", f"--jobs={job_id}", "--format=%N").split()
    whole = ["--partition=medium", f"--nodelist={node}", "--exclusive", "--mem=100M", "--output=/dev/null"]
    return slurm("sbatch", "--parsable", *whole, "--wrap=sleep 900").strip()


@pytest.fixture(scope="module")
def undisturbed(synthetic, tmp_path_factory):
    """The history of the training that nothing has disturbed."""
    folder = RunsFolder(tmp_path_factory.mktemp("undisturbed"))
    whole = add_training(folder, "whole", synthetic, "medium")
    command = [sys.executable, "-m", "refsam.science.run", str(folder.run(whole.run_id).root)]
    threads = thread_environment(SMALL.cores)  # their number decides the order of sums
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **threads})
    return history(folder, "whole")


def test_a_training_with_two_time_limits_and_a_preemption_is_the_training_without_them(
    folder, synthetic, undisturbed
):
    stopped = add_training(folder, "stopped", synthetic, "preemptible")
    submit(folder, [stopped], SCIENCE)
    epochs = 0
    for stop in (meet_time_limit, take_node, meet_time_limit):
        wait_until(lambda epochs=epochs: has_trained(folder, "stopped", epochs + 1))
        before = read_status(folder.run("stopped"))
        other = stop(before)
        status = wait_for(folder, "stopped", State.pending)
        assert status.attempt == before.attempt + 1
        epochs = len(history(folder, "stopped"))
        if other is not None:
            wait_until(
                lambda other=other: slurm("squeue", "--noheader", f"--jobs={other}", "--format=%N").strip()
            )
            slurm("scancel", other)
        start_again_now(folder, "stopped")
    status = wait_for(folder, "stopped", State.completed, State.failed)
    assert (status.state, status.attempt) == (State.completed, 4), status
    attempts = [read_attempt(folder.run("stopped"), number) for number in (1, 2, 3, 4)]
    reasons = [Reason.timeout, Reason.preempted, Reason.timeout, None]
    assert [attempt.reason for attempt in attempts] == reasons
    steps = [attempt.steps for attempt in attempts]
    assert 0 < steps[0] < steps[1] < steps[2] < steps[3] == 300
    assert len(history(folder, "stopped")) == 60
    assert history(folder, "stopped") == undisturbed


@pytest.fixture
def small_disk(folder, tmp_path):
    """A file system of 16 MiB, and the runs folder on it."""
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(root)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let root mount a small disk")
    yield RunsFolder(root)
    subprocess.run(["umount", "--lazy", str(root)], check=True)


def fill_disk(path):
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_and_a_checkpoint_cut_in_half_are_survived(small_disk, synthetic, undisturbed):
    """The disk fills up while checkpoints are written; later one of them is damaged as by a kill."""
    run = add_training(small_disk, "a", synthetic, "medium")
    paths = small_disk.run("a")
    submit(small_disk, [run], SCIENCE)
    wait_until(lambda: has_trained(small_disk, "a", 3))
    fill_disk(small_disk.root / "somebody else's data")
    status = wait_for(small_disk, "a", State.failed)
    assert status.reason is Reason.error
    assert status.message.startswith("The disk is full or a quota is used up: ")
    assert not paths.metrics.exists()
    wait_until(nothing_is_left)
    (small_disk.root / "somebody else's data").unlink()

    # Where latest.pt did not fit, it is the one before that the run would go on from.
    newest = paths.latest if paths.latest.exists() else previous_latest(paths)
    os.truncate(newest, newest.stat().st_size // 2)
    submit(small_disk, [run], SCIENCE)
    status = wait_for(small_disk, "a", State.completed, State.failed)
    assert (status.state, status.attempt) == (State.completed, 2), status
    (log,) = paths.attempt(2).glob("*.out")
    assert f"{newest} is damaged" in log.read_text()
    assert read_attempt(paths, 1).steps > 0
    assert history(small_disk, "a") == undisturbed
    assert paths.metrics.exists()
