"""The environment of Slurm's commands, and of the jobs that inherit it.

sbatch takes options from SBATCH_* before those in a job script, squeue leaves out what SQUEUE_* says, and a
job gets whatever is in the environment of the process that submits it. So nothing of that is handed on. In a
shell inside of a job (srun, salloc, Jupyter) neither is what Slurm has set for that job: a step of a new job
would take it for its own options, and fail.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Which Slurm is spoken with, and as whom.
_OF_THE_SITE = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})
_OPTIONS = ("SBATCH_", "SQUEUE_", "SACCT_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")
_OF_A_JOB = (
    *("SLURM_", "SLURMD_", "SRUN_", "SALLOC_", "PMI_", "PMIX_", "REFSAM_OWN_JOB"),
    *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
)
_INSIDE_OF_A_JOB = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_STEP_ID")

# What srun takes for its own options. A job script that somebody submits in a shell inside of another job
# gets them from there: a batch job has none of them but for those that its script names.
_STEP_OPTIONS = """
    NTASKS NTASKS_PER_CORE NTASKS_PER_GPU NTASKS_PER_NODE NTASKS_PER_SOCKET NTASKS_PER_TRES NPROCS
    CPUS_PER_GPU MEM_PER_CPU MEM_PER_GPU GPUS GPUS_PER_NODE GPUS_PER_SOCKET GPUS_PER_TASK GPU_BIND GPU_FREQ
    TRES_PER_TASK GRES STEP_GRES CPU_BIND MEM_BIND CPU_FREQ_REQ DISTRIBUTION DIST_PLANESIZE HINT THREADS
    THREADS_PER_CORE THREAD_SPEC CORE_SPEC EXACT EXCLUSIVE OVERCOMMIT OVERLAP HOSTFILE ARBITRARY_NODELIST
    EXPORT_ENV LABELIO STDINMODE STDOUTMODE STDERRMODE OPEN_MODE TIMELIMIT DEPENDENCY CONSTRAINT RESERVATION
    NETWORK REMOTE_CWD WORKING_DIR WORKING_CLUSTER
"""


def is_inside_of_a_job() -> bool:
    """Whether this process is a part of a Slurm job, be it a run's or a person's."""
    return any(name in os.environ for name in _INSIDE_OF_A_JOB)


def clean() -> dict[str, str]:
    """The environment of this process for a command of Slurm."""
    dropped = (*_OPTIONS, *_OF_A_JOB) if is_inside_of_a_job() else _OPTIONS
    return {
        name: value
        for name, value in os.environ.items()
        if name in _OF_THE_SITE or not name.startswith(dropped)
    }


@contextmanager
def cleaned() -> Iterator[None]:
    """This process has that environment meanwhile, for libraries that call Slurm themselves."""
    before = dict(os.environ)
    _replace(clean())
    try:
        yield
    finally:
        _replace(before)


def chosen(option: str) -> str | None:
    """What the person's shell says for an option of sbatch (SBATCH_QOS) that the configuration leaves open.

    Inside of a job only the account is the person's: the others may be those of the job.
    """
    if is_inside_of_a_job() and option != "account":
        return None
    return os.environ.get(f"SBATCH_{option.upper()}")


def prologue_line(options: frozenset[str]) -> str:
    """The line of bash by which a job forgets what a surrounding job has left.

    Args:
        options: of its script, as `gpus-per-task`, which the job's own step is to take over.
    """
    own = {option.upper().replace("-", "_") for option in options}
    return f"unset {' '.join(f'SLURM_{name}' for name in _STEP_OPTIONS.split() if name not in own)}"


def _replace(environment: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
