"""The configuration of a test cluster: those of the folder templates, filled in."""

import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from string import Template

from refsam.errors import ConfigError

# Below the ports that Linux gives to outgoing connections (32768 and above).
FIRST_PORT, LAST_PORT, PORTS_PER_CLUSTER = 20000, 32700, 20
# Every running cluster has ports of its own, so it has job ids of its own too.
JOB_IDS_PER_CLUSTER = 100_000
LAST_JOB_ID = 67_043_328  # the default of MaxJobId, from which on numbers begin anew
CGROUPS = Path("/sys/fs/cgroup")
TEMPLATES = Path(__file__).parent / "templates"
CONFIGURATION_FILES = ("slurm.conf", "gres.conf", "cgroup.conf", "slurmdbd.conf")
SERVICES = ("slurmctld", "slurmdbd", "database")


@dataclass(frozen=True)
class Settings:
    """What differs between two test clusters.

    Attributes:
        ports: TCP port on 127.0.0.1 by the name of the service or node.
        first_job_id: its jobs have this number and the JOB_IDS_PER_CLUSTER - 1 that follow.
    """

    ports: dict[str, int]
    first_job_id: int

    def owns_job(self, job_id: int) -> bool:
        return self.first_job_id <= job_id < self.first_job_id + JOB_IDS_PER_CLUSTER


def node_names() -> list[str]:
    """The nodes, in the order of slurm.conf."""
    return [name for name in re.findall(r"(?m)^NodeName=(\S+)", _template("slurm.conf")) if name != "DEFAULT"]


def choose_settings() -> Settings:
    """Ports that nobody uses. Raises ConfigError where all of them are taken."""
    names = [*SERVICES, *node_names()]
    for start in range(FIRST_PORT, LAST_PORT - PORTS_PER_CLUSTER, PORTS_PER_CLUSTER):
        ports = {name: start + offset for offset, name in enumerate(names)}
        if all(_is_free(port) for port in ports.values()):
            # Drawn, because jobs of a cluster that was killed may live on, and their cgroups with them.
            drawn = 1 + secrets.randbelow(LAST_JOB_ID // JOB_IDS_PER_CLUSTER - 1)
            return Settings(ports, first_job_id=drawn * JOB_IDS_PER_CLUSTER)
    raise ConfigError(f"no {len(names)} free TCP ports in a row between {FIRST_PORT} and {LAST_PORT}")


def write_configuration(root: Path, settings: Settings) -> None:
    """Fill in the templates below `root`, and make the key and the first statements for the database.

    Raises ConfigError where the machine has no cgroup controller that limits memory.
    """
    for name in ("munge", "database", "state", "spool", "gpu", "log", "pid"):
        (root / name).mkdir(exist_ok=True)
    password = secrets.token_hex(16)
    values: dict[str, object] = {
        "root": root,
        "host": socket.gethostname().partition(".")[0],
        "first_job_id": settings.first_job_id,
        "database_password": password,
        **{f"{name}_port": port for name, port in settings.ports.items()},
        **_cgroup_values(),
    }
    for name in CONFIGURATION_FILES:
        _write_private(root / name, Template(_template(name)).substitute(values).encode())
    _write_private(root / "munge" / "key", secrets.token_bytes(128))
    statements = (
        "CREATE DATABASE IF NOT EXISTS slurm_acct_db;\n"
        f"CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
        "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';\n"
    )
    _write_private(root / "database.sql", statements.encode())


def gpu_files(root: Path) -> list[Path]:
    """The device files that the written gres.conf names."""
    text = (root / "gres.conf").read_text(encoding="utf-8")
    found = re.findall(r"(?m)^NodeName.* File=(\S+)\[(\d+)-(\d+)\]$", text)
    return [Path(f"{stem}{number}") for stem, low, high in found for number in range(int(low), int(high) + 1)]


def _cgroup_values() -> dict[str, str]:
    """cgroup.conf for what the machine has: version 1, a mixture of both (then 1 has the memory), or 2."""
    memory = CGROUPS / "memory"
    if (memory / "memory.limit_in_bytes").exists() and (CGROUPS / "freezer").is_dir():
        swap = "yes" if (memory / "memory.memsw.limit_in_bytes").exists() else "no"
        return {
            "cgroup_plugin": "cgroup/v1",
            "cgroup_automount": "no",
            "ignore_systemd": "no",
            "constrain_swap": swap,
        }
    controllers = CGROUPS / "cgroup.controllers"
    if controllers.exists() and "memory" in controllers.read_text(encoding="utf-8").split():
        # The daemons are no systemd units: Slurm is to make its folders itself and enable the controllers.
        return {
            "cgroup_plugin": "cgroup/v2",
            "cgroup_automount": "yes",
            "ignore_systemd": "yes",
            "constrain_swap": "yes",
        }
    raise ConfigError(
        f"the test cluster limits the memory of jobs through cgroups, and neither {memory} (version 1) nor "
        f"the memory controller in {controllers} (version 2) is on this machine"
    )


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
