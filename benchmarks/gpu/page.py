"""gpu.json and gpu.md, complete after every row, so that a run that is cut has told what it knows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import Row
from refsam.system.files import write_json, write_text

MEASURED, FAILED, NO_TIME, NOT_YET = "measured", "failed", "no time left", "not run"
Line = dict[str, Any]
# What each kind of row is for, in the order of the page.
KINDS = {
    "environment": "What was measured with.",
    "arithmetic": "Whether float32 is float32: its error against float64 is below 1e-5, with TF32 it is "
    "above. TFLOP/s are those of a square product.",
    "kernels": "Which attention PyTorch takes for a block of the image encoder, forward and backward, and "
    "the kernel that takes most of the GPU's time. `math`, or none, holds all scores in memory.",
    "gradients": "Relative differences of a parameter's gradient in the same step, with the same prompts and "
    "gates of ReLUs, without gradients that are nothing but rounding in float32.",
    "steps": "Seconds and memory (what PyTorch's allocator has reserved) of a step with the segmentation "
    "decoder, under a limit of memory.",
    "forecast": "What `refsam fit --forecast` counts for a step that saves nothing, and what the GPU took.",
    "epoch": "A run in a process of its own, with data-loading workers: whether it ends, and how soon after "
    "its last word.",
    "waits": "How often the host waits for the GPU in a step, as torch.cuda.set_sync_debug_mode sees it (it "
    "does not see all), and where most often.",
    "ladder": "A step that runs out of memory, and what the table of retries changes until it fits.",
    "evaluation": "A test image in each mode, after one step of training; the model has random weights.",
    "allocator": "A step with PyTorch's blocks of fixed size, and with segments that grow: what is "
    "reserved beyond what is allocated.",
    "messages": "What is said when the GPU is full, and whether refsam recognises it as out of memory.",
}


@dataclass(frozen=True)
class Result:
    """What became of a row: its lines, or in one sentence why there are none."""

    row: str
    outcome: str
    sentence: str = ""
    seconds: float = 0.0
    lines: Sequence[Line] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return self.row.split()[0]


class Page:
    """Both files; each `add` replaces them.

    Args:
        folder: where they are written.
        name: of the files, without the ending.
        rows: that are asked for.
    """

    def __init__(self, folder: Path, name: str, rows: Sequence[Row]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.json, self.markdown = folder / f"{name}.json", folder / f"{name}.md"
        self._results = {row.name: Result(row.name, NOT_YET) for row in rows}
        self._write()

    def add(self, result: Result) -> None:
        self._results[result.row] = result
        self._write()

    def _write(self) -> None:
        results = list(self._results.values())
        write_json(self.json, [asdict(result) for result in results])
        write_text(self.markdown, markdown(results))


def markdown(results: Sequence[Result]) -> str:
    """The page: how many rows were measured, those that were not, and a table for each kind."""
    counts = {
        name: sum(each.outcome == name for each in results) for name in (MEASURED, FAILED, NO_TIME, NOT_YET)
    }
    seconds = sum(result.seconds for result in results)
    parts = [
        "# refsam on a GPU",
        "`python -m benchmarks.gpu` in "
        f"{seconds:.0f} s: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count) + ".",
    ]
    for kind, words in KINDS.items():
        found = [result for result in results if result.kind == kind]
        if not found:
            continue
        parts += [f"## {kind}", words]
        lines = [line for result in found for line in result.lines]
        parts += [table(lines)] if lines else []
        without = [f"- {each.row}: {each.sentence or each.outcome}" for each in found if not each.lines]
        parts += ["\n".join(without)] if without else []
    return "\n\n".join(parts) + "\n"


def table(lines: Sequence[Line]) -> str:
    """A Markdown table, with a column for every key that a line has."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    rows = [columns, ["---"] * len(columns)] + [[cell(line.get(key)) for key in columns] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(value: Any) -> str:
    """A value as a person reads it: three digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
