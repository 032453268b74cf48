"""Whether the PyTorch that is installed can compute on a GPU, before anything is submitted."""

import subprocess
import sys

import pytest

from refsam.configuration.compose import compose
from refsam.orchestration.planning import kernels
from refsam.orchestration.planning.kernels import kernels_problem, oldest_gpu


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
    assert "torch==2.7.1" in said
    assert kernels_problem(resource("v100")) is not None
    assert kernels_problem(resource("rtx5000")) is None
    assert kernels_problem(resource("a100")) is None
    assert kernels_problem(resource("v100", "resource.compute_capability=null")) is None
    monkeypatch.setattr(kernels, "_installed", lambda: ("2.7.1", "12.6"))
    assert kernels_problem(resource("gtx1080")) is None


def test_a_pytorch_for_cpus_is_named_where_a_gpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(kernels, "_installed", lambda: ("2.15.0+cpu", None))
    assert "is for CPUs alone" in kernels_problem(resource("v100"))
    assert kernels_problem(resource("medium_8g")) is None
    assert kernels_problem(resource("local")) is None
