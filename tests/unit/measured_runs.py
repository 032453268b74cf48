"""Run directories with results of single images, written by hand."""

import math
from typing import Any

from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze
from refsam.configuration.patch_pool import with_patch_pool
from refsam.records.bootstrap import bootstrap_interval
from refsam.records.metrics import METRICS, SECONDS
from refsam.records.paths import RunsFolder
from refsam.records.per_image import write_rows
from refsam.records.status import State, Status, write_status
from refsam.system.files import write_json

Images = dict[str, float]


def write_run(
    folder: RunsFolder,
    run_id: str,
    modes: dict[str, Images],
    overrides: tuple[str, ...] | None = None,
    state: State = State.completed,
    training: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
) -> None:
    """A run with the SA50 of these images in these modes; with overrides also its frozen configuration."""
    paths = folder.run(run_id)
    paths.results.mkdir(parents=True, exist_ok=True)
    rows, means = [], []
    for mode, images in modes.items():
        for image, value in images.items():
            row = {**dict.fromkeys(METRICS, value), **dict.fromkeys(SECONDS, 0.5)}
            row |= {"image": image, "mode": mode, "round": 0, "mask_input": False, "parameters": ""}
            rows.append({**row, "n_objects": 3, "n_predicted": 2, "weights": "hash"})
        measured = [value for value in images.values() if not math.isnan(value)]
        mean = math.fsum(measured) / len(measured)
        values = {**dict.fromkeys(METRICS, mean), "mode": mode, "round": 0, "mask_input": False}
        bounds = bootstrap_interval(measured, seed=0)
        values["intervals"] = {} if bounds is None else {"SA50": list(bounds)}
        means.append({**values, "n_images": len(measured), "seconds_per_image": 1.5})
    write_rows(paths.per_image, rows)
    write_json(paths.metrics, {"format": 2, "rows": means})
    write_status(paths, Status(state, attempt=1))
    if overrides is not None:
        freeze(paths.config, with_patch_pool(compose(list(overrides))))
    if training is not None:
        write_json(paths.training, training)
    if environment is not None:
        write_json(paths.environment, {"versions": {}, **environment})


def write_sweep(folder: RunsFolder, runs: dict[str, dict[str, Any]]) -> None:
    sweep = folder.sweep("study")
    sweep.root.mkdir(parents=True, exist_ok=True)
    fixed = {"resource": "local", "model": "vit_b", "dataset": "nuclei", "n_images": 1, "seed": 0}
    planned = [{"run_id": run, "overrides": {**fixed, **given}} for run, given in runs.items()]
    write_json(sweep.manifest, {"format": 1, "name": "study", "runs": planned, "skipped": []})


def images(*values: float) -> Images:
    return {f"image{number}": value for number, value in enumerate(values)}
