"""Hydra's and OmegaConf's errors as one sentence that names the field, what was given and what is allowed."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

import yaml
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
from refsam.errors import ConfigError, nearest

_TYPES = {"Integer": "an integer", "Float": "a number", "Boolean": "true or false", "String": "text"}
SHOWN = 3  # fields that may be meant
# What OmegaConf says of a value that a field does not take, and what the field takes.
_SAID = (
    (r"not a valid bool", "true or false"),
    (r"Cannot convert '\w+' to string", "text"),
    (r"is not a ListConfig", "a list, as [a,b]"),
    (r"is not Optional", "a value other than null"),
    (r"Cannot assign \w+ to Dict|is not a subclass of|is not a DictConfig", "names with values, as {a: b}"),
)


def explain(error: BaseException) -> str | None:
    """One sentence for an error of composing a configuration; None for any other error."""
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, str(error.message))
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return _unreadable_file(error)
    if isinstance(error, ConfigCompositionException):
        cause, in_file = error.__cause__ or error.__context__, re.match(r"In '(.+?)'", str(error))
    else:
        cause, in_file = error, None
    if isinstance(cause, OmegaConfBaseException):
        sentence = _value(cause, _given(str(error)))
        return sentence if in_file is None else f"{in_file[1]}.yaml: {sentence}"
    if isinstance(error, HydraException):
        return _of_hydra(str(error))
    if isinstance(error, ValueError) and "Invalid defaults list" in str(error):
        return _first_line(str(error))
    if isinstance(error, ValueError) and "Config group override must be" in str(error):
        return "a config group was given no name; expected GROUP=CHOICE; --help lists the choices"
    return None


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raises ConfigError with that sentence for an error of composing a configuration; others as they are."""
    try:
        yield
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        raise ConfigError(sentence) from error


def choice_problem(group: str, value: object) -> str | None:
    """Why `value` is no choice of a config group, in one sentence; None where it may be one.

    Hydra takes a list for choices that are merged into one, which is not what anybody means here.
    """
    if isinstance(value, list):
        values = ",".join(map(str, value))
        return f"{group} must be one choice, got [{values}]; a sweep over several: -m {group}={values}"
    return None if isinstance(value, str) else f"{group} must be one of its choices, got {value}"


def _missing_choice(error: MissingConfigException) -> str:
    name = error.missing_cfg_file or ""
    group, _, choice = (name if isinstance(name, str) else name[-1]).rpartition("/")
    if group:
        allowed = sorted(
            error.options or (), key=lambda option: (len(option) if option.isdigit() else 0, option)
        )
        if not allowed:  # a file names it among its defaults
            return f"{group}: there is no {choice}.yaml, which the defaults of a configuration file name"
        hint = nearest(choice, allowed)
        return f"{group}: {choice!r} is not a valid choice{hint}; choose from {', '.join(allowed)}"
    allowed = ["config", *sorted(path.stem for path in folder("sweeps").glob("*.yaml"))]
    if not choice or choice in allowed:  # where Hydra was told to look, it is not
        return (
            f"--config-path: there is no {choice or 'config'}.yaml in what was given; expected a folder "
            "that has all of refsam's conf/; your own choices beside refsam's: --config-dir FOLDER"
        )
    hint = nearest(choice, allowed)
    return f"--config-name: {choice!r} is not a configuration{hint}; choose from {', '.join(allowed)}"


def _unreadable_file(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """A configuration file, of --config-dir or beside refsam's own, that is no YAML or no text."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        where = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}"
        return f"{where}: {getattr(error, 'problem', None) or 'the syntax is wrong'}; expected YAML"
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.name}: {_first_line(str(error))}; expected YAML"
    return f"{_opened_file(error)}: {error}; expected YAML in UTF-8"


def _opened_file(error: BaseException) -> str:
    """The file that was being read: an error of its encoding does not name it."""
    name, trace = "a configuration file", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_locals.get("f")
        name = str(getattr(file, "name", name))
        trace = trace.tb_next
    return name


def _unreadable(override: str, said: str) -> str:
    """An override that is not of Hydra's grammar. Of what its parser says only the words are for people."""
    evaluating = re.search(r"while evaluating .*", said)
    reason = f" ({evaluating[0]})" if evaluating else ""
    return (
        f"the override {override!r} cannot be read{reason}; expected KEY=VALUE, with commas between the "
        "values of a sweep, and with quotes inside of the shell's around what is more than letters, digits "
        "and /-+.:_: \"KEY='VALUE'\""
    )


def _of_hydra(said: str) -> str:
    if match := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", said):
        key, values = match[1], match[2].replace("'", "")
        if "list[" in str(_type_of(key)):
            return f"{key} must be a list, got {values}; write {key}=[{values}]"
        whole = f"; a comma in the value: \"{key}='{values}'\"" if _type_of(key) in (str, str | None) else ""
        return f"{key} must be one value without -m, got {values}; a sweep: -m {key}={values}{whole}"
    if match := re.search(r"Could not append to config. An item is already at '(.+?)'", said):
        return f"{match[1]}=+{match[1]}, but the field is there already; expected {match[1]}=…"
    if match := re.search(r"Could not delete from config. (?:The value of )?'(.+?)'", said):
        return f"{match[1]}=~{match[1]}, but there is no such field or it has another value"
    return _first_line(said)


def _given(message: str) -> tuple[str, str] | None:
    """The key and the value of the override that a message quotes."""
    match = re.search(r"(?:override |use \+?)([\w.@/]+)=(.*)", message)
    return (match[1], match[2]) if match else None


def _value(error: OmegaConfBaseException, given: tuple[str, str] | None) -> str:
    key = given[0] if given else str(error.full_key or "")
    said = str(error)
    # A later run of a sweep is not composed by Hydra, whose message would quote the override.
    found = re.search(r"Value '(.*)' of type '\w+'", said)
    value = repr(given[1]) if given else repr(found[1]) if found else None
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        parent, _, name = key.rpartition(".")
        fields = _fields(parent)
        if name in fields:
            return f"{key} must be one of its choices, got {value}; --help lists them"
        meant = [field for field in field_names() if field.rpartition(".")[2] == name]
        if meant:
            return f"{key}: there is no such field (did you mean {' or '.join(meant[:SHOWN])}?)"
        allowed = f"; choose from {', '.join(fields)}" if fields else ""
        return f"{key}: there is no such field{nearest(name, fields)}{allowed}"
    if isinstance(error, ValidationError) and value is not None:
        return f"{key} must be {_allowed(said)}, got {value}"
    return f"{key}: {_first_line(said)}"


def _allowed(message: str) -> str:
    """What a field takes, from OmegaConf's message about a value that it does not take."""
    if match := re.search(r"could not be converted to (\w+)", message):
        return _TYPES.get(match[1], match[1])
    if match := re.search(r"expected one of \[(.*)\]", message):
        return match[1].replace(", ", " or ")
    for said, allowed in _SAID:
        if re.search(said, message):
            return allowed
    return _first_line(message)


def _type_of(key: str) -> Any:
    """The type of a field of the schema; None where there is no such field."""
    parent, _, name = key.rpartition(".")
    config = OmegaConf.structured(RefsamConfig)
    kind = OmegaConf.get_type(OmegaConf.select(config, parent) if parent else config)
    return None if kind is None else get_type_hints(kind).get(name)


def _fields(path: str) -> list[str]:
    """The names below a dotted path of the schema, and at its top the groups that set other fields."""
    config = OmegaConf.structured(RefsamConfig)
    node = OmegaConf.select(config, path) if path else config
    if node is None or not OmegaConf.is_dict(node):
        return []
    names = [str(name) for name in node]
    return names if path else [*names, "n_train_images"]


def field_names(kind: type[Any] = RefsamConfig, prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields of the schema, those of evaluate.resource left out: it is a copy."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        if name == "evaluate.resource":
            continue
        yield name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from field_names(hints[field.name], f"{name}.")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason was given"
