"""The table of retries: what follows a failed attempt, reason by reason."""

import pytest

from refsam.orchestration.lifecycle.retries import TABLE, decide, settings_of_next
from refsam.records.attempts import Attempt
from refsam.records.status import Reason, State

USED = {
    "train.object_chunk": 5,
    "train.checkpoint_encoder": None,
    "train.checkpoint_decoder": False,
    "train.precision": "float32",
    "hardware_precision": "float32",
}


def failed(reason, steps=0, measured=0, settings=None, **used):
    return Attempt(
        settings=settings or {},
        used={**USED, **used},
        steps=steps,
        measured=measured,
        state=State.failed,
        reason=reason,
    )


def out_of_memory_until_nothing_is_left(**used):
    """The settings of each attempt of a run that never fits, as its training would report them."""
    attempts, asked = [], []
    while True:
        settings = settings_of_next(attempts)
        really = dict(USED) | used
        really["train.object_chunk"] = settings.get("train.object_chunk", really["train.object_chunk"])
        if settings.get("train.checkpoint_encoder") == "on":
            really["train.checkpoint_encoder"] = 1
        if settings.get("train.checkpoint_decoder") == "on":
            really["train.checkpoint_decoder"] = True
        really["train.precision"] = settings.get("train.precision", really["train.precision"])
        attempts.append(failed(Reason.out_of_memory, settings=settings, **really))
        asked.append(settings)
        decision = decide(attempts)
        if not decision.again:
            return asked, decision.words


def test_out_of_memory_halves_the_chunk_then_checkpoints_then_stops_where_the_hardware_has_no_more():
    asked, words = out_of_memory_until_nothing_is_left()
    assert asked == [
        {},
        {"train.object_chunk": 2},
        {"train.object_chunk": 1},
        {"train.object_chunk": 1, "train.checkpoint_encoder": "on"},
        {"train.object_chunk": 1, "train.checkpoint_encoder": "on", "train.checkpoint_decoder": "on"},
    ]
    assert words == "nothing is left that would save memory"


def test_a_lower_precision_is_the_last_resort_of_hardware_that_has_it():
    asked, _ = out_of_memory_until_nothing_is_left(
        **{
            "train.object_chunk": 1,
            "train.checkpoint_encoder": 1,
            "train.checkpoint_decoder": None,  # there is none
            "hardware_precision": "bfloat16",
        }
    )
    assert asked == [{}, {"train.precision": "bfloat16"}]


def test_a_training_that_diverged_is_tried_again_in_float32_and_no_other_precision():
    savings = {"train.object_chunk": 1, "train.checkpoint_encoder": 1, "train.checkpoint_decoder": True}
    first = failed(
        Reason.diverged, **{**savings, "train.precision": "bfloat16", "hardware_precision": "bfloat16"}
    )
    assert decide([first]).again
    settings = settings_of_next([first])
    assert settings == {"train.precision": "float32"}
    for reason, words in (
        (Reason.diverged, "its precision is float32 already"),
        (Reason.out_of_memory, "nothing is left that would save memory"),
    ):
        second = failed(reason, settings=settings, **{**savings, "hardware_precision": "bfloat16"})
        assert decide([first, second]).words == words
        assert settings_of_next([first, second]) == settings


def test_no_attempt_ever_changes_the_number_of_objects():
    asked, _ = out_of_memory_until_nothing_is_left(hardware_precision="bfloat16")
    assert {name for settings in asked for name in settings} == {
        "train.object_chunk",
        "train.checkpoint_encoder",
        "train.checkpoint_decoder",
        "train.precision",
    }


def test_an_evaluation_without_memory_halves_its_batch():
    attempt = Attempt(
        settings={"train.object_chunk": 2},
        used={"evaluate.batch_size": 8},
        state=State.failed,
        reason=Reason.out_of_memory,
    )
    assert settings_of_next([attempt]) == {"train.object_chunk": 2, "evaluate.batch_size": 4}
    smallest = Attempt(used={"evaluate.batch_size": 1}, state=State.failed, reason=Reason.out_of_memory)
    assert not decide([smallest]).again


def test_what_ran_out_of_memory_before_it_trained_is_not_tried_again():
    assert not decide([Attempt(state=State.failed, reason=Reason.out_of_memory)]).again


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason not in TABLE])
def test_other_reasons_are_never_tried_again_by_themselves(reason):
    assert not decide([failed(reason, steps=10)]).again


def test_a_time_limit_may_come_as_often_as_it_likes_while_there_is_progress():
    attempts = [failed(Reason.timeout, steps=10 * number) for number in range(1, 30)]
    assert decide(attempts).again
    assert not decide([*attempts, failed(Reason.timeout, steps=290)]).again


def test_progress_in_the_evaluation_is_progress():
    attempts = [failed(Reason.timeout, steps=10), failed(Reason.timeout, steps=10, measured=3)]
    assert decide(attempts).again


@pytest.mark.parametrize("reason", [Reason.preempted, Reason.node_failure])
def test_an_interruption_before_anything_was_saved_is_excused_some_times(reason):
    attempts = [failed(reason) for _ in range(5)]
    assert decide(attempts).again
    assert not decide([*attempts, failed(reason)]).again
    assert decide([*attempts, failed(reason, steps=1)]).again


def test_an_attempt_after_an_interruption_keeps_what_was_saved_before():
    settings = {"train.object_chunk": 2}
    assert settings_of_next([failed(Reason.timeout, settings=settings)]) == settings
    assert settings_of_next([failed(Reason.error, settings=settings)]) == settings
    assert settings_of_next([]) == {}
