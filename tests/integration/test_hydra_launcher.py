"""Hydra's own suites for launchers, with applications that know nothing of refsam, on this machine."""

import pytest
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.version import VersionBase


@pytest.fixture(autouse=True)
def no_version():
    """As in a new process: composing tells Hydra a version, and these applications name none."""
    before = Singleton._instances.pop(VersionBase, None)
    yield
    Singleton._instances.pop(VersionBase, None)
    if before is not None:
        VersionBase.set_instance(before)


def test_hydra_finds_the_launcher():
    assert "RefsamLauncher" in {plugin.__name__ for plugin in Plugins.instance().discover(Launcher)}


@pytest.mark.parametrize(("launcher_name", "overrides"), [("refsam", [])])
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(("launcher_name", "overrides"), [("refsam", ["hydra.sweeper.max_batch_size=2"])])
class TestBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=refsam"])])
class TestIntegration(IntegrationTestSuite):
    pass
