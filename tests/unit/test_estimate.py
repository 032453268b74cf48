"""The expected times of a plan: from finished runs of the same kind, else from published figures."""

from dataclasses import dataclass, replace

import pytest

from refsam.configuration.compose import compose
from refsam.configuration.early_stopping import epochs_until_stop
from refsam.configuration.frozen import freeze
from refsam.configuration.resource_files import shipped_resources
from refsam.configuration.schema import Kind, RefsamConfig, SettingConfig
from refsam.orchestration.planning.estimate import (
    GroupEstimate,
    JobPart,
    Source,
    by_published_times,
    estimate,
    group_words,
    total_words,
)
from refsam.orchestration.slurm.requests import Jobs, by_jobs
from refsam.records.paths import RunsFolder
from refsam.records.status import State, Status, write_status
from refsam.results.published import EARLY_STOPPING, EPOCHS, published_runs
from refsam.system.files import read_yaml, write_json


@dataclass(frozen=True)
class Run:
    run_id: str
    config: RefsamConfig


@pytest.fixture(scope="module")
def config():
    """What a plan makes of `resource=v100 model=vit_b n_images=5`."""
    config = compose(["resource=v100", "model=vit_b", "n_images=5", "peft=full", "evaluate.max_images=10"])
    return replace(config, n_objects=35)


@pytest.fixture
def folder(tmp_path):
    return RunsFolder(tmp_path)


def add_finished(folder, config, name, best_epoch=4, job_id="7_0", n_images=5, **changes):
    """A run of 15 epochs of 50 steps of 2 seconds, 10 images of 3 + 1 seconds, and 60 seconds of loading."""
    paths = folder.run(f"vit_b-{config.peft.name}-n{n_images}-v100-nuclei-s0-{name}")
    paths.results.mkdir(parents=True)
    freeze(paths.config, replace(config, n_images=n_images, **changes))
    times = {"started_at": "2026-01-01T00:00:00+00:00", "ended_at": "2026-01-01T00:26:40+00:00"}
    write_status(paths, Status(State.completed, attempt=1, job_id=job_id, **times))
    training = {"iterations": 750, "epochs": 15, "seconds_total": 1500.0, "best_epoch": best_epoch}
    write_json(paths.training, training)
    modes = {"point": 3.0, "box": 1.0}
    metrics = {mode: {"seconds_per_image": each, "n_images": 10} for mode, each in modes.items()}
    write_json(paths.metrics, metrics)
    return paths


def expected(folder, *configs, on_slurm=True):
    runs = [Run(f"planned-{number}", config) for number, config in enumerate(configs)]
    return estimate(by_jobs(runs, folder), folder, on_slurm)


def test_finished_runs_of_the_same_kind_tell_the_time(folder, config):
    add_finished(folder, config, "a")
    (group,) = expected(folder, config)
    assert (group.sources, group.finished, group.unknown) == ({Source.runs}, 1, 0)
    # Best epoch 4 is the fifth; with a patience of 10 the 16th ends it, of 50 steps of 2 seconds each.
    assert group.seconds == pytest.approx(1600 + 40 + 60)
    assert group.at_most == pytest.approx(10_000 + 40 + 60)
    assert group_words(group).endswith("by 1 finished run of the same kind.")


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"epochs": 8}, 800),  # fewer than early stopping would make
        ({"early_stopping": None}, 10_000),
        ({"max_steps": 100}, 200),
        ({"epochs": None, "max_steps": 100}, 200),
        ({"min_samples": 100}, 3200),
    ],
    ids=str,
)
def test_the_time_follows_epochs_samples_and_early_stopping(folder, config, changes, seconds):
    add_finished(folder, config, "a")
    (group,) = expected(folder, replace(config, train=replace(config.train, **changes)))
    assert group.seconds == pytest.approx(seconds + 40 + 60)


def test_only_what_is_left_counts(folder, config):
    add_finished(folder, config, "a")
    interrupted = folder.run("planned-0")
    interrupted.root.mkdir()
    write_status(interrupted, Status(State.failed, epoch=5, epochs=100))
    assert expected(folder, config)[0].seconds == pytest.approx(1700 - 10_100 * 0.05)
    interrupted.results.mkdir()
    write_json(interrupted.training, {})
    assert expected(folder, config)[0].seconds == pytest.approx(40 + 60)  # an evaluation mode is missing


def test_runs_of_another_kind_tell_nothing(folder, config):
    unpublished = replace(config, train=replace(config.train, decoder=False))
    add_finished(folder, config, "on this machine", job_id=None)
    add_finished(folder, replace(config, n_objects=5), "fewer objects")
    add_finished(folder, replace(config, train=replace(config.train, n_sub_iterations=2)), "shorter steps")
    damaged = add_finished(folder, config, "damaged")
    damaged.training.write_text("{")
    (group,) = expected(folder, unpublished)
    assert (group.seconds, group.unknown) == (None, 1)
    assert "not known" in group_words(group)
    assert total_words([group]) == "Expected in all: not known."


def test_as_many_images_count_more_than_others(folder, config):
    add_finished(folder, config, "a", best_epoch=4)
    add_finished(folder, config, "b", best_epoch=50, n_images=10)
    assert expected(folder, config)[0].seconds == pytest.approx(1700)
    assert expected(folder, replace(config, n_images=1))[0].seconds > 1700  # both tell a little


def test_a_baseline_is_known_from_baselines(folder, config):
    baseline = replace(config, kind=Kind.baseline)
    add_finished(folder, config, "a")
    assert expected(folder, config, baseline)[0].unknown == 1
    paths = folder.run("vit_b-initial-nuclei-s0-x")
    add_finished(folder, baseline, "b").root.rename(paths.root)
    assert expected(folder, config, baseline)[0].seconds == pytest.approx(1700 + 40 + 1560)


def test_without_finished_runs_the_study_tells_the_time(config):
    found = by_published_times(config)
    # Its best epoch with 5 images on a V100 is 10, at about 77 seconds an epoch.
    assert found.source is Source.published
    assert found.seconds == pytest.approx((10 + 1 + 11) * 77, rel=0.05)
    assert found.at_most == pytest.approx(100 * 77, rel=0.05)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: replace(config, kind=Kind.baseline),
        lambda config: replace(config, n_objects=36),
        lambda config: replace(config, train=replace(config.train, n_sub_iterations=4)),
        lambda config: replace(config, resource=replace(config.resource, name="a100")),
        lambda config: replace(config, peft=replace(config.peft, name="dora")),
        lambda config: replace(config, model=replace(config.model, architecture="vit_l")),
    ],
)
def test_what_nobody_published_is_not_known(config, change):
    setting = {"vit_b": SettingConfig("full", 35, "resource study"), "vit_l": SettingConfig("full", 35, "")}
    config = replace(config, resource=replace(config.resource, settings=setting))
    assert by_published_times(config) is not None
    assert by_published_times(change(config)) is None


def test_the_sum_tells_gpu_hours_and_other_hours_apart(config):
    jobs = Jobs(config.resource.request)
    gpu = GroupEstimate(jobs, JobPart.all, 2, 4, 1, 36_000.0, 72_000.0, frozenset({Source.published}), 0)
    cpu = GroupEstimate(jobs, JobPart.all, 0, 1, 0, 1800.0, 3600.0, frozenset({Source.runs}), 3)
    assert total_words([gpu, cpu]) == (
        "Expected in all: 20.0 h on GPUs (GPU hours), at most 40.0 h; 30 min without GPU, at most 1.0 h; "
        "not known for 1 run."
    )
    assert "micro-sam's resource study, without the evaluation; not known for 1 run." in group_words(gpu)


def test_a_training_and_its_evaluation_elsewhere_are_expected_apart(folder, config):
    """15 epochs of 50 steps of 2 s and 60 s of loading on the GPU; 10 images of 4 s and loading elsewhere."""
    add_finished(folder, config, "a")
    elsewhere = compose(["resource=medium_8g"]).resource
    apart = replace(config, evaluate=replace(config.evaluate, resource=elsewhere))
    training, evaluation = expected(folder, apart)
    (whole,) = expected(folder, config)
    assert (training.part, evaluation.part) == (JobPart.training, JobPart.evaluation)
    assert (training.gpus, evaluation.gpus) == (1, 0)
    assert training.seconds == whole.seconds - 40
    assert evaluation.seconds == 40 + 60
    assert group_words(evaluation).startswith("Expected for the evaluation: 2 min")


def test_the_published_times_are_those_of_the_table():
    from refsam.orchestration.planning import estimate as module

    rows = read_yaml(module.PUBLISHED)["times"]
    assert len(rows) == 18
    assert all(sorted(row["images"]) == [1, 2, 5, 10] for row in rows)
    (lora,) = [row for row in rows if (row["resource"], row["strategy"]) == ("v100", "lora")][:1]
    assert lora["images"][2] == [58, "1:10:25"]


def test_early_stopping_ends_a_training_as_torch_em_s_trainer_does():
    """Its rule, after epoch number `epoch`: `if epoch - best_epoch > patience: break`."""
    for best_epoch, patience in ((0, 1), (4, 10), (40, 3)):
        stopping = next(epoch for epoch in range(100) if epoch - best_epoch > patience)
        assert epochs_until_stop(best_epoch, patience) == stopping + 1


def test_the_published_trainings_take_24_gpu_hours_and_241_without_gpu():
    hours = {"cuda": 0.0, "cpu": 0.0}
    resources = shipped_resources()
    for row in published_runs().to_dict("records"):
        epochs = min(EPOCHS, epochs_until_stop(row["best_epoch"], EARLY_STOPPING))
        seconds = row["seconds_to_best"] / (row["best_epoch"] + 1) * epochs
        hours[resources[row["resource"]].device] += seconds / 3600
    assert hours == {"cuda": pytest.approx(24.5, abs=0.05), "cpu": pytest.approx(241, abs=0.5)}
