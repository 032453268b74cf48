"""Where benchmarks write: benchmarks/results, one CSV and one figure each."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_csv(name: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Replace benchmarks/results/`name`.csv."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_csv(name: str) -> list[dict[str, Any]]:
    """The rows of benchmarks/results/`name`.csv, all values as text; none where it is not there."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def save_figure(name: str, figure: Any) -> None:
    """Replace benchmarks/results/`name`.png."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=150)
