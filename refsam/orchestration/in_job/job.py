"""What jobs are told of the run that they execute."""

SCIENCE = "refsam.science.run:execute"


def thread_environment(threads: int) -> dict[str, str]:
    """The environment variables that give a process `threads` CPU threads."""
    return {"REFSAM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
