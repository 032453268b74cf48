"""environment.json: with what a run was made, so that its numbers can be understood years later."""

import functools
import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import refsam
from refsam.configuration.schema import Kind, Precision, RefsamConfig
from refsam.datasets.source import read_source
from refsam.science.hardware import choose_precision, describe
from refsam.science.models import weights_info
from refsam.system.commit import source_commit

MODULES = (
    *("torch", "micro_sam", "torch_em", "segment_anything", "mobile_sam"),
    *("transformers", "peft", "bitsandbytes", "elf", "pycocotools", "numpy"),
)
# Distributions that are not named as their module.
DISTRIBUTIONS = {
    "segment_anything": "segment-anything-py",
    "mobile_sam": "mobilesam-mirror",
    "elf": "python-elf",
}


def describe_environment(config: RefsamConfig, device: torch.device) -> dict[str, Any]:
    """Versions, commit, hardware, weights and arithmetic of a run on `device`.

    Raises:
        ConfigError: when the weights are not there.
    """
    is_baseline = config.kind is Kind.baseline  # evaluation is in float32
    precision = Precision.float32 if is_baseline else choose_precision(config.train.precision, device)
    weights = weights_info(config.model, config.seed)
    return {
        "versions": _versions(),
        **source_commit(),
        **describe(device),
        "weights": {"source": weights.source, "hash": weights.hash},
        "data": read_source(Path(config.dataset.root)),
        "precision": precision.value,
    }


def _versions() -> dict[str, str]:
    """Versions by module; a module that is not installed is left out."""
    versions = {"python": platform.python_version(), "refsam": refsam.__version__}
    for module in MODULES:
        version = _version(module)
        if version is not None:
            versions[module] = version
    return versions


def _version(module: str) -> str | None:
    """The version of the distribution that a module is of; None where none is installed that has it."""
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        if importlib.util.find_spec(module) is None:
            return None
    names = _distributions().get(module)
    return importlib.metadata.version(names[0]) if names else None


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """By module. Reads the list of files of all that is installed, which takes seconds."""
    return importlib.metadata.packages_distributions()
