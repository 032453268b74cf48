"""Getting a model of the Hugging Face hub into the hub's cache, on a machine that may use the network."""

import re
from pathlib import Path

import huggingface_hub

from refsam.configuration.pinned import require_hash, revision, sha256
from refsam.configuration.schema import ModelConfig
from refsam.errors import ConfigError
from refsam.models.hub_cache import CONFIGURATION, WEIGHTS, require_model

INDEX = ".index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def download(model: ModelConfig) -> Path:
    """Fetch configuration and weights of `model.hub_id`, and nothing else; returns their folder in the cache.

    Raises:
        ConfigError: when the hub cannot be reached, or has no such model, another kind, or other files.
    """
    hub_id = str(model.hub_id)
    try:
        commit = revision(hub_id)
        present = huggingface_hub.list_repo_files(hub_id, revision=commit)
        folder = huggingface_hub.snapshot_download(hub_id, revision=commit, allow_patterns=wanted(present))
    # The hub's library hands on the errors of whichever HTTP library it uses, which have no kind in common.
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(
            f"model.hub_id: {hub_id} could not be fetched from the Hugging Face hub ({type(error).__name__}"
            f"{': ' + lines[0] if lines else ''}); on a machine with internet, run the same command"
        ) from error
    require_model(Path(folder))
    _check_files(Path(folder))
    return Path(folder)


def _check_files(folder: Path) -> None:
    """Raises ConfigError where a file of the hub's cache is not the one that the hub has named.

    The cache keeps large files under their SHA-256, and links to them from the folder of the commit.
    """
    for path in folder.iterdir():
        named = path.resolve().name
        if _SHA256.fullmatch(named):
            require_hash(str(path), sha256(path), named)


def wanted(present: list[str]) -> list[str]:
    """The files that transformers will load out of a repository's: one form of the weights, not every one."""
    kept = [CONFIGURATION, "preprocessor_config.json"]
    form = next((name for name in WEIGHTS if name in present), None)
    if form is None:
        return kept
    if not form.endswith(INDEX):
        return [*kept, form]
    stem, suffix = form.removesuffix(INDEX).split(".")
    return [*kept, form, f"{stem}-*.{suffix}"]
