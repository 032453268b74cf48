"""The tidy table: a row per run, mode, round of prompts and mask input, from the records of sweeps."""

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from refsam.records.metrics import METRICS
from refsam.records.paths import Directories, RunsFolder, SweepPaths
from refsam.results.fields import fields, with_fields
from refsam.results.index import SCHEMA, refreshed, settled
from refsam.results.provenance import provenance, write_sidecar
from refsam.results.run_rows import (
    BASELINE,
    COLUMNS,
    COSTS,
    INTEGERS,
    INVALID,
    SETTING,
    Row,
)
from refsam.results.sweeps import DAMAGED, UNREADABLE, read_manifest
from refsam.system.files import write_atomically

__all__ = ["BASELINE", "COLUMNS", "COSTS", "INTEGERS", "INVALID", "METRICS", "collect", "damaged"]


@dataclass(frozen=True)
class Conflict:
    """A run that two runs folders have different results of."""

    run_id: str
    kept: Path
    left_out: Path

    @property
    def words(self) -> str:
        return f"run {self.run_id} has other results in {self.left_out} than in {self.kept}, which is used"


@dataclass(frozen=True)
class Joined:
    """The results of several sweeps, also of several runs folders, each run once.

    Attributes:
        directories: that the rows of each run are from.
        conflicts: the runs of which folders have different results.
    """

    frame: pd.DataFrame
    directories: Directories
    conflicts: list[Conflict]


def collect(sweep: SweepPaths, runs: RunsFolder, unchanged: AbstractSet[str] = frozenset()) -> pd.DataFrame:
    """The results of a sweep as its records say now.

    Only the records that changed since the last time are read; what was read is kept in the sweep's folder
    (results.index). A run without metrics (planned, pending, failed, …) has one row with an empty mode; a
    combination that the sweep left out has one with the status `invalid`. A baseline has the strategy
    `baseline` and n_images 0. `n_images` counts training images, `n_test_images` those behind a metric.
    `fold` is which of `folds` a run tests. `round` 0 is the first prompt. Where a record cannot be read, the
    status is `damaged` and the message names the file. Times in seconds, memory in GiB, metrics in [0, 1];
    `SA50_low` and `SA50_high` bound the 95 % confidence interval over test images.

    Args:
        unchanged: runs that the caller has just found unchanged (`settled_runs`).

    Returns:
        The columns COLUMNS and one for each further field of the configuration that tells runs apart, by its
        dotted name (results.fields), in the manifest's order of runs; empty cells are missing values.

    Raises:
        ConfigError: when the sweep has no manifest or one of a newer format.
        DamagedManifest: when the manifest is damaged.
    """
    return with_fields(_collected(sweep, runs, unchanged))


def settled_runs(sweep: SweepPaths, runs: RunsFolder) -> set[str]:
    """The completed runs that nothing can be learnt about any more (results.index.settled)."""
    return settled(sweep, runs, read_manifest(sweep))


def join(
    sweeps: Sequence[tuple[SweepPaths, RunsFolder]], unchanged: Mapping[Path, AbstractSet[str]] | None = None
) -> Joined:
    """The results of several sweeps, also of several runs folders, each run once.

    A run that several sweeps asked for names all of them in `sweep`. Where folders have different results
    of the same run, the completed one is used, else the first; each such pair is one of the conflicts.

    Raises as `collect` does.
    """
    known = unchanged or {}
    frames = [(folder, _collected(sweep, folder, known.get(sweep.root, set()))) for sweep, folder in sweeps]
    if len(frames) == 1:
        folder, frame = frames[0]
        return Joined(with_fields(frame), directories_of(frame, folder), [])
    kept: dict[str, tuple[RunsFolder, pd.DataFrame]] = {}
    others: list[pd.DataFrame] = []
    conflicts = []
    for folder, frame in frames:
        others.append(frame[frame["run_id"].isna()])
        for run_id, rows in frame.groupby("run_id", sort=False):
            run = str(run_id)
            if run not in kept:
                kept[run] = folder, rows
                continue
            first_folder, first = kept[run]
            names = ", ".join(dict.fromkeys([*first["sweep"], *rows["sweep"]]))
            better, worse = ((first_folder, first), (folder, rows))
            if _quality(rows) > _quality(first):
                better, worse = worse, better
            if folder.root != first_folder.root and _differ(first, rows):
                conflicts.append(Conflict(run, better[0].root, worse[0].root))
            kept[run] = better[0], better[1].assign(sweep=names)
    joined = pd.concat([*(rows for _, rows in kept.values()), *others], ignore_index=True)
    return Joined(with_fields(joined), {run: folder.run(run) for run, (folder, _) in kept.items()}, conflicts)


def directories_of(frame: pd.DataFrame, folder: RunsFolder) -> Directories:
    """The directories of the runs of a frame that is from one runs folder."""
    return {str(run): folder.run(str(run)) for run in frame["run_id"].dropna().unique()}


def first_prompt(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows without those of later rounds of prompts."""
    return frame[frame["round"].fillna(0) == 0]


def as_frame(table: pa.Table, further: Sequence[str] = ()) -> pd.DataFrame:
    """A table of the index as pandas holds it: integers that may be missing, the columns of COLUMNS."""
    types = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = table.select([*COLUMNS, *further]).to_pandas(types_mapper=types.get)
    return frame


def _collected(sweep: SweepPaths, runs: RunsFolder, unchanged: AbstractSet[str]) -> pd.DataFrame:
    """The columns COLUMNS and SETTING."""
    return as_frame(refreshed(sweep, runs, read_manifest(sweep), unchanged), (SETTING,))


def write_results(folder: SweepPaths, frame: pd.DataFrame, is_joined: bool = False) -> list[Path]:
    """Replace results.csv and results.parquet, atomically, and return their paths.

    Where they come from stands in the metadata of the Parquet file (`refsam`, JSON), and in results.json.
    Those of one sweep stay as they are where its index has not changed since they were written.
    """
    paths = [folder.results, folder.results_parquet]
    if not is_joined and _is_newer(paths, folder.index):
        return paths
    folder.root.mkdir(parents=True, exist_ok=True)
    named = [(name, SCHEMA[name]) for name in COLUMNS]
    further = pa.Schema.from_pandas(frame[fields(frame)], preserve_index=False)
    schema = pa.schema([*named, *further])
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    origin = provenance(frame)
    metadata = {**(table.schema.metadata or {}), b"refsam": json.dumps(origin).encode()}
    table = table.replace_schema_metadata(metadata)
    write_atomically(folder.results, lambda file: pyarrow.csv.write_csv(table, file))
    write_atomically(folder.results_parquet, lambda file: pyarrow.parquet.write_table(table, file))
    write_sidecar(folder.results.with_suffix(""), origin, paths)
    return paths


def _is_newer(paths: Sequence[Path], than: Path) -> bool:
    try:
        return min(path.stat().st_mtime_ns for path in paths) > than.stat().st_mtime_ns
    except FileNotFoundError:
        return False


def damaged(frame: pd.DataFrame) -> list[str]:
    """The sentences that name the damaged records of a sweep, one per run."""
    bad = frame["status"].isin([DAMAGED, UNREADABLE])
    return frame.loc[bad, ["run_id", "message"]].drop_duplicates()["message"].tolist()


def _quality(rows: pd.DataFrame) -> int:
    """How much a run's rows tell: a completed one more than one with metrics, and that more than nothing."""
    return 2 * int((rows["status"] == "completed").any()) + int(rows["mode"].notna().any())


def _differ(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    compared = ["mode", "round", "mask_input", *METRICS]

    def values(rows: pd.DataFrame) -> list[Row]:
        plain: Any = rows[compared].astype(object).where(rows[compared].notna(), None)
        return sorted(plain.to_dict("records"), key=lambda row: str(list(row.values())[:3]))

    both = bool(first["mode"].notna().any() and second["mode"].notna().any())
    return both and values(first) != values(second)
