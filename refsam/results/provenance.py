"""Where a table or a figure comes from: in its metadata, and in a sidecar file beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import refsam
from refsam.records.status import now
from refsam.system.files import write_json


def provenance(frame: pd.DataFrame, run_ids: Sequence[str] | None = None) -> dict[str, Any]:
    """Sweeps, run ids, commits, versions and the time, of all runs with results or of some of them."""
    runs = frame[frame["run_id"].isin(run_ids)] if run_ids is not None else frame[frame["mode"].notna()]
    return {
        "made_by": f"refsam {refsam.__version__}",
        "made_at": now(),
        "sweeps": sorted(_each(runs["sweep"])),
        "run_ids": _each(runs["run_id"]),
        "commits": sorted(_each(runs["commit"])),
        "refsam_versions": sorted(_each(runs["refsam_version"])),
    }


def _each(texts: "pd.Series[str]") -> list[str]:
    """Each of some values once; what several sweeps asked for, and joined folds, have several in one text."""
    return list(dict.fromkeys(each for text in texts.dropna() for each in str(text).split(", ")))


def write_sidecar(path: Path, origin: dict[str, Any], files: Sequence[Path]) -> Path:
    """`path`.json: which files it speaks of, and where they come from."""
    target = path.with_name(f"{path.name}.json")
    write_json(target, {"files": [file.name for file in files], **origin})
    return target


_MOST_RUNS = 1000  # that metadata name; readers of PNG refuse text of a megabyte


def one_line(origin: dict[str, Any]) -> str:
    """The provenance in a sentence, for metadata that has one field."""
    runs, commits = origin["run_ids"], origin["commits"]
    named = ", ".join(runs[:_MOST_RUNS])
    if len(runs) > _MOST_RUNS:
        named += ", and those that the JSON file beside it names"
    return (
        f"sweep {', '.join(origin['sweeps'])}; commit {', '.join(commits) or 'not known'}; "
        f"{origin['made_by']}; {origin['made_at']}; {len(runs)} runs: {named}"
    )
