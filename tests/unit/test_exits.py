"""A program that leaves at once leaves as Python would, less the taking apart."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, threading, time
from refsam.system.exits import leaving_at_once

class Apart:
    def __del__(self):
        print("taken apart")

with leaving_at_once():
    kept = Apart()
    kept.itself = kept
    atexit.register(print, "registered")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    sys.stdout.write("no end of line")
    {last}
"""


@pytest.mark.parametrize(
    ("last", "status", "said"),
    [
        ("pass", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(130)", 130, ""),
        ("sys.exit('no room')", 1, "no room\n"),
        ("raise ValueError('wrong')", 1, "ValueError: wrong\n"),
    ],
)
def test_it_ends_with_its_status_and_what_was_registered(last: str, status: int, said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(last=last)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == status
    assert ended.stderr.endswith(said)
    assert ended.stdout == "no end of linethread\nregistered\n"


def test_its_forked_processes_end_as_they_want() -> None:
    program = (
        "import multiprocessing, sys\n"
        "from refsam.system.exits import leaving_at_once\n"
        "with leaving_at_once():\n"
        "    process = multiprocessing.get_context('fork').Process(target=sys.exit, args=(7,))\n"
        "    process.start(); process.join(); sys.exit(process.exitcode + 1)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 8
