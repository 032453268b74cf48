"""The machine that a run has: device, arithmetic, memory, and what environment.json says about it."""

import gc
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from refsam.configuration.schema import Precision, RefsamConfig
from refsam.errors import ConfigError
from refsam.system.cgroups import kernel_text

GIB = 2**30
CPU_INFORMATION = Path("/proc/cpuinfo")
OWN_STATUS = Path("/proc/self/status")
# Without these, bfloat16 is emulated: a 2048³ matrix product at 0.34 instead of 128 GFLOP/s in float32.
BFLOAT16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}
# How PyTorch's allocator of GPU memory is told to work; the second is the name before PyTorch 2.9.
ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
# What is said where memory is short, in a plain RuntimeError or a kind of it: by torch's allocators of main
# memory, CUDA's runtime (torch.AcceleratorError, bitsandbytes), cuBLAS, cuDNN (which then finds no engine for
# a convolution), and torch's allocator where NVML does not know the device, such as a part of one (MIG).
ALLOCATION_FAILURES = (
    *("not enough memory", "can't allocate memory", "Cannot allocate memory", "out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED"),
    "unable to find an engine to execute this computation",
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
)


def choose_device(config: RefsamConfig) -> torch.device:
    """The device of a run: the resource's, or for `auto` the GPU where there is one.

    A GPU has its index, which some functions of torch.cuda ask for: 0, the first that the process may see.

    Raises:
        ConfigError: when the resource's device is not here and the cluster does not say that it may be
            missing, and for a GPU that this PyTorch has no kernels for.
    """
    wanted = config.resource.device
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", 0)
        _check_kernels(device)
        return device
    why = f"PyTorch {torch.__version__} finds no GPU on {platform.node()}{_unusable_gpus()}"
    if wanted == "auto" or config.cluster.explicit:
        print(f"resource.device={wanted}: {why}; the run takes the CPU", file=sys.stderr)
        return torch.device("cpu")
    raise ConfigError(f"resource.device={wanted}: {why}; allowed here are cpu and auto")


def _check_kernels(device: torch.device) -> None:
    """Refuse a GPU that this build of PyTorch has no binaries for, before it fails at its first kernel.

    Binaries run on GPUs of the same major version that are not older; `compute_` is code that the driver
    compiles for newer ones (CUDA C++ Programming Guide, "Application Compatibility").
    """
    major, minor = torch.cuda.get_device_capability(device)
    built_for = torch.cuda.get_arch_list()
    for name in built_for:
        kind, _, digits = name.partition("_")
        number = int(re.match(r"[0-9]+", digits)[0])  # type: ignore[index]
        binary = kind == "sm" and number // 10 == major and number % 10 <= minor
        if binary or (kind == "compute" and number <= 10 * major + minor):
            return
    raise ConfigError(
        f"resource.device: {torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and "
        f"PyTorch {torch.__version__} was built for {', '.join(built_for)}; install one that has kernels for "
        "it, see docs/gpu.md"
    )


def _unusable_gpus() -> str:
    """What nvidia-smi lists all the same, with the driver's version; empty where it lists nothing."""
    command = shutil.which("nvidia-smi")
    if command is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ""
    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f", and nvidia-smi does not answer ({type(error).__name__})"
    if answer.returncode != 0 or not answer.stdout.strip():
        return ""
    name, _, driver = answer.stdout.splitlines()[0].partition(", ")
    return (
        f", though nvidia-smi lists {name} with driver {driver}: it needs one for CUDA {torch.version.cuda}"
    )


def choose_precision(requested: Precision, device: torch.device) -> Precision:
    """The arithmetic of the training step; `auto` takes the fastest that the hardware really has.

    float32 on CPUs without bfloat16 instructions; bfloat16 on GPUs since Ampere, float32 before: float16
    overflows in the decoder's convolutions on GPUs that sum in it (micro-sam issues 1234, 1336). `mixed` is
    float16 on GPUs and bfloat16 on CPUs, whatever they are fast at.
    """
    if requested == Precision.mixed:  # torch-em's DefaultTrainer
        return Precision.bfloat16 if device.type == "cpu" else Precision.float16
    if requested != Precision.auto:
        return requested
    if device.type == "cpu":
        flags = set(_cpu_field("flags").split())
        return Precision.bfloat16 if BFLOAT16_INSTRUCTIONS & flags else Precision.float32
    major, _ = torch.cuda.get_device_capability(device)
    return Precision.bfloat16 if major >= 8 else Precision.float32


def resident_memory(device: torch.device) -> float:
    """Memory that this process holds now, in GiB: allocated on the GPU, or resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / GIB
    return float(psutil.Process().memory_info().rss) / GIB


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has held, in GiB, on the GPU or in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    # On Linux ru_maxrss begins with what the process was before exec, a fork of its parent.
    found = re.search(r"^VmHWM:\s*([0-9]+) kB$", kernel_text(OWN_STATUS), re.MULTILINE)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if found is None else int(found[1])
    return peak_kib * 1024 / GIB


def release_memory(device: torch.device) -> None:
    """Give back what nobody uses any more: a training's model, optimizer and trainer refer to one another.

    Other libraries (cuDNN, bitsandbytes) find no room in what torch's allocator only keeps.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def describe(device: torch.device) -> dict[str, Any]:
    """Host, processor and GPU by name and size, and how its memory is handed out. Memory in GiB."""
    description: dict[str, Any] = {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "gpu": None,
        "gpu_memory_gib": None,
        "gpu_allocator": None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        description |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / GIB, 1)}
        settings = (os.environ.get(name) for name in ALLOCATOR_SETTINGS)
        description["gpu_allocator"] = next(filter(None, settings), "default")
    return description


def processor_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU with its number of threads: what decides how sums are rounded."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()}, {torch.get_num_threads()} threads"


def _cpu_model() -> str:
    return _cpu_field("model name") or platform.processor() or platform.machine()


def _cpu_field(name: str) -> str:
    """A field of /proc/cpuinfo; empty where there is no such file (macOS) or field (ARM)."""
    found = re.search(rf"^{name}\s*:\s*(.+)$", kernel_text(CPU_INFORMATION), re.MULTILINE)
    return found.group(1).strip() if found else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused memory; the kernel, which kills, is not heard here."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATION_FAILURES)
