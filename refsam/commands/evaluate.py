"""`refsam evaluate`: finished runs measured in other modes, only what is missing."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from refsam.commands.options import (
    COMPLETED,
    FAILED,
    Commands,
    add_command,
    add_json,
    open_folder,
    print_json,
    say,
)
from refsam.errors import ConfigError
from refsam.system.terminal import standard_console

if TYPE_CHECKING:
    from refsam.configuration.schema import EvaluateConfig


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        _evaluate,
        "measure finished runs in other modes, only what is missing",
        "Measure the finished runs of a sweep, or one run, in what the overrides ask for beyond what was\n"
        "measured. Nothing is trained again, and nothing is measured twice. Runs that are not finished are\n"
        "left alone. Without overrides: what was asked for and is missing. evaluate.where=RESOURCE measures\n"
        "on another resource than the runs were trained on.\n\n"
        "Fields of --json: sweep; runs: run_id and missing (what is measured) of those that were given to\n"
        "Slurm or executed here; complete and unfinished: run ids of the others; states: of the runs,\n"
        "afterwards.",
        "refsam evaluate study evaluate.modes=[amg,ais] evaluate.grid=small",
    )
    parser.add_argument("target", metavar="SWEEP|RUN", help="name of a sweep, or a part of a run id")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="of the group evaluate, such as evaluate.rounds=7"
    )
    add_json(parser)


def _evaluate(options: argparse.Namespace) -> int:
    from refsam.orchestration.operating.evaluate_again import evaluate_again
    from refsam.orchestration.operating.targets import find_target

    folder = open_folder(options)
    target = find_target(options.target, folder)
    named, wanted = _wanted(options.overrides)
    console = standard_console(stderr=options.json, highlight=False)
    done = evaluate_again(target, folder, wanted, named, console)
    if options.json:
        print_json(
            {
                "sweep": target.sweep.name,
                "runs": [{"run_id": run, "missing": list(words)} for run, words in done.missing.items()],
                "complete": list(done.complete),
                "unfinished": list(done.unfinished),
                "states": done.states,
            }
        )
    elif not done.missing:
        print(f"Nothing of {target.words} is to be measured.")
    if done.unfinished:
        words = "1 run is" if len(done.unfinished) == 1 else f"{len(done.unfinished)} runs are"
        say(f"{words} not finished and left alone")
    say(*done.unusable)
    return FAILED if done.unusable or "failed" in done.states.values() else COMPLETED


def _wanted(overrides: list[str]) -> "tuple[set[str], EvaluateConfig]":
    """The fields of `evaluate` that the overrides name, and their values."""
    from refsam.configuration.compose import compose
    from refsam.configuration.composition_errors import explained
    from refsam.configuration.evaluation_place import evaluation_resource
    from refsam.configuration.text_values import split_override
    from refsam.orchestration.planning.checks import check_values
    from refsam.records.measurements import EXTENDABLE

    named: set[str] = set()
    for override in overrides:
        key, _ = split_override(override)
        group, _, field = key.partition(".")
        if group != "evaluate" or (field and field.partition(".")[0] not in EXTENDABLE):
            fields = ", ".join(f"evaluate.{name}" for name in EXTENDABLE)
            raise ConfigError(
                f"{key}: given to refsam evaluate, which changes nothing that identifies a run; expected "
                f"evaluate=FILE, {fields}"
            )
        named |= {field.partition(".")[0]} if field else set(EXTENDABLE)
    with explained():
        config = compose(overrides)
    check_values(config)
    place = evaluation_resource(config.evaluate.where, lambda chosen: compose([chosen]))
    return named, replace(config.evaluate, resource=place)
