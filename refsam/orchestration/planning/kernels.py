"""Whether the PyTorch that jobs will import has kernels for a resource's GPU, found without importing it."""

import importlib.util
import re
from pathlib import Path

from refsam.configuration.schema import ResourceConfig

# The oldest GPU's compute capability that PyTorch's wheels have kernels for, from a version of CUDA on.
# PyTorch issues 157517 (CUDA 12.8 drops Maxwell and Pascal), 172352 and 190385 (Volta).
OLDEST = (((13, 0), 7.5), ((12, 8), 7.0), ((0, 0), 5.0))
NO_VOLTA_FROM = (2, 11)  # of PyTorch, where it is built for CUDA 12.8 or later


def kernels_problem(resource: ResourceConfig) -> str | None:
    """One sentence where this PyTorch cannot compute on the resource's GPU.

    None where it can, or where its version or the GPU's capability is not known.
    """
    if resource.request.gpus == 0 or resource.device == "cpu":
        return None
    installed = _installed()
    if installed is None:
        return None
    version, cuda = installed
    if cuda is None:
        lacking = (
            f"resource.name={resource.name}: its runs ask for a GPU, and PyTorch {version} is for CPUs only"
        )
        return f"{lacking}; install one for CUDA, see docs/gpu.md"
    capability, oldest = resource.compute_capability, oldest_gpu(version, cuda)
    if capability is None or capability >= oldest:
        return None
    return (
        f"resource.compute_capability: {resource.name} has {capability}, and PyTorch {version} (CUDA {cuda}) "
        f"has kernels for {oldest} and later; `pip install --constraint constraints-cuda12.txt torch "
        "torchvision` in a checkout of refsam installs one that has them, see docs/gpu.md"
    )


def oldest_gpu(version: str, cuda: str) -> float:
    """The compute capability of the oldest GPU that a wheel of PyTorch has kernels for."""
    found = _numbers(cuda)
    oldest = next(capability for first, capability in OLDEST if found >= first)
    return max(oldest, 7.5) if found >= (12, 8) and _numbers(version) >= NO_VOLTA_FROM else oldest


def _installed() -> tuple[str, str | None] | None:
    """The installed PyTorch's version, and its CUDA's, from its version.py; None where it does not say so."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).with_name("version.py")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    version = re.search(r"^__version__\s*=\s*'([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b[^=\n]*=\s*(?:'([0-9.]+)'|None)", text, re.MULTILINE)
    return (version[1], cuda[1]) if version and cuda else None


def _numbers(version: str) -> tuple[int, int]:
    major, minor = re.findall(r"[0-9]+", f"{version}.0")[:2]
    return int(major), int(minor)
