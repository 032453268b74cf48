"""The paths in a configuration, absolute: jobs run in other folders than the person who asked for them."""

import unicodedata
from dataclasses import replace
from pathlib import Path

from refsam.configuration.schema import RefsamConfig
from refsam.errors import ConfigError, os_reason

# Line breaks end a line of a job script, and what is no text (surrogates) cannot be written into a record.
_UNUSABLE = ("Cc", "Cs", "Zl", "Zp")


def with_absolute_paths(config: RefsamConfig) -> RefsamConfig:
    """The same configuration with `runs`, `data`, `dataset.root` and a path in `model.weights` made absolute.

    Raises ConfigError for what can be no path, or cannot be looked at. That nothing is there is no error
    here.
    """
    weights = config.model.weights
    if weights not in ("pretrained", "random"):
        weights = absolute_path("model.weights", weights)
    return replace(
        config,
        runs=absolute_path("runs", config.runs),
        data=absolute_path("data", config.data),
        dataset=replace(config.dataset, root=absolute_path("dataset.root", config.dataset.root)),
        model=replace(config.model, weights=weights),
    )


def absolute_path(field: str, given: str) -> str:
    """`given` with ~ expanded, from the present folder. Raises ConfigError that names `field`."""
    if not given or any(unicodedata.category(character) in _UNUSABLE for character in given):
        raise ConfigError(
            f"{field} must be a path of printable characters without line breaks, got {given!a}"
        )
    try:
        path = Path(given).expanduser().absolute()
    except RuntimeError as error:  # how pathlib says that there is no such user
        raise ConfigError(
            f"{field}={given}, but the home folder that it begins with is not known; expected the whole path"
        ) from error
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # whoever needs it says what is missing
    except OSError as error:
        raise ConfigError(
            f"{field}={path}, but it cannot be looked at ({os_reason(error)}); expected a path "
            "that you can read"
        ) from error
    return str(path)
