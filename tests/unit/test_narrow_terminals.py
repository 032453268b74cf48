"""Tables on terminals of several widths: no number is cut, and what is left out is named."""

import re
from pathlib import Path

import numpy as np
import pytest
from measured_runs import images, write_run, write_sweep

from refsam import cli
from refsam.errors import ConfigError
from refsam.records.paths import RunsFolder
from refsam.results.tables.fitted import Column, Shown, print_columns
from refsam.system.terminal import fitting, plain, standard_console

COMMANDS = (
    ("collect", "study"),
    ("compare", "study", "--baseline", "vit_b-full-n1"),
    ("strategies", "study"),
)
MODELS = ("vit_b", "vit_b_lm")
NUMBER = re.compile(r"[-+]?\d+\.\d+")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunsFolder:
    """A sweep of two models, two strategies and two numbers of images; ten test images."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    monkeypatch.setenv("TERM", "xterm")
    folder = RunsFolder(tmp_path / "runs")
    noise = np.random.default_rng(3)
    runs = {}
    for model in MODELS:
        for strategy in ("full", "freeze_encoder"):
            for n_images in (1, 10):
                run_id = f"{model}-{strategy}-n{n_images}"
                values = np.linspace(0.2, 0.7, 10) + noise.normal(0, 0.05, 10)
                write_run(folder, run_id, {"box": images(*values), "point": images(*(values / 2))})
                runs[run_id] = {"model": model, "peft": strategy, "n_images": n_images}
    write_sweep(folder, runs)
    return folder


def shown(folder: RunsFolder, capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert cli.main([*command, "--runs", str(folder.root)]) == 0
    return plain(capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_no_number_is_cut_and_what_is_left_out_is_named(folder, capsys, monkeypatch, command):
    everything = shown(folder, capsys, *command, "--wide")
    assert "Not shown" not in everything
    numbers = set(NUMBER.findall(everything))
    narrower = 0
    for width in (40, 60, 80, 100, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        text = shown(folder, capsys, *command)
        assert "…" not in text
        assert set(NUMBER.findall(text)) <= numbers, width
        assert "Not shown" in text or NUMBER.findall(text) == NUMBER.findall(everything)
        narrower += "--wide shows all" in text.replace("\n", " ")
        if width in (80, 120):
            table = text[: text.find("Not shown")] if "Not shown" in text else text
            assert max(len(line) for line in table.splitlines() if "runs/sweeps" not in line) <= width
    assert narrower


def test_a_column_that_was_left_out_can_be_asked_for(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert "inference" not in shown(folder, capsys, "strategies", "study").partition("Not shown")[0]
    asked = shown(folder, capsys, "strategies", "study", "--columns", "inference_ms")
    assert "inference" in asked
    assert "trainable" not in asked
    assert "Not shown" not in asked


def test_a_column_that_there_is_not_is_refused_with_those_that_there_are(folder, capsys):
    command = ["compare", "study", "--baseline", "vit_b-full-n1", "--columns", "intervall"]
    assert cli.main([*command, "--runs", str(folder.root)]) == 2
    said = capsys.readouterr().err
    assert "--columns: 'intervall' is not a column of this table" in said
    assert "p_holm" in said


def test_the_first_that_a_table_can_do_without_goes_first():
    widths = {"run": 10, "epoch": 5, "message": 30, "node": 6}
    assert fitting(widths, ("message", "node"), 57) == ["run", "epoch", "message", "node"]
    assert fitting(widths, ("message", "node"), 56) == ["run", "epoch", "node"]
    assert fitting(widths, ("message", "node"), 20) == ["run", "epoch"]
    assert fitting(widths, ("message", "node"), 5) == ["run", "epoch"]


def test_words_are_broken_before_a_number_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    columns = [
        Column("strategy", "strategy", ["freeze_encoder_and_more"], words=True),
        Column("mIoU", "mIoU", ["50.00 ± 10.00"]),
    ]
    print_columns(columns, (), standard_console(), Shown())
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "50.00 ± 10.00" in lines[2]
    assert "".join(line.split("  ")[0] for line in lines[2:]) == "freeze_encoder_and_more"


def test_names_of_columns_are_held_against_the_table():
    with pytest.raises(ConfigError, match=r"'mIoo' is not a column of this table \(did you mean mIoU\?\)"):
        print_columns([Column("mIoU", "mIoU", ["1"])], (), standard_console(), Shown(("mIoo",)))
