"""What a sweep costs before its first job runs: python -m benchmarks.orchestration

Starts a test cluster of its own (root, Debian) whose partitions are closed, so that planning and submission
are measured and not the work. The same runs are then given to hydra-submitit-launcher, from the package
index, with one request for all of them, which is all that it can do; it is stopped when it has submitted.
Calls of Slurm's commands are counted by a wrapper around each. Prints a table and writes it as CSV.
"""

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from refsam.configuration.compose import compose
from refsam.datasets.prepare import prepare
from refsam.records.paths import RunsFolder
from refsam.records.status import State, read_status
from refsam.system.files import read_json
from tools.test_cluster.cluster import Cluster

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "sacctmgr", "sinfo", "srun")
RESOURCES = ("medium_8g", "gtx1080", "rtx5000", "v100")
PEER = "hydra-submitit-launcher==1.2.0"
PEER_SECONDS = 900  # until it is given up
PEER_PROGRAM = """
import hydra
from refsam.configuration.schema import register
register()
@hydra.main(version_base="1.3", config_path={conf!r}, config_name="config")
def work(config):
    return 0
work()
"""
COLUMNS = ("tool", "runs", "requests", "plan_s", "plan_and_submission_s", "status_s", "slurm_calls", "calls")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000, help="how many (%(default)s), over 4 resources")
    parser.add_argument("--csv", type=Path, default=Path("orchestration.csv"), help="(%(default)s)")
    parser.add_argument("--without-peer", action="store_true", help="measure refsam only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="refsam-benchmark-") as name:
        folder = Path(name)
        cluster = Cluster(folder / "cluster")
        try:
            start(cluster)
            environment = prepare_environment(folder, cluster)
            rows = [measure_refsam(folder, environment, options.runs)]
            if not options.without_peer:
                subprocess.run(["scancel", "--user=root"], env=environment, check=True)
                rows.append(measure_peer(folder, environment, options.runs))
        finally:
            cluster.down()
    with options.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(options.csv.read_text(encoding="utf-8"))


def start(cluster: Cluster) -> None:
    """A cluster that takes arrays of 1,000, as Slurm does by default, and runs nothing."""
    cluster.up()
    configuration = cluster.root / "slurm.conf"
    text = configuration.read_text(encoding="utf-8").replace("MaxArraySize=200", "MaxArraySize=1001")
    configuration.write_text(text.replace("State=UP", "State=DOWN"), encoding="utf-8")
    cluster.daemons.stop("slurmctld")
    cluster.start("slurmctld")


def prepare_environment(folder: Path, cluster: Cluster) -> dict[str, str]:
    """Where the measured commands find the cluster, the data, and the wrappers that count."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for name in COMMANDS:
        real = shutil.which(name)
        wrapper = bin_folder / name
        wrapper.write_text(f'#!/bin/sh\necho {name} >> {folder}/calls\nexec {real} "$@"\n', encoding="utf-8")
        wrapper.chmod(0o755)
    data = folder / "data"
    os.environ["REFSAM_DATA"] = str(data)
    prepare(compose(["dataset=synthetic"]).dataset, say=lambda _: None)
    return {
        **os.environ,
        **cluster.environment,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": f"{folder / 'peer'}:{ROOT}",
    }


def overrides(runs: int) -> list[str]:
    """The same sweep for both."""
    seeds = ",".join(str(seed) for seed in range(runs // len(RESOURCES)))
    asked = [f"resource={','.join(RESOURCES)}", f"seed={seeds}", "model=vit_nano", "dataset=synthetic"]
    return [*asked, "n_images=1", "train=quick", "baseline=false", "cluster=scc"]


def measure_refsam(folder: Path, environment: dict[str, str], runs: int) -> dict[str, object]:
    sweep = [
        sys.executable,
        "-m",
        "refsam.sweep",
        "-m",
        *overrides(runs),
        "name=bench",
        f"runs={folder}/runs",
    ]
    plan = seconds([*sweep, "dry_run=true"], environment)
    (folder / "calls").write_text("")
    whole = seconds(sweep, environment)
    calls = Counter((folder / "calls").read_text().split())
    records = RunsFolder(folder / "runs")
    run_ids = [run["run_id"] for run in read_json(records.sweep("bench").manifest)["runs"]]
    pending = sum(read_status(records.run(run_id)).state is State.pending for run_id in run_ids)
    assert pending == len(run_ids) == in_queue(environment) == runs, (pending, len(run_ids), runs)
    status = [sys.executable, "-m", "refsam.cli", "status", "bench", "--runs", f"{folder}/runs"]
    (folder / "calls").write_text("")
    looked = seconds(status, environment)
    of_status = len((folder / "calls").read_text().split())
    return row("refsam", runs, len(RESOURCES), plan, whole, looked, calls, f"; status: {of_status}")


def measure_peer(folder: Path, environment: dict[str, str], runs: int) -> dict[str, object]:
    """Until the array is submitted; then it would wait for the last job."""
    name = PEER.partition("=")[0]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{folder}/peer", PEER]
    if subprocess.run(pip, check=False).returncode != 0:
        return row(f"{name}: could not be installed", runs, 0, None, None, None, Counter(), "")
    program = folder / "peer.py"
    program.write_text(PEER_PROGRAM.format(conf=str(ROOT / "conf")), encoding="utf-8")
    launcher = ["hydra/launcher=submitit_slurm", "hydra/sweeper=basic", "hydra.launcher.partition=medium"]
    launcher += [
        "hydra.launcher.mem_gb=8",
        "hydra.launcher.cpus_per_task=8",
        f"hydra.sweep.dir={folder}/multirun",
    ]
    launcher += ["hydra.sweep.subdir=${hydra.job.num}", "hydra.output_subdir=.hydra"]
    (folder / "calls").write_text("")
    began = time.monotonic()
    log = folder / "peer.log"
    with log.open("w") as output:
        peer = subprocess.Popen(
            [sys.executable, str(program), "-m", *overrides(runs), *launcher],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    while peer.poll() is None and "sbatch" not in (folder / "calls").read_text():
        if time.monotonic() - began > PEER_SECONDS:
            break
        time.sleep(0.1)
    while peer.poll() is None and in_queue(environment) < runs and time.monotonic() - began < PEER_SECONDS:
        time.sleep(0.1)
    took = time.monotonic() - began
    calls = Counter(name for name in (folder / "calls").read_text().split() if name != "squeue")
    if peer.poll() is not None or in_queue(environment) < runs:
        words = (log.read_text().strip().splitlines() or ["it ended"])[-1]
        os.killpg(peer.pid, signal.SIGKILL) if peer.poll() is None else None
        return row(f"{name}: nothing submitted: {words}", runs, 0, None, took, None, calls, "")
    os.killpg(peer.pid, signal.SIGKILL)
    return row(name, runs, 1, None, took, None, calls, "")


def row(
    tool: str,
    runs: int,
    requests: int,
    plan: float | None,
    whole: float | None,
    status: float | None,
    calls: Counter[str],
    more: str,
) -> dict[str, object]:
    times = ["" if value is None else f"{value:.1f}" for value in (plan, whole, status)]
    words = " ".join(f"{name}: {count}" for name, count in sorted(calls.items())) + more
    return dict(zip(COLUMNS, (tool, runs, requests, *times, sum(calls.values()), words), strict=True))


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall time of a command, which must succeed."""
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    took = time.monotonic() - began
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:4])} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return took


def in_queue(environment: dict[str, str]) -> int:
    """Jobs and array tasks; asked past the wrapper."""
    command = ["squeue", "--noheader", "--array", "--format=%i"]
    path = os.environ["PATH"]
    answer = subprocess.run(
        command, env={**environment, "PATH": path}, capture_output=True, text=True, check=True
    )
    return len(answer.stdout.split())


if __name__ == "__main__":
    main()
