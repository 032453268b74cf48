"""The commit of the source tree that refsam runs from."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from refsam.system.files import read_json

COMMIT = "commit.json"  # in a snapshot of the source tree: the commit of what it was made of
GIT = shutil.which("git")


def source_commit() -> dict[str, Any]:
    """The commit, and whether the tree was changed; None where it is no checkout, or git does not tell."""
    tree = Path(__file__).resolve().parents[2]
    if (tree / COMMIT).exists():
        known: dict[str, Any] = read_json(tree / COMMIT)
        return known
    commit = _git(tree, "rev-parse", "HEAD") if (tree / ".git").exists() else None
    if commit is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_git(tree, "status", "--porcelain"))}


def _git(tree: Path, *arguments: str) -> str | None:
    """Output of a git command; None where there is no git, or nothing that it could tell."""
    if GIT is None:
        return None
    command = (GIT, "-C", str(tree), *arguments)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
