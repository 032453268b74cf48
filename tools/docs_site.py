"""Pages of the site that are made from the code: a hook of mkdocs (mkdocs.yml), no part of the package.

The reference of the commands comes from their parsers, that of the configuration from its schema and conf/.
CONTRIBUTING.md and CHANGELOG.md are pages as well.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from refsam.cli import parser_and_commands
from refsam.commands.field_help import all_fields, defaults, group_choices
from refsam.configuration.resources import folder

ROOT = Path(__file__).resolve().parents[1]
COPIED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"reference/commands.md": commands_page(), "reference/configuration.md": configuration_page()}
    for name, source in COPIED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        pages[name] = re.sub(r"\]\(docs/", "](", text)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def commands_page() -> str:
    """All commands with their options, as --help says them."""
    parser, _ = parser_and_commands()
    actions = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    (commands,) = actions
    summaries = {each.dest: each.help or "" for each in commands._choices_actions}
    parts = ["# Commands", "Made from the parsers of this version.", str(parser.epilog)]
    for name, command in commands.choices.items():
        parts += [f"## refsam {name}", *_command(command, summaries[name])]
    return "\n\n".join(parts) + "\n"


def _command(command: argparse.ArgumentParser, summary: str) -> Iterator[str]:
    description = command.description or f"{summary[0].upper()}{summary[1:]}."
    yield from map(_paragraph, description.split("\n\n"))
    formatter = argparse.HelpFormatter(command.prog, width=100)
    formatter.add_usage(command.usage, command._actions, command._mutually_exclusive_groups)
    yield _code(formatter.format_help())
    rows = [
        f"| `{_names(action)}` | {_cell(command, action)} |"
        for action in command._actions
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
    ]
    if rows:
        yield "\n".join(["| argument | meaning |", "| --- | --- |", *rows])
    if command.epilog:
        yield _code(command.epilog)


def _names(action: argparse.Action) -> str:
    value = action.metavar or (",".join(map(str, action.choices)) if action.choices else action.dest)
    shown = " ".join(value) if isinstance(value, tuple) else value
    if not action.option_strings:
        return shown
    return ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {shown.upper()}")


def _cell(command: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help of an argument with its values filled in, as a cell of a table."""
    text = command._get_formatter()._expand_help(action) if action.help else ""
    return _escaped(text)


def _paragraph(text: str) -> str:
    """What is laid out by spaces stays so, all else is prose."""
    is_laid_out = any(line.startswith(" ") for line in text.splitlines())
    return _code(text) if is_laid_out else _escaped(" ".join(text.splitlines()))


def _escaped(text: str) -> str:
    return text.replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;").replace("[", r"\[")


def _code(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


def configuration_page() -> str:
    """The groups with their choices, and every field with its default and what it takes."""
    parts = [
        "# Configuration",
        "Made from the schema and `conf/` of this version. `python -m refsam.sweep GROUP=CHOICE FIELD=VALUE` "
        "sets them; with `-m` and commas every combination is run. `--help` prints the same.",
        "## Groups",
        "\n".join(
            ["| group | choices |", "| --- | --- |"]
            + [
                f"| `{name}` | {', '.join(found)} |"
                for name, found in group_choices([folder("conf")]).items()
            ]
        ),
    ]
    values = defaults()
    sections: dict[str, list[str]] = {}
    for field in all_fields():
        section = field.name.partition(".")[0] if "." in field.name else "run"
        default = values.get(field.name, field.default)
        shown = "" if default is None else f"`{default}`".replace("|", r"\|")
        words = _escaped(field.words)
        taken = f" ({', '.join(field.choices)})" if field.choices and field.choices[0] not in words else ""
        sections.setdefault(section, []).append(f"| `{field.name}` | {shown} | {words}{taken} |")
    for section, rows in sections.items():
        table = "\n".join(["| field | default | meaning |", "| --- | --- | --- |", *rows])
        parts += [f"## {section}", table]
    return "\n\n".join(parts) + "\n"
