"""Every reader of files that people give, with files that are cut off, changed, renamed or claim too much."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "fuzzed_files.py"
SEED, CASES = 0, 60  # of each group, besides those that are not drawn
GROUPS = ("images", "labels", "annotations", "tables", "records", "weights")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """How the cases of each group ended, in a process whose memory is limited."""
    done = subprocess.run(
        [sys.executable, PROGRAM, str(SEED), str(CASES), *GROUPS], capture_output=True, text=True, timeout=600
    )
    last = done.stderr.splitlines()[-1:]
    assert done.returncode == 0, f"died with {done.returncode} at {last}: {done.stderr[-2000:]}"
    values: dict[str, Any] = json.loads(done.stdout)
    return values


@pytest.mark.parametrize("group", GROUPS)
def test_every_damaged_file_ends_in_a_sentence_or_is_read_right(group: str, found: dict[str, Any]) -> None:
    assert found[group]["failures"] == []
    assert found[group]["ends"]["read"] > 0
    assert found[group]["ends"]["sentence"] > CASES / 3
