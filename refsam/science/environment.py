"""environment.json: with what a run was made, so that its numbers can be understood years later."""

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import refsam
from refsam.configuration.schema import Kind, Precision, RefsamConfig
from refsam.datasets.source import read_source
from refsam.science.hardware import choose_precision, describe
from refsam.science.models import weights_info
from refsam.system.files import read_json

MODULES = (
    *("torch", "micro_sam", "torch_em", "segment_anything", "mobile_sam"),
    *("transformers", "peft", "bitsandbytes", "elf", "pycocotools", "numpy"),
)
GIT = shutil.which("git")


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
        **_commit(),
        **describe(device),
        "weights": {"source": weights.source, "hash": weights.hash},
        "data": read_source(Path(config.dataset.root)),
        "precision": precision.value,
    }


def _versions() -> dict[str, str]:
    """Versions by module; a module that is not installed is left out."""
    distributions = importlib.metadata.packages_distributions()
    versions = {"python": platform.python_version(), "refsam": refsam.__version__}
    for module in MODULES:
        if module in distributions:
            versions[module] = importlib.metadata.version(distributions[module][0])
    return versions


def _commit() -> dict[str, Any]:
    """The commit of the source tree that refsam runs from, and whether it was changed; None without git."""
    tree = Path(refsam.__file__).resolve().parents[1]
    if (tree / "commit.json").exists():  # a snapshot of the source tree
        known: dict[str, Any] = read_json(tree / "commit.json")
        return known
    commit = _git(tree, "rev-parse", "HEAD") if (tree / ".git").exists() else None
    if commit is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_git(tree, "status", "--porcelain"))}


def _git(tree: Path, *arguments: str) -> str | None:
    """Output of a git command; None where there is no git, or nothing that it could tell."""
    if GIT is None:
        return None
    try:
        done = subprocess.run(
            (GIT, "-C", str(tree), *arguments), capture_output=True, text=True, check=False, timeout=30
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
