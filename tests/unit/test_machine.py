"""What the machine is said to be, on machines that are described by files and a stand-in for nvidia-smi."""

import subprocess
from pathlib import Path

import psutil
import pytest

from refsam.configuration.compose import compose
from refsam.configuration.schema import RequestConfig, ResourceConfig
from refsam.errors import ConfigError
from refsam.orchestration import machine
from refsam.orchestration.planning.checks import check_values
from refsam.system import cgroups

V100 = ResourceConfig(name="v100", device="cuda", request=RequestConfig(partition="gpu", gpu="V100", gpus=1))
MEDIUM = ResourceConfig(name="medium_8g", device="cpu", request=RequestConfig(partition="medium"))
LAPTOP = ResourceConfig(name="xps13", device="cpu", request=RequestConfig())
LOCAL = ResourceConfig(name="local", device="auto", request=RequestConfig(partition="gpu", gpu="V100"))


def install_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.fixture
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed' ; exit 9")


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "0, Tesla V100-PCIE-32GB, 32768\n1, NVIDIA GeForce GTX 1080 Ti, 11264"
    install_nvidia_smi(tmp_path, monkeypatch, f"printf '{lines}\\n'")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_those_of_nvidia_smi(two_gpus):
    assert machine.gpus() == [
        machine.Gpu(0, "Tesla V100-PCIE-32GB", 32.0),
        machine.Gpu(1, "NVIDIA GeForce GTX 1080 Ti", 11.0),
    ]


def test_a_driver_that_fails_or_hangs_means_no_gpu(no_gpu, monkeypatch):
    assert machine.gpus() == []

    def hang(*arguments, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(machine.subprocess, "run", hang)
    assert machine.gpus() == []


@pytest.mark.parametrize(
    ("chosen", "devices"),
    [("1", ["1"]), ("GPU-5f, 0", ["GPU-5f", "0"]), ("", []), ("-1", []), (None, ["0", "1"])],
)
def test_runs_get_the_gpus_that_the_shell_chose(two_gpus, monkeypatch, chosen, devices):
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert machine.usable_devices() == devices


@pytest.mark.parametrize(
    ("name", "gpu_type", "same"),
    [
        ("Tesla V100-PCIE-32GB", "V100", True),
        ("Tesla V100S-PCIE-32GB", "V100", False),
        ("NVIDIA GeForce GTX 1080", "GTX1080", True),
        ("NVIDIA GeForce GTX 1080 Ti", "GTX1080", False),
        ("Quadro RTX 5000", "RTX5000", True),
        ("NVIDIA RTX 5000 Ada Generation", "RTX5000", False),
        ("NVIDIA A100-SXM4-80GB", "A100", True),
        ("NVIDIA H200", "A100", False),
    ],
)
def test_gpu_types_are_recognized_by_product_names(name, gpu_type, same):
    assert machine.is_gpu_type(name, gpu_type) is same


def test_a_machine_without_the_gpu_is_not_the_resource(no_gpu):
    assert machine.matches(V100) == (
        "resource=v100: this machine has no V100 GPU (GPUs: none); add cluster=local to run here anyway"
    )


def test_a_machine_with_the_gpu_is_the_resource(two_gpus):
    assert machine.matches(V100) is None
    gtx1080 = ResourceConfig(name="gtx1080", request=RequestConfig(gpu="GTX1080"))
    assert "GPUs: Tesla V100-PCIE-32GB, NVIDIA GeForce GTX 1080 Ti" in machine.matches(gtx1080)


def test_a_node_of_a_partition_is_another_machine_and_a_laptop_is_not(no_gpu):
    assert machine.matches(MEDIUM) == (
        "resource=medium_8g: this machine is not a node of the partition medium; "
        "add cluster=local to run here anyway"
    )
    assert machine.matches(LAPTOP) is None
    assert machine.matches(LOCAL) is None


@pytest.mark.parametrize(
    ("memory_per_run", "cores", "memory", "devices", "parallel"),
    [
        (4.0, 8, 15.9, 0, 3),  # memory decides
        (4.0, 2, 64.0, 0, 2),  # cores decide
        (4.0, 8, 64.0, 1, 1),  # one run on a GPU
        (40.0, 8, 15.9, 0, 1),  # never none: the run may need less than planned
    ],
)
def test_auto_takes_as_many_runs_as_fit(memory_per_run, cores, memory, devices, parallel):
    assert machine.parallel_runs("auto", memory_per_run, cores, memory, devices) == parallel


def test_a_number_of_parallel_runs_is_taken_as_it_is():
    assert machine.parallel_runs("5", 40.0, 2, 1.0) == 5
    assert machine.parallel_runs(5, 40.0, 2, 1.0, devices=1) == 5


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "many", "", "²", "True"])
def test_another_number_of_parallel_runs_is_refused(given):
    config = compose(["resource=local", "model=vit_nano", "peft=full", "n_objects=2", "n_images=1"])
    config.cluster.parallel = given
    with pytest.raises(ConfigError, match=r"cluster\.parallel must be auto, or an integer >= 1"):
        check_values(config)


@pytest.mark.parametrize(("parallel", "cores", "threads"), [(1, 8, 8), (3, 8, 2), (5, 2, 1)])
def test_runs_share_the_cores(parallel, cores, threads):
    assert machine.threads_per_run(parallel, cores) == threads


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /sys/fs/cgroup and /proc, to be filled by a test."""
    monkeypatch.setattr(cgroups, "CGROUPS", tmp_path)
    monkeypatch.setattr(cgroups, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "KERNEL_COUNTERS", tmp_path / "vmstat")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(16)))
    return tmp_path


def fill(folder: Path, **contents: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_limits_of_cgroups_version_2_count_also_those_above(kernel):
    (kernel / "own").write_text("0::/user/session\n")
    fill(
        kernel / "user",
        cpu__max="250000 100000\n",
        memory__max=f"{3 << 30}\n",
        memory__current=f"{2 << 30}\n",
    )
    fill(kernel / "user", memory__stat=f"anon 1\ninactive_file {1 << 29}\n")
    fill(
        kernel / "user/session",
        cpu__max="max 100000\n",
        memory__max="max\n",
        memory__events="low 0\noom_kill 4\n",
    )
    assert machine.cores() == 2
    assert cgroups.memory_gib() == 3.0
    assert machine.memory_available_gb() == 1.5
    assert machine.out_of_memory_kills() == 4


@pytest.mark.parametrize(
    ("job", "gib"),
    [
        ({"SLURM_MEM_PER_NODE": "1024"}, 1.0),
        ({"SLURM_MEM_PER_CPU": "256", "SLURM_CPUS_ON_NODE": "2"}, 0.5),
        ({"SLURM_MEM_PER_NODE": "8192"}, 3.0),
        ({"SLURM_MEM_PER_NODE": "0"}, 3.0),
        ({"SLURM_MEM_PER_NODE": "2G"}, 3.0),
    ],
)
def test_a_job_has_what_slurm_gave_it_where_no_cgroup_says_so(kernel, monkeypatch, job, gib):
    fill(kernel, own="0::/\n", memory__max=f"{3 << 30}\n")
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert cgroups.memory_gib() == 3.0  # a shell of salloc, which is not on the node
    monkeypatch.setenv("SLURMD_NODENAME", "node")
    assert cgroups.memory_gib() == gib


def test_limits_of_cgroups_version_1(kernel):
    (kernel / "own").write_text("4:memory:/job\n3:cpu,cpuacct:/job\n")
    fill(kernel / "cpu/job", cpu__cfs_quota_us="400000\n", cpu__cfs_period_us="100000\n")
    fill(kernel / "memory/job", memory__limit_in_bytes=f"{1 << 30}\n", memory__usage_in_bytes=f"{1 << 29}\n")
    fill(kernel / "memory/job", memory__oom_control="under_oom 0\noom_kill 2\n")
    assert machine.cores() == 4
    assert machine.memory_available_gb() == 0.5
    assert machine.out_of_memory_kills() == 2


def test_a_quota_below_one_core_is_one_core(kernel):
    (kernel / "own").write_text("0::/\n")
    fill(kernel, cpu__max="50000 100000\n")
    assert machine.cores() == 1


def test_without_limits_the_machine_is_what_it_is(kernel):
    assert machine.cores() == 16
    assert cgroups.memory_gib() == psutil.virtual_memory().total / 2**30
    assert machine.memory_available_gb() > 0
    assert machine.out_of_memory_kills() == 0
    # As a session of systemd has it.
    (kernel / "own").write_text("0::/user.slice/session\n")
    fill(kernel / "user.slice/session", memory__max="max\n", cpu__max="max 100000\n")
    assert cgroups.memory_gib() == psutil.virtual_memory().total / 2**30
    (kernel / "vmstat").write_text("nr_free_pages 5\noom_kill 3\n")
    assert machine.out_of_memory_kills() == 3
