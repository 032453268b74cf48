"""The command python -m refsam.sweep: only a door, so that Ctrl-C is answered while Hydra is imported."""

import os

from refsam.system.signals import answering_ctrl_c


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status 0: all runs are done; 1: a run failed; 2: bad input; 130: stopped by
    Ctrl-C.
    """
    with answering_ctrl_c("stopped; the same command continues"):
        from refsam.commands.options import COMPLETING

        if COMPLETING in os.environ:
            from refsam import completion

            completion.answer_sweep()
        from refsam import application

        application.main(arguments)


if __name__ == "__main__":
    main()
