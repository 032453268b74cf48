"""Whether micro-sam has downloaded the weights of a model already. Fetches nothing itself."""

import os
from pathlib import Path

import platformdirs

from refsam.models.families import MICRO_SAM_SHAPES


def weights_path(name: str) -> Path:
    """Where micro-sam keeps the weights called `name` (its `util.models`), whether they are there or not.

    `<folder>/models/<name>`, where the folder is MICROSAM_CACHEDIR, or pooch's cache folder of the user if
    that is unset or empty.
    """
    # platformdirs is what pooch asks too; importing pooch itself would cost a prompt 0.2 s.
    folder = os.environ.get("MICROSAM_CACHEDIR") or platformdirs.user_cache_dir("micro_sam")
    return Path(folder).expanduser() / "models" / name


def published_files(model: str) -> tuple[str, ...]:
    """The names in micro-sam's registry of all weights that belong to the model called `model`.

    What micro-sam has finetuned (`vit_b_lm`, not `vit_b`) has a segmentation decoder, in a second file.
    """
    return (model,) if model in MICRO_SAM_SHAPES else (model, f"{model}_decoder")


def weights_present(model: str) -> bool:
    """Whether a job on a node without internet will find all weights of the model called `model`."""
    try:
        return all(weights_path(name).is_file() for name in published_files(model))
    except PermissionError:
        return False  # a job would not be allowed to look there either


def missing_weights(model: str) -> str:
    """The sentence about weights that are not present."""
    return (
        f"model.weights: the pretrained weights of {model} are not in micro-sam's cache; fetch them "
        f"with: refsam prepare model={model}"
    )
