"""What a job script calls: python -m refsam.orchestration.in_job.run_job RUN_DIRECTORY [ENTRY_POINT]"""

import sys

from refsam.orchestration.in_job.job import SCIENCE, RunJob


def main() -> None:
    """Execute one run; threads and devices are what the job's environment says."""
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m refsam.orchestration.in_job.run_job RUN_DIRECTORY [ENTRY_POINT]")
    entry_point = sys.argv[2] if len(sys.argv) == 3 else SCIENCE
    RunJob(sys.argv[1], entry_point=entry_point)()


if __name__ == "__main__":
    main()
