"""Epochs with a frozen encoder, micro-sam's trainer and ours, each in a process of its own.

`python -m benchmarks.frozen_epoch`: the same weights (random, seeded), real nuclei (`refsam prepare
dataset=nuclei`, REFSAM_DATA), the segmentation decoder included, and `--samples` patches in place of the
study's 50. Written are, for every epoch, the seconds of training (of the clock, and of all cores together,
which tells more on a machine that others use), those that its encoder took, how often it was called, and what
validation takes. micro-sam embeds every patch twice in every step; our first epoch embeds each once, and the
later ones none (`train.patch_pool` is the samples of one epoch). On a machine that others use,
OMP_NUM_THREADS=1 keeps threads from waiting for each other, which counts as work.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.memory import PeakMemory
from benchmarks.rows import save_figure, write_csv

ENGINES = ("micro_sam", "refsam")
COLUMNS = (
    "model", "n_objects", "engine", "threads", "memory_gib", "object_chunk", "checkpoint_decoder",
    "epoch", "samples", "seconds_per_sample", "cpu_seconds_per_sample",
    "encoder_cpu_seconds_per_sample", "encoder_calls", "validation_cpu_seconds_per_sample", "above_base_mib",
    "ratio", "cpu_ratio",
)  # fmt: skip


class TimedCalls:
    """Calls of a module and the seconds of all cores that they took."""

    def __init__(self, module: Any) -> None:
        self.calls, self.seconds = 0, 0.0
        module.register_forward_pre_hook(self._before)
        module.register_forward_hook(self._after)

    def _before(self, *_: Any) -> None:
        self._started = time.process_time()

    def _after(self, *_: Any) -> None:
        self.calls += 1
        self.seconds += time.process_time() - self._started


def measure(arguments: argparse.Namespace) -> None:
    """Train in this process; one row per epoch goes to `arguments.output`."""
    import torch

    from refsam.configuration.compose import compose
    from refsam.records.paths import RunPaths
    from refsam.science.data import training_loaders
    from refsam.science.training import loop
    from refsam.science.training.build import build_training

    output = Path(arguments.output)
    config = compose(
        [
            f"model={arguments.model}",
            "model.weights=random",
            "dataset=nuclei",
            "n_images=1",
            "peft=freeze_encoder",
            f"n_objects={arguments.n_objects}",
            f"train.engine={arguments.engine}",
            f"train.epochs={arguments.epochs}",
            f"train.min_samples={arguments.samples}",
            f"train.max_steps={arguments.epochs * arguments.samples}",
            f"train.patch_pool={arguments.samples}",
            "train.validation_samples=1",
            "train.precision=float32",
            f"resource.request.memory_gb={arguments.memory_gib}",
        ]
    )
    loaders = training_loaders(config)
    next(iter(loaders[0]))  # what the first sample imports belongs to no epoch
    marks: list[tuple[int, float, float, float, int]] = []
    paths = RunPaths(output)
    training = build_training(
        config,
        paths,
        loaders,
        lambda progress: marks.append((progress.iteration, *clocks(), encoder.seconds, encoder.calls)),
    )
    encoder = TimedCalls(training.learner.model.sam.image_encoder)
    for folder in (paths.checkpoints, paths.tensorboard, paths.results):
        folder.mkdir(parents=True, exist_ok=True)
    started_epochs = []
    begin, validate = training.recorder.begin_epoch, loop.validate
    validations = []

    def begin_epoch(*given: Any) -> Any:
        started_epochs.append((*clocks(), encoder.seconds, encoder.calls))
        return begin(*given)

    def timed_validation(*given: Any) -> Any:
        started = time.process_time()
        validation = validate(*given)
        validations.append(time.process_time() - started)
        return validation

    training.recorder.begin_epoch, loop.validate = begin_epoch, timed_validation
    torch.manual_seed(0)
    with PeakMemory() as memory:
        loop.train(training.learner, training.step, loaders, training.recorder, config.seed)
    rows = []
    for epoch, (started, started_cpu, encoded, calls) in enumerate(started_epochs, 1):
        # The last report of a step of this epoch: what is saved afterwards reports the same iteration again.
        last = next(mark for mark in marks if mark[0] == epoch * arguments.samples)
        rows.append(
            {
                "model": arguments.model,
                "n_objects": arguments.n_objects,
                "engine": arguments.engine,
                "threads": torch.get_num_threads(),
                "memory_gib": arguments.memory_gib,
                "object_chunk": training.savings["object_chunk"],
                "checkpoint_decoder": training.savings["checkpoint_decoder"],
                "epoch": epoch,
                "samples": arguments.samples,
                "seconds_per_sample": round((last[1] - started) / arguments.samples, 2),
                "cpu_seconds_per_sample": round((last[2] - started_cpu) / arguments.samples, 2),
                "encoder_cpu_seconds_per_sample": round((last[3] - encoded) / arguments.samples, 2),
                "encoder_calls": last[4] - calls,
                "validation_cpu_seconds_per_sample": round(validations[epoch - 1], 2),
                "above_base_mib": round(memory.peak - memory.base),
            }
        )
    (output / "rows.json").write_text(json.dumps(rows))


def clocks() -> tuple[float, float]:
    """Seconds of the clock, and of all cores that this process had."""
    return time.perf_counter(), time.process_time()


def benchmark(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of both engines; the ratio is to the mean of micro-sam's epochs."""
    rows: list[dict[str, Any]] = []
    for engine in ENGINES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.frozen_epoch", "--measure", "--engine", engine]
            for name in ("model", "n_objects", "samples", "memory_gib"):
                command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
            epochs = 1 if engine == "micro_sam" else arguments.epochs  # micro-sam's are all alike
            command += ["--epochs", str(epochs), "--output", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            rows += json.loads((Path(folder) / "rows.json").read_text())
    theirs = next(row for row in rows if row["engine"] == "micro_sam")
    for row in rows:
        for name, seconds in (("ratio", "seconds_per_sample"), ("cpu_ratio", "cpu_seconds_per_sample")):
            row[name] = round(row[seconds] / theirs[seconds], 3)
    return rows


def write(rows: list[dict[str, Any]], name: str) -> None:
    """The rows as CSV, and as a figure: the encoder's share and the rest of every epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    write_csv(name, COLUMNS, rows)
    figure, axis = pyplot.subplots(figsize=(7, 0.5 * len(rows) + 1.2))
    encoder = [row["encoder_cpu_seconds_per_sample"] for row in rows]
    rest = [row["cpu_seconds_per_sample"] - share for row, share in zip(rows, encoder, strict=True)]
    axis.barh(range(len(rows)), encoder, color="tab:orange", label="encoder")
    bars = axis.barh(range(len(rows)), rest, left=encoder, color="tab:blue", label="the rest of the step")
    axis.bar_label(bars, [f"{row['cpu_seconds_per_sample']:.1f}" for row in rows], padding=2)
    axis.set_yticks(range(len(rows)), [f"{row['engine']}, epoch {row['epoch']}" for row in rows])
    axis.set_xlabel(f"seconds of all cores per sample ({rows[0]['model']}, {rows[0]['n_objects']} objects)")
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right")
    save_figure(name, figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frozen_epoch", description=__doc__)
    parser.add_argument("--model", default="vit_b")
    parser.add_argument("--n-objects", type=int, default=10)
    parser.add_argument("--samples", type=int, default=2, help="patches of an epoch; the study has 50")
    parser.add_argument("--memory-gib", type=int, default=16, help="that ours is to stay within")
    parser.add_argument("--epochs", type=int, default=2, help="of ours; micro-sam's are all alike")
    parser.add_argument("--name", default="frozen_epoch", help="of the CSV and the figure")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments)
    else:
        rows = benchmark(arguments)
        write(rows, arguments.name)
        for row in rows:
            print(", ".join(f"{name} {row[name]}" for name in COLUMNS))


if __name__ == "__main__":
    main()
