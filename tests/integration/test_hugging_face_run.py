"""A run of a Hugging Face model on COCO annotations, from its frozen configuration to its metrics."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from training_runs import TINY, small_config

from refsam.configuration.frozen import freeze
from refsam.configuration.schema import DatasetConfig
from refsam.datasets.coco_writing import labels_to_coco
from refsam.datasets.listing import list_pairs
from refsam.datasets.pairs import read_pair_labels
from refsam.records.metrics import read_metrics
from refsam.records.paths import RunPaths
from refsam.records.status import State, Status, read_status, write_status
from refsam.results.run_rows import run_rows
from refsam.science import run
from refsam.science.hugging_face import HuggingFaceSam
from refsam.science.strategies.opening import predictor_and_decoder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def annotated(
    synthetic: DatasetConfig, dataset: Callable[..., DatasetConfig], tmp_path: Path
) -> DatasetConfig:
    """The images of discs with COCO annotations."""
    described = labels_to_coco(
        (pair.image.name, read_pair_labels(pair, synthetic)) for pair in list_pairs(synthetic)
    )
    (tmp_path / "images").symlink_to(Path(synthetic.root) / "images")
    (tmp_path / "annotations.json").write_text(json.dumps(described))
    return dataset("coco", tmp_path)


@pytest.mark.parametrize("peft", ["full", "qdora"])
def test_a_run_is_trained_on_annotations_and_measured(
    peft: str, annotated: DatasetConfig, tmp_path: Path
) -> None:
    config = small_config(
        annotated,
        *(f"peft={peft}", "train.prompts=boxes", "train.loss=dice_focal", "train.epochs=1"),
        *("train.decoder=false", "evaluate.max_images=1", "evaluate.modes=[box,no_prompt,amg]"),
        "evaluate.metrics=qlora_sam",
        *(["peft.rank=2", "peft.alpha=2"] if peft == "qdora" else []),
        model=("model=hf_tiny", *TINY[1:]),
    )
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    freeze(paths.config, config)
    write_status(paths, Status(State.pending))
    run.execute(paths.root)
    assert read_status(paths).state is State.completed
    measured = {row["mode"]: row for row in read_metrics(paths.metrics)}
    assert measured.keys() == {"box", "no_prompt", "amg"}
    assert all(0 <= row["mIoU"] <= row["mF1"] <= 1 for row in measured.values())
    table = {row["mode"]: row for row in run_rows(paths, "run", {})}
    assert table["box"]["mIoU"] == measured["box"]["mIoU"]
    assert 0 <= table["box"]["mIoU_qlora_sam"] <= table["box"]["mF1_qlora_sam"] <= 1
    assert table["amg"]["mIoU_qlora_sam"] is None is table["no_prompt"]["mIoU_qlora_sam"]
    environment = json.loads(paths.environment.read_text())
    assert environment["versions"]["transformers"]
    training = json.loads(paths.training.read_text())
    assert (training["trainable_parameters"] < training["total_parameters"]) == (peft == "qdora")
    opened = predictor_and_decoder(config, paths, "cpu")[0]
    assert isinstance(opened.model, HuggingFaceSam)


@pytest.mark.parametrize(
    ("name", "runs"),
    [("peft_trashcan", "30 runs (24 finetunings, 6 baselines)"), ("peft_trashcan_small", "15 runs")],
)
def test_the_named_sweeps_are_planned_without_torch(name: str, runs: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "refsam.sweep", "--config-name", name, "dry_run=true"],
        env={**os.environ, "REFSAM_DATA": str(tmp_path), "HF_HUB_CACHE": str(tmp_path), "COLUMNS": "1000"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"Sweep {name}: {runs}" in done.stdout
    assert "refsam prepare dataset=" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "omegaconf" in imported
    assert imported.isdisjoint({"torch", "transformers", "peft", "micro_sam"})


def test_a_folder_of_annotations_is_planned_without_torch(annotated: DatasetConfig, tmp_path: Path) -> None:
    described = json.loads((tmp_path / "annotations.json").read_text())
    described["annotations"][0]["segmentation"] = []
    (tmp_path / "annotations.json").write_text(json.dumps(described))
    overrides = [
        *("dataset=coco", f"dataset.root={tmp_path}", "model=vit_nano", "n_images=1,2", "dry_run=true"),
        *("dataset.on_problem=skip", f"runs={tmp_path / 'runs'}"),
    ]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "refsam.sweep", "-m", *overrides],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "1000"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "left out are 1 × empty segmentation (only a box) (annotation 1 of discs_00.tif)" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "pycocotools" in imported
    assert "torch" not in imported
