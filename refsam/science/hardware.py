"""The machine that a run has: device, arithmetic, memory, and what environment.json says about it."""

import os
import platform
import re
import resource
from pathlib import Path
from typing import Any

import psutil
import torch

from refsam.configuration.schema import Precision, RefsamConfig
from refsam.errors import BadInput

GIB = 2**30
CPU_INFORMATION = Path("/proc/cpuinfo")
# Without these, bfloat16 is emulated: a 2048³ matrix product at 0.34 instead of 128 GFLOP/s in float32.
BFLOAT16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}
# What torch's allocators for main memory say, in a plain RuntimeError.
ALLOCATION_FAILURES = ("not enough memory", "can't allocate memory", "Cannot allocate memory")


def choose_device(config: RefsamConfig) -> torch.device:
    """The device of a run: the resource's, or for `auto` the GPU where there is one.

    Raises:
        BadInput: when the resource's device is not here and the cluster does not say that it may be missing.
    """
    wanted = config.resource.device
    available = torch.cuda.is_available()
    if wanted == "auto":
        return torch.device("cuda" if available else "cpu")
    if wanted == "cpu" or available:
        return torch.device(wanted)
    if config.cluster.explicit:
        return torch.device("cpu")
    raise BadInput(f"resource.device={wanted} is not on {platform.node()}, allowed here: cpu, auto")


def choose_precision(requested: Precision, device: torch.device) -> Precision:
    """The arithmetic of the training step; `auto` takes the fastest that the hardware really has.

    float32 on CPUs without bfloat16 instructions; bfloat16 on GPUs since Ampere, float16 on Volta and Turing,
    float32 before (on Pascal, float16 runs at 1/64 of float32's rate).
    """
    if requested != Precision.auto:
        return requested
    if device.type == "cpu":
        return Precision.bfloat16 if BFLOAT16_INSTRUCTIONS & _cpu_flags() else Precision.float32
    major, _ = torch.cuda.get_device_capability(device)
    if major >= 8:
        return Precision.bfloat16
    return Precision.float16 if major == 7 else Precision.float32


def resident_memory(device: torch.device) -> float:
    """Memory that this process holds now, in GiB: allocated on the GPU, or resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / GIB
    return float(psutil.Process().memory_info().rss) / GIB


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has held, in GiB, on the GPU or in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * 1024 / GIB


def describe(device: torch.device) -> dict[str, Any]:
    """Host, processor and GPU by name and size. Memory in GiB."""
    description: dict[str, Any] = {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "gpu": None,
        "gpu_memory_gib": None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        description |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / GIB, 1)}
    return description


def processor_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU with its number of threads: what decides how sums are rounded."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()}, {torch.get_num_threads()} threads"


def _cpu_flags() -> set[str]:
    return set(_cpu_field("flags").split())


def _cpu_model() -> str:
    return _cpu_field("model name") or platform.processor() or platform.machine()


def _cpu_field(name: str) -> str:
    """A field of /proc/cpuinfo; empty where there is no such file (macOS) or field (ARM)."""
    if not CPU_INFORMATION.exists():
        return ""
    found = re.search(rf"^{name}\s*:\s*(.+)$", CPU_INFORMATION.read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1).strip() if found else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused memory; the kernel, which kills, is not heard here."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATION_FAILURES)
