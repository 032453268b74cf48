"""Where the folders that refsam ships are: inside the installed package, or at the top of a source tree."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def folder(name: str) -> Path:
    """The folder `conf`, `sweeps`, `slurm_templates` or `fits`. A wheel carries them as refsam/<name>."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
