"""`refsam evaluate` on runs of this machine, with a stand-in for the science."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from refsam import cli
from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze, load
from refsam.orchestration.submission import local
from refsam.records.metrics import Measurement, write_metrics
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.status import State, Status, read_status, write_status
from refsam.system.files import write_json

HERE = Path(__file__).parent


@pytest.fixture
def folder(tmp_path, monkeypatch, synthetic):
    """A sweep `study` of a finished run with box and point measured, and of one that is not trained."""
    monkeypatch.setenv("REFSAM_DATA", str(Path(synthetic.root).parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent.parent)]))
    monkeypatch.setattr(local.run_locally, "__defaults__", ("fake_science:execute",))
    folder = RunsFolder(tmp_path / "runs")
    folder.sweep("study").root.mkdir(parents=True)
    config = compose(
        ["resource=local", "model=vit_nano", "cluster=local", "dataset=synthetic", "evaluate.pictures=0"]
    )
    for name in ("done-0", "open-1"):
        paths = folder.run(name)
        paths.results.mkdir(parents=True)
        (paths.root / "behaviour.txt").write_text("complete")
        freeze(paths.config, config)
    write_status(folder.run("done-0"), Status(State.completed, attempt=1))
    rows = [{**Measurement(mode)._asdict(), "SA50": 0.5} for mode in ("point", "box")]
    write_metrics(folder.run("done-0").metrics, rows)
    runs = [{"run_id": name, "overrides": {}} for name in ("done-0", "open-1")]
    manifest = {"format": 1, "name": "study", "runs": runs, "skipped": []}
    write_json(folder.sweep("study").manifest, manifest)
    return folder


def evaluate(folder: RunsFolder, *arguments: str) -> int:
    return cli.main(["evaluate", *arguments, "--runs", str(folder.root)])


def configuration_of(paths: RunPaths):
    return load(paths.config).evaluate


def test_a_finished_run_is_measured_in_what_is_missing_and_an_open_one_is_left_alone(folder, capsys):
    status = evaluate(folder, "study", "--json", "evaluate.modes=[box,amg]", "evaluate.rounds=1")
    told = json.loads(capsys.readouterr().out)
    assert status == 0
    missing = ["point round 1", "point round 1 with mask", "box round 1", "box round 1 with mask", "amg"]
    assert told["runs"] == [{"run_id": "done-0", "missing": missing}]
    assert told["unfinished"] == ["open-1"]
    assert told["states"] == {"done-0": "completed"}
    assert read_status(folder.run("done-0")).attempt == 2
    assert configuration_of(folder.run("done-0")).modes == ["point", "box", "amg"]
    assert configuration_of(folder.run("open-1")).modes == ["point", "box"]


def test_what_the_training_has_said_stays(folder, capsys):
    paths = folder.run("done-0")
    (paths.root / "behaviour.txt").write_text("evaluate")
    training = {"epoch": 9, "epochs": 10, "best_epoch": 7, "best_metric": 0.25, "loss": 0.5, "steps": 90}
    start, end = "2026-01-02T03:00:00+00:00", "2026-01-02T04:30:00+00:00"
    write_status(paths, Status(State.completed, attempt=1, started_at=start, ended_at=end, **training))
    assert evaluate(folder, "done-0", "evaluate.modes=[amg]") == 0
    status = read_status(paths)
    assert (status.state, status.attempt) == (State.completed, 2)
    assert {name: getattr(status, name) for name in training} == training
    assert status.seconds_before == 5400
    capsys.readouterr()
    assert cli.main(["status", "study", "--json", "--runs", str(folder.root)]) == 0
    run = next(run for run in json.loads(capsys.readouterr().out)["runs"] if run["run_id"] == "done-0")
    assert (run["epoch"], run["best_epoch"], run["best_metric"]) == (9, 7, 0.25)
    assert run["elapsed_seconds"] >= 5400  # of the training and the evaluation


def test_without_its_data_a_finished_run_stays_as_it_is(folder, capsys):
    frozen = load(folder.run("done-0").config)
    moved = replace(frozen.dataset, root=str(folder.root / "nowhere"))
    freeze(folder.run("done-0").config, replace(frozen, dataset=moved))
    before = folder.run("done-0").config.read_text(), read_status(folder.run("done-0"))
    assert evaluate(folder, "study", "evaluate.modes=[amg]") == 2
    assert "refsam prepare dataset=synthetic" in capsys.readouterr().err
    assert (folder.run("done-0").config.read_text(), read_status(folder.run("done-0"))) == before


def test_where_nothing_is_missing_nothing_happens(folder, capsys):
    before = folder.run("done-0").config.stat().st_mtime_ns
    assert evaluate(folder, "done", "evaluate.modes=[box]") == 0
    assert "Nothing of run done-0 is to be measured" in capsys.readouterr().out
    assert folder.run("done-0").config.stat().st_mtime_ns == before
    assert read_status(folder.run("done-0")).attempt == 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluate.crop=[8,8]", "evaluate.crop: given to refsam evaluate"),
        ("model=vit_b", "model: given to refsam evaluate"),
        ("evaluate.grid=fine", "evaluate.grid must be study, small, defaults, got 'fine'"),
        ("evaluate.rownds=2", "evaluate.rownds: given to refsam evaluate"),
        (
            "evaluate.small_grid.amg.pred_iou_thresh=[]",
            "must be for each automatic mode its parameters with a list of values",
        ),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything_runs(folder, capsys, override, words):
    assert evaluate(folder, "study", override) == 2
    assert words in capsys.readouterr().err
    assert read_status(folder.run("done-0")).attempt == 1
