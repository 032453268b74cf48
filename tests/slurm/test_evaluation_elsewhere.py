"""Runs that one job trains and another one evaluates, on a real Slurm: `evaluate.where`."""

import subprocess
from dataclasses import replace

import pytest
from slurm_helpers import SMALL, STAND_IN, allocated, nothing_is_left, queue, slurm, starts, wait_until

from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze, load
from refsam.configuration.schema import RequestConfig
from refsam.errors import RunFailed
from refsam.orchestration.submission.arrays import submit_to_slurm
from refsam.orchestration.submission.job_scripts import write_scripts
from refsam.records.attempts import read_attempt
from refsam.records.run import Run
from refsam.records.status import Reason, State, read_status
from refsam.system.files import read_json, write_json

GPU = RequestConfig(partition="gpu", gpu="V100", gpus=1, cores=1, memory_gb=1, time="0:10:00")


@pytest.fixture(scope="module")
def config(synthetic):
    """Of a run that is trained on a GPU and evaluated on a node without."""
    # The node only says that it has a V100, so that no PyTorch has to have kernels for it.
    gpu = ["resource=v100", "resource.compute_capability=null"]
    config = compose([*gpu, "model=vit_nano", "cluster=slurm"])
    elsewhere = replace(compose(["resource=medium_8g"]).resource, request=SMALL)
    return replace(
        config,
        dataset=synthetic,
        resource=replace(config.resource, request=GPU),
        evaluate=replace(config.evaluate, where="medium_8g", resource=elsewhere),
    )


def prepare(folder, config, **behaviours):
    """Runs of the sweep `study`, named with what they do."""
    sweep = folder.sweep("study")
    sweep.root.mkdir(parents=True)
    runs = []
    for name, behaviour in behaviours.items():
        paths = folder.run(f"{name}-0")
        paths.root.mkdir()
        (paths.root / "behaviour.txt").write_text(behaviour)
        freeze(paths.config, config)
        runs.append(Run(paths.run_id, config, paths.run_id))
    known = [{"run_id": run.run_id, "overrides": {}} for run in runs]
    write_json(sweep.manifest, {"format": 1, "name": "study", "runs": known, "skipped": []})
    return runs


def submit(folder, runs):
    """Submit runs; what was said."""
    said = []
    submit_to_slurm(runs, folder, folder.sweep("study"), runs[0].config.cluster, said.append)
    return said


def wait_for_end(folder, runs):
    wait_until(
        lambda: all(
            read_status(folder.run(run.run_id)).state in (State.completed, State.failed) for run in runs
        )
    )


def test_the_evaluation_is_an_array_that_follows_the_training_task_by_task(folder, config):
    runs = prepare(folder, config, one="complete", two="wait")
    (said,) = submit(folder, runs)
    assert "2 runs, partition gpu, 1 × V100" in said
    assert "evaluated on partition medium, no GPU" in said
    one, two = (folder.run(run.run_id) for run in runs)
    # The first run does not wait for the training of the second one.
    wait_until(lambda: read_status(one).state is State.completed)
    waiting = [row for row in queue("%i", "%T", "%r") if row[0] == read_status(two).evaluation_job_id]
    assert [row[1:] for row in waiting] == [["PENDING", "Dependency"]]
    (folder.root / "go").touch()
    wait_until(lambda: read_attempt(two, 2).ended_at is not None)
    for paths in (one, two):
        first, second = read_attempt(paths, 1), read_attempt(paths, 2)
        assert (first.state, second.state) == (State.completed, State.completed)
        assert starts(folder, paths.run_id) != []
        assert "gres/gpu:v100=1" in allocated(first.job_id)
        assert not any("gpu" in item for item in allocated(second.job_id))
        assert read_json(paths.root / "seen.json")["CUDA_VISIBLE_DEVICES"] == ""
        assert list(paths.attempt(2).glob("*.out"))
    wait_until(nothing_is_left)


def test_what_fails_in_its_training_is_not_evaluated_until_it_is_tried_again(folder, config, refsam):
    runs = prepare(folder, config, good="complete", bad="fail")
    submit(folder, runs)
    wait_until(nothing_is_left)
    assert read_status(folder.run("good-0")).state is State.completed
    status = read_status(folder.run("bad-0"))
    assert (status.state, status.reason, status.attempt) == (State.failed, Reason.error, 1)
    assert len(starts(folder, "bad-0")) == 1
    (folder.run("bad-0").root / "behaviour.txt").write_text("complete")
    told = refsam("retry", "study")
    assert [run["run_id"] for run in told["runs"]] == ["bad-0"]
    wait_for_end(folder, runs)
    assert read_status(folder.run("bad-0")).state is State.completed
    assert len(starts(folder, "bad-0")) == 3


def test_an_evaluation_that_was_cancelled_is_tried_again_alone(folder, config, refsam):
    runs = prepare(folder, config, run="wait")
    submit(folder, runs)
    paths = folder.run("run-0")
    wait_until(lambda: read_status(paths).state is State.running)
    slurm("scancel", read_status(paths).evaluation_job_id)
    (folder.root / "go").touch()
    wait_until(nothing_is_left)
    (run,) = refsam("status", "study")["runs"]
    assert (run["state"], run["reason"]) == ("failed", "cancelled")
    refsam("retry", "study")
    wait_for_end(folder, runs)
    assert read_status(paths).state is State.completed
    first, *_, last = starts(folder, "run-0")
    assert "gres/gpu:v100=1" in allocated(first)
    assert not any("gpu" in item for item in allocated(last))
    assert len(starts(folder, "run-0")) == 2


def test_cancel_ends_the_training_and_what_waits_for_it(folder, config, refsam):
    runs = prepare(folder, config, run="wait")
    submit(folder, runs)
    wait_until(lambda: read_status(folder.run("run-0")).state is State.running)
    assert [run["run_id"] for run in refsam("cancel", "study")["cancelled"]] == ["run-0"]
    wait_until(nothing_is_left)
    assert read_status(folder.run("run-0")).reason is Reason.cancelled


def test_an_array_whose_evaluation_slurm_refuses_is_not_submitted_either(folder, config):
    nowhere = replace(config.evaluate.resource, request=replace(SMALL, memory_gb=5000))
    runs = prepare(
        folder, replace(config, evaluate=replace(config.evaluate, resource=nowhere)), run="complete"
    )
    with pytest.raises(RunFailed):
        submit(folder, runs)
    wait_until(nothing_is_left)
    assert read_status(folder.run("run-0")).state is State.planned


def test_a_finished_run_is_evaluated_on_another_resource_later(folder, config, refsam, monkeypatch):
    """refsam evaluate: only the evaluation's request is made."""
    own = replace(config, evaluate=replace(config.evaluate, where="run", resource=None))
    runs = prepare(folder, own, run="complete")
    submit(folder, runs)
    wait_until(nothing_is_left)
    paths = folder.run("run-0")
    paths.results.mkdir(exist_ok=True)
    write_json(paths.training, {})
    told = refsam("evaluate", "study", "evaluate.where=medium_8g")
    assert told["states"] == {"run-0": "pending"}
    assert load(paths.config).evaluate.resource.name == "medium_8g"
    wait_until(nothing_is_left)
    assert read_status(paths).state is State.completed
    first, last = starts(folder, "run-0")
    assert "gres/gpu:v100=1" in allocated(first)
    assert "mem=8G" in allocated(last)


def test_a_person_s_scripts_train_and_evaluate_in_two_jobs(folder, config):
    runs = prepare(folder, config, a="complete", b="complete")
    (script,) = write_scripts(runs, folder, folder.sweep("study"), config.cluster, pytest.fail, STAND_IN)
    assert (script.path.name, script.then.name) == ("1-gpu-V100.sh", "1-medium-evaluation.sh")
    subprocess.run(script.command, shell=True, check=True, capture_output=True)
    wait_until(nothing_is_left)
    for run in runs:
        status = read_status(folder.run(run.run_id))
        assert (status.state, status.attempt) == (State.completed, 2), status
        training, evaluation = starts(folder, run.run_id)
        assert "gres/gpu:v100=1" in allocated(training)
        assert not any("gpu" in item for item in allocated(evaluation))
