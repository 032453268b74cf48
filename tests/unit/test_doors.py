"""Ctrl-C while a command still imports what is heavy: one line, and no traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "heavy", "said"),
    [
        ("refsam.sweep -m n_images=1,2", "hydra", "refsam: stopped; the same command continues\n"),
        (
            "refsam.sweep -m n_images=1,2",
            "argparse",
            "refsam: stopped; the same command continues\n",
        ),
        (
            "refsam.cli sweep -m n_images=1,2",
            "hydra",
            "refsam: stopped; the same command continues\n",
        ),
        ("refsam.cli check-data dataset=nuclei", "hydra", "refsam: stopped by Ctrl-C\n"),
        ("refsam.science.run RUN", "torch", "refsam: stopped; the same command continues\n"),
        ("tools.test_cluster status", "psutil", "refsam: stopped by Ctrl-C\n"),
        ("benchmarks.evaluation", "torch", "benchmarks: stopped by Ctrl-C\n"),
    ],
)
def test_ctrl_c_during_the_imports_of_a_command_is_one_line(command, heavy, said, tmp_path):
    # In the place of what is heavy stands a module whose import does not end.
    slow = f"import time\nopen({str(tmp_path / 'begun')!r}, 'w').close()\ntime.sleep(600)\n"
    (tmp_path / f"{heavy}.py").write_text(slow)
    process = subprocess.Popen(
        [sys.executable, "-m", *command.split()],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{CHECKOUT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, complaint = process.communicate(timeout=60)
    assert (output, complaint) == ("", said)
    # Python ends itself by the signal where nobody has answered it; a shell calls both 130.
    assert process.returncode in (130, -signal.SIGINT)
