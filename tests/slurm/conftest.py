"""The real Slurm that the tests of this folder run on."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from refsam import cli
from refsam.errors import ConfigError
from refsam.orchestration.slurm import patience, questions
from refsam.orchestration.submission import arrays
from refsam.records.paths import RunsFolder
from tools.test_cluster.cluster import Cluster
from tools.test_cluster.packages import check_machine

sys.path.insert(0, str(Path(__file__).parent))  # test files import the modules that lie beside them


@pytest.fixture(scope="session")
def slurm_machine() -> None:
    """A machine where a test cluster can be started; elsewhere the test is skipped with the reason."""
    try:
        check_machine()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def started_cluster(slurm_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of this process: each worker of pytest-xdist has its own, until its last test."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture(scope="module")
def running_cluster(started_cluster: Cluster) -> Iterator[Cluster]:
    """A running cluster, which sbatch and all other commands speak with in the tests of this file alone."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in started_cluster.environment.items():
            patched.setenv(name, value)
        yield started_cluster


@pytest.fixture
def slurm_cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The running cluster as a test finds it: without a job, and with every node idle."""
    running_cluster.make_idle()
    yield running_cluster
    running_cluster.cancel_jobs()


@pytest.fixture(autouse=True)
def time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's commands are slow on a machine that others use, too; a person would look again."""
    monkeypatch.setattr(questions, "GLANCE_SECONDS", 60.0)
    monkeypatch.setattr(patience, "HURRIED_SECONDS", 60.0)


@pytest.fixture
def folder(slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunsFolder:
    """A runs folder, and the stand-in for the science, which the commands' jobs execute, too."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(arrays.submit_to_slurm, "__defaults__", ("stand_in:execute",))
    root = tmp_path / "runs"
    root.mkdir()
    return RunsFolder(root)


@pytest.fixture
def refsam(folder: RunsFolder, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The command, as a function of its arguments: the JSON document that it prints."""

    def call(*arguments: str, status: int = 0) -> Any:
        capsys.readouterr()
        assert cli.main([*arguments, "--json", "--runs", str(folder.root)]) == status
        return json.loads(capsys.readouterr().out)

    return call
