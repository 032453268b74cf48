"""What each strategy reaches and costs, over seeds: the table of the Hugging Face study."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from refsam.errors import ConfigError
from refsam.records.paths import SweepPaths
from refsam.results.collect import COLUMNS
from refsam.results.provenance import provenance
from refsam.results.tables.strategies import markdown, over_seeds, print_strategies, write_strategies


def row(strategy: str, seed: int, **values: Any) -> dict[str, Any]:
    given = {
        "model": "hf_tiny",
        "weights": f"random, seed {seed}",
        "strategy": strategy,
        "n_images": 10,
        "seed": seed,
        "mode": "box",
        "status": "completed",
        "mIoU": 0.8,
        "mF1": 0.9,
        "seconds_per_image": 0.05,
        "trainable_parameters": 1234567,
        "peak_memory_gib": 1.5,
        "n_test_images": 36,
    }
    return {**given, **values}


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*COLUMNS, *({"round"} - set(COLUMNS))])


def test_a_row_is_a_mean_over_seeds_with_its_deviation() -> None:
    found = over_seeds(
        frame(
            row("dora", 0, mIoU=0.80, mF1=0.88, peak_memory_gib=1.0),
            row("dora", 1, mIoU=0.82, mF1=0.90, seconds_per_image=0.07),
            row("dora", 2, mIoU=0.84, mF1=0.92, seconds_per_image=0.06),
            row("full", 0),
        )
    )
    assert found["strategy"].tolist() == ["dora", "full"]
    dora, full = found.to_dict("records")
    assert dora["n_seeds"] == 3
    assert (dora["mIoU"], dora["mIoU_std"]) == pytest.approx((0.82, 0.02))
    assert (dora["mF1"], dora["mF1_std"]) == pytest.approx((0.90, 0.02))
    assert dora["inference_ms"] == pytest.approx(60)
    assert dora["peak_memory_gib"] == 1.5
    assert dora["weights"] == "random"
    assert math.isnan(full["mIoU_std"])


def test_the_first_prompt_counts_and_the_mode_can_be_chosen() -> None:
    given = frame(
        row("full", 0, round=0),
        row("full", 0, round=1, mIoU=0.99),
        row("full", 0, mode="no_prompt", round=0, mIoU=0.5),
    )
    assert over_seeds(given)["mIoU"].tolist() == [0.8]
    assert over_seeds(given, "no_prompt")["mIoU"].tolist() == [0.5]
    with pytest.raises(ConfigError, match="--mode=amg, but the sweep has been measured in box, no_prompt"):
        over_seeds(given, "amg")


def test_runs_without_results_are_not_in_it() -> None:
    given = frame(row("full", 0), row("dora", 0, mode=None, status="failed", mIoU=None))
    assert over_seeds(given)["strategy"].tolist() == ["full"]
    with pytest.raises(ConfigError, match="measured in no mode yet"):
        over_seeds(frame(row("dora", 0, mode=None, status="pending")))


def test_the_metrics_of_the_study_stand_beside_ours_where_they_were_measured() -> None:
    asked = {"mIoU_qlora_sam": 0.75, "mF1_qlora_sam": 0.85}
    found = over_seeds(frame(row("dora", 0, **asked), row("full", 0)))
    lines = [line.strip("| ").split(" | ") for line in markdown(found).splitlines()]
    assert lines[0][5:9] == ["mIoU (%)", "mF1 (%)", "mIoU_qlora_sam (%)", "mF1_qlora_sam (%)"]
    assert lines[2][5:9] == ["80.00", "90.00", "75.00", "85.00"]
    assert lines[3][5:9] == ["80.00", "90.00", "", ""]
    assert "qlora" not in markdown(over_seeds(frame(row("full", 0))))


def test_it_is_shown_as_the_study_shows_it(tmp_path: Path) -> None:
    found = over_seeds(frame(row("dora", 0, mIoU=0.8286), row("dora", 1, mIoU=0.8154), row("full", 0)))
    text = markdown(found)
    assert "| hf_tiny | dora | 10 | 2 | 36 | 82.20 ± 0.93 | 90.00 ± 0.00 | 50.0 | 1,234,567 | 1.50 |" in text
    assert "| hf_tiny | full | 10 | 1 | 36 | 80.00 | 90.00 | 50.0 | 1,234,567 | 1.50 |" in text
    with (tmp_path / "shown.txt").open("w") as file:
        print_strategies(found, Console(file=file))
    assert "82.20 ± 0.93" in (tmp_path / "shown.txt").read_text()
    path = write_strategies(SweepPaths(tmp_path), found, provenance(frame(row("full", 0))))
    pd.testing.assert_frame_equal(pd.read_csv(path), found, check_dtype=False)
