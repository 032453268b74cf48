"""What measures each kind of row, in a worker: a function of the scale and the row's arguments.

Each returns lines, dictionaries whose keys are the columns of the page. Memory is in GiB, times in seconds.
"""

import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.blocks import arithmetic, kernels
from benchmarks.gpu.configurations import config_of
from benchmarks.gpu.memory import allocator, forecast, ladder, messages
from benchmarks.gpu.page import Line
from benchmarks.gpu.rows import Scale
from benchmarks.gpu.runs import epoch, evaluation
from benchmarks.gpu.steps import gradients, steps, waits
from refsam.configuration.schema import Precision
from refsam.science.environment import describe_environment
from refsam.science.hardware import choose_device, choose_precision
from refsam.science.randomness import be_deterministic


def gpu_of(scale: Scale) -> torch.device:
    """The GPU. Raises ConfigError where there is none that PyTorch can use."""
    return choose_device(config_of(scale))


def environment(scale: Scale) -> list[Line]:
    """Versions, the GPU, its driver, and what PyTorch is set to, one line each."""
    be_deterministic()
    device = gpu_of(scale)
    known = describe_environment(config_of(scale), device)
    driver = ""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        driver = answer.stdout.strip() if answer.returncode == 0 else ""
    values: dict[str, Any] = {
        **{
            name: known[name]
            for name in (
                "gpu",
                "gpu_memory_gib",
                "gpu_allocator",
                "cpu",
                "cores",
                "memory_gib",
                "commit",
                "dirty",
            )
        },
        "compute capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "driver": driver,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "built for": ", ".join(torch.cuda.get_arch_list()),
        "train.precision=auto": choose_precision(Precision.auto, device).value,
        "deterministic kernels": torch.are_deterministic_algorithms_enabled(),
        "TF32 in products": torch.backends.cuda.matmul.allow_tf32,
        "TF32 in convolutions": torch.backends.cudnn.allow_tf32,
        **known["versions"],
    }
    return [{"what": name, "value": value} for name, value in values.items()]


MEASUREMENTS: dict[str, Callable[..., list[Line]]] = {
    each.__name__: each
    for each in (
        *(environment, arithmetic, kernels, gradients, steps),
        *(epoch, waits, ladder, forecast, evaluation, allocator, messages),
    )
}
