"""Fixtures that several test files share: data sets on the disk, and their configuration."""

import copy
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from refsam.configuration import compose as composition
from refsam.configuration.schema import DatasetConfig, RefsamConfig
from refsam.datasets.prepare import prepare
from refsam.system import imports, signals

TESTS = Path(__file__).parent
CONF = TESTS.parent / "conf"
sys.path.insert(0, str(TESTS))  # test files of several folders import the modules that lie here
FOLDERS = ("slurm", "integration", "gpu", "engine", "browser", "unit")


def dataset_config(name: str, root: Path, **values: object) -> DatasetConfig:
    """The data set of conf/dataset/NAME.yaml at `root`, with some values replaced."""
    given = OmegaConf.load(CONF / "dataset" / f"{name}.yaml")
    merged = OmegaConf.merge(OmegaConf.structured(DatasetConfig), given, {"root": str(root), **values})
    config = OmegaConf.to_object(merged)
    assert isinstance(config, DatasetConfig)
    return config


def composed_once(compose: Callable[..., RefsamConfig]) -> Callable[..., RefsamConfig]:
    """`compose`, which asks Hydra once per process for the same overrides in the same surroundings.

    A composition takes a quarter of a second, and most tests ask for one that another test has had. Each
    caller has a copy of its own.
    """
    made: dict[Any, RefsamConfig] = {}

    def remembered(overrides: Sequence[str], config_name: str = "config") -> RefsamConfig:
        environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        key = (tuple(overrides), config_name, Path.cwd(), frozenset(environment.items()))
        if key not in made:
            made[key] = compose(overrides, config_name)
        return copy.deepcopy(made[key])

    return remembered


# Before any module takes the function under its name.
composition.compose = composed_once(composition.compose)


@pytest.fixture(autouse=True)
def nothing_has_asked_to_stop() -> None:
    """What an earlier test sent to this process is over; a process of a run has one life."""
    signals._listener.forget()


@pytest.fixture(scope="session")
def dataset() -> Callable[..., DatasetConfig]:
    """A function that makes the configuration of a data set: dataset(name, root, **values)."""
    return dataset_config


@pytest.fixture(scope="session")
def nuclei(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    """The 48 real fluorescence images, prepared as a person prepares them."""
    config = dataset_config("nuclei", tmp_path_factory.mktemp("data") / "nuclei")
    prepare(config, say=lambda _: None)
    return config


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    """The 16 images of discs."""
    config = dataset_config("synthetic", tmp_path_factory.mktemp("data") / "synthetic")
    prepare(config, say=lambda _: None)
    return config


def pytest_configure() -> None:
    """Give the programs that tests start the signals of a program typed at a prompt.

    A runner in the background (nohup, a job of a shell without a terminal) ignores some, and children inherit
    that.
    """
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name a test when it fails: a run of all tests that is cut says what it has found."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.when} of {report.nodeid} failed in {report.duration:.0f} s", file=sys.__stderr__)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the modules of all tests as a run imports its own."""
    with imports.kept():
        return (yield)


def pytest_sessionstart() -> None:
    """Let threads that wait leave the core to others: the workers of pytest-xdist share them."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What runs share, such as embeddings, is no other session's; a test may say another folder."""
    os.environ["REFSAM_DATA"] = str(tmp_path_factory.mktemp("refsam_data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take a file of each folder in turn: tests on Slurm wait, and leave the cores to those that compute.

    The short files of unit, of which there are most, come last: no worker is left alone with a long one.
    """
    files: dict[str, list[Path]] = {folder: [] for folder in FOLDERS}
    turn: dict[Path, tuple[int, int]] = {}
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if item.path not in turn:
            turn[item.path] = (len(files[folder]), FOLDERS.index(folder))
            files[folder].append(item.path)
    items.sort(key=lambda item: turn[item.path])
