"""Whole runs on a GPU: one epoch in a process of its own, and the evaluation in each mode."""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from benchmarks.gpu.blocks import DEVICE
from benchmarks.gpu.configurations import config_of
from benchmarks.gpu.page import Line
from benchmarks.gpu.rows import MODES, Scale
from refsam.configuration.frozen import freeze
from refsam.configuration.schema import RefsamConfig
from refsam.datasets.prepare import prepare
from refsam.records.metrics import read_metrics
from refsam.records.paths import RunPaths
from refsam.records.status import State, Status, read_status, write_status
from refsam.science.data import test_images, training_loaders, validation_images
from refsam.science.evaluation import evaluate
from refsam.science.hardware import GIB, release_memory
from refsam.science.randomness import be_deterministic, let_kernels_be_fast
from refsam.science.strategies.opening import predictor_and_decoder
from refsam.science.training.build import train
from refsam.system.files import read_json

WORKERS = 2
RUN_SECONDS = 120.0  # after which a run is taken to hang
EPOCH = ("train.epochs=1", "train.validation_samples=1", "evaluate.max_images=1", "evaluate.grid=defaults")


def epoch(scale: Scale) -> list[Line]:
    """A run with workers; whether it ends, with which status, and how long after its last word."""
    with tempfile.TemporaryDirectory() as name:
        samples = f"train.min_samples={scale.samples}"
        overrides = (f"train.workers={WORKERS}", samples, "n_objects=5", "train.precision=auto")
        config = _config(scale, Path(name), *overrides, "evaluate.modes=[box]", model=scale.epoch_model)
        paths = RunPaths(Path(name) / "run")
        paths.root.mkdir()
        freeze(paths.config, config)
        write_status(paths, Status(State.pending))
        started = time.time()
        with (Path(name) / "log").open("wb") as log:
            command = [sys.executable, "-m", "refsam.science.run", str(paths.root)]
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                status: int | str = child.wait(RUN_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                status = f"did not end within {RUN_SECONDS:.0f} s"
        ended = time.time()
        said = read_status(paths)
        line: Line = {
            "model": config.model.name,
            "workers": WORKERS,
            "samples": scale.samples,
            "state": said.state.value,
            "exit status": status,
            "seconds": ended - started,
        }
        if said.ended_at is not None:
            line["seconds until exit"] = ended - datetime.fromisoformat(said.ended_at).timestamp()
        if said.state is not State.completed:
            return [line | {"said": said.message}]
        trained = read_json(paths.training)
        known = ("seconds_per_step", "peak_memory_gib", "precision")
        return [line | {key.replace("_", " "): trained[key] for key in known}]


def evaluation(scale: Scale) -> list[Line]:
    """Each mode by itself, of a model that was trained for a step."""
    be_deterministic()
    with tempfile.TemporaryDirectory() as name:
        overrides = ("train.workers=0", "train.min_samples=1", "n_objects=2")
        points = f"evaluate.points_per_side={scale.points_per_side}"
        config = _config(scale, Path(name), *overrides, points)
        paths = RunPaths(Path(name) / "run")
        paths.root.mkdir()
        train(config, paths, training_loaders(config), lambda progress: None)
        release_memory(DEVICE)
        let_kernels_be_fast(DEVICE)
        predictor, decoder = predictor_and_decoder(config, paths, DEVICE)
        lines = []
        for mode in MODES:
            of_mode = replace(config, evaluate=replace(config.evaluate, modes=[mode]))
            base = torch.cuda.memory_allocated(DEVICE)
            torch.cuda.reset_peak_memory_stats(DEVICE)
            images, held_out = test_images(of_mode), validation_images(of_mode)
            evaluate(of_mode, predictor, images, paths, lambda *_: None, decoder=decoder, validation=held_out)
            (row,) = [each for each in read_metrics(paths.metrics) if each["mode"] == mode]
            peak = torch.cuda.max_memory_allocated(DEVICE)
            seconds = {key.replace("_", " "): row[key] for key in row if key.startswith("seconds")}
            line = {"model": config.model.name, "mode": mode, "images": row["n_test_images"], **seconds}
            lines.append({**line, "before GiB": base / GIB, "peak GiB": peak / GIB, "mSA": row["mSA"]})
            release_memory(DEVICE)
        return lines


def _config(scale: Scale, folder: Path, *overrides: str, model: str | None = None) -> RefsamConfig:
    """A run on the drawn discs, which are drawn into the folder."""
    config = config_of(scale, f"data={folder}", *EPOCH, *overrides, model=model)
    prepare(config.dataset, say=lambda _: None)
    return config
