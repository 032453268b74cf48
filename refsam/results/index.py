"""What was read of a sweep's records, kept beside it, so that only records that changed are read again.

One Parquet file: the rows of every run, and the signature of the files that they were read from. Deleting it
costs one slower reading. A file is taken as unchanged where its number, size and time of change are the same:
every record is replaced as a whole, so a new content is a new file.
"""

import os
from collections.abc import Iterable, Sequence, Set

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from refsam.records.paths import RunPaths, RunsFolder, SweepPaths
from refsam.results.run_rows import COLUMNS, SETTING, TYPES, Row, run_rows, skipped_row
from refsam.results.sweeps import Manifest, SweepRun
from refsam.system.files import write_atomically

FORMAT = "2"  # to be raised when the same records give other rows
SIGNATURE = "signature"
_ARROW = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
SCHEMA: dict[str, pa.DataType] = {name: _ARROW[TYPES[name]] for name in COLUMNS}
_SCHEMA = pa.schema([*SCHEMA.items(), (SETTING, pa.string()), (SIGNATURE, pa.string())])


def refreshed(
    sweep: SweepPaths, runs: RunsFolder, manifest: Manifest, unchanged: Set[str] = frozenset()
) -> pa.Table:
    """All rows of a sweep, in the manifest's order; the index is brought up to date.

    Args:
        unchanged: runs that need not be looked at again.
    """
    known = _read(sweep)
    old = _signatures(known)
    now = {
        run.run_id: old[run.run_id]
        if run.run_id in unchanged and run.run_id in old
        else signature(runs.run(run.run_id), run)
        for run in manifest.runs
    }
    changed = [run for run in manifest.runs if old.get(run.run_id) != now[run.run_id]]
    skipped = [
        skipped_row(each.overrides, each.reason) | {"sweep": sweep.name, SIGNATURE: None}
        for each in manifest.skipped
    ]
    n_skipped = known.num_rows - known["run_id"].drop_null().length()
    if not changed and len(old) == len(now) and n_skipped == len(skipped):
        return known
    table = _merged(known, changed, _read_runs(sweep, runs, changed, now), list(now), skipped)
    if os.access(sweep.root, os.W_OK):  # another person's sweep is read, and left as it is
        write_atomically(sweep.index, lambda file: pyarrow.parquet.write_table(table, file))
    return table


def settled(sweep: SweepPaths, runs: RunsFolder, manifest: Manifest) -> set[str]:
    """Completed runs whose records have not changed since they were read, and whose costs are known.

    Nobody needs to be asked about them again.
    """
    known = _read(sweep)
    old = _signatures(known)
    columns = ["run_id", "status", "job_id", "elapsed_seconds"]
    done = {
        row["run_id"]
        for row in known.select(columns).to_pylist()
        if row["status"] == "completed" and (row["job_id"] is None or row["elapsed_seconds"] is not None)
    }
    return {
        run.run_id
        for run in manifest.runs
        if run.run_id in done and old[run.run_id] == signature(runs.run(run.run_id), run)
    }


def signature(paths: RunPaths, run: SweepRun) -> str:
    """Changes with every record that a row is made from, and with what the sweep asked for."""
    root = str(paths.root)
    files = (
        *("config.yaml", "environment.json", "status.json", "results/training.json", "results/savings.json"),
        *("results/slurm.json", "results/metrics.json"),
    )
    parts = [FORMAT]
    for name in files:
        try:
            found = os.stat(f"{root}/{name}")  # noqa: PTH116 - a path object for each would cost more
            parts.append(f"{found.st_ino}.{found.st_mtime_ns}.{found.st_size}")
        except OSError:  # not written yet
            parts.append("-")
    if parts[1] == "-":
        parts.append(repr(run.overrides))
    return " ".join(parts)


def _read(sweep: SweepPaths) -> pa.Table:
    """The index; an empty one where there is none, or one of another version, or a damaged one."""
    try:
        table = pyarrow.parquet.read_table(sweep.index)
    except (FileNotFoundError, pa.ArrowInvalid, OSError):
        return _SCHEMA.empty_table()
    return table if table.schema.equals(_SCHEMA) else _SCHEMA.empty_table()


def _signatures(table: pa.Table) -> dict[str, str]:
    run_ids, signatures = table["run_id"].to_pylist(), table[SIGNATURE].to_pylist()
    return {run: each for run, each in zip(run_ids, signatures, strict=True) if run is not None}


def _read_runs(
    sweep: SweepPaths, runs: RunsFolder, changed: Sequence[SweepRun], now: dict[str, str]
) -> Iterable[Row]:
    for run in changed:
        for row in run_rows(runs.run(run.run_id), run.run_id, run.overrides):
            yield row | {"sweep": sweep.name, SIGNATURE: now[run.run_id]}


def _merged(
    known: pa.Table,
    changed: Sequence[SweepRun],
    fresh: Iterable[Row],
    order: Sequence[str],
    skipped: list[Row],
) -> pa.Table:
    dropped = pa.array([run.run_id for run in changed], pa.string())
    kept = known.filter(
        pyarrow.compute.and_(
            pyarrow.compute.is_in(known["run_id"], pa.array(order, pa.string())),
            pyarrow.compute.invert(pyarrow.compute.is_in(known["run_id"], dropped)),
        )
    )
    table = pa.concat_tables([kept, pa.Table.from_pylist(list(fresh), _SCHEMA)])
    place = {run_id: number for number, run_id in enumerate(order)}
    run_ids = table["run_id"].to_pylist()
    rows = sorted(range(len(run_ids)), key=lambda number: place[run_ids[number]])
    return pa.concat_tables(
        [table.take(pa.array(rows, pa.int64())), pa.Table.from_pylist(skipped, _SCHEMA)]
    ).combine_chunks()
