"""The cgroups of this process, version 1 and 2: where their files are, and the memory that they leave."""

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
    """GiB of main memory of this machine, or of the smallest cgroup around this process."""
    texts = [
        kernel_text(folder / name).strip() for folder in cgroup_folders("memory") for name in MEMORY_LIMITS
    ]
    # Most machines that nobody has put into a container set no limit: "max", or no file.
    limits = [int(text) for text in texts if text.isdigit()]
    return min([psutil.virtual_memory().total, *limits]) / GIB


def kernel_text(path: Path) -> str:
    """What a file of the kernel says; nothing where it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
