"""A short chaos on a real Slurm; python -m benchmarks.chaos makes it longer."""

import pytest

from benchmarks.chaos.__main__ import main
from refsam.errors import ConfigError
from tools.test_cluster.packages import check_machine


def test_nothing_is_lost_or_run_twice_whatever_goes_wrong(capsys):
    try:
        check_machine()
    except ConfigError as error:
        pytest.skip(str(error))
    status = main(["--runs", "30", "--minutes", "1", "--seed", "0"])
    assert status == 0, capsys.readouterr().out
