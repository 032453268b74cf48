"""The tidy table and its printed form, from records that are written by hand."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from refsam import results
from refsam.errors import ConfigError
from refsam.records.paths import RunPaths, RunsFolder, SweepPaths
from refsam.records.status import Reason, State, Status, write_status
from refsam.results.collect import COLUMNS, METRICS, collect, damaged, write_results
from refsam.results.sweeps import DamagedManifest
from refsam.results.tables.table import print_table
from refsam.system.files import read_yaml, write_json, write_yaml

ENVIRONMENT = {
    "versions": {"refsam": "0.1", "torch": "2.15.0", "micro_sam": "1.8.14"},
    "commit": "abc1234",
    "dirty": False,
    "cpu": "Example CPU",
    "gpu": "Tesla V100",
    "device": "cuda",
    "precision": "float32",
}
TRAINING = {
    "best_epoch": 3,
    "seconds_to_best": 307.0,
    "seconds_total": 700.5,
    "peak_memory_gib": 5.5,
    "trainable_parameters": 93_735_472,
    "precision": "float16",
}


SAVINGS = {
    "engine": "refsam",
    "object_chunk": 4,
    "checkpoint_every": None,
    "attention": "fused",
    "optimizer": "adamw",
    "workers": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> RunsFolder:
    return RunsFolder(tmp_path / "runs")


def write_run(folder: RunsFolder, run_id: str, kind: str = "finetuning", **changes: Any) -> RunPaths:
    """A run directory with a configuration and a status, nothing computed yet."""
    paths = folder.run(run_id)
    paths.results.mkdir(parents=True)
    config = {
        "kind": kind,
        "resource": {"name": "v100"},
        "model": {"name": "vit_b", "weights": "random"},
        "peft": {"name": changes.get("strategy", "full")},
        "dataset": {"name": "nuclei"},
        "n_images": changes.get("n_images", 5),
        "n_objects": 10,
        "seed": 0,
        "train": {"decoder": True, "joint": changes.get("joint", "separate")},
    }
    write_yaml(paths.config, config)
    write_status(paths, Status(state=State.planned))
    return paths


def complete(paths: RunPaths, sa50: float = 0.8) -> None:
    """Write what a finished run leaves."""
    write_json(paths.environment, ENVIRONMENT)
    write_json(paths.training, TRAINING)
    write_json(paths.savings, SAVINGS)
    values = {**dict.fromkeys(METRICS, 0.5), "SA50": sa50, "n_images": 36, "seconds_per_image": 0.25}
    write_json(paths.metrics, {"point": {**values, "SA50": sa50 / 2}, "box": values})
    write_status(paths, Status(state=State.completed, attempt=2))


def write_sweep(
    folder: RunsFolder, runs: list[str], skipped: list[dict[str, Any]] | None = None
) -> SweepPaths:
    sweep = folder.sweep("study")
    sweep.root.mkdir(parents=True)
    overrides = {"resource": "v100", "model": "vit_b", "n_images": "5", "seed": 0}
    planned = [{"run_id": run_id, "overrides": overrides} for run_id in runs]
    write_json(
        sweep.manifest,
        {
            "format": 1,
            "name": "study",
            "command": [],
            "created": "",
            "runs": planned,
            "skipped": skipped or [],
        },
    )
    return sweep


def printed(frame: pd.DataFrame, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_table(frame, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_completed_run_has_one_row_per_mode(folder):
    complete(write_run(folder, "run"))
    frame = collect(write_sweep(folder, ["run"]), folder)
    assert tuple(frame.columns) == COLUMNS
    assert frame["mode"].tolist() == ["point", "box"]
    assert frame["SA50"].tolist() == [0.4, 0.8]
    row = frame.iloc[1]
    expected = {
        "run_id": "run",
        "kind": "finetuning",
        "resource": "v100",
        "model": "vit_b",
        "weights": "random",
        "strategy": "full",
        "n_images": 5,
        "n_objects": 10,
        "dataset": "nuclei",
        "n_test_images": 36,
        "best_epoch": 3,
        "seconds_to_best": 307.0,
        "seconds_total": 700.5,
        "peak_memory_gib": 5.5,
        "trainable_parameters": 93_735_472,
        "arithmetic": "float16",
        "device": "cuda",
        "hardware": "Tesla V100",
        "torch_version": "2.15.0",
        "micro_sam_version": "1.8.14",
        "refsam_version": "0.1",
        "commit": "abc1234",
        "attempts": 2,
        "status": "completed",
    }
    assert {name: row[name] for name in expected} == expected
    assert pd.isna(row["reason"])


def test_a_run_on_the_cpu_names_the_cpu_and_a_changed_tree_its_state(folder):
    paths = write_run(folder, "run")
    complete(paths)
    write_json(paths.environment, {**ENVIRONMENT, "device": "cpu", "dirty": True})
    row = collect(write_sweep(folder, ["run"]), folder).iloc[0]
    assert (row["hardware"], row["commit"]) == ("Example CPU", "abc1234-dirty")


def test_a_failed_run_has_a_row_that_says_why(folder):
    complete(write_run(folder, "good"))
    failed = write_run(folder, "bad", strategy="lora")
    message = "the job needed more than its 32 GB [killed]"
    write_status(failed, Status(State.failed, Reason.out_of_memory, message, attempt=3))
    frame = collect(write_sweep(folder, ["good", "bad"]), folder)
    row = frame[frame["run_id"] == "bad"].iloc[0]
    assert (row["status"], row["reason"], row["message"]) == ("failed", "out_of_memory", message)
    assert row[list(METRICS)].isna().all()
    assert pd.isna(row["mode"])
    assert f"lora: failed (out_of_memory): {message} (bad)" in printed(frame)


def test_a_run_that_was_never_submitted_is_described_by_its_overrides(folder):
    frame = collect(write_sweep(folder, ["run"]), folder)
    row = frame.iloc[0]
    assert row["status"] == "planned"
    assert (row["resource"], row["model"], row["n_images"]) == ("v100", "vit_b", 5)


def test_skipped_combinations_are_rows_with_their_reason(folder):
    skipped = {"overrides": {"model": "vit_t", "n_train_images": "many"}, "reason": "n_images is many"}
    frame = collect(write_sweep(folder, [], [skipped]), folder)
    row = frame.iloc[0]
    assert (row["status"], row["message"], row["model"]) == ("invalid", "n_images is many", "vit_t")
    assert pd.isna(row["n_images"])
    assert pd.isna(row["run_id"])


def test_a_baseline_was_trained_on_nothing(folder):
    complete(write_run(folder, "start", kind="baseline"))
    row = collect(write_sweep(folder, ["start"]), folder).iloc[0]
    assert (row["strategy"], row["n_images"]) == ("baseline", 0)
    assert pd.isna(row["n_objects"])


@pytest.mark.parametrize("name", ["config", "status", "environment", "training", "metrics"])
@pytest.mark.parametrize(
    "content", ["{half a", "[1, 2]", '{"versions": 3, "kind": 4, "mode": {}, "best_epoch": "x"}']
)
def test_a_damaged_record_is_named_and_the_others_are_read(folder, name, content):
    paths = write_run(folder, "broken")
    complete(paths)
    complete(write_run(folder, "whole"))
    getattr(paths, name).write_text(content)
    frame = collect(write_sweep(folder, ["broken", "whole"]), folder)
    assert set(frame.loc[frame["run_id"] == "broken", "status"]) == {"damaged"}
    assert len(damaged(frame)) == 1
    assert str(getattr(paths, name)) in damaged(frame)[0]
    assert frame.loc[frame["run_id"] == "whole", "SA50"].tolist() == [0.4, 0.8]


def test_records_of_older_versions_are_read(folder):
    paths = write_run(folder, "old")
    complete(paths)  # metrics.json in its first format: a mapping of modes, without rounds and intervals
    config = read_yaml(paths.config)
    del config["train"]
    write_yaml(paths.config, config)
    write_json(paths.environment, {"versions": {}, "cpu": "Example CPU"})
    write_json(paths.training, {"best_epoch": 3, "seconds_to_best": 307.0})
    paths.savings.unlink()
    write_json(paths.status, {"state": "completed", "no_longer_known": 1})
    newer = write_run(folder, "new")
    complete(newer)
    values = {**dict.fromkeys(METRICS, 0.5), "n_images": 36, "seconds_per_image": 0.25}
    rows = [{**values, "mode": "box", "round": 0, "mask_input": False, "intervals": {"SA50": [0.4, 0.6]}}]
    write_json(newer.metrics, {"format": 2, "rows": rows})
    frame = collect(write_sweep(folder, ["old", "new"]), folder)
    assert set(frame["status"]) == {"completed"}
    assert frame["mode"].tolist() == ["point", "box", "box"]
    assert frame["round"].tolist() == [0, 0, 0]
    assert frame["SA50"].tolist() == [0.4, 0.8, 0.5]
    assert frame["SA50_low"].isna().tolist() == [True, True, False]
    assert frame["best_epoch"].tolist() == [3, 3, 3]


def test_a_record_of_a_newer_refsam_is_named(folder):
    paths = write_run(folder, "run")
    complete(paths)
    write_json(paths.metrics, {"format": 4, "rows": []})
    (sentence,) = damaged(collect(write_sweep(folder, ["run"]), folder))
    newer = "was written by a newer version of refsam (format 4, this one reads up to 3); update refsam"
    assert sentence == f"{paths.metrics} {newer}"


def test_a_record_that_cannot_be_read_is_named(folder):
    paths = write_run(folder, "run")
    complete(paths)
    paths.training.unlink()
    paths.training.mkdir()  # as good as one of somebody who keeps it to themselves, also for root
    (sentence,) = damaged(collect(write_sweep(folder, ["run"]), folder))
    assert sentence == f"{paths.training} cannot be read: Is a directory"


def test_a_summed_joint_step_is_named_as_what_it_is(folder):
    write_run(folder, "micro_sam")
    write_run(folder, "summed", joint="summed")
    frame = collect(write_sweep(folder, ["micro_sam", "summed"]), folder)
    assert frame["strategy"].tolist() == ["full", "full, summed"]


def test_how_a_run_trains_is_in_the_table_before_it_has_trained(folder):
    write_json(write_run(folder, "run").savings, SAVINGS)
    row = collect(write_sweep(folder, ["run"]), folder).iloc[0]
    assert (row["engine"], row["object_chunk"], row["attention"]) == ("refsam", 4, "fused")
    assert pd.isna(row["checkpoint_every"])
    assert row["status"] == "planned"


def test_results_csv_holds_the_frame(folder):
    complete(write_run(folder, "run"), sa50=1 / 3)
    sweep = write_sweep(folder, ["run", "absent"])
    frame = collect(sweep, folder)
    again = pd.read_csv(write_results(sweep, frame)[0])
    assert tuple(again.columns) == COLUMNS
    assert again["SA50"].tolist()[:2] == [1 / 6, 1 / 3]
    assert again["status"].tolist() == ["completed", "completed", "planned"]
    assert again["n_images"].dtype == "int64"


@pytest.mark.parametrize("content", ['{"format": 1}', '{"format"', "[]"])
def test_a_damaged_manifest_is_an_error_that_names_it(folder, content):
    sweep = write_sweep(folder, [])
    sweep.manifest.write_text(content)
    with pytest.raises(DamagedManifest, match=r"manifest\.json is damaged"):
        collect(sweep, folder)


def test_a_manifest_of_a_newer_refsam_is_refused(folder):
    sweep = write_sweep(folder, [])
    write_json(sweep.manifest, {"format": 2})
    with pytest.raises(ConfigError, match=r"newer version of refsam \(format 2, this one reads up to 1\)"):
        collect(sweep, folder)


def test_load_gives_the_frame_and_names_the_nearest_sweep(folder):
    complete(write_run(folder, "run"))
    write_sweep(folder, ["run"])
    assert len(results.load("study", folder.root)) == 2
    with pytest.raises(ConfigError, match="did you mean study"):
        results.load("stduy", folder.root)


def test_the_table_has_the_baseline_first_and_says_constants_once(folder):
    for n_images in (1, 10):
        complete(write_run(folder, f"full{n_images}", n_images=n_images), sa50=0.1 * n_images)
    complete(write_run(folder, "start", kind="baseline"), sa50=0.05)
    text = printed(collect(write_sweep(folder, ["full10", "full1", "start"]), folder))
    lines = text.splitlines()[4:7]
    assert [line.split()[:2] for line in lines] == [["baseline", "0"], ["full", "1"], ["full", "10"]]
    assert "box" in text
    assert "1.000" in lines[2]
    header = text.splitlines()[0]
    assert "model vit_b" in header
    assert "data set nuclei" in header
    assert all("nuclei" not in line for line in lines)


def test_the_table_of_a_narrow_terminal_keeps_all_metrics(folder):
    complete(write_run(folder, "run"), sa50=0.123)
    frame = collect(write_sweep(folder, ["run"]), folder)
    narrow = printed(frame, width=60)
    assert "0.123" in narrow
    assert "0.061" in narrow  # of points
    assert "…" not in narrow
    assert "best epoch, time to best; --wide" in " ".join(narrow.split())
    assert "Not shown" not in printed(frame, width=120)


def test_a_sweep_without_a_completed_run_says_so(folder):
    paths = write_run(folder, "run")
    write_status(paths, replace(Status(), state=State.running))
    text = printed(collect(write_sweep(folder, ["run"]), folder))
    assert "No run of this sweep is completed yet" in text
    assert "running" in text


def test_what_slurm_s_jobs_have_cost_is_in_the_results_and_the_table(folder):
    paths = write_run(folder, "run")
    complete(paths)
    costs = {
        "elapsed_seconds": 5400.0,
        "queue_seconds": 75.0,
        "gpu_hours": 1.5,
        "max_rss_gib": None,
        "jobs": [],
    }
    write_json(paths.costs, costs)
    sweep = write_sweep(folder, ["run"])
    frame = collect(sweep, folder)
    row = frame.iloc[0]
    assert (row["elapsed_seconds"], row["queue_seconds"], row["gpu_hours"]) == (5400, 75, 1.5)
    assert frame["max_rss_gib"].isna().all()
    text = printed(frame)
    assert "1:30:00" in text
    assert "0:01:15" in text
    assert "1.50" in text
    write_json(paths.costs, {"jobs": []})
    assert collect(sweep, folder)["status"].iloc[0] == "damaged"
