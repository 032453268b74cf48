"""Where a report's facts stand: the manifests of its sweeps and the directories of its runs."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refsam.records.paths import RunsFolder, SweepPaths
from refsam.results.sweeps import Manifest, read_manifest
from refsam.system.files import read_json
from refsam.system.terminal import ESCAPES

PROGRAM = ("python", "-m", "refsam.sweep")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class AskedSweep:
    """What a sweep's manifest says.

    Attributes:
        folder: the runs folder that it stands in.
        commands: the different commands that asked for it, as they are typed at a prompt; the last one last.
        skipped: the combinations that were left out, and why.
    """

    name: str
    folder: Path
    commands: list[str]
    created: str | None
    updated: str | None
    n_runs: int
    skipped: list[tuple[str, str]]


def asked_sweeps(sweeps: Sequence[tuple[SweepPaths, RunsFolder]]) -> list[AskedSweep]:
    """What the manifests say. Raises as refsam.results.sweeps.read_manifest does."""
    found = []
    for sweep, folder in sweeps:
        manifest = read_manifest(sweep)
        skipped = [
            (" ".join(f"{key}={value}" for key, value in each.overrides.items()), each.reason)
            for each in manifest.skipped
        ]
        found.append(
            AskedSweep(
                name=sweep.name,
                folder=folder.root.absolute(),
                commands=_typed(manifest),
                created=manifest.created,
                updated=manifest.updated,
                n_runs=len(manifest.runs),
                skipped=skipped,
            )
        )
    return found


def read_json_record(path: Path) -> dict[str, Any]:
    """A record of JSON; nothing where it is not written or damaged, which the table says."""
    try:
        values = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def printable(text: str) -> str:
    """Text without a terminal's colours; other characters that nobody can see are shown as U+FFFD."""
    return _CONTROLS.sub("\ufffd", ESCAPES.sub("", text))


def _typed(manifest: Manifest) -> list[str]:
    # The program has another path on every machine.
    commands = [shlex.join([*PROGRAM, *words[1:]]) for words in manifest.commands]
    return list(dict.fromkeys(reversed(commands)))[::-1]
