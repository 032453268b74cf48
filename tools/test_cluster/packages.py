"""What a machine must have before a test cluster can be started on it."""

import os
import shutil
import subprocess

from refsam.errors import ConfigError

PACKAGES = ("slurm-wlm", "slurmctld", "slurmd", "slurm-client", "slurmdbd", "munge", "mariadb-server")
UPDATE = ("apt-get", "update")
INSTALL = ("apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES)
PROGRAMS = (
    *("munged", "munge", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd"),
    *("sbatch", "srun", "scancel", "sinfo", "squeue", "sacct", "sacctmgr", "scontrol"),
)


def check_machine() -> None:
    """Raise ConfigError, with what to do, where no test cluster can be started."""
    if os.geteuid() != 0:
        raise ConfigError("the test cluster is started by root: it sets memory limits and makes device files")
    missing = missing_programs()
    if missing:
        raise ConfigError(
            f"the test cluster needs {', '.join(missing)}; on Debian install them with: {' '.join(INSTALL)} "
            "(or add --install)"
        )


def missing_programs() -> list[str]:
    """The programs that a test cluster needs and that are not on this machine."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def install() -> None:
    """Install the Debian packages. Raises ConfigError where that fails."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(UPDATE, env=environment, check=True)
        subprocess.run(INSTALL, env=environment, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"--install: the packages of the test cluster could not be installed: {error}"
        ) from error
