"""The command python -m refsam.sweep: only a door, so that Ctrl-C is answered while Hydra is imported."""

import os
from importlib import import_module

from refsam.commands.options import COMPLETING
from refsam.interruption import answering_ctrl_c


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status 0: all runs are done; 1: a run failed; 2: bad input; 130: stopped by
    Ctrl-C.
    """
    with answering_ctrl_c("stopped; the same command goes on where it was"):
        if COMPLETING in os.environ:
            import_module("refsam.completion").answer_sweep()
        import_module("refsam.application").main(arguments)


if __name__ == "__main__":
    main()
