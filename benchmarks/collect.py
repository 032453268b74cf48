"""What collecting a large sweep costs: python -m benchmarks.collect

Writes synthetic run directories (configuration, status, environment, training, savings, metrics, one CSV per
run as the studies' scripts leave it) and runs `refsam collect` on them twice, each in a process of its own:
the first time, and when nothing changed; then once with 1 % of the runs changed. Beside it a script that
opens the same CSVs with pandas one by one, as the studies' scripts do; it knows of metrics only. Prints a
table and writes it as CSV.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml

from benchmarks.rows import write_csv
from refsam.configuration.compose import compose
from refsam.records.metrics import METRICS
from refsam.records.paths import RunsFolder

COLUMNS = ("tool", "runs", "rows", "seconds", "cpu_seconds", "peak_mib")
PEER = """
import glob, sys
import pandas as pd
paths = sorted(glob.glob(sys.argv[1] + "/*/results/results.csv"))
frames = [pd.read_csv(path).assign(run=path) for path in paths]
table = pd.concat(frames)
table.to_csv(sys.argv[2], index=False)
print(len(table))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000, help="how many (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="refsam-collect-") as name:
        folder = RunsFolder(Path(name) / "runs")
        run_ids = write_runs(folder, options.runs)
        command = [sys.executable, "-m", "refsam.cli", "collect", "synthetic", "--runs", str(folder.root)]
        peer = [sys.executable, "-c", PEER, str(folder.root), str(Path(name) / "peer.csv")]
        rows = [measure("refsam collect, first", command, options.runs)]
        rows.append(measure("refsam collect, nothing changed", command, options.runs))
        for run_id in run_ids[::100]:
            metrics = folder.run(run_id).metrics
            metrics.write_text(metrics.read_text() + "\n")
        rows.append(measure("refsam collect, 1 % changed", command, options.runs))
        rows.append(measure("pandas, CSVs one by one", peer, options.runs))
    for row in rows:
        print(
            f"{row['tool']:32} {row['rows']:>7} rows {row['seconds']:7.2f} s, "
            f"{row['cpu_seconds']:7.2f} s of one core, {row['peak_mib']:6.0f} MiB"
        )
    write_csv("collect", COLUMNS, rows)


def write_runs(folder: RunsFolder, number: int) -> list[str]:
    """Run directories of a sweep named `synthetic`, with two modes each, and their names."""
    axes = itertools.cycle(
        itertools.product(("v100", "gtx1080"), ("vit_b", "vit_b_lm"), ("full", "lora"), (1, 2, 5, 10))
    )
    environment = {
        "versions": {"python": "3.11", "refsam": "0.1.0", "torch": "2.15.0", "micro_sam": "1.8.14"},
        "commit": "0" * 40,
        "dirty": False,
        "device": "cuda",
        "gpu": "Tesla V100",
        "cpu": "some processor",
        "precision": "float16",
    }
    bases: dict[tuple[str, ...], Any] = {}
    planned = []
    for place in range(number):
        resource, model, strategy, n_images = next(axes)
        key = (resource, model, strategy)
        if key not in bases:
            overrides = [f"resource={resource}", f"model={model}", f"peft={strategy}"]

            bases[key] = json.loads(json.dumps(asdict(compose(overrides)), default=str))
        run_id = f"{model}-{strategy}-n{n_images}-{resource}-covid_if-s{place}"
        paths = folder.run(run_id)
        paths.results.mkdir(parents=True)
        config = {**bases[key], "n_images": n_images, "seed": place}
        paths.config.write_text(yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=False))
        status = {"state": "completed", "reason": None, "attempt": 1, "host": "node1", "job_id": None}
        training = {"best_epoch": place % 40, "seconds_to_best": 300.0 + place, "seconds_total": 900.0}
        training |= {"peak_memory_gib": 5.5, "trainable_parameters": 104_800_000, "precision": "float16"}
        values = dict.fromkeys(METRICS, place % 97 / 97)
        values |= {
            "intervals": {name: [0.1, 0.9] for name in METRICS},
            "n_test_images": 36,
            "seconds_per_image": 0.2,
        }
        metrics = [{"mode": mode, "round": 0, "mask_input": False, **values} for mode in ("box", "point")]
        for path, content in (
            (paths.environment, environment),
            (paths.status, status),
            (paths.training, training),
            (paths.savings, {"engine": "refsam", "attention": "fused"}),
            (paths.metrics, {"format": 3, "rows": metrics}),
        ):
            path.write_text(json.dumps(content, indent=2))
        lines = [",".join(["mode", *METRICS])]
        lines += [",".join([str(row["mode"]), *(str(row[name]) for name in METRICS)]) for row in metrics]
        (paths.results / "results.csv").write_text("\n".join(lines) + "\n")
        asked = {"resource": resource, "model": model, "peft": strategy, "n_images": n_images, "seed": place}
        planned.append({"run_id": run_id, "overrides": asked})
    sweep = folder.sweep("synthetic")
    sweep.root.mkdir(parents=True)
    sweep.manifest.write_text(json.dumps({"format": 1, "name": "synthetic", "runs": planned, "skipped": []}))
    return [run["run_id"] for run in planned]


def measure(tool: str, command: list[str], runs: int) -> dict[str, Any]:
    """Seconds and peak memory of a command, start of Python included."""
    began = perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = perf_counter() - began
    if status != 0:
        raise RuntimeError(f"{tool} ended with status {status}")
    rows = next(int(line.split()[0]) for line in reversed(output.splitlines()) if line[:1].isdigit())
    return {
        "tool": tool,
        "runs": runs,
        "rows": rows,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


if __name__ == "__main__":
    main()
