"""What a job script calls: … -m refsam.orchestration.in_job.run_job [--train] RUN_DIRECTORY [ENTRY_POINT]"""

import argparse
import os
from pathlib import Path

from refsam.orchestration.in_job.job import SCIENCE
from refsam.orchestration.in_job.supervisor import supervise
from refsam.records.paths import RunPaths
from refsam.system.own_job import own_job


def run_job(root: Path, entry_point: str = SCIENCE, trains_only: bool = False) -> None:
    """Execute one run; threads and devices are what the job's environment says.

    Raises what `supervise` raises. The science is a child process and imported there by its name: so a job's
    own process stays small, and survives the child.

    Args:
        entry_point: `module:function`; the function takes the run directory, holds the run's lock while it
            works, keeps status.json up to date and raises when the run fails.
        trains_only: whether another job evaluates the run.
    """
    if trains_only:
        os.environ["REFSAM_TRAINS_ONLY"] = "1"
    with own_job():
        supervise(RunPaths(root), entry_point)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m refsam.orchestration.in_job.run_job")
    parser.add_argument("--train", action="store_true", help="another job evaluates the run")
    parser.add_argument("root", metavar="RUN_DIRECTORY", type=Path)
    parser.add_argument("entry_point", metavar="ENTRY_POINT", nargs="?", default=SCIENCE)
    options = parser.parse_args()
    run_job(options.root, options.entry_point, options.train)


if __name__ == "__main__":
    main()
