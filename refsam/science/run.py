"""One run in this process: `python -m refsam.science.run RUN_DIRECTORY`, and what a job's supervisor calls.

Only a door, so that Ctrl-C is answered while PyTorch is imported, which takes seconds.
"""

import sys
from pathlib import Path

from refsam.system import imports
from refsam.system.exits import leaving_at_once
from refsam.system.signals import answering_ctrl_c


def execute(root: Path) -> None:
    """Run the run in the directory `root` to its end. Raises what refsam.science.execution.execute raises."""
    with imports.kept():
        from refsam.science import execution

    execution.execute(root)


def main() -> None:
    """The command line: one argument, the run directory. Exit status 130 after Ctrl-C."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m refsam.science.run RUN_DIRECTORY")
    root = Path(sys.argv[1])
    with leaving_at_once(), answering_ctrl_c("stopped; the same command continues"):
        from refsam.records.paths import RunPaths
        from refsam.records.status import free_reserve

        try:
            execute(root)
        finally:
            free_reserve(RunPaths(root))


if __name__ == "__main__":
    main()
