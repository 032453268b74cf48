"""What a shell is answered that completes `refsam` or `python -m refsam.sweep`.

The shell's side is refsam/commands/completion.py. argcomplete knows commands and options from their parsers,
and how shells ask. Here is what the words can be that they take. Hydra's own completion takes no `python -m`,
composes a configuration for each answer, and knows nothing after a comma.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from argcomplete.completers import DirectoriesCompleter, FilesCompleter, SuppressCompleter
from argcomplete.finders import CompletionFinder

from refsam.commands.completion import MODULE
from refsam.commands.tables import FORMATS, KINDS
from refsam.records.paths import RunsFolder, default_runs
from refsam.records.status import Reason
from refsam.results.sweeps import sweep_names

FOLDERS = ("runs", "data", "dataset.root")  # overrides that name one


def answer(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that completes `refsam`, and end the process."""
    (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    _add_sweep_options(commands.choices["sweep"])
    _answer(parser, lambda word: Path(word).name == "refsam")


def answer_sweep() -> None:
    """Answer a shell that completes `python -m refsam.sweep`, and end the process."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}")
    _add_sweep_options(parser)
    _answer(parser, lambda word: word == MODULE)


def _answer(parser: argparse.ArgumentParser, is_command: Callable[[str], bool]) -> None:
    # What stands before the command: python -m, variables, and in zsh the other commands of the line.
    before = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    starts = [number for number, word in enumerate(before.split()) if is_command(word)]
    os.environ["_ARGCOMPLETE"] = str(starts[0] + 1)
    _Finder()(parser, always_complete_options=False, default_completer=SuppressCompleter())


def _add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Hydra's options that --help names."""
    parser.add_argument("-m", "--multirun", action="store_true", help="every combination of the values")
    parser.add_argument("-cn", "--config-name", metavar="NAME", help="a named sweep")
    parser.add_argument("-cd", "--config-dir", metavar="FOLDER", help="where your own choices are")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"), help="print the configuration")
    parser.add_argument("--hydra-help", action="store_true", help="Hydra's own options")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")


class _Finder(CompletionFinder):
    """argcomplete's, which asks COMPLETERS about the words that commands take."""

    def collect_completions(
        self, active_parsers: list[Any], parsed_args: argparse.Namespace, cword_prefix: str
    ) -> list[str]:
        parser = active_parsers[-1]
        for action in parser._actions:
            completer = COMPLETERS.get(action.metavar) or COMPLETERS.get(action.dest)
            if completer is not None:
                action.completer = completer
        if not parser.active_actions:
            # argparse takes one group of overrides only, and would have none after an option.
            parser.active_actions = [action for action in parser._actions if action.nargs in ("*", "+")]
        return super().collect_completions(active_parsers, parsed_args, cword_prefix)


def _sweeps(*, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    return sweep_names(_runs_folder(parsed_args))


def _runs(*, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    from refsam.orchestration.operating.targets import run_names

    runs = _runs_folder(parsed_args)
    return run_names(runs) if runs.root.is_dir() else []


def _sweeps_and_runs(*, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    return [*_sweeps(parsed_args=parsed_args), *_runs(parsed_args=parsed_args)]


def _runs_folder(given: argparse.Namespace) -> RunsFolder:
    return RunsFolder(Path(getattr(given, "runs", None) or default_runs()).expanduser())


def _overrides(
    *, prefix: str, parser: argparse.ArgumentParser, parsed_args: argparse.Namespace, **_: Any
) -> dict[str, str]:
    key, equals, value = prefix.partition("=")
    if equals and key in FOLDERS:
        return {f"{key}={path}": "" for path in DirectoriesCompleter()(prefix=value)}
    if equals and key == "model.weights":
        return {f"{key}={path}": "" for path in FilesCompleter()(prefix=value)}
    from refsam.commands.override_words import continued  # the schema, which takes a tenth of a second

    found = continued(prefix, _own_directories(parsed_args))
    if parser.prog.endswith(" evaluate"):  # `refsam evaluate` changes nothing else
        return {word: about for word, about in found.items() if word.startswith("evaluate")}
    return found


def _named_sweeps(*, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    from refsam.commands.field_help import choices_in
    from refsam.configuration.resources import folder

    return [name for each in (folder("sweeps"), *_own_directories(parsed_args)) for name in choices_in(each)]


def _own_directories(given: argparse.Namespace) -> list[Path]:
    own = getattr(given, "config_dir", None)
    return [] if own is None else [Path(own).expanduser()]


def _listed(choices: Sequence[str]) -> Callable[..., list[str]]:
    """Several of these words with commas, each once."""

    def complete(*, prefix: str, **others: Any) -> list[str]:
        before, comma, _ = prefix.rpartition(",")
        return [f"{before}{comma}{choice}" for choice in choices if choice not in before.split(",")]

    return complete


# By the metavar or the name of what a command takes.
COMPLETERS: dict[str | None, Any] = {
    "SWEEP": _sweeps,
    "RUN": _runs,
    "SWEEP|RUN": _sweeps_and_runs,
    "RUN|SWEEP": _sweeps_and_runs,
    "KEY=VALUE": _overrides,
    "config_name": _named_sweeps,
    "FOLDER": DirectoriesCompleter(),
    "FILE": FilesCompleter(),
    "IMAGE": FilesCompleter(),
    "PATH": FilesCompleter(),
    "REASON,…": _listed([str(reason) for reason in Reason]),
    "format": _listed(FORMATS),
    "kind": _listed((*KINDS, "all")),
}
