"""The setting for a machine: by own results where they keep its limits, else by what is known without."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_runs import Images, images, write_run, write_sweep
from scipy import stats

from refsam import cli
from refsam.commands import recommend as command
from refsam.configuration.compose import compose
from refsam.configuration.resource_files import shipped_resources
from refsam.orchestration.planning.checks import check_values
from refsam.records.fits import known_fits
from refsam.records.metrics import read_metrics
from refsam.records.paths import RunsFolder
from refsam.results.published import PUBLISHED
from refsam.results.recommending.candidates import CPU, CUDA, Constraints, Quality, within
from refsam.results.recommending.published import known_candidates
from refsam.results.recommending.text import duration
from refsam.results.recommending.verdict import judge
from refsam.system.files import read_yaml

GPU = {"device": "cuda", "gpu": "Tesla V100", "cpu": "Xeon", "precision": "float16"}
PROCESSOR = {"device": "cpu", "cpu": "Xeon", "precision": "bfloat16"}
BASE = np.linspace(0.2, 0.7, 20)
NOISE = np.random.default_rng(7).normal(0, 0.02, (20, 20))


@pytest.fixture(autouse=True)
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --runs, the folder `runs` of where the command is typed is looked for; and no Slurm."""
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def folder(tmp_path: Path) -> RunsFolder:
    return RunsFolder(tmp_path / "runs")


def trained(
    folder: RunsFolder,
    name: str,
    gain: float,
    *overrides: str,
    peak: float = 4.0,
    hours: float = 1.0,
    machine: dict[str, Any] = PROCESSOR,
    values: dict[str, Images] | None = None,
) -> None:
    """A run whose SA50 is that of the others and `gain`."""
    number = len(list(folder.root.glob("*"))) if folder.root.is_dir() else 0
    modes = values or {"box": images(*(BASE + gain + NOISE[number]))}
    training = {"peak_memory_gib": peak, "seconds_total": 3600 * hours}
    asked = ("model=vit_b", "n_objects=10", *overrides)
    write_run(folder, name, modes, asked, training=training, environment=machine)


def sweep(folder: RunsFolder) -> None:
    write_sweep(folder, {path.name: {} for path in sorted(folder.root.iterdir()) if path.name != "sweeps"})


def ask(folder: RunsFolder | None, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    where = [] if folder is None else ["--runs", str(folder.root)]
    assert cli.main(["recommend", *arguments, *where, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_best_that_keeps_the_limits_is_named_with_the_command_that_runs_it(folder, capsys):
    trained(folder, "large", 0.3, "peft=dora", "n_images=5", peak=12.0)
    trained(folder, "good", 0.2, "peft=lora", "n_images=5", "train.lr=1e-4")
    trained(folder, "fair", 0.1, "peft=lora", "n_images=2", "train.lr=1e-4")
    sweep(folder)
    found = ask(folder, capsys, "--memory", "8", "--cpu")
    assert found["source"] == "own"
    assert (found["winner"]["run_ids"], found["runner_up"]["run_ids"]) == (["good"], ["fair"])
    assert found["winner"]["memory_gib"] == pytest.approx(4.0 / 0.9)
    assert found["winner"]["training_seconds"] == 3600
    assert found["winner"]["quality"]["mean"] == pytest.approx((BASE + 0.2).mean(), abs=0.02)
    assert found["winner"]["quality"]["low"] < found["winner"]["quality"]["mean"]
    assert found["clear"]
    assert found["difference"]["difference"] == pytest.approx(0.1, abs=0.02)
    assert 0.06 < found["difference"]["low"] < found["difference"]["high"] < 0.14
    words = shlex.split(found["command"])
    assert words[:3] == ["python", "-m", "refsam.sweep"]
    config = compose(words[3:])
    check_values(config)
    assert (config.resource.name, config.resource.device) == ("local", "cpu")
    assert (config.peft.name, config.n_images, config.n_objects, config.train.lr) == ("lora", 5, 10, 1e-4)
    assert config.runs == str(folder.root)
    found = ask(folder, capsys, "--memory", "16", "--cpu")
    assert found["winner"]["run_ids"] == ["large"]


def test_what_others_have_measured_counts_where_it_is_joined(folder, tmp_path, capsys):
    theirs = RunsFolder(tmp_path / "theirs")
    trained(folder, "fair", 0.1, "peft=lora", "n_images=2")
    trained(theirs, "good", 0.2, "peft=lora", "n_images=5", "train.lr=1e-4")
    sweep(folder)
    sweep(theirs)
    limits = ("--memory", "8", "--cpu")
    assert ask(folder, capsys, *limits)["winner"]["run_ids"] == ["fair"]
    found = ask(folder, capsys, *limits, "--join", str(theirs.root))
    assert (found["winner"]["run_ids"], found["runner_up"]["run_ids"]) == (["good"], ["fair"])
    assert found["difference"]["difference"] == pytest.approx(0.1, abs=0.02)
    config = compose(shlex.split(found["command"])[3:])
    assert (config.train.lr, config.runs) == (1e-4, str(folder.root))


def test_hours_and_images_are_limits_too(folder, capsys):
    trained(folder, "slow", 0.3, "peft=full", "n_images=10", hours=3.0)
    trained(folder, "fast", 0.2, "peft=full", "n_images=5", hours=1.0)
    sweep(folder)
    assert ask(folder, capsys, "--memory", "8", "--cpu")["winner"]["run_ids"] == ["slow"]
    found = ask(folder, capsys, "--memory", "8", "--cpu", "--hours", "2")
    assert found["winner"]["run_ids"] == ["fast"]
    assert found["runner_up"] is None
    assert ask(folder, capsys, "--memory", "8", "--cpu", "--n-images", "5")["winner"]["run_ids"] == ["fast"]


def test_differences_within_the_interval_make_no_clear_winner(folder, capsys):
    trained(folder, "first", 0.10, "peft=full", "n_images=5", hours=2.0)
    trained(folder, "second", 0.10, "peft=lora", "n_images=5", hours=1.0)
    sweep(folder)
    found = ask(folder, capsys, "--memory", "8", "--cpu")
    assert found["clear"] is False
    assert found["difference"]["low"] < 0 < found["difference"]["high"]
    assert cli.main(["recommend", "--memory", "8", "--cpu", "--runs", str(folder.root)]) == 0
    text = capsys.readouterr().out
    assert "No clear winner: SA50 differs by +0.0" in text
    assert "paired over 20 test images" in text
    assert "One seed: the variation between trainings is not known." in text


def test_seeds_are_averaged_and_their_spread_is_said(folder, capsys):
    for seed in range(3):
        trained(folder, f"full{seed}", 0.1 + 0.01 * seed, "peft=full", "n_images=5", f"seed={seed}")
        trained(folder, f"lora{seed}", 0.3, "peft=lora", "n_images=5", f"seed={seed}")
    sweep(folder)
    found = ask(folder, capsys, "--memory", "8", "--cpu")
    assert found["winner"]["run_ids"] == ["lora0", "lora1", "lora2"]
    quality = found["runner_up"]["quality"]
    assert quality["n_runs"] == 3
    assert 0.005 < quality["deviation"] < 0.02
    assert quality["low"] < quality["mean"] < quality["high"]
    assert found["difference"]["seeds"] == [0, 1, 2]
    assert not any("One seed" in note for note in found["notes"])
    means = read_means(folder)
    differences = [means[f"lora{seed}"] - means[f"full{seed}"] for seed in range(3)]
    assert found["p_over_seeds"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert found["clear"]


def test_a_difference_that_seeds_do_not_agree_on_makes_no_clear_winner(folder, capsys):
    """Over images it is certain, for these trainings; another training may turn it around."""
    for seed, gain in enumerate((0.3, 0.25, -0.1)):
        trained(folder, f"full{seed}", 0.0, "peft=full", "n_images=5", f"seed={seed}")
        trained(folder, f"lora{seed}", gain, "peft=lora", "n_images=5", f"seed={seed}")
    sweep(folder)
    found = ask(folder, capsys, "--memory", "8", "--cpu")
    assert found["difference"]["low"] > 0
    assert found["p_over_seeds"] > 0.05
    assert found["clear"] is False


def quality(mean: float, low: float | None = None, high: float | None = None) -> Quality:
    return Quality(mean, None, low, high, 1, None)


def test_seeds_that_are_not_shared_are_two_samples():
    first, second = {0: 0.5, 1: 0.52, 2: 0.51}, {3: 0.4, 4: 0.43, 5: 0.42}
    found = judge(quality(0.51), quality(0.417), None, (first, second), "SA50")
    expected = stats.ttest_ind(list(first.values()), list(second.values()), equal_var=False)
    assert found.p_over_seeds == pytest.approx(expected.pvalue)
    assert found.clear


@pytest.mark.parametrize(
    ("first", "second", "seeds", "clear"),
    [
        (quality(0.5, 0.45, 0.55), quality(0.3, 0.25, 0.35), ({0: 0.5}, {0: 0.3}), True),
        (quality(0.5, 0.35, 0.55), quality(0.3, 0.25, 0.36), ({0: 0.5}, {0: 0.3}), False),
        (quality(0.5), quality(0.3), ({0: 0.5}, {0: 0.3}), None),
        (quality(0.5), quality(0.5), ({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}), False),
        (quality(0.5), quality(0.4), ({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.5}), True),
        (quality(0.5), quality(0.4), ({0: 0.5, 1: 0.5}, {2: 0.4, 3: 0.4}), None),
    ],
)
def test_the_verdict_rests_on_what_is_known(first, second, seeds, clear):
    found = judge(first, second, None, seeds, "SA50")
    assert found.clear is clear
    assert found.sentence.startswith("The winner is better" if clear else "No clear winner")


def read_means(folder: RunsFolder) -> dict[str, float]:
    return {
        path.name: read_metrics(folder.run(path.name).metrics)[0]["SA50"]
        for path in folder.root.iterdir()
        if path.name != "sweeps"
    }


def test_runs_on_another_kind_of_machine_tell_of_quality_and_fits_of_memory(folder, capsys):
    """No own run was on a processor, but refsam fit measured that the setting fits into 8 GB there."""
    trained(folder, "v100", 0.3, "peft=full", "n_images=5", machine={**GPU, "precision": "bfloat16"})
    sweep(folder)
    found = ask(folder, capsys, "--memory", "8", "--cpu")
    assert (found["source"], found["winner"]["run_ids"]) == ("own", ["v100"])
    assert "refsam fit" in found["winner"]["memory_from"]
    assert found["winner"]["training_seconds"] is None
    assert found["winner"]["quality"]["mean"] == pytest.approx((BASE + 0.3).mean(), abs=0.02)
    with_hours = ask(folder, capsys, "--memory", "8", "--cpu", "--hours", "9")
    assert with_hours["source"] == "published"
    assert "have no known training time" in with_hours["notes"][0]


def test_a_resource_s_table_tells_that_a_setting_fits_there(folder, capsys):
    trained(folder, "frozen", 0.1, "peft=freeze_encoder", "n_images=5", machine=PROCESSOR)
    sweep(folder)
    found = ask(folder, capsys, "--memory", "8", "--gpu")
    assert (found["source"], found["winner"]["run_ids"]) == ("own", ["frozen"])
    assert "the table of gtx1080" in found["winner"]["memory_from"]
    assert ask(folder, capsys, "--memory", "6", "--gpu")["winner"] is None


def test_the_same_setting_on_two_resources_is_named_once(folder, capsys):
    trained(folder, "here", 0.20, "peft=full", "n_images=5", "resource=medium_32g")
    trained(folder, "there", 0.21, "peft=full", "n_images=5", "resource=medium_64g")
    trained(folder, "other", 0.05, "peft=full", "n_images=1", "resource=medium_32g")
    sweep(folder)
    found = ask(folder, capsys, "--memory", "8", "--cpu")
    assert found["runner_up"]["run_ids"] == ["other"]


def test_only_what_was_measured_on_the_same_images_is_compared(folder, capsys):
    for number, gain in enumerate((0.1, 0.2)):
        trained(folder, f"whole{number}", gain, "peft=full", f"n_images={number + 1}")
    trained(folder, "cropped", 0.3, "peft=full", "n_images=5", "evaluate.crop=[256,256]")
    sweep(folder)
    found = ask(folder, capsys, "--memory", "8", "--cpu")
    assert found["winner"]["run_ids"] == ["whole1"]
    assert any("measured on other test images (1)" in note for note in found["notes"])


def test_it_is_said_when_finetuning_does_not_help(folder, capsys):
    trained(folder, "tuned", 0.0, "peft=full", "n_images=5")
    trained(folder, "initial", 0.1, "kind=baseline", "peft=full")
    sweep(folder)
    found = ask(folder, capsys, "--memory", "8", "--cpu")
    assert any("do not show that finetuning improves it" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--memory", "0", "--gpu"), "--memory must be a number > 0, got '0'"),
        (("--memory", "-8", "--gpu"), "--memory must be a number > 0, got '-8'"),
        (("--memory", "much", "--gpu"), "--memory must be a number > 0, got 'much'"),
        (("--memory", "nan", "--gpu"), "--memory must be a number > 0, got 'nan'"),
        (("--gpu",), "--memory must be a number of GB above 0, got nothing"),
        (("--memory", "8"), "--gpu, --cpu: neither was given; expected one of them"),
        (("--memory", "8", "--gpu", "--cpu"), "--gpu, --cpu: both were given"),
        (("--memory", "8", "--gpu", "--hours", "0"), "--hours must be a number > 0, got '0'"),
        (("--memory", "8", "--gpu", "--hours", "-1"), "--hours must be a number > 0, got '-1'"),
        (("--memory", "8", "--gpu", "--n-images", "0"), "--n-images must be an integer >= 1, got '0'"),
        (("--memory", "8", "--gpu", "--metric", "SA_50"), "did you mean SA50"),
        (("--memory", "8", "--gpu", "--dataset", "nuclei_"), "did you mean nuclei"),
        (("stduy", "--memory", "8", "--gpu"), "did you mean study"),
        (("--memory", "8", "--cpu", "--mode", "bx"), "--mode: 'bx' was given (did you mean box?)"),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, arguments, words):
    trained(folder, "run", 0.1, "peft=full", "n_images=5")
    sweep(folder)
    assert cli.main(["recommend", *arguments, "--runs", str(folder.root)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_results_of_several_data_sets_are_not_mixed(folder, capsys):
    trained(folder, "nuclei", 0.1, "peft=full", "n_images=5")
    trained(folder, "cells", 0.2, "peft=full", "n_images=5", "dataset=covid_if")
    sweep(folder)
    assert cli.main(["recommend", "--memory", "8", "--cpu", "--runs", str(folder.root)]) == 2
    assert "--dataset must be given: there are results of covid_if, nuclei" in capsys.readouterr().err
    found = ask(folder, capsys, "--memory", "8", "--cpu", "--dataset", "nuclei")
    assert found["winner"]["run_ids"] == ["nuclei"]
    found = ask(folder, capsys, "--memory", "8", "--cpu", "--dataset", "trashcan")
    assert found["source"] == "published"
    assert found["notes"][0] == "You have no results of trashcan."
    assert "dataset=trashcan" in found["command"]


def test_a_damaged_per_image_file_is_named_and_the_intervals_of_the_runs_decide(folder, capsys):
    trained(folder, "good", 0.4, "peft=full", "n_images=5")
    trained(folder, "fair", 0.0, "peft=full", "n_images=1")
    sweep(folder)
    folder.run("fair").per_image.write_text("image,mode")
    folder.run("good").per_image.unlink()
    assert cli.main(["recommend", "--memory", "8", "--cpu", "--runs", str(folder.root), "--json"]) == 1
    out, error = capsys.readouterr()
    found = json.loads(out)
    assert (found["winner"]["run_ids"], found["difference"], found["clear"]) == (["good"], None, True)
    assert any("the intervals of the two do not overlap" in note for note in found["notes"])
    assert "good/results/per_image.csv is missing" in error
    assert "fair/results/per_image.csv" in error


def test_where_no_own_setting_fits_the_command_keeps_the_data_set(folder, capsys):
    trained(folder, "run", 0.4, "peft=dora", "n_images=5", peak=30.0)
    sweep(folder)
    found = ask(folder, capsys, "--memory", "8", "--cpu")
    assert found["source"] == "published"
    assert "which needs 33.4 GB" in found["notes"][0]
    assert "dataset=nuclei" in found["command"]


def test_without_own_results_nothing_is_said_of_quality(capsys):
    found = ask(None, capsys, "--memory", "8", "--gpu")
    assert found["source"] == "published"
    assert (found["metric"], found["winner"]["quality"], found["clear"]) == (None, None, None)
    assert any("No quality has been measured" in note for note in found["notes"])
    assert (found["winner"]["strategy"], found["winner"]["resource"]) == ("freeze_encoder", "gtx1080")
    config = compose(shlex.split(found["command"])[3:])
    check_values(config)
    assert (config.dataset.name, config.peft.name) == ("covid_if", "freeze_encoder")


def test_published_times_are_as_published_and_until_early_stopping(capsys):
    """V100, full finetuning of the generalist with 5 images: best epoch 12 (from 0) after 0:16:14."""
    limits = Constraints(32, CUDA, n_images=5)
    (found,) = [
        candidate
        for candidate in known_candidates(limits, [])
        if candidate.words == "vit_b_lm, full, 5 images, 35 objects"
    ]
    assert found.time is not None
    assert "0:16:14 to its best epoch on v100" in found.time.words
    assert found.time.seconds == pytest.approx((16 * 60 + 14) / 13 * 24)


def test_without_fits_nothing_is_recommended_that_the_study_s_tables_do_not_hold():
    """Whatever the limits are, memory and device are those of a resource, and times are published ones."""
    resources = shipped_resources()
    times = {(row["start"], row["strategy"], row["resource"]) for row in read_yaml(PUBLISHED)["times"]}
    for device in (CPU, CUDA):
        for memory in (4, 8, 12, 16, 32, 64, 80):
            for candidate in within(
                known_candidates(Constraints(memory, device), []), Constraints(memory, device)
            ):
                values = candidate.values
                resource = resources[values["resource"]]
                assert resource.device == device
                assert resource.device_memory_gb <= memory
                setting = resource.settings.get(values["model"])
                known = setting is not None and setting.peft == values["strategy"]
                assert known or (values["model"], values["strategy"], values["resource"]) in times


def test_fits_that_travel_with_refsam_say_what_fits_into_less(tmp_path):
    limits = Constraints(8, CPU)
    with_fits = within(known_candidates(limits, known_fits(tmp_path)), limits)
    without = within(known_candidates(limits, []), limits)
    assert {each.values["model"] for each in without} == {"vit_t"}
    assert {each.values["model"] for each in with_fits} == {"vit_t", "vit_b", "vit_b_lm"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--memory", "1", "--cpu"),
            "No setting is known to fit into 1 GB of main memory; the smallest is vit_t",
        ),
        (("--memory", "1", "--gpu"), "which needs 8 GB."),
        (("--memory", "8", "--gpu", "--hours", "0.01"), "the fastest is vit_b_lm, freeze_encoder"),
    ],
)
def test_where_nothing_fits_one_sentence_says_what_would_be_needed(capsys, arguments, words):
    assert cli.main(["recommend", *arguments]) == 0
    text = capsys.readouterr().out
    assert words in text
    assert text.count("\n") == 1


def test_on_a_cluster_the_command_names_a_resource_that_the_limits_hold(capsys, monkeypatch):
    monkeypatch.setattr("refsam.orchestration.submission.sweeps.where", lambda config: "slurm")
    for memory, resource in (("8", "gtx1080"), ("20", "rtx5000"), ("40", "v100")):
        words = shlex.split(ask(None, capsys, "--memory", memory, "--gpu")["command"])
        assert words[3:5] == ["-m", f"resource={resource}"]
    words = shlex.split(ask(None, capsys, "--memory", "8", "--cpu")["command"])
    assert words[4] == "resource=medium_8g"


def test_a_folder_of_runs_that_is_not_there_is_refused_where_it_was_named(capsys):
    assert cli.main(["recommend", "--memory", "8", "--gpu", "--runs", "nowhere"]) == 2
    assert "--runs 'nowhere' is not a folder" in capsys.readouterr().err
    assert cli.main(["recommend", "--memory", "8", "--gpu"]) == command.COMPLETED


@pytest.mark.parametrize(("seconds", "expected"), [(2, "under a minute"), (90, "1.5 min"), (7200, "2.0 h")])
def test_a_duration_is_never_no_time_at_all(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
