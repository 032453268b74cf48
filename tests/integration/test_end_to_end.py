"""Real sweeps of the tiny model on drawn images, typed as a person types them."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from weights_files import CHECKPOINT

from refsam.datasets.prepare import prepare
from refsam.records.metrics import read_metrics

TINY = [
    "cluster=local",
    "resource=local",
    "model=vit_nano",
    "dataset=synthetic",
    "train=quick",
    "train.epochs=2",
    "train.min_samples=2",
    "train.validation_samples=1",
    "train.patch_shape=[128,128]",
    "train.n_sub_iterations=2",
    "n_objects=2",
    "evaluate.max_images=1",
    "evaluate.modes=[box]",
]


@pytest.fixture
def folder(tmp_path, dataset):
    prepare(dataset("synthetic", tmp_path / "data" / "synthetic"))
    return tmp_path


def environment(folder):
    return {
        **os.environ,
        "REFSAM_DATA": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "COLUMNS": "200",
    }


def sweep(folder, *overrides):
    command = [sys.executable, "-m", "refsam.sweep", "-m", *TINY, *overrides]
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False, timeout=600
    )


def collect(folder, name):
    command = [sys.executable, "-m", "refsam.cli", "collect", name]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return pd.read_csv(folder / "runs" / "sweeps" / name / "results.csv")


def contents(folder: Path):
    """Every file below runs/ but the manifest's times, by modification time."""
    files = [path for path in (folder / "runs").rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {path: path.stat().st_mtime_ns for path in files}


def run_folder(folder, part):
    (found,) = [path for path in (folder / "runs").iterdir() if part in path.name]
    return found


def test_a_sweep_ends_in_the_table_and_its_repetition_costs_nothing(folder):
    first = sweep(folder, "name=tiny", "peft=full,lora", "n_images=1")
    assert first.returncode == 0, first.stdout + first.stderr
    table = collect(folder, "tiny")
    assert sorted(table["strategy"].fillna("")) == ["baseline", "full", "lora"]
    assert set(table["status"]) == {"completed"}
    assert table[["mSA", "SA50", "mIoU", "seconds_per_image"]].notna().all(axis=None)
    trained = table[table["strategy"] != "baseline"].set_index("strategy")
    assert (trained["trainable_parameters"] > 0).all()
    assert trained.loc["lora", "trainable_parameters"] < trained.loc["full", "trainable_parameters"]
    assert set(table["weights"]) == {"random"}

    before = contents(folder)
    second = sweep(folder, "name=tiny", "peft=full,lora", "n_images=1")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "3 completed" in second.stdout
    assert {path: time for path, time in contents(folder).items() if path.name != ".lock"} == {
        path: time for path, time in before.items() if path.name != ".lock"
    }


def test_another_evaluation_mode_trains_nothing_again(folder):
    assert sweep(folder, "name=modes", "baseline=false").returncode == 0
    run = run_folder(folder, "full")
    checkpoint = (run / "checkpoints" / "best.pt").stat().st_mtime_ns
    more = sweep(folder, "name=modes", "baseline=false", "evaluate.modes=[box,point]")
    assert more.returncode == 0, more.stdout + more.stderr
    assert "1 to evaluate" in more.stdout
    assert {row["mode"] for row in read_metrics(run / "results" / "metrics.json")} == {"box", "point"}
    assert (run / "checkpoints" / "best.pt").stat().st_mtime_ns == checkpoint
    # What was measured is gone: the same command measures it again, from the same checkpoint.
    (run / "results" / "metrics.json").write_text("damaged")
    again = sweep(folder, "name=modes", "baseline=false", "evaluate.modes=[box,point]")
    assert again.returncode == 0, again.stdout + again.stderr
    assert {row["mode"] for row in read_metrics(run / "results" / "metrics.json")} == {"box", "point"}
    assert (run / "checkpoints" / "best.pt").stat().st_mtime_ns == checkpoint


def test_four_kinds_of_model_end_in_one_table_with_all_modes(folder):
    """The initial model and a generalist from a local file, each as it is and finetuned."""
    joint = ["train.decoder=true", "train.epochs=1"]
    made = sweep(folder, "name=before", "baseline=false", "seed=1", *joint)
    assert made.returncode == 0, made.stdout + made.stderr
    shutil.copy(run_folder(folder, "full") / "checkpoints" / "best.pt", folder / "generalist.pt")
    modes = ["point", "box", "amg", "ais", "apg", "no_prompt"]
    measured = [f"evaluate.modes=[{','.join(modes)}]", "evaluate.grid=defaults", "evaluate.points_per_side=4"]
    done = sweep(folder, "name=four", "model.weights=random,generalist.pt", *joint, *measured)
    assert done.returncode == 0, done.stdout + done.stderr
    table = collect(folder, "four")
    table["start"] = table["weights"].map(lambda weights: "default" if weights == "random" else "generalist")
    kinds = [("default", "baseline"), ("default", "full"), ("generalist", "baseline"), ("generalist", "full")]
    rows = table.set_index(["start", "strategy", "mode"]).sort_index()
    assert set(rows.index) == {(*kind, mode) for kind in kinds for mode in modes}
    # Only the default model has no decoder for automatic segmentation, so that its rows have no metrics.
    without = {("default", "baseline", mode) for mode in ("ais", "apg")}
    assert set(rows.index[rows["mIoU"].isna()]) == without
    assert rows["SA50"].isna().sum() == len(kinds) + len(without)  # no_prompt has no instances
    assert rows["evaluation_hardware"].notna().all()


def test_a_run_that_fails_stops_no_other_and_has_a_row_that_says_why(folder):
    # The header of a checkpoint, which is all that a plan sees, and no weights.
    (folder / "broken.pt").write_bytes(CHECKPOINT)
    done = sweep(folder, "name=half", "baseline=false", "model.weights=random,broken.pt")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    table = collect(folder, "half").set_index("status")
    assert set(table.index) == {"completed", "failed"}
    assert table.loc["failed", "reason"] == "error"
    assert table.loc["failed", "message"]
    assert pd.isna(table.loc["failed", "mSA"])


def test_an_interrupted_sweep_goes_on_and_gives_the_numbers_of_an_uninterrupted_one(folder):
    settings = ["name=long", "baseline=false", "train.epochs=4", "train.early_stopping=null"]
    command = [sys.executable, "-m", "refsam.sweep", "-m", *TINY, *settings]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    history = None
    deadline = time.monotonic() + 300
    while history is None and time.monotonic() < deadline:
        history = next(iter((folder / "runs").glob("*/history.csv")), None)
        time.sleep(0.05)
    assert history is not None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "same command" in output
    run = history.parent
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("failed", "cancelled")

    again = sweep(folder, *settings)
    assert again.returncode == 0, again.stdout + again.stderr
    interrupted = list(csv.DictReader(history.open()))
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["attempt"]) == ("completed", 2)
    assert [row["epoch"] for row in interrupted] == ["0", "1", "2", "3"]

    whole = sweep(folder, *settings, "runs=elsewhere")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    other = folder / "elsewhere" / run.name
    reference = list(csv.DictReader((other / "history.csv").open()))
    timing = {"seconds", "train_time"}
    for row, expected in zip(interrupted, reference, strict=True):
        assert {key: row[key] for key in row if key not in timing} == {
            key: expected[key] for key in expected if key not in timing
        }
    metrics = [read_metrics(path / "results" / "metrics.json")[0] for path in (run, other)]
    assert metrics[0]["mSA"] == metrics[1]["mSA"]
    assert metrics[0]["mIoU"] == metrics[1]["mIoU"]


def test_without_m_one_run_is_executed_in_the_same_process(folder):
    command = [sys.executable, "-m", "refsam.sweep", *TINY, "name=one"]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    status = json.loads((run_folder(folder, "full") / "status.json").read_text())
    assert status["state"] == "completed"
    assert not list((folder / "runs").glob("*/attempts/*/*.pkl"))
