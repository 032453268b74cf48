"""Whether micro-sam has downloaded the weights of a model already. Fetches nothing itself."""

import os
from pathlib import Path

import platformdirs


def weights_path(name: str) -> Path:
    """Where micro-sam keeps the weights called `name` (its `util.models`), whether they are there or not.

    `<folder>/models/<name>`, where the folder is MICROSAM_CACHEDIR, or pooch's cache folder of the user if
    that is unset or empty.
    """
    # platformdirs is what pooch asks too; importing pooch itself would cost a prompt 0.2 s.
    folder = os.environ.get("MICROSAM_CACHEDIR") or platformdirs.user_cache_dir("micro_sam")
    return Path(folder).expanduser() / "models" / name


def weights_present(name: str) -> bool:
    """Whether a job on a node without internet will find the weights called `name`."""
    try:
        return weights_path(name).is_file()
    except PermissionError:
        return False  # a job would not be allowed to look there either
