"""How far the gradients of micro-sam's step and ours can agree in float32, with the segmentation decoder.

`python -m benchmarks.gradients`: for each model and strategy the same step (random weights, real nuclei, both
halves) as micro-sam takes it and as we do, each in a process of its own, with micro-sam's prompts replayed.
Rounding moves some of the segmentation decoder's ReLUs across zero, and each of them switches a gradient on
or off; so a step of ours is taken with its own gates, and one with micro-sam's (benchmarks/gates.py). What
differs with the same gates is rounding in sums; whose it is, our step in float64 says, with the same prompts
and gates (in float64 our gradients are micro-sam's to 1e-11: tests/engine/test_step.py).

With `--same-order` only micro-sam's step is taken, and ours with its own gates and what changes the order of
sums before them left out: attention is eager, and nothing of the segmentation decoder is exchanged. Chunks of
objects, checkpointing and the lean mask decoder stay.

Written are a row for each half, and a row for every parameter whose gradients differ by more than BOUND with
the same gates (NAME_above.csv), with what each of the two is off from float64. Nothing here is timed.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.rows import write_csv
from benchmarks.train_step import (
    DOUBLE,
    HALVES,
    MICRO_SAM,
    REFSAM,
    gradients_of,
    relative_differences,
    run_step,
)

BOUND = 1e-4
SINGLE = "float32"
COLUMNS = (
    "model", "peft", "n_objects", "n_sub_iterations", "object_chunk", "checkpoint_encoder", "half",
    "parameters", "own_gates_median", "own_gates_worst", "switched_gates", "median", "worst",
    "worst_parameter", "above_bound", "micro_sam_error", "refsam_error",
)  # fmt: skip
SAME_ORDER = (
    "model", "peft", "n_objects", "n_sub_iterations", "object_chunk", "checkpoint_encoder", "attention",
    "half", "parameters", "median", "worst", "worst_parameter",
)  # fmt: skip
ABOVE = ("model", "peft", "parameter", "difference", "micro_sam_error", "refsam_error")


def steps(arguments: argparse.Namespace, model: str, peft: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of the four steps, by the names of their folders in `folder`.

    Raises:
        RuntimeError: when a step failed, or ran out of memory.
    """
    taken = {
        MICRO_SAM: {"engine": MICRO_SAM, "precision": SINGLE, "replay_gates": True},
        REFSAM: {"engine": REFSAM, "precision": SINGLE, "replay_gates": True},
        "own": {"engine": REFSAM, "precision": SINGLE, "replay_gates": False},
        DOUBLE: {"engine": REFSAM, "precision": DOUBLE, "replay_gates": True},
    }
    rows = {}
    for name, changes in taken.items():
        replay = None if name == MICRO_SAM else folder / MICRO_SAM / "step.pt"
        row = run_step(arguments, folder / name, replay, model=model, peft=peft, **changes)
        if row.get("outcome"):
            raise RuntimeError(f"{model}, {peft}: {name}: {row['outcome']}")
        rows[name] = row
    return rows


def compare(folder: Path, row: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each half, and for every parameter above the bound.

    Args:
        folder: of the steps.
        row: our step's with replayed gates; what it says of the step is said of each half.
    """
    theirs, ours, own, exact = (gradients_of(folder / name) for name in (MICRO_SAM, REFSAM, "own", DOUBLE))
    differences = relative_differences(ours, theirs)
    own_differences = relative_differences(own, theirs)
    # Of the parameters that are compared in float32.
    exact_of = {name: exact[name] for name in differences}
    their_errors, our_errors = (
        {name: float((values[name].double() - true).norm() / true.norm()) for name, true in exact_of.items()}
        for values in (theirs, ours)
    )
    halves = []
    for half in HALVES:
        inside = [name for name in differences if name.startswith(f"{half}: ")]
        worst = max(inside, key=differences.__getitem__)
        own_inside = [own_differences[name] for name in own_differences if name.startswith(f"{half}: ")]
        halves.append(
            {name: row[name] for name in COLUMNS if name in row}
            | {
                "half": half,
                "parameters": len(inside),
                "own_gates_median": statistics.median(own_inside),
                "own_gates_worst": max(own_inside),
                "switched_gates": row["switched_gates"] if half == HALVES[-1] else None,
                "median": statistics.median(differences[name] for name in inside),
                "worst": differences[worst],
                "worst_parameter": worst.removeprefix(f"{half}: "),
                "above_bound": sum(differences[name] > BOUND for name in inside),
                "micro_sam_error": max(their_errors[name] for name in inside),
                "refsam_error": max(our_errors[name] for name in inside),
            }
        )
    above = [
        {
            "model": row["model"],
            "peft": row["peft"],
            "parameter": name,
            "difference": difference,
            "micro_sam_error": their_errors[name],
            "refsam_error": our_errors[name],
        }
        for name, difference in differences.items()
        if difference > BOUND
    ]
    return halves, above


def same_order(arguments: argparse.Namespace, model: str, peft: str, folder: Path) -> list[dict[str, Any]]:
    """A row for each half of the two steps, ours in micro-sam's order of sums. Raises as `steps` does."""
    rows = {}
    for engine in (MICRO_SAM, REFSAM):
        replay = None if engine == MICRO_SAM else folder / MICRO_SAM / "step.pt"
        ordered = {"attention": "eager", "same_order": engine == REFSAM}
        changes = {"engine": engine, "precision": SINGLE, "model": model, "peft": peft, **ordered}
        rows[engine] = run_step(arguments, folder / engine, replay, **changes)
        if rows[engine].get("outcome"):
            raise RuntimeError(f"{model}, {peft}: {engine}: {rows[engine]['outcome']}")
    differences = relative_differences(gradients_of(folder / REFSAM), gradients_of(folder / MICRO_SAM))
    found = []
    for half in HALVES:
        inside = {name: value for name, value in differences.items() if name.startswith(f"{half}: ")}
        worst = max(inside, key=inside.__getitem__)
        summary = {
            "half": half,
            "parameters": len(inside),
            "median": statistics.median(inside.values()),
            "worst": inside[worst],
            "worst_parameter": worst.removeprefix(f"{half}: "),
        }
        found.append({name: value for name, value in rows[REFSAM].items() if name in SAME_ORDER} | summary)
    return found


def benchmark(arguments: argparse.Namespace) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    for model, peft in product(arguments.models, arguments.strategies):
        with tempfile.TemporaryDirectory() as folder:
            if arguments.same_order:
                yield same_order(arguments, model, peft, Path(folder)), []
                continue
            rows = steps(arguments, model, peft, Path(folder))
            yield compare(Path(folder), rows[REFSAM])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vit_t", "vit_b"])
    parser.add_argument(
        "--strategies", nargs="+", default=["full", "freeze_encoder", "hf_lora"], help="names of conf/peft"
    )
    parser.add_argument("--n-objects", type=int, default=2)
    parser.add_argument("--n-sub-iterations", type=int, default=2)
    parser.add_argument("--object-chunk", default="1")
    parser.add_argument("--checkpoint-encoder", default="on")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--same-order", action="store_true", help="ours in micro-sam's order of sums, only")
    parser.add_argument("--limit-gib", type=float, help="of memory for a process; none: what there is")
    parser.add_argument("--name", default="gradients", help="of the CSV files")
    parser.set_defaults(decoder=True)
    arguments = parser.parse_args()
    halves: list[dict[str, Any]] = []
    above: list[dict[str, Any]] = []
    for more_halves, more_above in benchmark(arguments):
        halves += more_halves
        above += more_above
        for row in more_halves + more_above:
            print(
                ", ".join(f"{name} {value}" for name, value in row.items() if value is not None), flush=True
            )
        write_csv(arguments.name, SAME_ORDER if arguments.same_order else COLUMNS, halves)
        if not arguments.same_order:
            write_csv(f"{arguments.name}_above", ABOVE, above)


if __name__ == "__main__":
    main()
