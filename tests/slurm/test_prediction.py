"""`refsam predict --on RESOURCE`: an array whose tasks segment their parts of the images, on a real Slurm."""

from dataclasses import replace

import pandas as pd
import pytest
from slurm_helpers import wait_until

from refsam import cli
from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze
from refsam.configuration.schema import Kind
from refsam.datasets.listing import list_pairs
from refsam.orchestration.submission import prediction_jobs
from refsam.records.predictions import PredictionsFolder, read_record


@pytest.fixture
def arguments(folder, synthetic):
    """Two images for a baseline of the smallest model."""
    config = compose(["resource=medium_8g", "model=vit_nano", "model.weights=random", "cluster=slurm"])
    run = folder.run("a-baseline")
    run.root.mkdir()
    freeze(run.config, replace(config, kind=Kind.baseline, dataset=synthetic))
    images = [str(pair.image) for pair in list_pairs(synthetic)[:2]]
    output = folder.root.parent / "segmented"
    return ["predict", "a-baseline", *images, "--output", str(output), "--mode", "no_prompt"]


def test_each_task_of_an_array_segments_its_part_and_nothing_is_submitted_twice(
    folder, arguments, monkeypatch, capsys
):
    monkeypatch.setattr(prediction_jobs, "IMAGES_PER_TASK", 1)
    command = [*arguments, "--runs", str(folder.root), "--on", "medium_8g"]
    assert cli.main(command) == 0
    assert "2 tasks for 2 images, partition medium" in capsys.readouterr().out
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    segmented = PredictionsFolder(folder.root.parent / "segmented")
    assert "is in the queue or running already" in said or len(segmented.names()) == 2
    wait_until(lambda: len(segmented.names()) == 2)
    found = [read_record(segmented, name)["n_objects"] for name in segmented.names()]
    wait_until(segmented.all_objects.exists)
    wait_until(lambda: len(pd.read_csv(segmented.all_objects)) == sum(found))
    assert cli.main(command) == 0
    assert "all 2 images are there" in capsys.readouterr().out


def test_a_resource_that_is_not_there_is_one_sentence(folder, arguments, capsys):
    assert cli.main([*arguments, "--runs", str(folder.root), "--on", "v10"]) == 2
    said = capsys.readouterr().err
    assert "got 'v10' (did you mean v100?)" in said
    assert said.count("\n") == 1
    assert not (folder.root.parent / "segmented").exists()
