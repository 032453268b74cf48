"""Programs on a machine with two GPUs that are not there: the local queue, and `refsam fit`."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from gpu_runs import quick_config
from rich.console import Console
from training_runs import TINY

from refsam import cli
from refsam.configuration.frozen import freeze
from refsam.configuration.schema import DatasetConfig, RefsamConfig
from refsam.orchestration.submission.live_table import PlainLines
from refsam.orchestration.submission.local import run_locally
from refsam.records.fits import FitsFolder, StepOutcome
from refsam.records.paths import RunsFolder
from refsam.records.status import State, Status, write_status
from refsam.system.files import read_json


@pytest.fixture(autouse=True)
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GTX 1080, of which nvidia-smi and all programs that compute know."""
    tools = tmp_path / "tools"
    tools.mkdir()
    tool = tools / "nvidia-smi"
    tool.write_text('#!/bin/sh\nfor i in 0 1; do echo "$i, NVIDIA GeForce GTX 1080, 8192"; done\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "in_program"))
    monkeypatch.setenv("PRETENDED_GPU", "6.1 8")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.chdir(tmp_path)


@dataclass(frozen=True)
class Planned:
    run_id: str
    config: RefsamConfig
    label: str = "a run"


def test_the_local_queue_gives_each_of_two_runs_a_gpu(synthetic: DatasetConfig, tmp_path: Path) -> None:
    folder = RunsFolder(tmp_path / "runs")
    runs = []
    for seed in (0, 1):
        config = quick_config(synthetic, "train.decoder=false", f"seed={seed}")
        runs.append(Planned(f"run{seed}", config))
        paths = folder.run(f"run{seed}")
        paths.root.mkdir(parents=True)
        freeze(paths.config, config)
        write_status(paths, Status(State.planned))
    statuses = run_locally(runs, folder, 2, 1, PlainLines(Console()))
    assert [status.state for status in statuses] == [State.completed] * 2
    found = [read_json(folder.run(run.run_id).environment) for run in runs]
    assert [(each["device"], each["gpu_memory_gib"]) for each in found] == [("cuda", 8.0)] * 2
    assert {each["gpu_allocator"] for each in found} == {"expandable_segments:True"}
    assert {each["gpu"] for each in found} == {"GPU 0", "GPU 1"}


def test_a_fit_for_a_gpu_is_measured_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("peft=full", "n_objects=2", "train.patch_shape=[64,64]", "train.n_sub_iterations=1")
    command = ["fit", "resource=gtx1080", *TINY, *small, "--engine", "refsam", "--max-objects", "2", "--json"]
    assert cli.main(command) == 0, capsys.readouterr().err
    (row,) = json.loads(capsys.readouterr().out)
    (fit,) = FitsFolder(tmp_path / "runs" / "fits").read_fits()
    assert fit.refsam is not None
    assert row["refsam_largest"] == fit.refsam.n_objects == 2
    measured = FitsFolder(tmp_path / "runs" / "fits").read_measurements()
    assert {(each.setup.device, each.outcome, each.precision) for each in measured} == {
        ("cuda", StepOutcome.fits, "float32")
    }
    assert all(each.limited_by == "cuda" and each.peak_gib < each.limit_gib < 8 for each in measured)
