"""What the machine at hand is: cores, memory, GPUs, found without torch; and what resources it can stand for.

Limits of a container or a login session (cgroups, version 1 and 2) count as the machine's own.
"""

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from refsam.configuration.schema import AUTO, ResourceConfig
from refsam.system.cgroups import GIB, cgroup_folders, kernel_text

KERNEL_COUNTERS = Path("/proc/vmstat")
CPU_INFORMATION = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi lists it; memory in GiB."""

    index: int
    name: str
    memory_gb: float


def processor() -> str:
    """The processor's name, from /proc/cpuinfo where there is one."""
    found = re.search(r"^model name\s*:\s*(.+)$", kernel_text(CPU_INFORMATION), re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def cores() -> int:
    """CPU cores that this process may use: its affinity, and the quota of its cgroup. At least 1."""
    usable = len(os.sched_getaffinity(0))
    for folder in cgroup_folders("cpu"):
        quota = _cpu_quota(folder)
        if quota is not None:
            usable = min(usable, int(quota))
    return max(1, usable)


def memory_available_gb() -> float:
    """GiB of main memory that new processes may take now: of the machine, and of a cgroup's limit."""
    available = psutil.virtual_memory().available
    for folder in cgroup_folders("memory"):
        room = _memory_room(folder)
        if room is not None:
            available = min(available, room)
    return max(0, available) / GIB


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this machine; none where nvidia-smi is missing or finds no driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []  # a tool that does not start or hangs says that the driver is not usable
    if answer.returncode != 0:
        return []
    found = []
    for line in answer.stdout.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[0].isdigit():
            memory_mb = float(fields[2]) if fields[2].isdigit() else 0.0
            found.append(Gpu(int(fields[0]), fields[1], memory_mb / 1024))
    return found


def usable_devices() -> list[str]:
    """The GPUs that a run may get, as CUDA_VISIBLE_DEVICES names them: the shell's choice comes first."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device.strip() for device in chosen.split(",") if device.strip() not in ("", "-1")]
    return [str(gpu.index) for gpu in gpus()]


def matches(resource: ResourceConfig) -> str | None:
    """None where this machine can stand for the resource, else one sentence that says why not.

    A resource with a GPU type needs such a GPU here; one that names a partition is a node of a cluster.
    """
    consent = "add cluster=local to run here anyway"
    if resource.name == "local":
        return None
    if resource.request.gpu is not None:
        present = gpus()
        if any(is_gpu_type(gpu.name, resource.request.gpu) for gpu in present):
            return None
        names = ", ".join(gpu.name for gpu in present) or "none"
        lacking = f"this machine has no {resource.request.gpu} GPU (GPUs: {names})"
        return f"resource={resource.name}: {lacking}; {consent}"
    if resource.request.partition is not None:
        return (
            f"resource={resource.name}: this machine is not a node of the partition "
            f"{resource.request.partition}; {consent}"
        )
    return None


def is_gpu_type(name: str, gpu_type: str) -> bool:
    """Whether a product name (`NVIDIA GeForce GTX 1080`) is of Slurm's type (`GTX1080`), and no other card.

    A `GTX 1080 Ti` and an `RTX 5000 Ada` have other memory than the card whose name they begin with.
    """
    wanted = re.sub(r"[^a-z0-9]", "", gpu_type.lower())
    words = re.findall(r"[a-z0-9]+", name.lower())
    for start in range(len(words)):
        for end in range(start + 1, len(words) + 1):
            if "".join(words[start:end]) == wanted:
                return words[end : end + 1] not in (["ti"], ["super"], ["ada"])
    return False


def parallel_runs(
    requested: int | str, memory_gb_per_run: float, cores: int, memory_available_gb: float, devices: int = 0
) -> int:
    """How many runs are executed at a time on this machine, at least 1.

    Args:
        requested: `cluster.parallel`, a positive integer or `auto`: as many as memory and cores allow.
        memory_gb_per_run: main memory that one run is planned with, GiB.
        memory_available_gb: main memory that is free now, GiB.
        devices: GPUs that runs will use, one each; 0 for runs on the CPU.
    """
    if str(requested) != AUTO:
        return int(requested)
    by_memory = int(memory_available_gb / memory_gb_per_run) if memory_gb_per_run > 0 else cores
    limits = [cores, by_memory] if devices == 0 else [cores, by_memory, devices]
    return max(1, min(limits))


def threads_per_run(parallel: int, cores: int) -> int:
    """CPU threads for each of `parallel` runs, at least 1."""
    return max(1, cores // parallel)


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed so far because memory was short.

    Counted for this process's own cgroup where it tells, else for the whole machine; 0 where nothing is told.
    """
    for folder in cgroup_folders("memory"):
        kills = out_of_memory_kills_in(folder)
        if kills is not None:
            return kills
    return _counter(KERNEL_COUNTERS, "oom_kill") or 0


def out_of_memory_kills_in(folder: Path) -> int | None:
    """The same for the memory cgroup in `folder`; None where it does not tell."""
    for name in ("memory.events", "memory.oom_control"):
        kills = _counter(folder / name, "oom_kill")
        if kills is not None:
            return kills
    return None


def _cpu_quota(folder: Path) -> float | None:
    """Cores that the cgroup in `folder` may use; None where it sets no limit."""
    quota = kernel_text(folder / "cpu.max").split()  # version 2: "200000 100000" or "max 100000"
    if not quota:
        version_1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota = [part for name in version_1 for part in kernel_text(folder / name).split()]
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        return int(quota[0]) / int(quota[1])
    return None


def _memory_room(folder: Path) -> int | None:
    """Bytes that the cgroup in `folder` may still take; None where it sets no limit.

    Files that the kernel keeps in memory are given back when it gets short, so they count as room.
    """
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit_text, used_text = kernel_text(folder / limit).strip(), kernel_text(folder / used).strip()
        if limit_text.isdigit() and used_text.isdigit():
            return int(limit_text) - int(used_text) + (_counter(folder / "memory.stat", cached) or 0)
    return None


def _counter(path: Path, name: str) -> int | None:
    """The number beside `name` in a file of `name number` lines; None where it is not there."""
    for line in kernel_text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None
