"""The sweep as it is typed, on a real Slurm."""

import csv
import json
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from slurm_helpers import CHECKOUT, HERE, PATIENCE, allocated, slurm, wait_until

from refsam.orchestration.slurm.identity import known_job
from refsam.orchestration.slurm.questions import SlurmQuery
from refsam.records.paths import RunsFolder
from refsam.records.status import State, read_status
from refsam.sweep import main
from refsam.system.files import read_json
from tools.test_cluster.settings import node_names

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


def records(folder, name="tiny"):
    runs = read_json(folder.sweep(name).manifest)["runs"]
    return [read_status(folder.run(run["run_id"])) for run in runs]


@pytest.fixture
def folder(slurm_cluster, synthetic, tmp_path, monkeypatch):
    """Where sweeps on drawn images are typed; its runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFSAM_DATA", synthetic.root.rpartition("/")[0])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    return RunsFolder(tmp_path / "runs")


@pytest.fixture
def closed(folder):
    """The runs folder, while jobs of partition medium wait."""
    slurm("scontrol", "update", "partition=medium", "state=down")
    yield folder
    slurm("scontrol", "update", "partition=medium", "state=up")


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
    job = known_job(records(closed)[0])
    assert f"pending (Slurm job {job_id})" in output
    slurm("scancel", job_id)
    wait_until(lambda: SlurmQuery().ask([job]).jobs == {})
    assert sweep("cluster=local", "n_images=1,2", "dry_run=true") == 0
    output = capsys.readouterr().out
    assert "to continue (cancelled, nothing trained yet)" in output
    assert "1 to continue, 1 pending" in output


def test_a_request_that_the_site_cannot_fulfil_is_refused_before_anything_is_written(folder, capsys):
    assert sweep("cluster=scc", "resource.request.time=3-00:00:00", "model=vit_nano") == 2
    sentence = "resource.request.time must be at most 2-00:00:00 in partition medium, got 3-00:00:00"
    assert capsys.readouterr().err == f"refsam: {sentence}\n"
    assert sweep("cluster=scc", "resource.request.partition=gpu", "resource.request.memory_gb=99") == 2
    assert "got 99" in capsys.readouterr().err
    assert not folder.root.exists()
    assert sweep("cluster=scc", "resource.request.partition=gpus", "dry_run=true") == 0
    output = capsys.readouterr().out
    assert "Missing: resource.request.partition must be one of " in output
    assert ", got gpus (did you mean gpu?)" in output


def command(*overrides):
    return [sys.executable, "-m", "refsam.sweep", *TINY, *overrides]


def test_ctrl_c_while_waiting_leaves_the_jobs_alone_and_says_what_to_type(closed):
    with subprocess.Popen(
        command("cluster=scc", "n_images=1", "wait=true"), stdout=subprocess.PIPE, text=True
    ) as shell:
        assert any(line.startswith("Waiting until") for line in shell.stdout)
        shell.send_signal(signal.SIGINT)
        output = shell.communicate(timeout=PATIENCE)[0]
    assert shell.returncode == 130
    assert "The jobs continue. To show them: refsam status tiny" in output
    job = known_job(records(closed)[0])
    assert SlurmQuery().ask([job]).jobs[job].state is State.pending


def test_a_sweep_over_three_resources_trains_on_what_each_asks_for(folder, monkeypatch):
    """Real training, below names that a shell would misread, from settings that are edited meanwhile."""
    site = Path("""a "site" für $(touch executed) 'x'""") / "train"
    site.mkdir(parents=True)
    settings = {"defaults": ["default"], "max_steps": 2, "min_samples": 2, "validation_samples": 1}
    settings |= {
        "precision": "float32",
        "patch_shape": [128, 128],
        "n_sub_iterations": 2,
        "decoder": False,
        "epochs": 1,
    }
    (site / "few.yaml").write_text(json.dumps(settings))
    runs = RunsFolder(Path("my runs; `touch executed` $(touch executed) ü'").absolute())
    expected = {
        "gtx1080": {"gres/gpu:gtx1080=1", "cpu=8", "mem=32G"},
        "v100": {"gres/gpu:v100=1", "cpu=8", "mem=32G"},
        "medium_8g": {"cpu=8", "mem=8G"},
    }
    asked = [
        *(
            "-m",
            "name=three",
            "cluster=scc",
            "resource=gtx1080,v100,medium_8g",
            "n_images=1,2",
            "model=vit_nano",
        ),
        *("dataset=synthetic", "train=few", "n_objects=2", "evaluate.max_images=1", "evaluate.modes=[box]"),
        *("baseline=false", "resource.device=cpu", f"runs={quoted(runs.root)}", "cluster.snapshot=true"),
    ]
    arguments = ["--config-dir", str(site.parent), *asked]
    subprocess.run([sys.executable, "-m", "refsam.sweep", *arguments], check=True, stdout=subprocess.DEVNULL)
    (site / "few.yaml").write_text(json.dumps({**settings, "max_steps": 9999, "epochs": 99}))
    run_ids = [run["run_id"] for run in read_json(runs.sweep("three").manifest)["runs"]]
    wait_until(lambda: all(read_status(runs.run(run)).ended_at for run in run_ids))
    done = {run: read_status(runs.run(run)) for run in run_ids}
    assert [status.state for status in done.values()] == [State.completed] * 6, done
    assert len({status.job_id.partition("_")[0] for status in done.values()}) == 3
    assert {status.host for status in done.values()} <= set(node_names())
    for run, status in done.items():
        resource = next(name for name in expected if f"-{name}-" in run)
        assert expected[resource] <= allocated(status.job_id)
    command = [sys.executable, "-m", "refsam.cli", "collect", "three", "--runs", str(runs.root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with runs.sweep("three").results.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert all(float(row["mIoU"]) >= 0 and row["arithmetic"] == "float32" for row in rows)
    assert not list(Path().rglob("executed"))

    (site / "few.yaml").write_text(json.dumps(settings))
    monkeypatch.syspath_prepend(HERE / "plugins")
    # Hydra looks for plugins once in a process, and another test may have made it look.
    Plugins.instance().register(import_module("hydra_plugins.descent").Descent)
    without_n = [item for item in asked if not item.startswith("n_images")]
    one = [item.replace("gtx1080,v100,medium_8g", "v100") for item in without_n]
    main(["--config-dir", str(site.parent), *one, "hydra/sweeper=descent"])
    objectives = json.loads(Path("objectives.json").read_text())
    assert objectives[:2] == [done[run].best_metric for run in run_ids if "-v100-" in run]
    assert objectives[2] == min(objectives[:2])


def quoted(path):
    """A path as a value of Hydra's override grammar."""
    return "'" + str(path).replace("'", "\\'") + "'"
