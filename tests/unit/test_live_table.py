"""What a person sees of running runs: on a terminal, and in a log file."""

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from refsam.orchestration.submission import live_table
from refsam.orchestration.submission.live_table import (
    LiveTable,
    Location,
    PlainLines,
    Row,
    make_display,
    overall,
    shown_state,
)
from refsam.records.status import Reason, State, Status

NOW = datetime(2026, 1, 1, 12, 10, tzinfo=UTC)
LOG = Path("runs") / "b" / "attempts" / "1" / "7_0_log.out"
TRAINING = Row(
    "vit_t 2 images",
    Location.here,
    Status(
        State.running,
        phase="training",
        epoch=3,
        epochs=100,
        loss=0.51234,
        best_metric=0.25,
        best_epoch=2,
        seconds_left=600,
        started_at="2026-01-01T12:00:00+00:00",
        updated_at="2026-01-01T12:10:00+00:00",
    ),
)
FAILED = Row(
    "vit_b [red]5[/red] images",
    Location.ended,
    Status(
        State.failed,
        Reason.out_of_memory,
        message="No room for [bold]4 GB[/bold] :warning:\n now\x1b[2J",
        started_at="2026-01-01T12:00:00+00:00",
        ended_at="2026-01-01T12:01:05+00:00",
    ),
    LOG,
)
COMPLETED = Row(
    "done",
    Location.ended,
    Status(State.completed, started_at="2026-01-01T11:00:00+00:00", ended_at="2026-01-01T11:20:00+00:00"),
)
WAITING = Row("later", Location.waiting, Status())
ELSEWHERE = Row("theirs", Location.elsewhere, Status(State.running))


def terminal(height: int = 40) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=150, height=height, color_system=None)


def written(console: Console) -> str:
    return console.file.getvalue()


def render(rows: list[Row], room: int = 30, width: int = 150) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(live_table.table(rows, overall(rows, 65, 2, NOW), NOW, room, width))
    return written(console)


def test_a_terminal_gets_the_table_and_a_file_gets_lines():
    assert isinstance(make_display(terminal()), LiveTable)
    assert isinstance(make_display(Console(file=io.StringIO())), PlainLines)


@pytest.mark.parametrize(
    ("row", "word"),
    [
        (TRAINING, "running"),
        (FAILED, "failed"),
        (COMPLETED, "completed"),
        (WAITING, "planned"),
        (ELSEWHERE, "running elsewhere"),
        (Row("a", Location.here, Status(State.pending)), "starting"),
        (Row("a", Location.here, Status(State.running)), "running"),
        # What an earlier attempt ended with is not the state of a run that is waiting for the next one.
        (Row("a", Location.waiting, Status(State.failed, Reason.lost)), "planned"),
    ],
)
def test_states_have_one_word_each(row, word):
    assert shown_state(row) == word


def test_the_table_has_a_row_for_each_run_with_its_progress():
    lines = render([TRAINING, FAILED, COMPLETED, WAITING, ELSEWHERE]).splitlines()
    (training,) = [line for line in lines if "vit_t 2 images" in line]
    for fact in ("training", "3/100", "0.5123", "0.2500 (2)", "0:10:00"):
        assert fact in training
    (failed,) = [line for line in lines if "vit_b" in line]
    assert "failed (out_of_memory)" in failed
    assert "0:01:05" in failed
    (counts,) = [line for line in lines if line.startswith("1 completed")]
    assert "1 completed, 1 running, 1 failed, 1 planned, 1 running elsewhere; elapsed 0:01:05" in counts


@pytest.mark.parametrize(
    ("width", "kept", "lost"),
    [
        (80, ["3/100", "0.5123", "0:10:00"], ["0.2500"]),
        (60, ["3/100", "0:10:00"], ["0.2500", "0.5123"]),
        (40, [], ["0.2500", "0.5123", "3/100"]),
    ],
)
def test_a_narrow_terminal_goes_without_columns_and_cuts_none(width, kept, lost):
    text = render([TRAINING, FAILED], width=width)
    assert "…" not in text
    for fact in ("vit_t 2", "(training)", "failed", "(out_of_memory)", *kept):
        assert fact in text
    for fact in lost:
        assert fact not in text


def test_a_label_that_is_broken_takes_its_lines_from_the_others():
    long = Row("vit_nano-full-n10-local-nuclei-s0", Location.here, TRAINING.status)
    text = render([long] * 10, room=7, width=60)
    assert text.count("training") == 3
    assert "and 7 more" in text


def test_markup_in_records_is_text():
    assert "vit_b [red]5[/red] images" in render([FAILED])


def test_a_long_table_shows_what_is_going_on_and_counts_the_rest():
    rows = [*[COMPLETED] * 50, TRAINING, *[WAITING] * 50, FAILED]
    text = render(rows, room=5)
    assert "vit_t 2 images" in text
    assert "vit_b" in text
    assert "and 98 more" in text
    assert "50 completed, 1 running, 1 failed, 50 planned" in text


def test_time_left_counts_running_and_waiting_runs():
    # One has 10 minutes to go after 10, one took 20: the one that is waiting will take 20 minutes.
    rows = [TRAINING, COMPLETED, WAITING]
    assert overall(rows, 0, 1, NOW).left == 600 + 1200
    assert overall(rows, 0, 2, NOW).left == (600 + 1200) / 2
    # Two at a time do not make the last run any shorter.
    assert overall([TRAINING, COMPLETED], 0, 2, NOW).left == 600


def test_time_left_is_unknown_at_first_and_nothing_at_the_end():
    starting = Row("a", Location.here, Status(State.pending))
    assert overall([starting, WAITING], 0, 1, NOW).left is None
    assert overall([COMPLETED, FAILED], 0, 1, NOW).left == 0


def test_plain_lines_tell_each_change_once_and_progress_now_and_then(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(live_table.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=40)
    with PlainLines(console) as lines:
        lines.show([WAITING], 1)
        assert written(console) == ""
        for clock[0] in (1.0, 2.0, 20.0, 31.5, 40.0):
            lines.show([TRAINING], 1)
        lines.show([COMPLETED], 1)
    told = written(console).splitlines()
    training = "vit_t 2 images: running (training)"
    assert [line.split(",")[0] for line in told[:2]] == [training, training]  # at 1.0 and 31.5
    best = "best validation metric (lower is better) 0.2500 (2)"
    assert f"epoch 3/100, loss 0.5123, {best}" in told[0]  # in one line, however narrow the terminal is
    assert told[2] == "done: completed, elapsed 0:20:00"
    assert told[3].startswith("1 completed, 0 running, 0 failed; elapsed 0:00:40")
    assert len(told) == 4


@pytest.mark.parametrize("kind", [LiveTable, PlainLines])
def test_every_failure_is_summed_up_at_the_end_in_one_line(kind):
    console = terminal()
    with kind(console) as shown:
        shown.show([TRAINING, FAILED, COMPLETED], 1)
    last = written(console).splitlines()[-1].removeprefix("\x1b[?25h")  # the cursor is shown again
    assert last == (
        "vit_b [red]5[/red] images: failed (out_of_memory); "
        f"No room for [bold]4 GB[/bold] :warning: now; log: {LOG}"
    )


def test_a_log_that_the_sentence_names_is_not_named_again():
    row = Row("a", Location.ended, Status(State.failed, Reason.lost, message=f"Killed; see {LOG}"), LOG)
    assert live_table.failure_line(row) == f"a: failed (lost); Killed; see {LOG}"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (65.4, "0:01:05"), (90061, "25:01:01"), (-3, "0:00:00")]
)
def test_durations_are_hours_minutes_and_seconds(seconds, text):
    assert live_table.duration(seconds) == text
