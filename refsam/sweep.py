"""The Hydra application: python -m refsam.sweep -m resource=gtx1080,v100 n_images=1,2,5,10

Without -m it runs one run in this process. A named sweep: python -m refsam.sweep --config-name demo
"""

import contextlib
import os
import sys
from collections.abc import Iterator

import hydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from refsam.configuration.compose import quote_numbers
from refsam.configuration.composition_errors import explain
from refsam.configuration.resources import folder
from refsam.configuration.schema import register
from refsam.errors import BadInput, RunFailed

TRACEBACKS = "HYDRA_FULL_ERROR"  # Hydra's own switch; a person who sets it to 1 gets tracebacks


def run_one(config: DictConfig) -> None:
    """Hydra's task function: one run, in this process."""
    # Imported here: --help, --cfg and shell completion need none of it and should answer at once.
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from refsam.orchestration.planning.hydra_jobs import plan_jobs
    from refsam.orchestration.submission.sweeps import failed, submit

    loader = GlobalHydra.instance().config_loader()
    master = OmegaConf.create({"hydra": OmegaConf.to_container(HydraConfig.get())})
    overrides = [*HydraConfig.get().overrides.task]
    if not any(override.startswith("baseline=") for override in overrides):
        overrides.append("baseline=false")
    plan = plan_jobs(loader, master, [overrides])
    statuses = submit(plan, Console(), in_process=True)
    if failed(statuses):
        raise RunFailed("the run has no result; the lines above say why")


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status 0: all runs are done; 1: a run failed; 2: bad input; 130: stopped by
    Ctrl-C.
    """
    sys.argv[1:] = quote_numbers(sys.argv[1:] if arguments is None else arguments)
    wants_traceback = os.environ.get(TRACEBACKS) == "1"
    # Hydra prints its own errors and exits with 1; with this it raises them, and `explain` makes a sentence
    # of them.
    os.environ[TRACEBACKS] = "1"
    register()
    errors: list[Exception] = []

    def task(config: DictConfig) -> None:
        try:
            run_one(config)
        except Exception as error:  # raised below: Hydra says a line of its own about what a task raises
            errors.append(error)

    application = hydra.main(version_base="1.3", config_path=str(folder("conf")), config_name="config")(task)
    try:
        with _known_mode(sys.argv[1:]):
            application()
        if errors:
            raise errors[0]
    except BadInput as error:
        _leave(str(error), 2)
    except RunFailed as error:
        if wants_traceback:
            raise
        _leave(str(error), 1)
    except KeyboardInterrupt:
        _leave("stopped; the same command goes on where it was", 130)
    except Exception as error:
        sentence = None if wants_traceback else explain(error)
        if sentence is None:
            raise
        _leave(sentence, 2)
    finally:
        if not wants_traceback:
            del os.environ[TRACEBACKS]


@contextlib.contextmanager
def _known_mode(arguments: list[str]) -> Iterator[None]:
    """Spare Hydra the composition by which it looks for hydra.mode, a sixth of a second, where -m says it."""
    from hydra._internal.hydra import Hydra

    looked_up = Hydra.get_mode
    if {"-m", "--multirun"} & set(arguments) and not any("hydra.mode" in given for given in arguments):
        Hydra.get_mode = lambda self, config_name, overrides: RunMode.MULTIRUN  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = looked_up  # type: ignore[method-assign]


def _leave(sentence: str, status: int) -> None:
    print(f"refsam: {sentence}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
