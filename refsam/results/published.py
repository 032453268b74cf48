"""The published times of the resource study, as rows of the tidy table: the same code makes their table."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

import refsam
from refsam.results.collect import as_frame
from refsam.results.index import SCHEMA
from refsam.results.run_rows import COLUMNS
from refsam.system.files import read_yaml

PUBLISHED = Path(refsam.__file__).parent / "orchestration" / "planning" / "published_times.yaml"
SOURCE = "micro-sam's resource study"
# How its trainings end: so many epochs at most, and the patience of torch-em's early stopping.
EPOCHS, EARLY_STOPPING = 100, 10


def published_runs() -> pd.DataFrame:
    """A completed run for each published best epoch and time, without metrics (none are published as
    numbers), as `refsam.results.collect.collect` would return it.
    """
    values = read_yaml(PUBLISHED)
    rows: list[dict[str, Any]] = []
    for row in values["times"]:
        for n_images, (best_epoch, time) in row["images"].items():
            hours, minutes, seconds = map(int, time.split(":"))
            name = f"{row['start']}-{row['strategy']}-n{n_images}-{row['resource']}"
            rows.append(
                {
                    **dict.fromkeys(COLUMNS),
                    "run_id": f"published-{name}",
                    "sweep": SOURCE,
                    "kind": "finetuning",
                    "resource": row["resource"],
                    "model": row["start"],
                    "weights": "pretrained",
                    "strategy": row["strategy"],
                    "n_images": n_images,
                    "seed": 0,
                    "dataset": "covid_if",
                    "best_epoch": best_epoch,
                    "seconds_to_best": float(hours * 3600 + minutes * 60 + seconds),
                    "status": "completed",
                }
            )
    return as_frame(pa.Table.from_pylist(rows, pa.schema(list(SCHEMA.items()))))
