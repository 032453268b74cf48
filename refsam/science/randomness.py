"""Seeds derived by purpose, so that no part's randomness depends on what ran before it."""

import hashlib
import os
import random

import numpy as np
import torch


def derived_seed(seed: int, purpose: str) -> int:
    """A seed in 0 … 2³²-1 for one purpose of a run, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:4], "big")


def seed_everything(seed: int, purpose: str) -> None:
    """Seed Python's, numpy's and torch's generators, those of all GPUs included."""
    value = derived_seed(seed, purpose)
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def be_deterministic() -> None:
    """Choose deterministic kernels; where torch has none, it warns and takes the other."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # That would fill every new tensor with NaN before it is written, which costs a pass over all memory and
    # helps only to find reads of what was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # float32 is float32 on every GPU; convolutions would take 10 bits of mantissa since Ampere (TF32).
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def let_kernels_be_fast(device: torch.device) -> None:
    """Take any kernel on a GPU: for an evaluation, whose results are thresholded masks, and micro-sam's step.

    The deterministic bilinear resizing is a slow decomposition that holds seven times the enlarged masks. Our
    step needs none (engine/masks.py). micro-sam's asks for no deterministic kernels, with which it would be
    measured slower than it is.
    """
    if device.type == "cuda":
        torch.use_deterministic_algorithms(False)
