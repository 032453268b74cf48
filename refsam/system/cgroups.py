"""The cgroups of this process, version 1 and 2: where their files are, and their limits of memory."""

from collections.abc import Iterator
from pathlib import Path

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


def memory_limits_gib() -> list[float]:
    """What the cgroups around this process allow, in GiB; none where there is no limit."""
    texts = (
        kernel_text(folder / name).strip() for folder in cgroup_folders("memory") for name in MEMORY_LIMITS
    )
    return [int(text) / GIB for text in texts if text.isdigit()]


def kernel_text(path: Path) -> str:
    """What a file of the kernel says; nothing where it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
