"""Lets the test files of this folder import the helper modules that lie beside them; a bare machine."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def empty_machine(tmp_path, monkeypatch):
    """A machine on which nothing was fetched and no cluster is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFSAM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path / "micro_sam"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
