"""What `python -m refsam.sweep --help` says: the groups, and a line for each field, from the schema itself.

The words about a field are the comment beside it in schema.py (or above it), else what checks.py allows.
"""

import ast
import dataclasses
import enum
import inspect
import io
import textwrap
import tokenize
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from refsam.configuration import schema
from refsam.configuration.frozen import leaves, required
from refsam.configuration.resources import folder
from refsam.orchestration.planning.checks import allowed_values, choices
from refsam.system.files import read_yaml

INDENT, NAME_COLUMNS = 2, 34
FILLED_IN = "filled in by the plan"
COPY = "evaluate.resource."  # of the resource that evaluate.where names
ABOUT = """\
Finetune Segment Anything over every combination of what is given, evaluate, and record. Each run has a
directory below `runs`; the same command again does only what is not done yet. With -m values may be lists
with commas, and all their combinations are run; without -m one run is executed in this process."""
EXAMPLES = """\
python -m refsam.sweep -m resource=gtx1080,v100 n_images=1,2,5,10 dry_run=true
python -m refsam.sweep -m dataset=folder dataset.root=my_images model=vit_b_lm peft=full,lora
python -m refsam.sweep --config-name demo"""
OPTIONS = {
    "-m": "every combination of the values (multirun)",
    "--config-name NAME": "a named sweep: {sweeps}",
    "--config-dir DIR": "a folder of your own with choices for the groups, as DIR/resource/mine.yaml",
    "--cfg job": "print the configuration as YAML",
    "--hydra-help": "Hydra's own options",
}


@dataclasses.dataclass(frozen=True)
class Field:
    """A value of the configuration: its dotted name, what it is in a few words, the schema's default, and the
    values that it takes where these can be listed.
    """

    name: str
    words: str
    default: str | None
    choices: tuple[str, ...]


def all_fields() -> list[Field]:
    """Every field of the schema that a person gives, in its order, nested ones by their dotted names."""
    fields = _fields(schema.RefsamConfig, "")
    return [field for field in fields if FILLED_IN not in field.words and not field.name.startswith(COPY)]


def sweep_help(width: int | None, config_directories: Sequence[Path] = ()) -> str:
    """The text of --help.

    Args:
        width: columns of the terminal; None: lines are not wrapped.
        config_directories: folders of a person's own, whose choices are listed with refsam's.
    """
    sweeps = ", ".join(choices_in(folder("sweeps")))
    about = ABOUT if width is None else textwrap.fill(ABOUT, width)
    parts = [about, "Examples:", textwrap.indent(EXAMPLES, " " * INDENT), "Options:"]
    parts += [_line(name, words.format(sweeps=sweeps), width) for name, words in OPTIONS.items()]
    parts.append("Groups, and their choices:")
    for group, found in group_choices([folder("conf"), *config_directories]).items():
        parts.append(_line(group, ", ".join(found), width))
    parts.append("Fields, with their defaults:")
    values = defaults()
    for field in all_fields():
        value = values.get(field.name, field.default)
        shown = field.name if value is None else f"{field.name}={value}"
        parts.append(_line(shown, field.words, width))
    return "\n".join(parts)


def group_choices(directories: Sequence[Path]) -> dict[str, list[str]]:
    """The choices of each of refsam's groups that are in any of these directories."""
    groups = sorted(path.name for path in folder("conf").iterdir() if path.is_dir())
    return {
        group: list(dict.fromkeys(choice for each in directories for choice in choices_in(each / group)))
        for group in groups
    }


def _fields(kind: type[Any], prefix: str) -> Iterator[Field]:
    comments = _comments(kind)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        nested = required(hints[field.name])
        if isinstance(nested, type) and dataclasses.is_dataclass(nested):
            yield from _fields(nested, f"{name}.")
        else:
            members = _members(hints[field.name])
            words = comments.get(field.name) or allowed_values(name) or ", ".join(members)
            is_open = field.default in (MISSING, None, dataclasses.MISSING)
            default = None if is_open else _text(field.default)
            yield Field(name, words, default, choices(name) or members)


def _members(hint: Any) -> tuple[str, ...]:
    """The choices of an enumeration or a boolean, as they are typed."""
    if bool in (hint, *typing.get_args(hint)):
        return ("true", "false")
    return tuple(hint) if isinstance(hint, enum.EnumType) else ()


def _comments(kind: type[Any]) -> dict[str, str]:
    """The comment beside each field of a dataclass, or in the lines above it."""
    source = textwrap.dedent(inspect.getsource(kind))
    comments: dict[int, str] = {}
    alone: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if token.line.lstrip().startswith("#"):
                alone.add(token.start[0])
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node in body.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        assert node.end_lineno is not None
        lines = [line for line in range(node.lineno, node.end_lineno + 1) if line in comments]
        beside = [line for line in lines if line not in alone]
        above = node.lineno - 1
        while above in alone:
            above -= 1
        words = [comments[line] for line in beside or range(above + 1, node.lineno)]
        if words:
            found[node.target.id] = " ".join(words)
    return found


def defaults() -> dict[str, str]:
    """The values that a command has where nothing is given, in YAML, by dotted names."""
    values = dict(read_yaml(folder("conf") / "config.yaml"))
    for choice in values.pop("defaults"):
        for group, name in choice.items() if isinstance(choice, dict) else ():
            path = folder("conf") / group / f"{name}.yaml"
            if path.exists():
                found = read_yaml(path)
                values |= found if group == "n_train_images" else {group: found}
    return {name: _text(value) for name, value in leaves(values).items() if value != {}}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def choices_in(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.yaml"))


def _line(name: str, words: str, width: int | None) -> str:
    first = f"{' ' * INDENT}{name:{NAME_COLUMNS}} "
    if width is None:
        return f"{first}{words}".rstrip()
    rest = " " * (INDENT + NAME_COLUMNS + 1)
    return textwrap.fill(
        first + words, max(width, 2 * len(rest)), subsequent_indent=rest, drop_whitespace=True
    )
