"""TensorBoard: a folder of event files for each run, with its parameters for the HParams page."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

# Of the package tensorboard: torch's SummaryWriter would bring torch along.
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from refsam.results.trackers.tracked import TrackedRun
from refsam.results.trackers.tracker import Ledger, Tracker, folder_of


class TensorBoard(Tracker):
    """Values of epochs as `epoch/…`, final ones by their names at step 0.

    What the training itself logged, step by step and with pictures, is in the run directory's `logs`.
    """

    def __init__(self, destination: str | None, default: Path) -> None:
        self._folder = folder_of(destination, default)
        self._ledger = Ledger(self._folder)
        self.destination = str(self._folder)
        self.hint = f"tensorboard --logdir {self._folder}"

    def known(self) -> Mapping[str, str]:
        # A folder without an entry was not written to its end.
        return {
            path.name: self._ledger.signature(path.name) for path in self._folder.iterdir() if path.is_dir()
        }

    def tell(self, run: TrackedRun) -> None:
        temporary = Path(tempfile.mkdtemp(dir=self._folder, prefix=f".{run.run_id}."))
        try:
            _write(temporary, run)
            temporary.chmod(0o777 & ~0o022)
            temporary.rename(self._folder / run.run_id)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._ledger.add(run)

    def remove(self, run_id: str) -> None:
        shutil.rmtree(self._folder / run_id)


def _write(folder: Path, run: TrackedRun) -> None:
    writer = EventFileWriter(str(folder))
    try:
        told = {**run.parameters, **run.tags}
        hparams = hparams_pb(told, trial_id=run.run_id, start_time_secs=run.began)
        writer.add_event(Event(wall_time=run.began, step=0, summary=hparams))
        for epoch in run.epochs:
            values = [
                Summary.Value(tag=f"epoch/{name}", simple_value=value) for name, value in epoch.values.items()
            ]
            writer.add_event(Event(wall_time=epoch.ended, step=epoch.number, summary=Summary(value=values)))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in run.metrics.items()]
        end = SessionEndInfo(status=Status.STATUS_SUCCESS, end_time_secs=run.ended)
        about = metadata.create_summary_metadata(HParamsPluginData(session_end_info=end))
        values.append(
            Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
        )
        writer.add_event(Event(wall_time=run.ended, step=0, summary=Summary(value=values)))
    finally:
        writer.close()
