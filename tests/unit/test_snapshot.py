"""A copy of the code for jobs that start later."""

import os
import subprocess
import sys

import pytest

from refsam.errors import ConfigError
from refsam.orchestration.submission.snapshot import prologue_lines, take_snapshot
from refsam.records.paths import RunsFolder


def test_a_snapshot_is_on_the_disk_when_it_has_its_name(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    snapshot = take_snapshot(RunsFolder(tmp_path))
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    assert len(files) > 100
    assert {path.stat().st_ino for path in files} <= set(synced)
    assert synced[-1] == snapshot.parent.stat().st_ino, "its name comes last"
    synced.clear()
    assert take_snapshot(RunsFolder(tmp_path)) == snapshot
    assert synced == [], "the same code is copied once"


STRANGER = 65534


def tampered(path):
    file = path / "refsam" / "cli.py"
    file.write_text(file.read_text() + "print('owned')\n")


CHANGES = {
    "content": tampered,
    "another file": lambda path: (path / "sitecustomize.py").write_text("print('owned')\n"),
    "a link": lambda path: (path / "refsam" / "torch").symlink_to("/tmp"),
    "writable": lambda path: (path / "refsam").chmod(0o775),
    "a writable file": lambda path: (path / "refsam" / "cli.py").chmod(0o646),
    "owner": lambda path: os.chown(path, STRANGER, STRANGER),
    "owner of a file": lambda path: os.chown(path / "refsam" / "cli.py", STRANGER, STRANGER),
    "gone": lambda path: path.rename(path.with_name("elsewhere")),
}


@pytest.fixture
def snapshot(tmp_path):
    """Of somebody whose new files a group may write."""
    before = os.umask(0o002)
    try:
        return take_snapshot(RunsFolder(tmp_path))
    finally:
        os.umask(before)


def start_of_a_job(snapshot):
    program = "import refsam; print(refsam.__file__)"
    script = "\n".join([*prologue_lines(snapshot), f"{sys.executable} -c '{program}'"])
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)


def test_a_job_takes_its_code_from_the_snapshot(snapshot):
    for _ in range(2):
        done = start_of_a_job(snapshot)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() == str(snapshot / "refsam" / "__init__.py")


@pytest.mark.parametrize("change", CHANGES)
def test_a_job_does_not_run_code_that_somebody_has_changed(change, snapshot):
    if "owner" in change and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    CHANGES[change](snapshot)
    done = start_of_a_job(snapshot)
    assert (done.returncode, done.stdout) == (1, "")
    assert "was changed after the submission" in done.stderr


@pytest.mark.parametrize("change", [change for change in CHANGES if change != "gone"])
def test_a_snapshot_that_somebody_has_changed_is_not_used_again(change, snapshot, tmp_path):
    if "owner" in change and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    CHANGES[change](snapshot)
    own = take_snapshot(RunsFolder(tmp_path))
    assert own != snapshot
    assert take_snapshot(RunsFolder(tmp_path)) == own
    assert start_of_a_job(own).returncode == 0
    CHANGES[change](own)
    with pytest.raises(ConfigError, match="is not what refsam has written there"):
        take_snapshot(RunsFolder(tmp_path))
