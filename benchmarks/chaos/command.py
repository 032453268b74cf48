"""The command `refsam`, whose jobs execute the stand-in: python -m benchmarks.chaos.command status chaos"""

import sys

from refsam.orchestration.in_job import job

STAND_IN = "benchmarks.chaos.stand_in:execute"


def main() -> int:
    science, job.SCIENCE = job.SCIENCE, STAND_IN  # before the modules that take it by its name are imported
    from refsam import cli
    from refsam.orchestration.submission import job_scripts

    job_scripts.SCIENCE = science  # a job executes it unless its script names something else

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
