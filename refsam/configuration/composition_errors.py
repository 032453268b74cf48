"""Hydra's and OmegaConf's errors as one sentence that names the field, what was given and what is allowed."""

import re

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from refsam.configuration.resources import folder
from refsam.configuration.schema import RefsamConfig
from refsam.errors import nearest

_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


def explain(error: BaseException) -> str | None:
    """One sentence for an error of composing a configuration; None for any other error."""
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, OverrideParseException):
        said = str(error.message).strip().splitlines()
        reason = said[1] if said[0].startswith("Error parsing override") else said[0]
        if reason.startswith("LexerNoViableAlt"):  # names no reason, only the place
            reason = "it has a character that is to stand in quotes, those of Hydra within those of the shell"
        return f"the override {error.override!r} cannot be read: {reason}"
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if isinstance(cause, OmegaConfBaseException):
        return _value(cause, _given(str(error)))
    if isinstance(error, HydraException):
        return _first_line(str(error))
    return None


def _missing_choice(error: MissingConfigException) -> str:
    name = error.missing_cfg_file or ""
    group, _, choice = (name if isinstance(name, str) else name[-1]).rpartition("/")
    if group:
        allowed = list(error.options or ())
        return f"{group}: {choice!r} is no choice{nearest(choice, allowed)}, allowed are {', '.join(allowed)}"
    allowed = ["config", *sorted(path.stem for path in folder("sweeps").glob("*.yaml"))]
    hint = nearest(choice, allowed)
    return f"--config-name: {choice!r} is no configuration{hint}, allowed are {', '.join(allowed)}"


def _given(message: str) -> tuple[str, str] | None:
    """The key and the value of the override that a message quotes."""
    match = re.search(r"(?:override |use \+?)([\w.@/]+)=(.*)", message)
    return (match[1], match[2]) if match else None


def _value(error: OmegaConfBaseException, given: tuple[str, str] | None) -> str:
    key = given[0] if given else str(error.full_key or "")
    value = f"{given[1]!r} was given" if given else _first_line(str(error))
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        parent, _, name = key.rpartition(".")
        fields = _fields(parent)
        return f"{key}: there is no such field{nearest(name, fields)}, allowed are {', '.join(fields)}"
    if isinstance(error, ValidationError):
        return f"{key}: {value}, allowed is {_allowed(str(error))}"
    return f"{key}: {value}"


def _allowed(message: str) -> str:
    """What a field takes, from OmegaConf's message about a value that it does not take."""
    if match := re.search(r"could not be converted to (\w+)", message):
        return _TYPES.get(match[1], match[1])
    if match := re.search(r"expected one of \[(.*)\]", message):
        return match[1].replace(", ", " or ")
    if "is not a ListConfig" in message:
        return "a list, as [a,b]"
    return _first_line(message)


def _fields(path: str) -> list[str]:
    """The names below a dotted path of the schema, and at its top the groups that set other fields."""
    config = OmegaConf.structured(RefsamConfig)
    node = OmegaConf.select(config, path) if path else config
    if node is None or not OmegaConf.is_dict(node):
        return []
    names = [str(name) for name in node]
    return names if path else [*names, "n_train_images"]


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason was given"
