"""The sweep as it is typed, on a real Slurm."""

import subprocess
import time

import pytest

from refsam.records.files import read_json
from refsam.records.paths import RunsFolder
from refsam.records.status import State, read_status
from refsam.sweep import main

PATIENCE = 90  # seconds until a wait is given up; no assertion depends on it
TINY = [
    "-m",
    "name=tiny",
    "resource=medium_8g",
    "resource.request.cores=1",
    "resource.request.memory_gb=2",
    "model=vit_nano",
    "dataset=synthetic",
    "train=quick",
    "train.max_steps=2",
    "train.min_samples=2",
    "train.validation_samples=1",
    "train.patch_shape=[128,128]",
    "n_objects=2",
    "evaluate.max_images=1",
    "evaluate.modes=[box]",
    "baseline=false",
]


def sweep(*overrides):
    """Type the command in this process; its exit status."""
    try:
        main([*TINY, *overrides])
    except SystemExit as end:
        return end.code
    return 0


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.2)


def records(folder, name="tiny"):
    runs = read_json(folder.sweep(name).manifest)["runs"]
    return [read_status(folder.run(run["run_id"])) for run in runs]


@pytest.fixture
def folder(slurm_cluster, synthetic, tmp_path, monkeypatch):
    """Where sweeps on drawn images are typed; its runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFSAM_DATA", synthetic.root.rpartition("/")[0])
    monkeypatch.setenv("COLUMNS", "200")
    yield RunsFolder(tmp_path / "runs")
    for partition in ("medium", "gpu"):
        subprocess.run(["scancel", f"--partition={partition}"], check=True)


@pytest.fixture
def closed(folder):
    """The runs folder, while jobs of partition medium wait."""
    subprocess.run(["scontrol", "update", "partition=medium", "state=down"], check=True)
    yield folder
    subprocess.run(["scontrol", "update", "partition=medium", "state=up"], check=True)


def test_a_run_that_slurm_has_is_shown_so_and_not_started_here(closed, capsys):
    assert sweep("cluster=scc", "n_images=1,2") == 0
    assert [record.state for record in records(closed)] == [State.pending] * 2
    capsys.readouterr()
    assert sweep("cluster=local", "n_images=1,2") == 0
    assert "2 pending." in capsys.readouterr().out
    assert [record.state for record in records(closed)] == [State.pending] * 2
    assert sweep("cluster=local", "n_images=1,2", "dry_run=true") == 0
    output = capsys.readouterr().out
    job_id = records(closed)[0].job_id
    assert f"pending (Slurm job {job_id})" in output
    subprocess.run(["scancel", job_id], check=True)
    assert sweep("cluster=local", "n_images=1,2", "dry_run=true") == 0
    output = capsys.readouterr().out
    assert "to continue (cancelled, nothing trained yet)" in output
    assert "1 to continue, 1 pending" in output
