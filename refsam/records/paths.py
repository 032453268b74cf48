"""Every path of a run and of a sweep. Nobody assembles one elsewhere."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LONGEST_NAME = 120  # bytes of the name of a file that is named after what it holds, without its suffix


def file_name(name: str) -> str:
    """A file name after values of fields, which may be paths and lists; one that is cut stays unique."""
    plain = re.sub(r"[^\w.=+-]+", "_", name).strip("_.")
    encoded = plain.encode()
    if 0 < len(encoded) <= LONGEST_NAME:
        return plain
    return f"{encoded[:LONGEST_NAME].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class RunPaths:
    """The files of one run directory, `runs/<run_id>/`."""

    root: Path

    @property
    def run_id(self) -> str:
        return self.root.name

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def reserve(self) -> Path:
        """A folder of files that hold room on the disk for the last words of a run while it works."""
        return self.root / ".reserve"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def history(self) -> Path:
        return self.root / "history.csv"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    def attempt(self, number: int) -> Path:
        return self.attempts / str(number)

    def attempt_record(self, number: int) -> Path:
        return self.attempt(number) / "attempt.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.pt"

    @property
    def latest(self) -> Path:
        return self.checkpoints / "latest.pt"

    @property
    def adapter(self) -> Path:
        """What was trained, as peft opens it: adapter_config.json and adapter_model.safetensors."""
        return self.checkpoints / "adapter"

    @property
    def exports(self) -> Path:
        """The model in the formats of others, made on demand."""
        return self.root / "exports"

    @property
    def tensorboard(self) -> Path:
        return self.root / "logs"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def training(self) -> Path:
        """Summary of the finished training (best epoch, seconds, memory, parameters)."""
        return self.results / "training.json"

    @property
    def savings(self) -> Path:
        """How the present attempt trains, `auto` as it was chosen; there before its first step."""
        return self.results / "savings.json"

    @property
    def costs(self) -> Path:
        """What its Slurm jobs have cost: elapsed and queue time, GPU hours, memory."""
        return self.results / "slurm.json"

    @property
    def metrics(self) -> Path:
        return self.results / "metrics.json"

    @property
    def grid_search(self) -> Path:
        """The parameters of the automatic modes, and how they were found."""
        return self.results / "grid_search.json"

    @property
    def per_image(self) -> Path:
        return self.results / "per_image.csv"

    @property
    def embeddings(self) -> Path:
        """A frozen encoder's embeddings, where the data folder cannot be written."""
        return self.root / "embeddings"

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

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def results(self) -> Path:
        return self.root / "results.csv"

    @property
    def strategies(self) -> Path:
        """What each strategy reaches and costs, over seeds."""
        return self.root / "strategies.csv"

    @property
    def results_parquet(self) -> Path:
        return self.root / "results.parquet"

    @property
    def index(self) -> Path:
        """What was read of the records, so that only those that changed are read again."""
        return self.root / ".index.parquet"

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def trackers(self) -> Path:
        """What other programs were told of the runs."""
        return self.root / "trackers"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def jobs(self) -> Path:
        """The scripts and logs of jobs that refsam submits: a folder for each array."""
        return self.root / "jobs"

    @property
    def scripts(self) -> Path:
        """Job scripts that a person submits."""
        return self.root / "scripts"


def default_runs() -> str:
    """The runs folder where none is given: that of the environment variable REFSAM_RUNS, else `runs` here."""
    return os.environ.get("REFSAM_RUNS") or "runs"


@dataclass(frozen=True)
class RunsFolder:
    """The folder of all run directories and sweeps."""

    root: Path

    def run(self, run_id: str) -> RunPaths:
        return RunPaths(self.root / run_id)

    @property
    def sweeps(self) -> Path:
        return self.root / "sweeps"

    def sweep(self, name: str) -> SweepPaths:
        return SweepPaths(self.sweeps / name)

    @property
    def joined(self) -> SweepPaths:
        """Where the results of several sweeps together go."""
        return SweepPaths(self.root / "joined")

    def snapshot(self, name: str) -> Path:
        """A copy of the code, named by what is in it."""
        return self.root / "snapshots" / name

    @property
    def fits(self) -> Path:
        """What `refsam fit` has found, and below it every step that it measured."""
        return self.root / "fits"
