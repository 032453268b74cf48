"""What all trackers have in common, and how runs get into one: each once, and anew where it changed."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refsam.errors import ConfigError, os_reason
from refsam.results.trackers.tracked import TrackedRun
from refsam.system.files import read_json, write_json

LEDGER = "refsam.json"


class Tracker(ABC):
    """A place that runs are told to.

    Attributes:
        destination: as a person names it.
        hint: the command that shows what is there.
    """

    destination: str
    hint: str

    @abstractmethod
    def known(self) -> Mapping[str, str]:
        """The signatures of the runs that are there, by run id; empty for what was not told to its end."""

    @abstractmethod
    def tell(self, run: TrackedRun) -> None:
        """Write a run that is not there."""

    @abstractmethod
    def remove(self, run_id: str) -> None:
        """Take back what was told of a run."""


@dataclass
class Told:
    """How many runs were new, told anew because their records had changed, and left as they were."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0


def tell(runs: Iterable[TrackedRun], tracker: Tracker) -> Told:
    """Bring runs into a tracker. What is there with the same content stays as it is."""
    told = Told()
    known = tracker.known()
    for run in runs:
        if known.get(run.run_id) == run.signature:
            told.unchanged += 1
            continue
        if run.run_id in known:
            tracker.remove(run.run_id)
            told.changed += 1
        else:
            told.new += 1
        tracker.tell(run)
    return told


class Ledger:
    """What a folder holds, for trackers that cannot be asked: refsam.json, by run id."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER
        try:
            self._entries: dict[str, dict[str, Any]] = read_json(self._path)
        except FileNotFoundError:
            self._entries = {}
        except ValueError as error:
            raise ConfigError(f"--destination: {error}; remove the folder to write it again") from error

    def signature(self, run_id: str) -> str:
        """Of a run that was told to its end; empty for others."""
        return str(self._entries.get(run_id, {}).get("signature", ""))

    def add(self, run: TrackedRun) -> None:
        """Note that a run has been told to its end."""
        self._entries[run.run_id] = {"signature": run.signature}
        write_json(self._path, self._entries)


def folder_of(destination: str | None, default: Path) -> Path:
    """The folder of a tracker that writes files, made if need be. Raises ConfigError where it cannot be."""
    folder = default if destination is None else Path(destination)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--destination {str(folder)!r} cannot be a folder: {os_reason(error)}") from error
    return folder


def missing(package: str, extra: str) -> ConfigError:
    """The sentence for a client that is not installed."""
    return ConfigError(f'--to {extra} needs {package}, which is not installed: pip install "refsam[{extra}]"')
