"""Whether the PyTorch that is installed can compute on a GPU, before anything is submitted."""

import subprocess
import sys
from pathlib import Path

import pytest

from refsam.configuration.compose import compose
from refsam.errors import ConfigError
from refsam.orchestration.planning import kernels, preflight
from refsam.orchestration.planning.kernels import kernels_problem, oldest_gpu
from refsam.records.paths import RunsFolder
from refsam.records.run import Run

ROOT = Path(__file__).parents[2]


def resource(name, *overrides):
    return compose([f"resource={name}", *overrides]).resource


def test_the_table_is_what_the_installed_pytorch_was_built_for():
    code = "import torch; print(torch.__version__, torch.version.cuda, torch._C._cuda_getArchFlags())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    version, cuda, *built_for = said.split()
    assert kernels._installed() == (version, cuda)
    oldest = min(int(name.removeprefix("sm_")) for name in built_for if name.startswith("sm_"))
    assert oldest_gpu(version, cuda) == oldest / 10


@pytest.mark.parametrize(
    ("version", "cuda", "oldest"),
    [
        ("2.7.1+cu126", "12.6", 5.0),
        ("2.7.1+cu128", "12.8", 7.0),
        ("2.11.0+cu129", "12.9", 7.5),
        ("2.15.0", "13.2", 7.5),
    ],
)
def test_older_wheels_have_kernels_for_older_gpus(version, cuda, oldest):
    assert oldest_gpu(version, cuda) == oldest


def test_a_gpu_without_kernels_is_named_with_what_has_them(monkeypatch):
    monkeypatch.setattr(kernels, "_installed", lambda: ("2.15.0", "13.2"))
    said = kernels_problem(resource("gtx1080"))
    assert "gtx1080 has 6.1" in said
    assert "kernels for 7.5 and later" in said
    assert "constraints-cuda12.txt" in said
    assert kernels_problem(resource("v100")) is not None
    assert kernels_problem(resource("rtx5000")) is None
    assert kernels_problem(resource("a100")) is None
    assert kernels_problem(resource("v100", "resource.compute_capability=null")) is None
    monkeypatch.setattr(kernels, "_installed", lambda: ("2.7.1", "12.6"))
    assert kernels_problem(resource("gtx1080")) is None


def test_a_pytorch_for_cpus_is_named_where_a_gpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(kernels, "_installed", lambda: ("2.15.0+cpu", None))
    assert "is for CPUs only" in kernels_problem(resource("v100"))
    assert kernels_problem(resource("medium_8g")) is None
    assert kernels_problem(resource("local")) is None


def test_the_environments_for_old_and_new_gpus_differ_in_pytorch_alone():
    of_pytorch = ("nvidia-", "cuda-", "torch==", "torchvision==", "triton==")
    pins = []
    for name in ("constraints.txt", "constraints-cuda12.txt"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        pins.append({line for line in lines if not line.startswith(("#", *of_pytorch))})
    assert pins[0] == pins[1]
    assert "torch==2.7.1" in lines


@pytest.mark.parametrize("script_only", [False, True])
def test_a_plan_for_a_gpu_without_kernels_is_refused_unless_scripts_are_carried_away(
    script_only, tmp_path, monkeypatch
):
    monkeypatch.setattr(kernels, "_installed", lambda: ("2.15.0", "13.2"))
    monkeypatch.setattr(preflight, "_request_problems", lambda *given: ([], []))
    monkeypatch.setattr(preflight.shutil, "which", lambda name: f"/usr/bin/{name}")
    folder = RunsFolder(tmp_path)

    def found(*overrides):
        config = compose(["model=vit_nano", "peft=full", *overrides])
        config.cluster.script_only = script_only
        run = Run("a", config, "a run")
        return preflight.preflight_of([run], folder, [], on_slurm=True, cluster=config.cluster)

    refused = found("resource=gtx1080")
    said = refused.notes if script_only else refused.problems
    assert [sentence for sentence in said if "gtx1080 has 6.1" in sentence]
    if not script_only:
        with pytest.raises(ConfigError, match="constraints-cuda12"):
            refused.check()
    found("resource=gtx1080", "resource.device=cpu").check()
    found("resource=rtx5000").check()
