"""One interactive training step, micro-sam's and ours, each in a process of its own.

`python -m benchmarks.train_step`: the same weights (random, seeded), batch of real nuclei (`refsam prepare
dataset=nuclei`, REFSAM_DATA) and seeds for both. Written are seconds (of the clock, and of all cores
together, which tells more on a machine that others use), peak memory above what stands before the step, their
ratios, and how well losses and gradients agree. Prompts are drawn where a prediction is wrong, so rounding
can move one by a pixel; gradients are therefore compared with micro-sam's prompts replayed, unless
`--own-prompts` is given.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import MIB, PeakMemory
from benchmarks.rows import save_figure, write_csv

MICRO_SAM, REFSAM = "micro_sam", "refsam"
COLUMNS = (
    "model", "peft", "n_objects", "engine", "object_chunk", "checkpoint_encoder", "attention", "precision",
    "trainable_parameters", "total_parameters", "weights_mib",
    "seconds", "cpu_seconds", "base_mib", "above_base_mib", "loss",
    "gradient_norm", "seconds_ratio", "cpu_ratio", "memory_ratio",
    "loss_difference", "gradient_difference", "worst_parameter",
)  # fmt: skip
STEP = (
    "model.weights=random",
    "dataset=nuclei",
    "n_images=1",
    "train.decoder=false",
    "train.min_samples=1",
    "train.validation_samples=1",
)
# What is added to all scores of a softmax has no gradient but rounding.
NO_GRADIENT = "k_proj.bias"


class ReplayedPrompts:
    """Keeps the prompts that a prompt generator makes, or gives those that were kept."""

    def __init__(self, generator: Any, kept: list[Any] | None) -> None:
        self.generator = generator
        self.replayed = None if kept is None else iter(kept)
        self.kept: list[Any] = []

    def __call__(self, segmentation: Any, prediction: Any) -> Any:
        own = self.generator(segmentation, prediction)
        self.kept.append(own)
        return own if self.replayed is None else next(self.replayed)


def measure(arguments: argparse.Namespace) -> None:
    """One step in this process; its row, gradients and prompts go to `arguments.output`."""
    import torch

    from refsam.configuration.compose import compose
    from refsam.records.paths import RunPaths
    from refsam.science.data import training_loaders
    from refsam.science.engine.step import LowMemoryStep
    from refsam.science.training import build_trainer

    chosen = ("n_objects", "model")
    trained = ("engine", "object_chunk", "checkpoint_encoder", "attention", "precision", "n_sub_iterations")
    config = compose(
        [
            *(f"{name}={getattr(arguments, name)}" for name in chosen),
            *(f"train.{name}={getattr(arguments, name)}" for name in trained),
            *strategy_overrides(arguments.peft),
            *STEP,
        ]
    )
    loaders = training_loaders(config)
    batch = next(iter(loaders[0]))
    output = Path(arguments.output)
    trainer = build_trainer(config, RunPaths(output / "run"), loaders, lambda progress: None)
    kept = torch.load(arguments.replay)["prompts"] if arguments.replay else None
    trainer.prompt_generator = prompts = ReplayedPrompts(trainer.prompt_generator, kept)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    trainer.model.train()
    context = torch.autocast("cpu", getattr(torch, arguments.precision), arguments.precision != "float32")
    with PeakMemory() as memory:
        started, started_cpu = time.perf_counter(), time.process_time()
        with context:
            loss = trainer._interactive_train_iteration(*batch)[0]
        if loss.requires_grad:
            loss.backward()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    gradients = {
        name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None
    }
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    row: dict[str, Any] = {name: getattr(arguments, name) for name in COLUMNS if hasattr(arguments, name)}
    if isinstance(trainer, LowMemoryStep):
        row["object_chunk"] = trainer.object_chunk
    trainable, total = trainer.parameter_counts
    row |= {
        "trainable_parameters": trainable,
        "total_parameters": total,
        "weights_mib": round(trainer.weights_bytes / MIB, 1),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "base_mib": round(memory.base),
        "above_base_mib": round(memory.peak - memory.base),
        "loss": loss.item(),
        "gradient_norm": norm.item(),
    }
    torch.save({"gradients": gradients, "prompts": prompts.kept}, output / "step.pt")
    (output / "row.json").write_text(json.dumps(row))


def strategy_overrides(strategy: str) -> list[str]:
    """Of `lora rank=32`: the overrides peft=lora and peft.rank=32."""
    name, *settings = strategy.split()
    return [f"peft={name}", *(f"peft.{setting}" for setting in settings)]


def run_step(
    arguments: argparse.Namespace, output: Path, replay: Path | None, **changes: Any
) -> dict[str, Any]:
    """One step in a new process."""
    output.mkdir()
    values = {**vars(arguments), **changes, "output": str(output)}
    options = ["model", "peft", "n_objects", "engine", "object_chunk", "checkpoint_encoder", "attention"]
    options += ["precision", "n_sub_iterations", "output"]
    command = [sys.executable, "-m", "benchmarks.train_step", "--measure"]
    for name in options:
        command += [f"--{name.replace('_', '-')}", str(values[name])]
    if replay is not None:
        command += ["--replay", str(replay)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    row: dict[str, Any] = json.loads((output / "row.json").read_text())
    return row


def compare(row: dict[str, Any], theirs: dict[str, Any], step: Path, reference: Path) -> dict[str, Any]:
    """Ratios, and the largest relative difference of a parameter's gradient."""
    import torch

    ours, expected = (torch.load(path / "step.pt", mmap=True)["gradients"] for path in (step, reference))
    if ours.keys() != expected.keys():
        raise ValueError(f"gradients of other parameters: {sorted(ours.keys() ^ expected.keys())}")
    differences = {
        name: float((ours[name] - gradient).norm() / gradient.norm())
        for name, gradient in expected.items()
        if not name.endswith(NO_GRADIENT) and float(gradient.norm()) > 0
    }
    worst = max(differences, key=differences.__getitem__)
    return {
        "seconds_ratio": round(row["seconds"] / theirs["seconds"], 3),
        "cpu_ratio": round(row["cpu_seconds"] / theirs["cpu_seconds"], 3),
        "memory_ratio": round(row["above_base_mib"] / theirs["above_base_mib"], 3),
        "loss_difference": abs(row["loss"] - theirs["loss"]) / theirs["loss"],
        "gradient_difference": differences[worst],
        "worst_parameter": worst,
    }


def benchmark(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows: micro-sam's step and ours for each model, strategy and number of objects."""
    rows = []
    for model in arguments.models:
        for peft in arguments.strategies:
            for count in arguments.counts:
                with tempfile.TemporaryDirectory() as folder:
                    chosen = {"model": model, "peft": peft, "n_objects": count}
                    theirs: dict[str, Any] | None = None
                    reference = Path(folder) / "theirs"
                    if count <= arguments.micro_sam_up_to:
                        theirs = run_step(arguments, reference, None, **chosen, engine=MICRO_SAM)
                        rows.append(theirs)
                        report(theirs)
                    replayed = reference / "step.pt" if theirs and not arguments.own_prompts else None
                    ours = run_step(arguments, Path(folder) / "ours", replayed, **chosen, engine=REFSAM)
                    if theirs is not None:
                        ours |= compare(ours, theirs, Path(folder) / "ours", reference)
                    rows.append(ours)
                    report(ours)
    return rows


def report(row: dict[str, Any]) -> None:
    print(", ".join(f"{name} {row[name]}" for name in COLUMNS if row.get(name) is not None), flush=True)


def write(rows: list[dict[str, Any]], name: str) -> None:
    """The rows as CSV, and their seconds and memory as a figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    write_csv(name, COLUMNS, rows)
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 0.5 * len(rows) + 1.5), sharey=True)
    labels = [f"{row['model']}, {row['peft']}, {row['n_objects']} objects: {row['engine']}" for row in rows]
    colors = ["0.6" if row["engine"] == MICRO_SAM else "tab:blue" for row in rows]
    gibibytes = [row["above_base_mib"] / 1024 for row in rows]
    for axis, values, unit in (
        (axes[0], [row["seconds"] for row in rows], "seconds per step"),
        (axes[1], gibibytes, "GiB above what stands before the step"),
    ):
        bars = axis.barh(range(len(rows)), values, color=colors)
        axis.bar_label(bars, fmt="%.1f", padding=2)
        axis.set_xlabel(unit)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(rows)), labels)
    axes[0].invert_yaxis()
    save_figure(name, figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vit_t", "vit_b"])
    parser.add_argument(
        "--strategies", nargs="+", default=["full"], help="full, freeze_encoder, 'lora rank=32', …"
    )
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 5, 10, 45], help="numbers of objects")
    parser.add_argument("--micro-sam-up-to", type=int, default=10, help="objects; its memory grows with them")
    parser.add_argument("--object-chunk", default="auto")
    parser.add_argument("--checkpoint-encoder", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--precision", default="float32", help="float32 or bfloat16")
    parser.add_argument("--n-sub-iterations", type=int, default=8)
    parser.add_argument("--own-prompts", action="store_true", help="do not replay micro-sam's prompts")
    parser.add_argument("--name", default="train_step", help="of the CSV and the figure")
    for internal in ("model", "peft", "engine", "output", "replay"):
        parser.add_argument(f"--{internal}", help=argparse.SUPPRESS)
    parser.add_argument("--n-objects", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments)
    else:
        write(benchmark(arguments), arguments.name)


if __name__ == "__main__":
    main()
