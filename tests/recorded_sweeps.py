"""Sweeps with records written by hand: what tests of the report look at, in a browser and without one."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from refsam.records.attempts import Attempt, write_attempt
from refsam.records.paths import RunPaths, RunsFolder, SweepPaths
from refsam.records.per_image import COLUMNS as PER_IMAGE
from refsam.records.per_image import read_rows, write_rows
from refsam.records.status import Reason, State, Status, write_status
from refsam.results.collect import COLUMNS, INTEGERS, METRICS
from refsam.system.files import write_json, write_text, write_yaml

HOSTILE = (
    "<script>document.title='broken'</script><img src=x onerror=alert(1)>\"'&amp;</title>{{ 7*7 }} Größe"
)
HOSTILE_RUN = "vit_b-<b>\"'&ä-n1"  # a name that a file may have
START, END = "2026-01-02T03:00:00+00:00", "2026-01-02T04:30:00+00:00"
COMMAND = [
    "/somewhere/refsam/sweep.py",
    "-m",
    "resource=v100",
    "peft=full,lora",
    "n_images=1,5",
    "name=study",
]


def environment(gpu: str | None = "Tesla V100-SXM2-32GB") -> dict[str, Any]:
    return {
        "versions": {"python": "3.11.7", "refsam": "0.1.0", "torch": "2.15.0", "micro_sam": "1.8.14"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "host": "node07",
        "system": "Linux",
        "cpu": "Example CPU",
        "cores": 8,
        "threads": 4,
        "memory_gib": 31.0,
        "device": "cpu" if gpu is None else "cuda",
        "gpu": gpu,
        "gpu_memory_gib": None if gpu is None else 31.7,
        "weights": {"source": "vit_b from the registry", "hash": "feed"},
        "precision": "float16",
    }


def write_run(folder: RunsFolder, run_id: str, **values: Any) -> RunPaths:
    """A run directory with a configuration, and the status `planned`."""
    paths = folder.run(run_id)
    paths.results.mkdir(parents=True)
    request = {"gpu": "V100", "gpus": 1, "cores": 8, "memory_gb": 32, "time": "1-00:00:00"}
    config = {
        "kind": values.get("kind", "finetuning"),
        "resource": {"name": values.get("resource", "v100"), "device": "cuda", "request": request},
        "model": {"name": values.get("model", "vit_b"), "weights": values.get("weights", "pretrained")},
        "peft": {"name": values.get("strategy", "full")} | values.get("peft", {}),
        "dataset": {"name": values.get("dataset", "nuclei"), "images": ["*.tif"]},
        "n_images": values.get("n_images", 5),
        "n_objects": 10,
        "seed": values.get("seed", 0),
        "train": {"decoder": True, "joint": "separate", "learning_rate": 1e-5},
    }
    write_yaml(paths.config, config)
    write_status(paths, Status())
    return paths


def complete(paths: RunPaths, sa50: float = 0.8, gpu: str | None = "Tesla V100-SXM2-32GB") -> None:
    """What a finished run leaves: 90 minutes of one attempt, two modes, twelve images."""
    write_json(paths.environment, environment(gpu))
    training = {"best_epoch": 3, "seconds_to_best": 307.0, "seconds_total": 700.5, "peak_memory_gib": 5.5}
    write_json(paths.training, {**training, "trainable_parameters": 93_735_472})
    values = {**dict.fromkeys(METRICS, 0.5), "SA50": sa50, "n_images": 12, "seconds_per_image": 0.25}
    values["intervals"] = {"SA50": [sa50 - 0.1, sa50 + 0.1]}
    rows = [
        {"mode": mode, "round": 0, "mask_input": False, **values, "SA50": sa50 * share}
        for mode, share in (("box", 1.0), ("point", 0.5))
    ]
    write_json(paths.metrics, {"format": 2, "rows": rows})
    attempt = Attempt(started_at=START, ended_at=END, state=State.completed, peak_memory_gib=4.0)
    write_attempt(paths, 1, attempt)
    status = Status(State.completed, attempt=1, host="node07", started_at=START, ended_at=END)
    write_status(paths, status)


def fail(paths: RunPaths, reason: Reason, message: str, log: str | None) -> None:
    """A run that failed in its second attempt."""
    first = Attempt(started_at=START, ended_at=END, state=State.failed, reason=reason, message=message)
    write_attempt(paths, 1, first)
    second = Attempt({"train.object_chunk": 2}, started_at=START, ended_at=END, state=State.failed)
    write_attempt(paths, 2, second)
    if log is not None:
        write_text(paths.attempt(2) / "job.out", log)
    status = Status(State.failed, reason, message, attempt=2, job_id="17_3", host="node07", ended_at=END)
    write_status(paths, status)


def draw_picture(paths: RunPaths, mode: str, image: str) -> None:
    """A picture as evaluation draws one, and the row about it."""
    path = paths.picture(mode, image)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.tile(np.arange(240, dtype="uint8"), (80, 1))
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    path.write_bytes(content.getvalue())
    measured: dict[str, Any] = {**dict.fromkeys(PER_IMAGE, 0.0), "image": image, "mode": mode, "round": 0}
    measured |= {"mask_input": False, "SA50": 0.25, "mIoU": 0.5, "n_objects": 12, "n_predicted": 10}
    write_rows(paths.per_image, [*read_rows(paths.per_image), measured])


def write_manifest(
    folder: RunsFolder,
    name: str,
    run_ids: list[str],
    skipped: list[dict[str, Any]] | None = None,
    commands: list[list[str]] | None = None,
) -> SweepPaths:
    sweep = folder.sweep(name)
    sweep.root.mkdir(parents=True)
    asked = {"resource": "v100", "model": "vit_b", "n_images": 5, "seed": 0}
    manifest = {
        "format": 1,
        "name": name,
        "commands": [COMMAND] if commands is None else commands,
        "created": START,
        "updated": END,
        "runs": [{"run_id": run_id, "overrides": asked} for run_id in run_ids],
        "skipped": skipped or [],
    }
    write_json(sweep.manifest, manifest)
    return sweep


def study(root: Path) -> RunsFolder:
    """A sweep `study` of the initial model, four completed runs with pictures, two failed ones with hostile
    names and logs, one that waits, and a combination that was left out.
    """
    folder = RunsFolder(root)
    root.mkdir(parents=True)
    baseline = write_run(folder, "vit_b-baseline", kind="baseline")
    complete(baseline, 0.2)
    draw_picture(baseline, "box", "sub/cell.tif")
    run_ids = [baseline.run_id]
    measured = (("full", 1, 0.5), ("full", 5, 0.6), ("lora", 1, 0.45), ("lora", 5, 0.55))
    for strategy, n_images, sa50 in measured:
        paths = write_run(folder, f"vit_b-{strategy}-n{n_images}", strategy=strategy, n_images=n_images)
        complete(paths, sa50)
        draw_picture(paths, "box", "sub/cell.tif")
        draw_picture(paths, "box", "sub/other.tif")
        run_ids.append(paths.run_id)
    failed = write_run(folder, HOSTILE_RUN, strategy=HOSTILE, n_images=1)
    log = f"\x1b[31mred\x1b[0m {HOSTILE}\nlast line\n"
    fail(failed, Reason.out_of_memory, f"No memory for {HOSTILE}", log)
    silent = write_run(folder, "vit_b-dora-n5", strategy="dora", n_images=5)
    fail(silent, Reason.timeout, "The time limit came.", None)
    write_run(folder, "vit_b-lora-n10", strategy="lora", n_images=10)
    reason = f"qlora needs a GPU, {HOSTILE}"
    left_out = {"overrides": {"peft": "qlora", "resource": HOSTILE}, "reason": reason}
    run_ids += [failed.run_id, silent.run_id, "vit_b-lora-n10"]
    write_manifest(folder, "study", run_ids, [left_out])
    return folder


def large_table(rows: int) -> pd.DataFrame:
    """The tidy table of so many completed runs, not in the order of their SA50; no multiple of 7."""
    places = range(rows)
    values: dict[str, Any] = {name: [None] * rows for name in COLUMNS} | {
        "run_id": [f"run-{place:05}" for place in places],
        "sweep": "large",
        "resource": "v100",
        "dataset": "nuclei",
        "weights": "pretrained",
        "model": [f"vit_{'tblh'[place % 4]}" for place in places],
        "strategy": [("full", "lora", "dora")[place % 3] for place in places],
        "n_images": [(1, 2, 5, 10)[place // 4 % 4] for place in places],
        "seed": [place // 48 for place in places],
        "mode": "box",
        "round": 0,
        "SA50": [place * 7 % rows / rows for place in places],
        "seconds_total": [float(place % 900) for place in places],
        "status": "completed",
    }
    types: dict[str, Any] = dict.fromkeys(INTEGERS, "Int64")
    return pd.DataFrame(values, columns=list(COLUMNS)).astype(types)
