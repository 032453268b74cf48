"""Every path of a run and of a sweep. Nobody assembles one elsewhere."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_NAME = 120  # bytes of the name of a file that is named after what it holds, without its suffix


def file_name(name: str) -> str:
    """A file name after values of fields, which may be paths and lists; one that is cut stays unique."""
    plain = re.sub(r"[^\w.=+-]+", "_", name).strip("_.")
    encoded = plain.encode()
    if 0 < len(encoded) <= LONGEST_NAME:
        return plain
    return f"{encoded[:LONGEST_NAME].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


class Below:
    """A path below the root of the folder that has it."""

    def __init__(self, relative: str) -> None:
        self._relative = relative

    def __get__(self, folder: Any, kind: type) -> Path:
        root: Path = folder.root
        return root / self._relative


@dataclass(frozen=True)
class RunPaths:
    """The files of one run directory, `runs/<run_id>/`."""

    root: Path

    @property
    def run_id(self) -> str:
        return self.root.name

    config = Below("config.yaml")
    status = Below("status.json")
    lock = Below(".lock")
    # A folder of files that hold room on the disk for the last words of a run while it works.
    reserve = Below(".reserve")
    environment = Below("environment.json")
    history = Below("history.csv")
    attempts = Below("attempts")
    checkpoints = Below("checkpoints")
    best = Below("checkpoints/best.pt")
    latest = Below("checkpoints/latest.pt")
    # What was trained, as peft opens it: adapter_config.json and adapter_model.safetensors.
    adapter = Below("checkpoints/adapter")
    exports = Below("exports")  # the model in the formats of others, made on demand
    tensorboard = Below("logs")
    results = Below("results")
    # Summary of the finished training (best epoch, seconds, memory, parameters).
    training = Below("results/training.json")
    # How the present attempt trains, `auto` as it was chosen; there before its first step.
    savings = Below("results/savings.json")
    # What its Slurm jobs have cost: elapsed and queue time, GPU hours, memory.
    costs = Below("results/slurm.json")
    metrics = Below("results/metrics.json")
    # The parameters of the automatic modes, and how they were found.
    grid_search = Below("results/grid_search.json")
    per_image = Below("results/per_image.csv")
    # A frozen encoder's embeddings, where the data folder cannot be written.
    embeddings = Below("embeddings")

    def attempt(self, number: int) -> Path:
        return self.attempts / str(number)

    def attempt_record(self, number: int) -> Path:
        return self.attempt(number) / "attempt.json"

    def picture(self, mode: str, image: str) -> Path:
        """The segmentation of a test image in a mode, drawn."""
        return self.results / "pictures" / f"{mode}-{image.replace('/', '__')}.png"

    def predictions(self, mode: str, round: int = 0, mask_input: bool = False) -> Path:
        """Segmentations of the test images: predictions/box, and predictions/box-round03-mask."""
        correction = f"-round{round:02}{'-mask' if mask_input else ''}" if round else ""
        return self.results / "predictions" / f"{mode}{correction}"


Directories = Mapping[str, RunPaths]  # of runs, by their ids; joined sweeps have them in several folders


@dataclass(frozen=True)
class SweepPaths:
    """The files of one sweep, `runs/sweeps/<name>/`."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    manifest = Below("manifest.json")
    results = Below("results.csv")
    strategies = Below("strategies.csv")  # what each strategy reaches and costs, over seeds
    results_parquet = Below("results.parquet")
    # What was read of the records, so that only those that changed are read again.
    index = Below(".index.parquet")
    tables = Below("tables")
    figures = Below("figures")
    trackers = Below("trackers")  # what other programs were told of the runs
    report = Below("report.html")
    jobs = Below("jobs")  # the scripts and logs of jobs that refsam submits: a folder for each array
    scripts = Below("scripts")  # job scripts that a person submits


def default_runs() -> str:
    """The runs folder where none is given: that of the environment variable REFSAM_RUNS, else `runs` here."""
    return os.environ.get("REFSAM_RUNS") or "runs"


@dataclass(frozen=True)
class RunsFolder:
    """The folder of all run directories and sweeps."""

    root: Path

    sweeps = Below("sweeps")
    fits = Below("fits")  # what `refsam fit` has found, and below it every step that it measured

    def run(self, run_id: str) -> RunPaths:
        return RunPaths(self.root / run_id)

    def sweep(self, name: str) -> SweepPaths:
        return SweepPaths(self.sweeps / name)

    @property
    def joined(self) -> SweepPaths:
        """Where the results of several sweeps together go."""
        return SweepPaths(self.root / "joined")

    def snapshot(self, name: str) -> Path:
        """A copy of the code, named by what is in it."""
        return self.root / "snapshots" / name
