"""The cgroups of this process, version 1 and 2: where their files are, and the memory that it may take."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

GIB = 1024**3
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMORY_LIMITS = ("memory.max", "memory.limit_in_bytes")


def cgroup_folders(controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of all above it, for one `controller`, innermost first."""
    for line in kernel_text(OWN_CGROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = CGROUPS
        elif controller in controllers.split(","):
            mount = CGROUPS / controller
        else:
            continue
        folder = mount / path.lstrip("/")
        for candidate in (folder, *folder.parents):
            # In a container the path may be that of the host, which is not mounted here; its root is.
            if candidate.is_relative_to(mount) and candidate.is_dir():
                yield candidate


def memory_gib() -> float:
    """GiB of main memory of this machine, or of the smallest cgroup or the Slurm job around this process."""
    texts = [
        kernel_text(folder / name).strip() for folder in cgroup_folders("memory") for name in MEMORY_LIMITS
    ]
    # Most machines that nobody has put into a container set no limit: "max", or no file.
    limits = [int(text) for text in texts if text.isdigit()]
    return min([psutil.virtual_memory().total, *limits, *_granted_by_slurm()]) / GIB


def _granted_by_slurm() -> list[int]:
    """Bytes that this process's Slurm job was given on this node, which not every site makes a cgroup of."""
    if "SLURMD_NODENAME" not in os.environ:  # `salloc` starts its shell on another machine
        return []
    per_node = _integer("SLURM_MEM_PER_CPU") * _integer("SLURM_CPUS_ON_NODE") or _integer(
        "SLURM_MEM_PER_NODE"
    )
    return [per_node * 2**20] if per_node else []  # 0 is all of the node


def _integer(name: str) -> int:
    """A variable that Slurm has set; 0 for one that a person has set for srun, as 8G."""
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else 0


def kernel_text(path: Path) -> str:
    """What a file of the kernel says; nothing where it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
