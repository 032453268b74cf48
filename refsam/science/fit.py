"""One training step, measured: `python -m refsam.science.fit CONFIG RESULT [--gpu-gib GIB]`.

`refsam fit` starts it once for each step, under a limit of memory that may kill it. The model, the trainer,
its optimizer and the savings are those of a run with the same configuration; the patch is synthetic, so that
it has as many objects as are asked for. Weights are random: memory and time do not depend on them.
"""

import argparse
import importlib.metadata
import math
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import refsam
from refsam.configuration.frozen import load
from refsam.configuration.schema import RefsamConfig
from refsam.records.fits import StepOutcome
from refsam.records.paths import RunPaths
from refsam.science.data import Image, patch_loaders
from refsam.science.hardware import GIB, choose_device, is_out_of_memory, peak_memory, resident_memory
from refsam.science.randomness import be_deterministic, let_kernels_be_fast, seed_everything
from refsam.science.training.build import Training, build_training
from refsam.system.files import write_json

VERSIONS = ("torch", "micro_sam")
DISC = 0.35  # radius by the distance of two discs
# An even step of micro-sam's starts with a point and three masks per object: the one that takes more memory.
EVEN_ITERATION = 2


def measure(config: RefsamConfig) -> dict[str, Any]:
    """Seconds and memory (GiB) of one step, with the state that the optimizer has after its first one.

    On a GPU of the second of two equal ones: in the first it loads its kernels and chooses among them. On a
    CPU that would take as long again, and tell little.
    """
    with tempfile.TemporaryDirectory() as folder:
        training, base, (x, y) = prepared(config, Path(folder))
        device = training.learner.arithmetic.device
        for _ in range(2 if device.type == "cuda" else 1):
            seed_everything(config.seed, "step")
            seconds = _seconds(training, x, y)
    return {
        "seconds": seconds,
        "peak_gib": _peak(device),
        "base_gib": base,
        "precision": training.learner.arithmetic.precision.value,
        "n_objects": config.n_objects,
        "savings": training.savings,
    }


def of_one_batch(config: RefsamConfig) -> RefsamConfig:
    """The configuration with as many patches as a batch has, loaded here."""
    size = config.train.batch_size
    train = replace(config.train, min_samples=size, validation_samples=1, workers=0, embedding_cache="memory")
    return replace(config, train=train)


def prepared(config: RefsamConfig, folder: Path) -> tuple[Training, float, tuple[torch.Tensor, torch.Tensor]]:
    """A training before a step that has the optimizer's state, what is held there (GiB), and a batch.

    Args:
        config: of the run; its data set is not read.
        folder: for what a training writes, empty.
    """
    be_deterministic()
    seed_everything(config.seed, "fit")
    paths = RunPaths(folder)
    for path in (paths.checkpoints, paths.tensorboard, paths.results):
        path.mkdir(parents=True)
    image = discs(config.n_objects, tuple(config.train.patch_shape))
    loaders = patch_loaders(config, [image], [image])
    training = build_training(config, paths, loaders, lambda progress: None)
    training.learner.switch(training=True)
    device = training.learner.arithmetic.device
    if config.train.engine == "micro_sam":
        let_kernels_be_fast(device)
    base = resident_memory(device)
    make_optimizer_state(training.learner.optimizer)
    x, y = next(iter(training.loaders[0]))
    return training, base, (x, y)


def discs(number: int, shape: tuple[int, ...]) -> Image:
    """An image (H, W) uint8 with at least `number` bright discs, and its labels (H, W) uint32."""
    side = math.ceil(math.sqrt(max(number, 4)))
    rows, columns = np.indices(shape)
    heights, widths = shape[0] / side, shape[1] / side
    labels = (rows // heights * side + columns // widths + 1).astype(np.uint32)
    distance = np.hypot(rows % heights - heights / 2, columns % widths - widths / 2)
    labels[distance > DISC * min(heights, widths)] = 0
    noise = np.random.default_rng(0).integers(0, 80, shape, dtype=np.uint8)
    return noise + np.uint8(120) * (labels > 0).astype(np.uint8), labels


def make_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """What the optimizer keeps from its first step on, made by a step without gradients."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _seconds(training: Training, x: torch.Tensor, y: torch.Tensor) -> float:
    """Seconds of a step of a batch."""
    started = time.perf_counter()
    take(training, x, y)
    device = training.learner.arithmetic.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def take(training: Training, x: torch.Tensor, y: torch.Tensor) -> None:
    """The step of loop.train, without its records."""
    learner, step = training.learner, training.step
    learner.optimizer.zero_grad()
    for _ in range(learner.accumulate):
        step.interactive(x, y, EVEN_ITERATION)
    learner.step(learner.accumulate)
    if step.segmentation is not None:
        learner.optimizer.zero_grad()
        for _ in range(learner.accumulate):
            step.segmentation(x, y)
        learner.step(learner.accumulate)


def _peak(device: torch.device) -> float:
    """What counts against the limit: on a GPU all that torch's allocator has reserved.

    In main memory all but the pages of files (libraries above all), which the kernel gives back when it gets
    short; as many as there are now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / GIB
    return peak_memory(device) - psutil.Process().memory_info().shared / GIB


def limit_gpu(gib: float, device: torch.device) -> None:
    """Let this process take so much of a GPU's memory, at most all of it."""
    total = torch.cuda.get_device_properties(device).total_memory / GIB
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib / total), device)


def main() -> None:
    """Write what was measured to RESULT, running out of memory included; any other error goes to the log."""
    parser = argparse.ArgumentParser(prog="python -m refsam.science.fit")
    parser.add_argument("config", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--gpu-gib", type=float, default=None)
    arguments = parser.parse_args()
    config = load(arguments.config)
    config = of_one_batch(config)
    if "REFSAM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["REFSAM_THREADS"]))
    if arguments.gpu_gib is not None:
        device = choose_device(config)
        if device.type != "cuda":
            sys.exit("this step was to be measured on a GPU")
        limit_gpu(arguments.gpu_gib, device)
    try:
        result = {"outcome": StepOutcome.fits, **measure(config)}
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        result = {"outcome": StepOutcome.out_of_memory, "message": str(error).strip().splitlines()[0]}
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    write_json(arguments.result, {**result, "versions": {"refsam": refsam.__version__, **versions}})


if __name__ == "__main__":
    main()
