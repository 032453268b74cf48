"""A copy of the code for jobs that start later."""

import os

from refsam.orchestration.submission.snapshot import take_snapshot
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
