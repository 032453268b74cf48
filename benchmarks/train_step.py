"""One training step, micro-sam's and ours, each in a process of its own.

`python -m benchmarks.train_step`: the same weights (random, seeded), batch of real nuclei (`refsam prepare
dataset=nuclei`, REFSAM_DATA) and seeds for both. Written are seconds (of the clock, and of all cores
together, which tells more on a machine that others use), peak memory above what stands before the step, their
ratios, and how well losses and gradients agree. Prompts are drawn where a prediction is wrong, so rounding
can move one by a pixel; gradients are therefore compared with micro-sam's prompts replayed, unless
`--own-prompts` is given.

Beside the seconds stands the share of them that micro-sam's products alone would take (`gemm_share`): the
operations that PyTorch counts in its step, at the rate of one large product of matrices in the same process.

With `--decoder` a step has two halves, as micro-sam's joint training: the interactive loss and that of the
segmentation decoder, each with its gradients, here both at the same weights. How far those of the latter can
agree in float32 is benchmarks.gradients' matter.

A step that runs out of memory (`--limit-gib`, or what the machine has) is a row that says so, and that engine
is not tried with more objects. `--add` keeps what an earlier call has measured, and measures the rest.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import MIB, PeakMemory
from benchmarks.rows import read_csv, write_csv
from benchmarks.train_step_figure import save_steps

MICRO_SAM, REFSAM = "micro_sam", "refsam"
OUT_OF_MEMORY, NOT_TRIED = "out of memory", "not tried: fewer objects ran out of memory"
CHOSEN = (
    "model", "peft", "n_objects", "engine", "object_chunk", "checkpoint_encoder", "attention", "precision",
    "n_sub_iterations", "decoder",
)  # fmt: skip
# What two rows that are compared have in common.
SAME_STEP = ("model", "peft", "n_objects", "n_sub_iterations", "decoder")
COLUMNS = (
    *CHOSEN, "threads", "limit_gib", "outcome", "trainable_parameters", "total_parameters", "weights_mib",
    "seconds", "cpu_seconds", "base_mib", "above_base_mib", "loss",
    "gradient_norm", "gflop", "gemm_gflops", "gemm_share", "seconds_ratio", "cpu_ratio", "memory_ratio",
    "loss_difference", "gradient_difference", "worst_parameter",
)  # fmt: skip
STEP = (
    "model.weights=random",
    "dataset=nuclei",
    "n_images=10",
    "train.min_samples=40",
    "train.validation_samples=1",
)
PRODUCT = (4096, 768, 3072)  # rows, inner, columns: of the MLP of vit_b
STEP_SECONDS = 3600.0  # after which a step is given up
# What is added to all scores of a softmax has no gradient but rounding, nor has what the next normalization
# takes away again (in the segmentation decoder); the latter is below this share of the largest gradient.
NO_GRADIENT = "k_proj.bias"
NOISE = 1e-4
HALVES = ("interactive", "segmentation")
# For benchmarks.gradients: a precision, ReLUs with the gates of the replayed step, and a segmentation decoder
# that computes in the order in which torch-em's does.
DOUBLE = "float64"
SWITCHES = ("replay_gates", "same_order")


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
    from refsam.science.hardware import is_out_of_memory

    output = Path(arguments.output)
    row: dict[str, Any] = {name: getattr(arguments, name) for name in CHOSEN}
    try:
        row |= take_step(arguments, output)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        row["outcome"] = OUT_OF_MEMORY
    (output / "row.json").write_text(json.dumps(row))


def take_step(arguments: argparse.Namespace, output: Path) -> dict[str, Any]:
    """What was measured of the step that is asked for, on real nuclei."""
    from refsam.configuration.compose import compose
    from refsam.science.data import training_loaders

    chosen = ("n_objects", "model")
    trained = ("engine", "object_chunk", "checkpoint_encoder", "attention", "n_sub_iterations")
    double = arguments.precision == DOUBLE
    config = compose(
        [
            *(f"{name}={getattr(arguments, name)}" for name in chosen),
            *(f"train.{name}={getattr(arguments, name)}" for name in trained),
            f"train.precision={'float32' if double else arguments.precision}",
            f"train.decoder={str(arguments.decoder).lower()}",
            *strategy_overrides(arguments.peft),
            *STEP,
        ]
    )
    loaders = training_loaders(config)
    return gradients_and_costs(
        config,
        loaders,
        crowded(loaders[0], arguments.n_objects),
        output,
        replay=arguments.replay,
        replay_gates=arguments.replay_gates,
        same_order=arguments.same_order,
        double=double,
        count_products=arguments.engine == MICRO_SAM,
    )


def gradients_and_costs(
    config: Any,
    loaders: Any,
    batch: Any,
    output: Path,
    *,
    replay: str | Path | None = None,
    replay_gates: bool = False,
    same_order: bool = False,
    double: bool = False,
    count_products: bool = False,
) -> dict[str, Any]:
    """Take one step; its gradients, prompts and gates go to `output`/step.pt.

    Args:
        config: of the run.
        loaders: of the run; only the batch is trained on.
        batch: images (batch, 3, H, W) and labels (batch, 1 or 4, H, W).
        output: a folder.
        replay: step.pt of another step, whose prompts are taken.
        replay_gates: take its gates of ReLUs as well, or keep one's own.
        same_order: leave out what changes the order of sums in the segmentation decoder.
        double: in float64.
        count_products: take another step, in which the operations of its products are counted.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.gates import ReplayedGates
    from refsam.records.paths import RunPaths
    from refsam.science.engine import setup
    from refsam.science.engine.decoder import decoder_parts
    from refsam.science.randomness import seed_everything
    from refsam.science.training.build import build_training

    if same_order:
        setup.use_late_upsampling = lambda unetr: None
    seed_everything(config.seed, "model")  # of what a strategy adds to it
    x, y = batch
    training = build_training(config, RunPaths(output / "run"), loaders, lambda progress: None)
    learner, step = training.learner, training.step
    if double:
        x = x.double()
        to_double(learner)
    kept = torch.load(replay, map_location="cpu", weights_only=True) if replay else {}
    training.prompts.generator = prompts = ReplayedPrompts(training.prompts.generator, kept.get("prompts"))
    gates = None
    if replay_gates:
        gates = ReplayedGates([*decoder_parts(learner.unetr)], kept.get("gates"))
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    learner.switch(training=True)
    halves = [lambda: step.interactive(x, y, 0)[0].loss]
    parameters = dict(learner.model.named_parameters())
    if config.train.decoder:
        halves.append(lambda: step.segmentation(x, y))
        parameters |= {
            name: value for name, value in learner.unetr.named_parameters() if not name.startswith("encoder")
        }
    losses, gradients = [], {}
    with PeakMemory() as memory:
        started, started_cpu = time.perf_counter(), time.process_time()
        for name, half in zip(HALVES, halves, strict=False):
            losses.append(half().item())
            gradients |= {
                f"{name}: {parameter}": value.grad
                for parameter, value in parameters.items()
                if value.grad is not None
            }
            learner.optimizer.zero_grad()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    scale = learner.arithmetic.scaler.get_scale()  # 1 but in float16
    gradients = {name: gradient / scale for name, gradient in gradients.items()} if scale != 1 else gradients
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    choices = {"prompts": prompts.kept, "gates": gates.kept if gates else []}
    torch.save({"gradients": gradients, **choices}, output / "step.pt")
    trainable, total = training.parameter_counts
    used = {name: training.savings[name] for name in ("object_chunk", "attention")}
    row = used | {
        "checkpoint_encoder": training.savings["checkpoint_every"],
        "threads": torch.get_num_threads(),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "weights_mib": round(training.weights_bytes / MIB, 1),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "base_mib": round(memory.base),
        "above_base_mib": round(memory.peak - memory.base),
        "loss": sum(losses),
        "gradient_norm": norm.item(),
    }
    if count_products:
        with FlopCounterMode(display=False) as counter:
            for half in halves:
                half()
        row["gflop"] = round(counter.get_total_flops() / 1e9, 1)
    if learner.arithmetic.device.type == "cpu":
        row["gemm_gflops"] = round(gemm_gflops(getattr(torch, config.train.precision)), 1)
    if gates is not None:
        row["switched_gates"] = gates.switched_share
    return row


def gemm_gflops(dtype: Any) -> float:
    """10⁹ operations per second of the best of ten large products on the CPU."""
    import torch

    rows, inner, columns = PRODUCT
    left, right = torch.rand(rows, inner, dtype=dtype), torch.rand(inner, columns, dtype=dtype)
    fastest = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        left @ right
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * rows * inner * columns / fastest / 1e9


def to_double(learner: Any) -> None:
    """All that a joint step computes with in float64, but the positions of prompts, float32's in Sam."""
    sam = learner.model.sam
    learner.model.double()
    # Of what the library divides by, these are not among the parameters.
    for name in ("pixel_mean", "pixel_std"):
        setattr(sam, name, getattr(sam, name).double())
    sam.prompt_encoder.pe_layer.float()
    learner.unetr.double()


def crowded(patches: Any, n_objects: int) -> Any:
    """The batch with the most objects, the same for every number of them: micro-sam takes what a patch has.

    Raises:
        ValueError: when that are fewer than `n_objects`.
    """
    # 0 is what lies between objects.
    most, batch = max(((len(y[:, 0].unique()) - 1, (x, y)) for x, y in patches), key=lambda found: found[0])
    if most < n_objects:
        raise ValueError(f"{n_objects} objects are asked for, and no patch has more than {most}")
    return batch


def strategy_overrides(strategy: str) -> list[str]:
    """Of `lora rank=32`: the overrides peft=lora and peft.rank=32."""
    name, *settings = strategy.split()
    return [f"peft={name}", *(f"peft.{setting}" for setting in settings)]


def run_step(
    arguments: argparse.Namespace, output: Path, replay: Path | None, **changes: Any
) -> dict[str, Any]:
    """One step in a new process, which may use `arguments.limit_gib` of memory.

    Raises:
        RuntimeError: where others on the machine leave less than that, or when the step failed.
    """
    from refsam.orchestration.fit.limits import memory_limit
    from refsam.orchestration.machine import memory_available_gb

    free = memory_available_gb()
    if free < (arguments.limit_gib or 0.0):
        raise RuntimeError(f"--limit-gib {arguments.limit_gib:g}: {free:.1f} GiB are free now")
    output.mkdir()
    values = {**vars(arguments), **changes}
    command = [sys.executable, "-m", "benchmarks.train_step", "--measure", "--output", str(output)]
    for name in CHOSEN:
        if name != "decoder":
            command += [f"--{name.replace('_', '-')}", str(values[name])]
    command += ["--decoder"] if values["decoder"] else []
    for switch in SWITCHES:
        command += [f"--{switch.replace('_', '-')}"] if values.get(switch) else []
    command += ["--replay", str(replay)] if replay is not None else []
    with memory_limit(arguments.limit_gib) as limit:
        ended = limit.run(command, dict(os.environ), output / "log", STEP_SECONDS)
    row = {name: values[name] for name in CHOSEN} | {"outcome": OUT_OF_MEMORY}
    if not ended.killed_for_memory:
        if ended.status != 0:
            raise RuntimeError(f"{' '.join(command)}: status {ended.status}\n{(output / 'log').read_text()}")
        row = json.loads((output / "row.json").read_text())
    return row | {"limit_gib": arguments.limit_gib}


def compare(row: dict[str, Any], theirs: dict[str, Any], step: Path, reference: Path) -> dict[str, Any]:
    """Ratios, and the largest relative difference of a parameter's gradient."""
    ours, expected = (gradients_of(path) for path in (step, reference))
    differences = relative_differences(ours, expected)
    worst = max(differences, key=differences.__getitem__)
    return {
        "seconds_ratio": round(row["seconds"] / theirs["seconds"], 3),
        "cpu_ratio": round(row["cpu_seconds"] / theirs["cpu_seconds"], 3),
        "memory_ratio": round(row["above_base_mib"] / theirs["above_base_mib"], 3),
        "loss_difference": abs(row["loss"] - theirs["loss"]) / theirs["loss"],
        "gradient_difference": differences[worst],
        "worst_parameter": worst,
    }


def gradients_of(folder: Path) -> dict[str, Any]:
    """The gradients of a step, by half and parameter."""
    import torch

    gradients: dict[str, Any] = torch.load(
        folder / "step.pt", map_location="cpu", mmap=True, weights_only=True
    )["gradients"]
    return gradients


def relative_differences(
    ours: dict[str, Any], expected: dict[str, Any], noise: float = NOISE
) -> dict[str, float]:
    """Norm of the difference over norm, by half and parameter, without gradients that are rounding only.

    Args:
        noise: share of the largest gradient below which one is nothing but rounding.

    Raises:
        ValueError: when they are of different parameters.
    """
    if ours.keys() != expected.keys():
        raise ValueError(f"gradients of other parameters: {sorted(ours.keys() ^ expected.keys())}")
    norms = {name: max(float(ours[name].norm()), float(expected[name].norm())) for name in expected}
    least = noise * max(norms.values())
    return {
        name: float((ours[name] - gradient).norm() / gradient.norm())
        for name, gradient in expected.items()
        if norms[name] > least and not name.endswith(NO_GRADIENT)
    }


def benchmark(arguments: argparse.Namespace, known: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """micro-sam's row and ours, of each model, strategy and number of objects that `known` does not have."""
    rows = list(known)
    for model, peft, count in product(arguments.models, arguments.strategies, sorted(arguments.counts)):
        chosen = {"model": model, "peft": peft, "n_objects": count}
        step = step_of({**vars(arguments), **chosen})
        if all(step_of(row) != step for row in rows):
            more = pair(arguments, chosen, without_memory(rows, step))
            rows += more
            yield more


def step_of(row: dict[str, Any]) -> dict[str, str]:
    return {name: str(row[name]) for name in SAME_STEP}


def without_memory(rows: list[dict[str, Any]], step: dict[str, str]) -> set[str]:
    """The engines that ran out of memory in the same step with fewer objects."""
    count = int(step["n_objects"])
    return {
        row["engine"]
        for row in rows
        if row.get("outcome")
        and int(row["n_objects"]) < count
        and {**step_of(row), "n_objects": str(count)} == step
    }


def pair(arguments: argparse.Namespace, chosen: dict[str, Any], hopeless: set[str]) -> list[dict[str, Any]]:
    """The rows of both engines, of which those that are `hopeless` are not tried."""
    rows: dict[str, dict[str, Any]] = {}
    precisions = {
        MICRO_SAM: arguments.micro_sam_precision or arguments.precision,
        REFSAM: arguments.precision,
    }
    with tempfile.TemporaryDirectory() as folder:
        for engine, precision in precisions.items():
            changes = {**chosen, "engine": engine, "precision": precision}
            if engine in hopeless:
                values = {**vars(arguments), **changes}
                rows[engine] = {name: values[name] for name in CHOSEN} | {"outcome": NOT_TRIED}
            else:
                kept = Path(folder) / MICRO_SAM / "step.pt"
                replay = kept if kept.exists() and not arguments.own_prompts else None
                rows[engine] = run_step(arguments, Path(folder) / engine, replay, **changes)
        for row in rows.values():
            if "outcome" not in row and "gflop" in rows[MICRO_SAM]:
                row["gemm_share"] = round(rows[MICRO_SAM]["gflop"] / row["gemm_gflops"] / row["seconds"], 2)
        if all("outcome" not in row for row in rows.values()):
            steps = (Path(folder) / REFSAM, Path(folder) / MICRO_SAM)
            rows[REFSAM] |= compare(rows[REFSAM], rows[MICRO_SAM], *steps)
    return list(rows.values())


def report(row: dict[str, Any]) -> None:
    shown = (f"{name} {row[name]}" for name in COLUMNS if row.get(name) not in (None, ""))
    print(", ".join(shown), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vit_t", "vit_b"])
    parser.add_argument(
        "--strategies",
        nargs="+",
        default=["full", "freeze_encoder", "hf_lora"],
        help="names of conf/peft, with settings as in 'lora rank=32'",
    )
    parser.add_argument(
        "--counts", nargs="+", type=int, default=[1, 5, 10, 25, 45], help="numbers of objects"
    )
    parser.add_argument("--object-chunk", default="auto")
    parser.add_argument("--checkpoint-encoder", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--precision", default="float32", help="float32 or bfloat16")
    parser.add_argument("--micro-sam-precision", help="of micro-sam's step, if not the same")
    parser.add_argument("--n-sub-iterations", type=int, default=8)
    parser.add_argument("--decoder", action="store_true", help="with the segmentation decoder")
    parser.add_argument("--own-prompts", action="store_true", help="do not replay micro-sam's prompts")
    parser.add_argument("--limit-gib", type=float, help="of memory for a process; none: what there is")
    parser.add_argument("--add", action="store_true", help="to the rows of an earlier call like this")
    parser.add_argument("--name", default="train_step", help="of the CSV and the figure")
    for internal in ("model", "peft", "engine", "output", "replay"):
        parser.add_argument(f"--{internal}", help=argparse.SUPPRESS)
    parser.add_argument("--n-objects", type=int, help=argparse.SUPPRESS)
    for internal in (*SWITCHES, "measure"):
        parser.add_argument(f"--{internal.replace('_', '-')}", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments)
        return
    rows = read_csv(arguments.name) if arguments.add else []
    for more in benchmark(arguments, list(rows)):
        for row in more:
            report(row)
        rows += more
        write_csv(arguments.name, COLUMNS, rows)
    save_steps(arguments.name)


if __name__ == "__main__":
    main()
