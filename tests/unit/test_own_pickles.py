"""A job of submitit loads no pickle that somebody else may have written."""

import os
import subprocess

import pytest
from evil_files import Evil
from submitit.core.utils import cloudpickle_dump

from refsam.orchestration.in_job.own_pickles import PYTHON

STRANGER = 65534
CHANGES = {
    "a folder that a group may write": lambda folder: folder.chmod(0o770),
    "a folder of somebody else": lambda folder: os.chown(folder, STRANGER, STRANGER),
    "a pickle of somebody else": lambda folder: os.chown(folder / "7_submitted.pkl", STRANGER, STRANGER),
    "a link to another folder": lambda folder: (
        folder.rename(folder.with_name("other")),
        folder.symlink_to(folder.with_name("other")),
    ),
}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function that starts a job whose pickle makes a marker; whether it did, and what was said."""
    folder, marker = tmp_path / "jobs", tmp_path / "executed"
    folder.mkdir(mode=0o700)
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("SLURM_JOB_ID", "7"), ("SUBMITIT_EXECUTOR", "slurm"), ("SLURM_JOB_NUM_NODES", "1")):
        monkeypatch.setenv(name, value)
    cloudpickle_dump(Evil(marker), folder / "7_submitted.pkl")

    def start(change=None):
        if change is not None:
            change(folder)
        command = f"{PYTHON} -u -m submitit.core._submit {folder}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        return marker.exists(), done.stderr

    return start


def test_the_user_s_own_pickle_is_loaded(start):
    loaded, said = start()
    assert loaded, said


@pytest.mark.parametrize("change", CHANGES)
def test_a_pickle_that_somebody_else_may_have_written_is_not(change, start):
    if "else" in change and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    loaded, said = start(CHANGES[change])
    assert not loaded
    assert "so they are not loaded" in said
