"""Downloads through micro-sam and torch-em, for machines that may use the network. Jobs do not call this."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import pooch

from refsam.configuration.pinned import require_hash
from refsam.errors import ConfigError
from refsam.models.weights_cache import published_files, weights_path


def fetch_covid_if(root: Path) -> tuple[str, str]:
    """Download Covid-IF's 49 HDF5 files into `root`, which may be an empty folder.

    Returns:
        The name of the archive, and its hash, which torch-em checks.

    Raises:
        ConfigError: when the download fails.
    """
    from torch_em.data.datasets.light_microscopy.covid_if import CHECKSUM, COVID_IF_URL, get_covid_if_data

    if root.is_dir():
        root.rmdir()  # torch-em takes a folder that exists for the data
    _fetch(
        partial(get_covid_if_data, root, download=True),
        "Covid-IF could not be downloaded",
        "on a machine with internet, run: refsam prepare dataset=covid_if",
    )
    return COVID_IF_URL.partition("?")[0].rpartition("/")[2], f"sha256:{CHECKSUM}"


def fetch_weights(model_name: str) -> Path:
    """Download the weights `model_name` of micro-sam's registry, with the decoder where there is one.

    Returns the path of the model's weights in micro-sam's cache.

    Raises:
        ConfigError: when the registry has no such model, or the download fails.
    """
    from refsam.science.micro_sam import util

    registry = util.models()
    encoders = sorted(name for name in registry.registry if not name.endswith("_decoder"))
    if model_name not in encoders:
        raise ConfigError(
            f"model.name {model_name!r} has no published weights; expected {', '.join(encoders)}"
        )
    for name in published_files(model_name):
        require_published(registry, name)
        _fetch(
            partial(registry.fetch, name, progressbar=True),
            f"the weights {name} could not be downloaded",
            f"on a machine with internet, run: refsam prepare model={model_name}",
        )
    return weights_path(model_name)


def require_published(registry: pooch.Pooch, name: str) -> None:
    """Raises ConfigError where micro-sam's cache has another file than its registry under the name of
    weights.

    pooch would fetch it again without a word.
    """
    path, expected = weights_path(name), registry.registry[name]
    if path.is_file():
        kind, _, _ = expected.rpartition(":")
        found = pooch.file_hash(str(path), alg=kind or "sha256")
        require_hash(str(path), f"{kind}:{found}" if kind else found, expected)


def _fetch(download: Callable[[], object], failure: str, remedy: str) -> None:
    """Run a download; its errors become one sentence, in which the address stays out."""
    from urllib3.exceptions import HTTPError

    # requests raises OSErrors, urllib3 its own; ValueError and RuntimeError are pooch's and torch-em's bad
    # checksums.
    try:
        download()
    except (OSError, HTTPError, ValueError, RuntimeError, BadZipFile) as error:
        differs = any(word in str(error) for word in ("hash", "checksum"))
        reason = "the downloaded file has another hash" if differs else type(error).__name__
        raise ConfigError(f"{failure} ({reason}); {remedy}") from error
