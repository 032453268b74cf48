"""How an override that a person has begun may go on: for the completion of shells."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from refsam.commands.field_help import all_fields, defaults, group_choices
from refsam.configuration.resources import folder
from refsam.configuration.schema import OWN_JOB

SHOWN = 60  # characters of what a group's choices are


def continued(begun: str, directories: Sequence[Path] = ()) -> dict[str, str]:
    """Overrides that begin with `begun`, and a few words about each.

    `reso` becomes `resource=`, `train.` each field of train, and after `=` or a comma comes what a value can
    be, without those that stand there already: `resource=gtx1080,v` becomes `resource=gtx1080,v100`.

    Args:
        directories: a person's own, with choices for the groups.
    """
    key, equals, value = begun.partition("=")
    groups = group_choices([folder("conf"), *directories])
    if not equals:
        return {name: words for name, words in _names(groups, "." in key) if name.startswith(begun)}
    cut = max(value.rfind(","), value.rfind("[")) + 1
    given = re.split(r"[,\[]", value[:cut])
    return {
        f"{key}={value[:cut]}{choice}": ""
        for choice in _values(key, groups)
        if choice.startswith(value[cut:]) and choice not in given and not (cut and "," in choice)
    }


def _names(groups: dict[str, list[str]], is_nested: bool) -> Iterator[tuple[str, str]]:
    """What can stand before `=`. Fields of a section only where it is named: there are a hundred."""
    if not is_nested:
        for group, choices in groups.items():
            words = ", ".join(choices)
            yield f"{group}=", words if len(words) <= SHOWN else f"{words[:SHOWN]}…"
    sections = set()
    for field in all_fields():
        section, dot, _ = field.name.partition(".")
        if is_nested or not dot:
            yield f"{field.name}=", field.words
        elif section not in sections:
            sections.add(section)
            yield f"{section}.", f"the fields of {section}"


def _values(key: str, groups: dict[str, list[str]]) -> Iterator[str]:
    """What can be a value: the choices of a group or a field, else the default."""
    if key in groups:
        yield from groups[key]
    elif key == "evaluate.where":
        yield from (OWN_JOB, *groups["resource"])
    elif key == "cluster.template":
        yield from sorted(path.stem for path in folder("slurm_templates").glob("*.sh"))
    else:
        field = next((field for field in all_fields() if field.name == key), None)
        if field is not None:
            default = defaults().get(key, field.default)
            yield from field.choices or ([] if default is None or default.startswith("${") else [default])
