"""What was measured, what is asked for beyond it, and the file that says so."""

from dataclasses import replace

import pytest

from refsam.configuration.compose import compose
from refsam.configuration.schema import EvaluateConfig
from refsam.errors import ConfigError
from refsam.orchestration.planning.checks import check_values
from refsam.records.measurements import asked, extended, missing
from refsam.records.metrics import Measurement, measurement, read_metrics, write_metrics
from refsam.system.files import write_json


@pytest.fixture
def evaluate():
    return EvaluateConfig(
        modes=["point", "box"],
        rounds=2,
        mask_input=[False, True],
        batch_size=8,
        dilation=5,
        save_predictions=False,
    )


def row(wanted: Measurement, **values: object) -> dict[str, object]:
    return {**wanted._asdict(), "SA50": 0.5, **values}


def test_each_prompt_has_its_rounds_without_and_with_masks(evaluate):
    assert asked(replace(evaluate, modes=["box"])) == [
        Measurement("box", 0, False),
        Measurement("box", 1, False),
        Measurement("box", 2, False),
        Measurement("box", 1, True),
        Measurement("box", 2, True),
    ]


def test_only_what_no_row_has_is_missing(evaluate):
    rows = [row(wanted) for wanted in asked(evaluate)]
    assert missing(evaluate, rows) == []
    assert missing(replace(evaluate, rounds=3, mask_input=[True]), rows) == [
        Measurement("point", 3, True),
        Measurement("box", 3, True),
    ]


def test_predictions_that_were_not_saved_are_missing(evaluate):
    rows = [row(wanted, predictions_saved=wanted.mode == "box") for wanted in asked(evaluate)]
    absent = missing(replace(evaluate, save_predictions=True), rows)
    assert absent == [wanted for wanted in asked(evaluate) if wanted.mode == "point"]


def test_further_metrics_that_were_not_measured_are_missing(evaluate):
    rows = [row(wanted, metrics="qlora_sam" if wanted.mode == "box" else None) for wanted in asked(evaluate)]
    absent = missing(replace(evaluate, metrics="qlora_sam"), rows)
    assert absent == [wanted for wanted in asked(evaluate) if wanted.mode == "point"]
    assert missing(evaluate, rows) == []


def test_metrics_of_no_study_are_refused():
    check_values(compose(["n_objects=5", "evaluate.metrics=qlora_sam"]))
    with pytest.raises(ConfigError, match=r"evaluate.metrics must be null or qlora_sam, got 'micro_sam'"):
        check_values(compose(["n_objects=5", "evaluate.metrics=micro_sam"]))


def test_what_was_frozen_is_extended_by_what_is_asked_for(evaluate):
    frozen = replace(evaluate, modes=["box"], rounds=3, mask_input=[True], crop=[8, 8])
    wanted = replace(evaluate, crop=None, save_predictions=True)
    assert extended(frozen, wanted) == replace(
        frozen, modes=["box", "point"], mask_input=[True, False], save_predictions=True
    )
    assert extended(frozen, frozen) == frozen
    further = replace(frozen, metrics="qlora_sam")
    assert extended(frozen, further) == extended(further, frozen) == further


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [row(Measurement("box")), row(Measurement("box", 1, True))]
    write_metrics(tmp_path / "metrics.json", rows)
    assert read_metrics(tmp_path / "metrics.json") == rows
    assert measurement(rows[1]).words == "box round 1 with mask"


def test_the_first_format_is_read_as_first_prompts(tmp_path):
    write_json(tmp_path / "metrics.json", {"box": {"SA50": 0.5}})
    assert read_metrics(tmp_path / "metrics.json") == [
        {"mode": "box", "round": 0, "mask_input": False, "SA50": 0.5}
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "is not a mapping"),
        ({"box": 1}, "is not a mapping from modes"),
        ({"format": 4}, r"written by a newer version of refsam \(format 4, this one reads up to 3\)"),
        ({"format": "2"}, "format must be an integer, got '2'"),
        ({"format": 2, "rows": [1]}, r"rows\[0\] must be a mapping, got 1"),
        ({"format": 2, "rows": [{"mode": "box", "round": "1"}]}, r"rows\[0\].round must be an integer >= 0"),
        ({"format": 2, "rows": [{"mode": "box"}]}, r"rows\[0\].round is missing"),
        ({"format": 2}, "its rows are not a list"),
    ],
)
def test_a_damaged_file_is_said_to_be_damaged(tmp_path, content, words):
    write_json(tmp_path / "metrics.json", content)
    with pytest.raises(ValueError, match=words):
        read_metrics(tmp_path / "metrics.json")
