"""The image encoder of a Hugging Face model with each kind of attention, each in a process of its own.

`python -m benchmarks.attention`: random weights, one random image of the encoder's size, float32. `eager` and
`sdpa` are transformers' own, `fused` is the engine's (docs/engine.md). Written are the seconds of a forward
without gradients, the best of `--repeats`, the memory above what stands before it, and the largest difference
of the embedding from eager's, relative to the largest value. `--backward` measures a forward with a backward
instead, which for sam_vit_base takes up to 10 GB.
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
from benchmarks.rows import write_csv

KINDS = ("eager", "sdpa", "fused")
COLUMNS = ("model", "attention", "what", "seconds", "above_base_mib", "difference")


def measure(arguments: argparse.Namespace) -> None:
    """One kind in this process; a row and the embedding go to `arguments.output`."""
    import torch

    from refsam.configuration.compose import compose
    from refsam.science.hugging_face import HuggingFaceSam
    from refsam.science.models import load_model

    sam = load_model(compose([f"model={arguments.model}", "model.weights=random"]).model, 0, "cpu").sam
    assert isinstance(sam, HuggingFaceSam)
    sam.use_attention(arguments.kind)
    size = sam.image_encoder.img_size
    image = torch.randn((1, 3, size, size), generator=torch.Generator().manual_seed(0))
    torch.set_grad_enabled(arguments.backward)
    times = []
    with PeakMemory() as memory:
        for _ in range(arguments.repeats):
            started = time.perf_counter()
            embedding = sam.image_encoder(image)
            if arguments.backward:
                embedding.square().mean().backward()
            times.append(time.perf_counter() - started)
    output = Path(arguments.output)
    torch.save(embedding.detach(), output / f"{arguments.kind}.pt")
    row = {
        "model": arguments.model,
        "attention": arguments.kind,
        "what": "forward and backward" if arguments.backward else "forward",
        "seconds": round(min(times), 2),
        "above_base_mib": round(memory.peak - memory.base),
    }
    (output / f"{arguments.kind}.json").write_text(json.dumps(row))


def benchmark(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each kind."""
    import torch

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            command = [sys.executable, "-m", "benchmarks.attention", "--kind", kind, "--output", folder]
            command += ["--model", arguments.model, "--repeats", str(arguments.repeats)]
            command += ["--backward"] if arguments.backward else []
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            rows.append(json.loads((Path(folder) / f"{kind}.json").read_text()))
        found = {kind: torch.load(Path(folder) / f"{kind}.pt", weights_only=True) for kind in KINDS}
    for row in rows:
        difference = (found[row["attention"]] - found["eager"]).abs().max() / found["eager"].abs().max()
        row["difference"] = f"{float(difference):.1e}"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    parser.add_argument("--model", default="sam_vit_base")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--backward", action="store_true", help="with a backward")
    parser.add_argument("--name", default="attention", help="of the CSV")
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        measure(arguments)
        return
    rows = benchmark(arguments)
    write_csv(arguments.name, COLUMNS, rows)
    for row in rows:
        print(", ".join(f"{name} {row[name]}" for name in COLUMNS))


if __name__ == "__main__":
    main()
