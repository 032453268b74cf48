"""refsam track: what the trackers' clients read back is what the records say, and nothing is told twice."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import (
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)
from wandb.proto.wandb_internal_pb2 import Record

from refsam import cli
from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze
from refsam.records.attempts import Attempt, write_attempt
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.status import State, Status, write_status
from refsam.results.collect import METRICS
from refsam.system.files import read_json, write_json

HISTORY = """epoch,iteration,train_loss,instance_loss,validation_metric,train_time
0,50,0.9,,0.8,10.0
1,100,0.5,,0.4,20.5
"""
BEGAN = 1_700_000_000.0


@pytest.fixture
def folder(tmp_path: Path) -> RunsFolder:
    """The sweep `study` of two completed runs and one that is planned."""
    folder = RunsFolder(tmp_path / "runs")
    planned = []
    for run_id, value in (("a", 0.5), ("b", 0.25), ("c", None)):
        paths = folder.run(run_id)
        paths.results.mkdir(parents=True)
        overrides = ["resource=v100", "model=vit_b", "peft=lora", "dataset=covid_if", "n_images=5"]
        freeze(paths.config, compose([*overrides, "n_objects=10", "data=/a/private/place"]))
        planned.append({"run_id": run_id, "overrides": {}})
        if value is None:
            write_status(paths, Status(State.planned))
        else:
            complete(paths, value)
    folder.sweep("study").root.mkdir(parents=True)
    write_json(folder.sweep("study").manifest, {"format": 1, "name": "study", "runs": planned, "skipped": []})
    return folder


def complete(paths: RunPaths, sa50: float) -> None:
    """Write what a finished run leaves; `sa50` with the first prompt, 0.9 after one correction."""
    environment = {"versions": {"refsam": "0.1", "torch": "2.15"}, "commit": "abc1234", "dirty": False}
    write_json(paths.environment, {**environment, "device": "cuda", "gpu": "Tesla V100", "cpu": "some"})
    write_json(paths.training, {"best_epoch": 1, "seconds_total": 20.5, "peak_memory_gib": 3.5})
    values = {**dict.fromkeys(METRICS, 0.5), "n_images": 36, "seconds_per_image": 0.25}
    rows = [
        {**values, "mode": "box", "round": 0, "mask_input": False, "SA50": sa50},
        {**values, "mode": "box", "round": 1, "mask_input": True, "SA50": 0.9},
    ]
    write_json(paths.metrics, {"format": 2, "rows": rows})
    paths.history.write_text(HISTORY, encoding="utf-8")
    write_attempt(paths, 1, Attempt(started_at="2023-11-14T22:13:20+00:00"))
    write_status(paths, Status(State.completed, attempt=1, ended_at="2023-11-14T22:15:00+00:00"))


def track(folder: RunsFolder, *arguments: str) -> int:
    return cli.main(["track", "study", "--runs", str(folder.root), *arguments])


def read_mlflow(path: Path, experiment: str = "study") -> dict[str, tuple[Run, MlflowClient]]:
    client = MlflowClient(tracking_uri=f"sqlite:///{path}")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    assert len({run.data.tags["run_id"] for run in runs}) == len(runs)
    return {run.data.tags["run_id"]: (run, client) for run in runs}


def read_wandb(path: Path) -> Iterator[Record]:
    """The records of an offline run: LevelDB's log format with wandb's header, as its documentation says."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, block, parts = 7, 32768, b""
    while place + 7 <= len(data):
        left = block - place % block
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its end
            yield Record.FromString(parts)
            parts = b""


def values_of(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_tensorboard_reads_epochs_final_metrics_and_parameters(folder, capsys):
    assert track(folder, "--to", "tensorboard") == 0
    out = capsys.readouterr().out
    assert "New in " in out
    assert ": 2; updated: 0; unchanged: 0" in out
    assert "Left out because they are not completed: 1 of 3 runs" in out
    root = folder.sweep("study").trackers / "tensorboard"
    assert f"tensorboard --logdir {root}" in out
    events = EventAccumulator(str(root / "a")).Reload()
    losses = events.Scalars("epoch/train_loss")
    assert [(each.step, each.wall_time) for each in losses] == [(0, BEGAN + 10), (1, BEGAN + 20.5)]
    assert [each.value for each in losses] == pytest.approx([0.9, 0.5])
    assert events.Scalars("box/SA50")[0].value == 0.5
    assert events.Scalars("box round 1 with mask/SA50")[0].value == pytest.approx(0.9)
    assert "epoch/instance_loss" not in events.Tags()["scalars"]
    content = events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    told = parse_session_start_info_plugin_data(content).hparams
    assert told["peft.name"].string_value == "lora"
    assert told["n_images"].number_value == 5
    assert (told["git_commit"].string_value, told["hardware"].string_value) == ("abc1234", "Tesla V100")


@pytest.mark.slow
def test_mlflow_reads_epochs_final_metrics_parameters_and_tags(folder):
    assert track(folder, "--to", "mlflow") == 0
    runs = read_mlflow(folder.sweep("study").trackers / "mlflow.db")
    assert set(runs) == {"a", "b"}
    run, client = runs["a"]
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (1000 * BEGAN, 1000 * (BEGAN + 100))
    assert run.data.metrics["box/SA50"] == 0.5
    assert run.data.metrics["box round 1 with mask/SA50"] == 0.9
    assert run.data.metrics["training/peak_memory_gib"] == 3.5
    history = client.get_metric_history(run.info.run_id, "epoch/validation_metric")
    assert [(each.step, each.value) for each in history] == [(0, 0.8), (1, 0.4)]
    assert run.data.params["peft.rank"] == "4"
    expected = {"run_id": "a", "sweep": "study", "git_commit": "abc1234", "hardware": "Tesla V100"}
    assert {name: run.data.tags[name] for name in expected} == expected
    assert run.data.tags["mlflow.source.git.commit"] == "abc1234"


@pytest.mark.slow
def test_wandb_reads_epochs_final_metrics_and_configuration(folder):
    assert track(folder, "--to", "wandb", "--name", "cells") == 0
    (path,) = (folder.sweep("study").trackers / "wandb").glob("wandb/offline-run-*-a/run-a.wandb")
    records = list(read_wandb(path))
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.project, run.run_id, run.display_name) == ("cells", "a", "a")
    config = values_of(run.config.update)
    assert (config["peft.name"], config["git_commit"], config["sweep"]) == ("lora", "abc1234", "study")
    history = [
        values_of(record.history.item) for record in records if record.WhichOneof("record_type") == "history"
    ]
    assert [row["epoch/train_loss"] for row in history] == [0.9, 0.5]
    assert [row["_step"] for row in history] == [0, 1]
    summary: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= values_of(record.summary.update)
    assert (summary["box/SA50"], summary["training/seconds_total"]) == (0.5, 20.5)


def everything(folder: RunsFolder, target: str) -> dict[str, str]:
    """Which runs a tracker has, and with which SA50."""
    place = folder.sweep("study").trackers
    if target == "mlflow":
        return {
            name: run.data.metrics["box/SA50"] for name, (run, _) in read_mlflow(place / "mlflow.db").items()
        }
    found = {}
    if target == "tensorboard":
        for path in (place / target).iterdir():
            if path.is_dir():
                found[path.name] = EventAccumulator(str(path)).Reload().Scalars("box/SA50")[0].value
        return found
    for path in (place / target).glob("wandb/*/*.wandb"):
        for record in read_wandb(path):
            if record.WhichOneof("record_type") == "summary":
                values = values_of(record.summary.update)
                if "box/SA50" in values:
                    assert found.get(path.stem, values["box/SA50"]) == values["box/SA50"]
                    found[path.stem] = values["box/SA50"]
    return {name.removeprefix("run-"): value for name, value in found.items()}


@pytest.mark.parametrize("target", ["tensorboard", "mlflow", "wandb"])
def test_a_run_is_not_told_twice_and_anew_where_it_changed(folder, capsys, target):
    assert track(folder, "--to", target) == 0
    assert track(folder, "--to", target) == 0
    assert capsys.readouterr().out.count(": 0; updated: 0; unchanged: 2") == 1
    complete(folder.run("a"), 0.75)
    complete(folder.run("c"), 0.125)
    assert track(folder, "--to", target) == 0
    assert ": 1; updated: 1; unchanged: 1" in capsys.readouterr().out
    assert everything(folder, target) == {"a": 0.75, "b": 0.25, "c": 0.125}


@pytest.mark.parametrize("target", ["tensorboard", "mlflow", "wandb"])
def test_a_run_that_was_not_told_to_its_end_is_told_anew(folder, target):
    assert track(folder, "--to", target) == 0
    place = folder.sweep("study").trackers
    if target == "mlflow":
        run, client = read_mlflow(place / "mlflow.db")["a"]
        client.delete_tag(run.info.run_id, "refsam.signature")
    else:
        ledger = place / target / "refsam.json"
        write_json(ledger, {"b": read_json(ledger)["b"]})
    assert track(folder, "--to", target) == 0
    assert everything(folder, target) == {"a": 0.5, "b": 0.25}


@pytest.mark.parametrize("target", ["tensorboard", "mlflow", "wandb"])
def test_no_path_of_this_machine_is_told(folder, target):
    assert track(folder, "--to", target) == 0
    place = folder.sweep("study").trackers
    contents = [path.read_bytes() for path in place.rglob("*") if path.is_file() and path.suffix != ".log"]
    assert any(b"covid_if" in content for content in contents)
    assert not any(b"/a/private/place" in content for content in contents)


@pytest.mark.parametrize(("target", "package"), [("mlflow", "mlflow"), ("wandb", "wandb")])
def test_a_client_that_is_not_installed_is_one_sentence(folder, capsys, monkeypatch, target, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert track(folder, "--to", target) == 2
    error = capsys.readouterr().err
    assert f'pip install "refsam[{target}]"' in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "mlflow", "--destination", "ftp://nowhere"], "MLflow refuses 'ftp://nowhere'"),
        (["--to", "mlflow", "--destination", "{file}/x.db"], "cannot be a folder"),
        (["--to", "tensorboard", "--destination", "{file}"], "cannot be a folder"),
        (["--to", "tensorboard", "--name", "x"], "TensorBoard has no experiments"),
        (["--to", "wandb", "--name", "a/b"], "cannot be a project"),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, tmp_path, arguments, words):
    file = tmp_path / "file"
    file.write_text("")
    assert track(folder, *(argument.format(file=file) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_damaged_history_is_named_and_the_other_runs_are_told(folder, capsys):
    folder.run("a").history.write_text("epoch,train_loss\nmany,0.5\n")
    assert track(folder, "--to", "tensorboard") == 1
    captured = capsys.readouterr()
    assert f"{folder.run('a').history} is damaged" in captured.err
    assert ": 1; updated: 0; unchanged: 0" in captured.out


def test_a_sweep_without_a_completed_run_says_so(folder, capsys):
    for run_id in "ab":
        write_status(folder.run(run_id), Status(State.pending))
    assert track(folder, "--to", "tensorboard") == 0
    assert "No run of this sweep is completed yet" in capsys.readouterr().out
