"""`refsam fit` as it is typed, with a real step of a tiny model under a real limit."""

import json
from pathlib import Path

import pytest

from refsam import cli
from refsam.configuration.compose import compose
from refsam.orchestration import machine
from refsam.records.fits import FitsFolder, StepOutcome

TINY = (
    "resource=local",
    "resource.request.memory_gb=3",  # and not what is free beside other tests
    "model=vit_nano",
    "model.custom.image_size=64",
    "model.custom.embed_dim=24",
    "model.custom.depth=2",
    "model.custom.global_attn_indexes=[1]",
    "model.custom.window_size=4",
    "model.custom.prompt_embed_dim=32",
    "model.custom.unetr_features=2",
    "peft=full",
    "n_objects=3",
    "train.patch_shape=[64,64]",
    "train.n_sub_iterations=1",
    "train.precision=float32",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_fit_is_measured_once_and_used(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fit", *TINY, "--engine", "refsam", "--max-objects", "3", "--json"]
    assert cli.main(command) == 0
    (row,) = json.loads(capsys.readouterr().out)
    (fit,) = FitsFolder(here / "runs" / "fits").read_fits()
    assert fit.refsam is not None
    assert (fit.refsam.n_objects, fit.refsam.complete) == (3, True)
    assert (fit.refsam.checkpoint_encoder, fit.refsam.checkpoint_decoder) == (False, False)
    assert 0.1 < (fit.refsam.peak_gib or 0) < 0.9 * fit.memory_gib
    assert (row["refsam_largest"], row["refsam_seconds"]) == (3, fit.refsam.seconds)
    measured = FitsFolder(here / "runs" / "fits").read_measurements()
    assert {item.outcome for item in measured} == {StepOutcome.fits}

    assert cli.main(command) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == [row]
    steps = [line for line in captured.err.splitlines() if "objects" in line]
    assert all(line.endswith("known") for line in steps)
    assert FitsFolder(here / "runs" / "fits").read_measurements() == measured

    import torch

    from refsam.science.engine.setup import choose_savings
    from refsam.science.models import load_model

    config = compose([*TINY, "model.weights=random", f"runs={here / 'runs'}"])
    sam = load_model(config.model, 0, "cpu").sam
    savings = choose_savings(config, sam, torch.device("cpu"))
    assert savings.auto_from == f"fit {fit.name}"
    assert savings.object_chunk == fit.refsam.object_chunk
    other = compose([*TINY, "model.weights=random", f"runs={here / 'none'}"])
    assert choose_savings(other, sam, torch.device("cpu")).auto_from == "estimate"


def test_on_the_machine_at_hand_a_step_may_take_what_others_leave_free(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory_available_gb", lambda: 3.2)
    words = [word for word in TINY if "memory_gb" not in word]
    command = ["fit", *words, "--engine", "refsam", "--max-objects", "1", "n_objects=1", "--json"]
    assert cli.main(command) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["memory_gib"], row["refsam_largest"], row["simulated"]) == (3.0, 1, False)


def test_the_decoder_alone_is_measured_with_the_step_that_trains_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", *TINY, "peft=decoder", "n_objects=1", "--max-objects", "1", "--json"]
    assert cli.main(command) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["refsam_largest"], row["micro_sam_largest"]) == (1, None)


def test_a_step_that_the_limit_kills_does_not_fit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fit", *TINY, "--engine", "refsam", "--max-objects", "3", "--limit-gb", "0.15"]
    assert cli.main(command) == 0
    assert "does not fit into 0.1 GiB" in capsys.readouterr().err
    (fit,) = FitsFolder(here / "runs" / "fits").read_fits()
    assert fit.refsam is not None
    assert (fit.simulated, fit.refsam.n_objects, fit.refsam.complete) == (True, 0, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("model=vit_bb",), "model: 'vit_bb' is not a valid choice (did you mean vit_b?)"),
        (("train.n_sub_iterations=0",), "train.n_sub_iterations must be an integer >= 1, got 0"),
        (("--limit-gb", "much"), "--limit-gb and --minutes must be a number > 0, got 'much'"),
        (("--max-objects", "0"), "--max-objects must be an integer >= 1, got '0'"),
        (("model=vit_t", "peft=lora", "n_objects=1"), "peft.name=lora does not go with"),
        (("resource=medium_8g", "model=vit_b"), "peft=auto: resource medium_8g has no settings for vit_b"),
        (("resource=gtx1080", "resource.device=cuda"), "memory of a GPU is measured on a GPU"),
        (
            ("model=vit_nano", "peft=decoder", "--engine", "micro_sam"),
            "--engine must be refsam with peft=decoder",
        ),
        (("--limit-gb", "100000"), "a smaller machine cannot simulate a larger one"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], sentence: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "resource=gtx1080" in arguments and machine.gpus():
        pytest.skip("this machine has a GPU")
    assert cli.main(["fit", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("refsam: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert not (here / "runs").exists()


def test_a_dry_run_says_what_and_where_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", "resource=xps13,medium_8g,medium_64g", "model=vit_t", "--dry-run"]
    assert cli.main(command) == 0
    output = capsys.readouterr().out
    assert "medium_8g, vit_t, freeze_encoder: 8 GiB, simulated by a limit on" in output
    assert "left out: peft=auto: resource medium_64g has no settings for vit_t" in output
    assert not (here / "runs").exists()


def test_the_table_of_all_resources_needs_no_measurement(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fit", "--table"]) == 0
    captured = capsys.readouterr()
    assert "| v100 (32 GB) | vit_b | full | 35 (resource study) | not measured |" in captured.out
    assert (here / "runs" / "fits" / "fits.csv").exists()
