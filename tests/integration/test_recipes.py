"""Two steps of the recipes of the studies with the tiny model, on files in the layout of Covid-IF."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from refsam.system.files import read_yaml

N_FILES = 18  # of which the first 10 are for training, the next 3 for validation
TINY = (
    *("resource=local", "cluster=local", "model=vit_nano", f"dataset.n_files={N_FILES}"),
    *("model.custom.image_size=64", "model.custom.embed_dim=48", "model.custom.depth=2"),
    *("model.custom.global_attn_indexes=[1]", "model.custom.window_size=4"),
    *("model.custom.prompt_embed_dim=32", "model.custom.unetr_features=2"),
    *("train.patch_shape=[64,64]", "train.max_steps=2", "n_objects=2", "train.n_sub_iterations=2"),
    *("evaluate.modes=[box]", "evaluate.rounds=0", "evaluate.max_images=1", "evaluate.pictures=0"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of float values with a hot pixel each, in which two cells are brighter than the background."""
    root = tmp_path / "data" / "covid_if"
    root.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(N_FILES):
        labels = np.zeros((96, 96), dtype=np.uint16)
        labels[8:40, 8:40], labels[50:88, 44:90] = 1, 2
        raw = generator.normal(100.0, 5.0, labels.shape) + 60.0 * (labels > 0)
        raw[number, -1] = 5000.0
        with h5py.File(root / f"gt_image_{number:03}.h5", "w") as file:
            file["raw/serum_IgG/s0"] = raw.astype(np.float32)
            file["labels/cells/s0"] = labels
    return tmp_path


def command(folder: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "REFSAM_DATA": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "COLUMNS": "200",
    }
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def record(folder: Path, name: str) -> tuple[dict, dict, dict]:
    """Of the only finetuning: its configuration, what it was made with, and its training."""
    (run,) = [path.parent.parent for path in (folder / "runs").glob("*/results/training.json")]
    assert name in run.name
    environment = json.loads((run / "environment.json").read_text())
    return (
        read_yaml(run / "config.yaml"),
        environment,
        json.loads((run / "results" / "training.json").read_text()),
    )


def test_two_steps_of_the_resource_study_are_recorded_and_stand_beside_the_published_table(
    folder: Path,
) -> None:
    command(folder, "refsam.sweep", "--config-name", "covid_if", *TINY, "peft=full", "n_images=1")
    config, environment, training = record(folder, "vit_nano-full-n1-local-covid_if-s0")
    assert config["dataset"]["protocol"] == "script"
    assert (config["train"]["optimizer"], config["dataset"]["normalize"]) == ("adamw", "patch")
    assert environment["precision"] == training["precision"] == "bfloat16"
    assert (training["iterations"], training["epochs"]) == (2, 1)
    command(folder, "refsam.cli", "collect", "covid_if", "--study", "resource", "--published")
    table = pd.read_csv(folder / "runs" / "sweeps" / "covid_if" / "tables" / "resource_study_published.csv")
    assert [name for name in table.columns if name.startswith("1 image")] == []
    assert list(table.columns[-3:]) == ["measured", "published", "difference"]


def test_two_steps_of_the_peft_study_train_on_all_images_and_are_recorded(folder: Path) -> None:
    command(folder, "refsam.sweep", "--config-name", "peft_micro_sam", *TINY, "peft=lora_32")
    config, _, training = record(folder, "vit_nano-lora-n10-local-covid_if-s0")
    assert (config["n_images"], config["train"]["epochs"], config["train"]["batch_size"]) == (10, None, 2)
    assert (training["iterations"], training["precision"]) == (2, "bfloat16")
    assert not training["early_stopped"]
