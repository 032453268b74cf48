"""The Hydra application: python -m refsam.sweep -m resource=gtx1080,v100 n_images=1,2,5,10

Without -m it runs one run in this process. A named sweep: python -m refsam.sweep --config-name demo
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from refsam.configuration.composition_errors import explain
from refsam.configuration.resources import folder
from refsam.configuration.schema import register
from refsam.configuration.text_values import quote_text
from refsam.errors import ConfigError, DamagedManifest, RunFailed, os_problem
from refsam.system.terminal import (
    any_encoding,
    flush_standard_output,
    leave_standard_output,
    plain_output,
    standard_console,
)

MULTIRUN = {"-m", "--multirun"}
ONE_CONFIGURATION = {"-c", "--cfg", "-i", "--info"}  # options of Hydra that do not go with -m
TRACEBACKS = "HYDRA_FULL_ERROR"  # Hydra's own switch; a person who sets it to 1 gets tracebacks


def run_one(config: DictConfig) -> None:
    """Hydra's task function: one run, in this process."""
    # Imported here: --help, --cfg and shell completion need none of it and should answer at once.
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    from refsam.orchestration.planning.hydra_jobs import plan_jobs
    from refsam.orchestration.submission.sweeps import failed, submit

    loader = GlobalHydra.instance().config_loader()
    master = OmegaConf.create({"hydra": OmegaConf.to_container(HydraConfig.get())})
    overrides = [*HydraConfig.get().overrides.task]
    if not any(override.startswith("baseline=") for override in overrides):
        overrides.append("baseline=false")
    plan = plan_jobs(loader, master, [overrides])
    if (folds := len(plan.jobs[0])) > 1:
        raise ConfigError(
            f"evaluate.folds={folds}, which are as many runs, and without -m one run is "
            "executed; expected -m, or evaluate.fold=1 for one of them"
        )
    statuses = submit(plan, standard_console(), in_process=True)
    if failed(statuses):
        raise RunFailed("the run has no result; the lines above say why")


def main(arguments: list[str] | None = None) -> None:
    """Answer one command line. Leaves with the exit status of refsam.sweep; raises KeyboardInterrupt."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        with any_encoding():
            _answer(lambda: _print_help(given), [], wants_traceback=False)
        return
    sys.argv[1:] = quote_text(given)
    wants_traceback = os.environ.get(TRACEBACKS) == "1"
    # Hydra prints its own errors and exits with 1; with this it raises them, and `explain` makes a sentence
    # of them.
    os.environ[TRACEBACKS] = "1"
    register()
    errors: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=str(folder("conf")), config_name="config")
    def application(config: DictConfig) -> None:
        # Hydra would print the overrides above whatever is raised here.
        try:
            run_one(config)
        except Exception as error:
            errors.append(error)

    with any_encoding():
        _answer(application, errors, wants_traceback)


def _answer(application: Callable[[], None], errors: list[Exception], wants_traceback: bool) -> None:
    """Run the application, and leave with one sentence for what is raised, or is in `errors` afterwards."""
    try:
        if _is_multirun(sys.argv[1:]) and any(
            given.split("=")[0] in ONE_CONFIGURATION for given in sys.argv[1:]
        ):
            raise ConfigError("--cfg and --info are about one configuration; leave out -m")
        with _known_mode(sys.argv[1:]):
            application()
        if errors:
            raise errors[0]
        flush_standard_output()
    except ConfigError as error:
        _leave(str(error), 2)
    except DamagedManifest as error:
        _leave(str(error), 1)
    except RunFailed as error:
        if wants_traceback:
            raise
        _leave(str(error), 1)
    except BrokenPipeError:
        leave_standard_output()  # `| head` has read enough
    except Exception as error:
        if wants_traceback:
            raise
        if (sentence := explain(error)) is not None:
            _leave(sentence, 2)
        if not isinstance(error, OSError):
            raise
        if error.filename is None:
            leave_standard_output()
        _leave(os_problem(error), 1)
    finally:
        if not wants_traceback:
            os.environ.pop(TRACEBACKS, None)


def _print_help(arguments: list[str]) -> None:
    """In place of Hydra's, which prints the whole configuration as YAML and no word about any field."""
    from refsam.commands.field_help import sweep_help

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    own = parser.parse_known_args(arguments)[0].config_dir
    console = standard_console()
    width = console.width if console.is_terminal else None
    print(sweep_help(width, [] if own is None else [own]))


@contextlib.contextmanager
def _known_mode(arguments: list[str]) -> Iterator[None]:
    """Spare Hydra the composition by which it looks for hydra.mode, a sixth of a second, where -m says it."""
    from hydra._internal.hydra import Hydra

    looked_up = Hydra.get_mode
    if _is_multirun(arguments) and not any("hydra.mode" in given for given in arguments):
        Hydra.get_mode = lambda self, config_name, overrides: RunMode.MULTIRUN  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = looked_up  # type: ignore[method-assign]


def _is_multirun(arguments: list[str]) -> bool:
    return not MULTIRUN.isdisjoint(arguments)


def _leave(sentence: str, status: int) -> None:
    with plain_output():
        print(f"refsam: {sentence}", file=sys.stderr)
    sys.exit(status)
