"""Imports without a search for garbage."""

import gc
import subprocess
import sys

from refsam.system import imports


def test_what_is_imported_is_left_out_of_later_collections() -> None:
    frozen = gc.get_freeze_count()
    with imports.kept():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(made)


def test_at_the_end_of_the_process_nothing_is_frozen() -> None:
    program = (
        "import atexit, gc; from refsam.system import imports\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "with imports.kept(): import json"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
