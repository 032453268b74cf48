"""Weights & Biases, offline: a folder for each run, which `wandb sync` brings to a server later."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from refsam.errors import ConfigError, RunFailed
from refsam.results.trackers.tracked import TrackedRun
from refsam.results.trackers.tracker import Ledger, Tracker, folder_of, missing

_FORBIDDEN = "/\\#?%:"  # in the name of a project


class WeightsAndBiases(Tracker):
    """Values of epochs as `epoch/…` with the epoch as their step; final ones are the run's summary.

    Args:
        destination: a folder; None: `default`.
        project: its name.
    """

    def __init__(self, destination: str | None, project: str, default: Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing leaves the machine
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise missing("wandb", "wandb") from error
        if set(project) & set(_FORBIDDEN):
            raise ConfigError(f"--name {project!r} cannot be a project; expected names without {_FORBIDDEN}")
        self._project = project
        self._folder = folder_of(destination, default)
        self._ledger = Ledger(self._folder)
        self.destination = str(self._folder)
        self.hint = f"wandb sync {self._folder}/wandb/offline-run-*"

    def known(self) -> Mapping[str, str]:
        # A folder without an entry was not written to its end.
        return {run_id: self._ledger.signature(run_id) for run_id in map(_run_id, self._folders("*"))}

    def tell(self, run: TrackedRun) -> None:
        import wandb

        settings = wandb.Settings(
            mode="offline",
            root_dir=str(self._folder),
            silent=True,
            console="off",
            # What they would say is of this command and this machine, not of the run.
            disable_code=True,
            disable_git=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        told = {**run.parameters, **run.tags}
        made = wandb.init(
            project=self._project, id=run.run_id, name=run.run_id, config=told, settings=settings
        )
        try:
            for epoch in run.epochs:
                values = {f"epoch/{name}": value for name, value in epoch.values.items()}
                made.log({**values, "_timestamp": epoch.ended}, step=epoch.number)
            made.summary.update(run.metrics)
        finally:
            made.finish()
        if not self._folders(run.run_id):
            raise RunFailed(f"wandb wrote run {run.run_id} into {made.settings.sync_dir}, not {self._folder}")
        self._ledger.add(run)

    def remove(self, run_id: str) -> None:
        for folder in self._folders(run_id):
            shutil.rmtree(folder)

    def _folders(self, run_id: str) -> list[Path]:
        """What wandb calls offline-run-<date>_<time>-<id>."""
        return [
            path
            for path in (self._folder / "wandb").glob(f"offline-run-*-{run_id}")
            if run_id in ("*", _run_id(path))
        ]


def _run_id(folder: Path) -> str:
    return folder.name.split("-", 3)[3]
