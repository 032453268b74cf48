"""How an attempt ends is said in one table, which every decision takes its reason from."""

import re
import string
from pathlib import Path

import pytest

from refsam.orchestration.lifecycle.retries import TABLE
from refsam.records import endings
from refsam.records.endings import Ending, failed
from refsam.records.status import Reason, State, Status
from tools.architecture import DOCUMENT, ENDINGS, endings_table, part_of

ROOT = Path(__file__).parents[2]
# What copies the end of an attempt from one record into another.
COPIES = {"refsam/records/recovery.py": 1, "refsam/orchestration/lifecycle/attempts.py": 1}
ROWS = {name: value for name, value in vars(endings).items() if isinstance(value, Ending)}


def test_nothing_else_in_the_code_says_that_an_attempt_has_failed():
    writing = {}
    for path in (ROOT / "refsam").rglob("*.py"):
        if count := len(re.findall(r"state=State\.failed", path.read_text(encoding="utf-8"))):
            writing[path.relative_to(ROOT).as_posix()] = count
    assert writing.pop("refsam/records/endings.py") == 1
    assert writing == COPIES


@pytest.mark.parametrize("name", [name for name in ROWS if not name.startswith("_")])
def test_every_row_of_the_table_is_chosen_somewhere(name):
    users = [
        path
        for path in (ROOT / "refsam").rglob("*.py")
        if path.name != "endings.py" and re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))
    ]
    in_asked = ROWS[name] in endings.ASKED.values()
    assert users or in_asked


def test_a_sentence_is_filled_with_facts_that_may_hold_braces():
    status = failed(Status(State.running), endings.RAISED, error="KeyError", problem="{name}")
    assert (status.state, status.reason) == (State.failed, Reason.error)
    assert status.message == "KeyError: {name}"
    assert status.ended_at is not None


def test_the_facts_that_sentences_name_are_those_that_are_given():
    named = {
        field for row in ROWS.values() for _, field, _, _ in string.Formatter().parse(row.sentence) if field
    }
    assert named == {"problem", "error", "log", "what", "signal", "code", "job", "words"}


def test_the_document_has_the_table_with_what_follows_each_reason():
    assert part_of(DOCUMENT.read_text(encoding="utf-8"), ENDINGS) == endings_table()


def test_a_reason_without_a_rule_is_never_tried_again_by_itself():
    assert set(Reason) - set(TABLE) == {Reason.error, Reason.cancelled, Reason.lost}
