"""Hydra's own suites for launchers, with applications that know nothing of refsam, on a real Slurm."""

import pytest
from hydra.core.singleton import Singleton
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite
from hydra.version import VersionBase
from slurm_helpers import CHECKOUT

ON_SLURM = [
    "hydra.launcher.kind=slurm",
    "hydra.launcher.request.memory_gb=1",
    "hydra.launcher.request.time=0:05:00",
]


@pytest.fixture(autouse=True)
def no_version():
    """As in a new process: composing tells Hydra a version, and these applications name none."""
    before = Singleton._instances.pop(VersionBase, None)
    yield
    Singleton._instances.pop(VersionBase, None)
    if before is not None:
        VersionBase.set_instance(before)


@pytest.fixture(autouse=True)
def importable(slurm_cluster, monkeypatch):
    """Jobs find refsam and its plugin where these tests do."""
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))


@pytest.mark.parametrize(("launcher_name", "overrides"), [("refsam", ON_SLURM)])
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=refsam", *ON_SLURM])]
)
class TestIntegration(IntegrationTestSuite):
    pass
