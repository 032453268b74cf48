"""k-fold cross-validation as it is typed: the plan, and a real sweep of the tiny model on six images."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from refsam.records.paths import RunsFolder
from refsam.records.per_image import read_rows
from refsam.sweep import main

ASKED = [
    *(
        "cluster=local",
        "resource=local",
        "model=vit_nano",
        "dataset=folder",
        "dataset.root=mine",
        "peft=full",
    ),
    *("n_objects=2", "train=quick", "train.epochs=1", "train.min_samples=2", "train.validation_samples=1"),
    *("train.patch_shape=[64,64]", "train.n_sub_iterations=2", "evaluate.modes=[box]", "evaluate.pictures=1"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six images of two squares each, in mine/images and mine/labels."""
    for kind in ("images", "labels"):
        (tmp_path / "mine" / kind).mkdir(parents=True)
    for number in range(6):
        labels = np.zeros((64, 64), np.uint8)
        labels[5:25, 5 + number : 25 + number], labels[35:55, 30:50] = 1, 2
        Image.fromarray(labels * np.uint8(100)).save(tmp_path / "mine" / "images" / f"{number}.png")
        Image.fromarray(labels).save(tmp_path / "mine" / "labels" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def plan(capsys, *arguments):
    """What a dry run in this process prints on standard output and as an error, and its exit status."""
    try:
        main([*arguments, *ASKED, "dry_run=true"])
        status = 0
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.mark.usefixtures("folder")
def test_the_plan_has_a_run_for_each_fold_and_says_how_many_images_each_has(capsys):
    status, out, _ = plan(capsys, "-m", "evaluate.folds=4", "n_images=2,3")
    assert status == 0
    assert "6 images (4 folds, each 3 or 4 to train, 1 to validate, 1 or 2 to test)" in out
    assert "12 runs (8 finetunings, 4 baselines)" in out
    assert out.count(" 1 of 4 ") == 3
    assert "to train on, and n_images" not in out
    assert (
        "each of the 4 folds leaves 3 images to train on, and n_images=2"
        in plan(capsys, "-m", "evaluate.folds=4", "n_images=2")[1]
    )
    assert "test; from fewer than 6" not in out
    few = plan(capsys, "-m", "evaluate.folds=5", "n_images=2", "evaluate.max_images=1")[1]
    assert "dataset=folder: only 5 images test" in few
    assert "evaluate.folds" not in few.partition("only 5 images test")[2]
    without = plan(capsys, "-m", "n_images=2")[1]
    assert "only 1 image tests; from fewer than 6 no difference" in without
    assert "is judged; evaluate.folds=5 tests all 6" in without


@pytest.mark.usefixtures("folder")
def test_what_cannot_be_is_refused_before_anything_is_written(capsys, folder):
    for arguments, sentence in (
        (
            ("-m", "evaluate.folds=7", "n_images=2"),
            "evaluate.folds=7, and dataset=folder has 6 images",
        ),
        (
            ("-m", "evaluate.folds=1"),
            "evaluate.folds must be null, or an integer >= 2, got 1",
        ),
        (("-m", "evaluate.folds=3", "dataset.test=0*", "n_images=2"), "does not go with dataset.test=0*"),
        (("evaluate.folds=3", "n_images=2"), "expected -m, or evaluate.fold=1 for one of them"),
    ):
        status, _, error = plan(capsys, *arguments)
        assert (status, sentence in error) == (2, True), error
    assert not (folder / "runs").exists()
    status, out, _ = plan(capsys, "evaluate.folds=3", "evaluate.fold=2", "n_images=2")
    assert (status, "1 run (1 finetuning" in out) == (0, True)


def ask(folder, *arguments):
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_sweep_in_folds_tests_each_image_once_and_ends_in_one_number(folder):
    command = ("refsam.sweep", "-m", *ASKED, "name=small", "evaluate.folds=3", "n_images=2")
    ask(folder, *command)
    collected = ask(folder, "refsam.cli", "collect", "small", "--metric", "mIoU", "--format", "csv")
    assert "all 3 folds" in collected
    assert "Test images: 6." in collected
    table = pd.read_csv(folder / "runs" / "sweeps" / "small" / "results.csv")
    assert sorted(table["fold"]) == [1, 1, 2, 2, 3, 3]
    assert set(table["status"]) == {"completed"}
    runs = RunsFolder(folder / "runs")
    tested = {
        row.run_id: {each["image"]: each["mIoU"] for each in read_rows(runs.run(row.run_id).per_image)}
        for row in table.itertuples()
    }
    for strategy, rows in table.groupby("strategy"):
        images = [image for run in rows["run_id"] for image in tested[run]]
        assert len(images) == len(set(images)) == 6, strategy
        expected = np.mean([value for run in rows["run_id"] for value in tested[run].values()])
        joined = pd.read_csv(next((folder / "runs" / "sweeps" / "small" / "tables").glob("*.csv")))
        (value,) = joined.set_index("strategy").loc[strategy].drop("model").dropna()
        assert value == pytest.approx(expected) != 0
    by_fold = table.assign(images=[frozenset(tested[run]) for run in table["run_id"]]).groupby("fold")[
        "images"
    ]
    assert (by_fold.nunique() == 1).all()  # the same for the initial model and the finetuned one
    compared = json.loads(
        ask(
            folder,
            "refsam.cli",
            "compare",
            "small",
            "--baseline",
            "strategy=baseline",
            "--metric",
            "mIoU",
            "--json",
        )
    )
    (row,) = compared["comparisons"]
    assert (row["n_test_images"], row["n_left_out"]) == (6, 0)
    assert "6 completed" in ask(folder, *command)
