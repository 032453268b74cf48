"""The lock of those who submit into a runs folder."""

import pytest
from holder import held

from refsam.errors import RunFailed
from refsam.orchestration.submission.only_submitter import only_submitter
from refsam.records.paths import RunsFolder


def test_a_submitter_that_is_stopped_is_named_and_not_waited_for_too_long(tmp_path):
    said = []
    with (
        held(tmp_path) as holder,
        pytest.raises(RunFailed) as error,
        only_submitter(RunsFolder(tmp_path), said.append, patience=0.5),
    ):
        pass
    number = holder.pid
    who = f"nother process (number {number}, which is stopped; `kill -CONT {number}` lets it go on)"
    assert said == [f"A{who} is submitting into {tmp_path}; waiting for it"]
    assert str(error.value) == f"a{who} has been submitting into {tmp_path} for 0 seconds"
    with only_submitter(RunsFolder(tmp_path), said.append):
        pass
    assert len(said) == 1
