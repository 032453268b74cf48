"""What follows from counted steps: precisions, cards that are not here, and what is kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from refsam import cli
from refsam.configuration.compose import compose
from refsam.orchestration.fit import forecast
from refsam.orchestration.fit.forecast import Counter
from refsam.records.fits import FitsFolder, FitStep, Setup, fit_for, known_fits
from refsam.results.recommending.published import fit_memory
from refsam.results.tables.fit_table import markdown, rows

COMMAND = ("fit", "--forecast", "--json", "resource=gtx1080", "model=vit_b", "peft=full", "n_objects=10")


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[FitStep]:
    """The steps that are counted, by a formula in place of the process with fake tensors."""
    monkeypatch.chdir(tmp_path)
    steps: list[FitStep] = []

    def count(self: Counter, config: object, setup: Setup, step: FitStep) -> float:
        steps.append(step)
        share = 1.0 if setup.precision == "float32" else 0.5
        if step.engine == "micro_sam":
            return share * (6 + 0.1 * step.n_sub_iterations * step.n_objects)
        encoder = 1.0 if step.checkpoint_encoder else 4.0
        decoder = 3.0 if step.checkpoint_decoder else 5.0
        return share * (1 + encoder + decoder + 0.1 * (step.object_chunk or 0) + 0.01 * step.n_objects)

    monkeypatch.setattr(Counter, "_count", count)
    return steps


def test_a_card_that_is_not_here_is_forecast_in_each_precision(
    counted: list[FitStep], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*COMMAND]) == 0
    (known,) = json.loads(capsys.readouterr().out)
    assert known["precision"] == "float32"  # of compute capability 6.1
    assert cli.main([*COMMAND, "resource.compute_capability=null"]) == 0
    single, half = sorted(json.loads(capsys.readouterr().out), key=lambda row: row["precision"], reverse=True)
    # 7.2 of 8 GB are taken: (6 + 0.8 n) is 6.8 for one object, and half of it for 10.
    assert (single["precision"], single["micro_sam_largest"]) == ("float32", 1)
    assert (half["precision"], half["micro_sam_largest"]) == ("bfloat16", 10)
    assert (single["checkpoint_encoder"], single["checkpoint_decoder"]) == (True, True)
    assert single["refsam_largest"] == 45
    assert (half["checkpoint_encoder"], half["checkpoint_decoder"]) == (False, False)
    assert single["refsam_step_gib"] == pytest.approx(5.9)
    assert (single["limited_by"], single["refsam_seconds"]) == ("forecast", None)
    assert {step.n_sub_iterations for step in counted if step.engine == "refsam"} == {2}


def test_what_was_counted_is_not_counted_again(
    counted: list[FitStep], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*COMMAND]) == 0
    before = len(counted)
    assert cli.main([*COMMAND, "--limit-gb", "12"]) == 0
    assert {step.checkpoint_encoder for step in counted[before:]} <= {None, False}
    assert cli.main([*COMMAND, "--limit-gb", "12", "--again"]) == 0
    assert len(counted) > before


def test_a_forecast_is_taken_where_nothing_was_measured(
    counted: list[FitStep], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*COMMAND]) == 0
    config = compose(["resource=gtx1080", "model=vit_b", "peft=full", "n_objects=10"])
    fits = known_fits(Path("runs"))
    found = fit_for(fits, Setup.of(config, "cuda"), "float32", 8.0, 10)
    assert found is not None
    assert found.is_forecast
    assert found.refsam is not None
    assert found.refsam.object_chunk == 8
    assert "forecast, float32" in markdown(rows(FitsFolder(Path("runs/fits")).read_fits()))


def test_a_measured_fit_wins_over_a_forecast_and_each_is_named(
    counted: list[FitStep], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from refsam.science.engine.setup import choose_savings
    from refsam.science.models import load_model

    nano = ("resource=medium_8g", "model=vit_nano", "peft=full", "n_objects=10", "train.precision=float32")
    assert cli.main(["fit", "--forecast", "--json", *nano]) == 0
    folder = FitsFolder(tmp_path / "runs" / "fits")
    (made,) = folder.read_fits()
    config = compose([*nano, "model.weights=random", f"runs={tmp_path / 'runs'}"])
    sam = load_model(config.model, 0, "cpu").sam
    assert choose_savings(config, sam, torch.device("cpu")).auto_from == f"forecast {made.name}"
    needed = fit_memory([made], 10, "refsam")
    assert needed is not None
    assert "forecast" in needed.words

    assert made.refsam is not None
    way = replace(made.refsam, object_chunk=3, peak_gib=6.3, step_peak_gib=6.3)  # more than forecast
    measured = folder.add_fit(
        replace(made, limited_by="cgroup", hardware="a machine", memory_gib=7.0, refsam=way)
    )
    savings = choose_savings(config, sam, torch.device("cpu"))
    assert (savings.auto_from, savings.object_chunk) == (f"fit {measured.name}", 3)
    needed = fit_memory(folder.read_fits(), 10, "refsam")
    assert needed is not None
    assert needed.gib == pytest.approx(7.0)
    assert "forecast" not in needed.words


@pytest.mark.parametrize("words", [("--slurm",), ("--minutes", "3")])
def test_what_a_forecast_does_not_do_is_refused(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*COMMAND, *words]) == 2
    assert f"{words[0]} must be left out with --forecast" in capsys.readouterr().err


def test_a_step_that_cannot_be_counted_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forecast, "SCIENCE", "refsam.nothing")  # ends without an answer

    assert cli.main([*COMMAND]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "no forecast" in line]
    assert "vit_b, full" in line
