"""A run and a GPU that is not there: torch's own Python runs, what touches the driver is replaced."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_runs import small_config

from refsam.configuration.schema import DatasetConfig, Precision
from refsam.errors import ConfigError
from refsam.science import fit
from refsam.science.engine.setup import memory_gib
from refsam.science.hardware import GIB, choose_device, choose_precision, describe, is_out_of_memory
from refsam.science.randomness import be_deterministic, let_kernels_be_fast

GpuOf = Callable[[tuple[int, int]], None]


@pytest.fixture
def gpu_of(monkeypatch: pytest.MonkeyPatch) -> GpuOf:
    """Put a GPU of 8 GiB with a compute capability into the machine."""

    def put(capability: tuple[int, int]) -> None:
        major, minor = capability
        properties = SimpleNamespace(name="A GPU", major=major, minor=minor, total_memory=8 * GIB)
        fraction = [1.0]
        for module in (torch.cuda, torch.cuda.memory):
            monkeypatch.setattr(module, "_lazy_init", lambda: None)
        monkeypatch.setattr(torch.cuda, "_get_device_properties", lambda index: properties, raising=False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch._C, "_cuda_getMemoryFraction", lambda index: fraction[index])
        monkeypatch.setattr(
            torch._C, "_cuda_setMemoryFraction", lambda share, index: fraction.__setitem__(index, share)
        )

    return put


def test_the_memory_of_a_gpu_is_read_and_limited(gpu_of: GpuOf, synthetic: DatasetConfig) -> None:
    gpu_of((8, 0))
    config = small_config(synthetic, "resource.device=cuda")
    device = choose_device(config)
    assert memory_gib(config, device) == 8
    fit.limit_gpu(2.0, device)
    assert memory_gib(config, device) == 2
    assert (describe(device)["device"], describe(device)["gpu"]) == ("cuda", "A GPU")


def test_a_gpu_without_kernels_is_refused_before_anything_is_loaded(
    gpu_of: GpuOf, synthetic: DatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: "sm_75 sm_80 sm_86 sm_90 compute_90")
    config = small_config(synthetic, "resource.device=auto")
    for capability in ((7, 5), (8, 0), (8, 9), (9, 0), (12, 0)):
        gpu_of(capability)
        assert choose_device(config).type == "cuda"
    for capability in ((6, 1), (7, 0)):
        gpu_of(capability)
        named = (
            rf"has compute capability {capability[0]}\.{capability[1]}, and PyTorch .* was built for sm_75"
        )
        with pytest.raises(ConfigError, match=named):
            choose_device(config)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((6, 1), "float32"), ((7, 0), "float32"), ((7, 5), "float32"), ((8, 0), "bfloat16")],
)
def test_precision_on_a_gpu_follows_its_generation(
    gpu_of: GpuOf, capability: tuple[int, int], expected: str
) -> None:
    gpu_of(capability)
    assert choose_precision(Precision.auto, torch.device("cuda", 0)) == expected
    assert choose_precision(Precision.mixed, torch.device("cuda", 0)) == "float16"


def test_a_gpu_that_is_not_here_is_refused_unless_that_is_said(
    monkeypatch: pytest.MonkeyPatch, synthetic: DatasetConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = small_config(synthetic, "resource.device=cuda")
    with pytest.raises(ConfigError, match=r"resource\.device=cuda"):
        choose_device(config)
    config.cluster.explicit = True
    assert choose_device(config) == torch.device("cpu")
    assert "the run takes the CPU" in capsys.readouterr().err


def test_a_gpu_that_only_nvidia_smi_sees_is_named_with_its_driver(
    monkeypatch: pytest.MonkeyPatch, synthetic: DatasetConfig, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla V100-SXM2-32GB, 470.57.02'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"V100-SXM2-32GB with driver 470\.57\.02: it needs one for CUDA"):
        choose_device(small_config(synthetic, "resource.device=cuda"))


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "GET was unable to find an engine to execute this computation",
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":1131',
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_every_way_of_a_gpu_to_say_that_memory_is_short_is_understood(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


def test_other_errors_of_a_gpu_are_not_taken_for_short_memory() -> None:
    for message in (
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
    ):
        assert not is_out_of_memory(RuntimeError(message))
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))


def test_only_the_evaluation_on_a_gpu_takes_kernels_that_are_not_deterministic() -> None:
    be_deterministic()
    let_kernels_be_fast(torch.device("cpu"))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    let_kernels_be_fast(torch.device("cuda", 0))
    assert not torch.are_deterministic_algorithms_enabled()
    be_deterministic()
