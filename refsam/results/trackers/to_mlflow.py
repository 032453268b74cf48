"""MLflow: a run of an experiment for each run, on a server or in an SQLite file."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from refsam.errors import ConfigError, RunFailed
from refsam.results.trackers.tracked import TrackedRun
from refsam.results.trackers.tracker import Tracker, folder_of, missing

URI_VARIABLE = "MLFLOW_TRACKING_URI"
_SIGNATURE = "refsam.signature"
_RUN_ID = "run_id"
_PER_BATCH = 1000  # values in one request, MLflow's limit
_PARAMETERS_PER_BATCH = 100  # such, and tags
_ALLOWED = "the URI of a server (https://…), a database (sqlite:///…), or the path of an SQLite file"


class MLflow(Tracker):
    """Values of epochs have the epoch as their step, final ones are metrics of one step.

    Args:
        destination: MLflow's tracking URI, or the path of an SQLite file; None: that of MLFLOW_TRACKING_URI,
            else `default`.
        experiment: its name.
        default: an SQLite file.
    """

    def __init__(self, destination: str | None, experiment: str, default: Path) -> None:
        # A command on records tells nobody that it was used.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # no news of its database
        try:
            import sqlalchemy  # noqa: F401 - what MLflow itself does not ask for, and SQLite needs
            from mlflow import MlflowClient
        except ImportError as error:
            raise missing("mlflow-skinny, sqlalchemy and alembic", "mlflow") from error
        given = destination or os.environ.get(URI_VARIABLE) or str(default)
        artifacts = None
        if "://" not in given:
            path = Path(given).absolute()
            folder_of(str(path.parent), path.parent)
            artifacts = path.with_suffix(".artifacts").as_uri()  # else in the folder of the command
            given = f"sqlite:///{path}"
        self.destination = given
        self.hint = f"mlflow ui --backend-store-uri {given}"
        with _in_words(given, ConfigError):
            self._client = MlflowClient(tracking_uri=given)
            found = self._client.get_experiment_by_name(experiment)
            if found is not None and found.lifecycle_stage != "active":
                raise ConfigError(
                    f"--name {experiment!r}: this experiment was deleted in {given}; give another"
                )
            self._experiment = (
                self._client.create_experiment(experiment, artifact_location=artifacts)
                if found is None
                else found.experiment_id
            )
        self._runs: dict[str, list[str]] = {}

    def known(self) -> Mapping[str, str]:
        signatures: dict[str, str] = {}
        token = None
        while True:
            with _in_words(self.destination, RunFailed):
                found = self._client.search_runs(
                    [self._experiment], f"tags.{_RUN_ID} LIKE '%'", max_results=1000, page_token=token
                )
            for run in found:
                name = run.data.tags[_RUN_ID]
                self._runs.setdefault(name, []).append(run.info.run_id)
                signatures[name] = run.data.tags.get(_SIGNATURE, "")
            token = found.token
            if not token:
                return signatures

    def tell(self, run: TrackedRun) -> None:
        from mlflow.entities import Metric, Param, RunTag

        began, ended = round(1000 * run.began), round(1000 * run.ended)
        metrics = [
            Metric(f"epoch/{name}", value, round(1000 * epoch.ended), epoch.number)
            for epoch in run.epochs
            for name, value in epoch.values.items()
        ]
        metrics += [Metric(name, value, ended, 0) for name, value in run.metrics.items()]
        parameters = [Param(name, str(value)) for name, value in run.parameters.items()]
        tags = {**run.tags, _RUN_ID: run.run_id}
        if "git_commit" in tags:  # where MLflow's own pages look for it
            tags["mlflow.source.git.commit"] = tags["git_commit"]
        with _in_words(self.destination, RunFailed):
            made = self._client.create_run(self._experiment, began, tags, run_name=run.run_id)
            number = made.info.run_id
            for first in range(0, len(parameters), _PARAMETERS_PER_BATCH):
                self._client.log_batch(number, params=parameters[first : first + _PARAMETERS_PER_BATCH])
            for first in range(0, len(metrics), _PER_BATCH):
                self._client.log_batch(number, metrics=metrics[first : first + _PER_BATCH])
            # Last: a run without it was not told to its end, and is told anew.
            self._client.log_batch(number, tags=[RunTag(_SIGNATURE, run.signature)])
            self._client.set_terminated(number, "FINISHED", ended)

    def remove(self, run_id: str) -> None:
        with _in_words(self.destination, RunFailed):
            for number in self._runs.pop(run_id):
                self._client.delete_run(number)


@contextmanager
def _in_words(destination: str, kind: type[ConfigError | RunFailed]) -> Iterator[None]:
    """What MLflow and the database refuse, as one sentence."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        allowed = f"; allowed: {_ALLOWED}" if kind is ConfigError else ""
        raise kind(f"MLflow refuses {destination!r}: {words[0].rstrip('.')}{allowed}") from error
