"""The command `refsam`: what a person asks at a prompt about sweeps and data. Answers fast, imports late."""

import argparse
import os
import sys
from collections.abc import Sequence

import refsam
from refsam.commands.options import (
    BAD_INPUT,
    COMPLETED,
    COMPLETING,
    DAMAGED_RECORDS,
    EXIT_STATUSES,
    FAILED,
    INTERRUPTED,
    SLURM_UNAVAILABLE,
)
from refsam.errors import ConfigError, DamagedManifest, RunFailed, SlurmUnavailable, nearest, os_problem
from refsam.system.terminal import any_encoding, flush_standard_output, leave_standard_output, plain_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status, one of those that `refsam --help` names."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with any_encoding():
        return _answer(given)


def _answer(given: list[str]) -> int:
    try:
        try:
            if COMPLETING in os.environ:
                from refsam import completion

                completion.answer(parser_and_commands()[0])
            if given[:1] == ["sweep"]:  # Hydra has its own --help, -m and overrides
                return _sweep(given[1:])
            with plain_output():
                options = _options(given)
                code: int = options.run(options)
                return code
        finally:
            flush_standard_output()
    except ConfigError as error:
        return _refuse(error, BAD_INPUT)
    except DamagedManifest as error:
        return _refuse(error, DAMAGED_RECORDS)
    except SlurmUnavailable as error:
        return _refuse(f"Slurm does not answer, so nothing was done: {error}", SLURM_UNAVAILABLE)
    except RunFailed as error:
        return _refuse(error, SLURM_UNAVAILABLE if isinstance(error.__cause__, SlurmUnavailable) else FAILED)
    except KeyboardInterrupt:
        return _refuse("stopped by Ctrl-C", INTERRUPTED)
    except BrokenPipeError:
        leave_standard_output()  # `| head` has read enough
        return COMPLETED
    except OSError as error:
        if error.filename is None:
            leave_standard_output()
        return _refuse(os_problem(error), FAILED)


def parser_and_commands() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser, and the names of the commands."""
    # Imported here, where Ctrl-C is answered.
    from refsam.commands import (
        annotate,
        check_data,
        cite,
        compare,
        completion,
        control,
        evaluate,
        export,
        fit,
        predict,
        prepare,
        recommend,
        report,
        show,
        status,
        tables,
        track,
    )

    parser = argparse.ArgumentParser(
        prog="refsam",
        description="Finetune Segment Anything over resources, models, strategies and numbers of images.",
        epilog=f"refsam COMMAND --help says more, with an example. {EXIT_STATUSES}",
    )
    parser.add_argument("--version", action="version", version=f"refsam {refsam.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    status.add(commands)
    show.add(commands)
    control.add(commands)
    tables.add(commands)
    report.add(commands)
    recommend.add(commands)
    compare.add(commands)
    evaluate.add(commands)
    prepare.add(commands)
    predict.add(commands)
    annotate.add(commands)
    check_data.add(commands)
    fit.add(commands)
    export.add(commands)
    cite.add(commands)
    track.add(commands)
    completion.add(commands)
    commands.add_parser("sweep", help="run a sweep: the same as python -m refsam.sweep", add_help=False)
    return parser, list(commands.choices)


def _options(given: Sequence[str]) -> argparse.Namespace:
    """What was typed. Overrides may stand before and after options; argparse takes one group of them only."""
    parser, commands = parser_and_commands()
    if given and not given[0].startswith("-") and given[0] not in commands:
        raise ConfigError(
            f"{given[0]!r} is not a command{nearest(given[0], commands)}; refsam --help lists them"
        )
    options, rest = parser.parse_known_args(given)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _sweep(arguments: list[str]) -> int:
    from refsam import sweep

    sweep.main(arguments)
    return COMPLETED


def _refuse(why: object, status: int) -> int:
    with plain_output():
        print(f"refsam: {why}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
