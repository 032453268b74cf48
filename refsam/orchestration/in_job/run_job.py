"""What a job script calls: … -m refsam.orchestration.in_job.run_job [--train] RUN_DIRECTORY [ENTRY_POINT]"""

import argparse

from refsam.orchestration.in_job.job import SCIENCE, RunJob


def main() -> None:
    """Execute one run; threads and devices are what the job's environment says."""
    parser = argparse.ArgumentParser(prog="python -m refsam.orchestration.in_job.run_job")
    parser.add_argument("--train", action="store_true", help="another job evaluates the run")
    parser.add_argument("root", metavar="RUN_DIRECTORY")
    parser.add_argument("entry_point", metavar="ENTRY_POINT", nargs="?", default=SCIENCE)
    options = parser.parse_args()
    RunJob(options.root, entry_point=options.entry_point, trains_only=options.train)()


if __name__ == "__main__":
    main()
