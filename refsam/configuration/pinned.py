"""The exact versions of what is fetched (pinned.yaml), and whether a file is the one that it should be."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from refsam.errors import ConfigError
from refsam.system.files import read_yaml


def revision(hub_id: str) -> str | None:
    """The commit of a repository of the Hugging Face hub that is used; None where any is."""
    commit: str | None = _pinned()["hub"].get(hub_id)
    return commit


def check_file(path: Path) -> str:
    """The SHA-256 of a file that was fetched, with its kind before it.

    Raises:
        ConfigError: when a file of this name is pinned with another one.
    """
    found = sha256(path)
    require_hash(path.name, found, _pinned()["files"].get(path.name, found))
    return f"sha256:{found}"


def require_hash(name: str, found: str, expected: str) -> None:
    """Raises ConfigError where a file that was fetched is not the one that was asked for."""
    if found != expected:
        raise ConfigError(f"{name} must have the hash {expected}, got {found}; remove it and fetch it again")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _pinned() -> Any:
    return read_yaml(Path(__file__).with_name("pinned.yaml"))
