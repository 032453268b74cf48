"""The table of docs/strategies.md says what the code and the models say."""

import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from steps import CONF, model_config
from strategy_models import strategy_of_file

from benchmarks.strategies import PUBLISHED
from refsam.models.strategies import STRATEGIES, strategy_problem
from refsam.science.models import build_model
from refsam.science.strategies.injection import apply_strategy
from refsam.science.strategies.parts import count_parameters

PAGE = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in PAGE.splitlines()
    if line.startswith("| `") and len(cells := line.strip("| ").split(" | ")) == 6
}
# Counted without values, which these need; they train as many parameters as the others.
COUNTED_AS = {
    "pissa": "hf_lora",
    "hf_qlora": "hf_lora",
    "qdora": "dora",
    "qlora": "lora_32",
    "late_qlora": "late_lora",
}
NOBODY = "–"


def test_the_table_has_the_strategies_of_the_code() -> None:
    assert list(ROWS) == list(STRATEGIES)
    for name, strategy in STRATEGIES.items():
        trains, _, _, excluded, source = ROWS[name]
        assert trains == strategy.trains
        shown = excluded.replace("Hugging Face's models", "hf")
        assert shown == (", ".join(strategy.excluded) or NOBODY)
        assert (CONF / "peft" / f"{name}.yaml").read_text(encoding="utf-8").startswith(f"# {source}\n")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["vit_b", "vit_t"])
def test_the_table_counts_what_is_trained(architecture: str) -> None:
    counted = {}
    for name in STRATEGIES:
        shown = ROWS[name][1 if architecture == "vit_b" else 2]
        if strategy_problem(model_config(architecture), strategy_of_file(name)) is not None:
            assert shown == NOBODY, name
            continue
        counted[name] = int(shown.replace(",", ""))
        assert counted[name] == trained_parameters(COUNTED_AS.get(name, name), architecture), name


# Files of conf/peft that the PEFT study has measured, as benchmarks/strategies.py calls them.
PUBLISHED_FILES = {"lora rank=32": "lora_32", "late_ft share=8": "late_ft_8"}


def test_as_many_parameters_are_trained_as_the_study_has_published() -> None:
    """Its numbers hold the heads and the segmentation decoder, as a frozen encoder's alone do."""
    _, heads = PUBLISHED["freeze_encoder"]
    for name, (gibibytes, millions) in PUBLISHED.items():
        file = PUBLISHED_FILES.get(name, name)
        ours = trained_parameters(COUNTED_AS.get(file, file), "vit_b") / 1e6
        assert ours == pytest.approx(millions - heads, abs=0.1)
        assert f"| `{file}` | {ours:.2f} | {millions - heads:.1f} | {gibibytes} |" in PAGE


def trained_parameters(file: str, architecture: str) -> int:
    # No memory for values, where a model can be built so.
    with torch.device("cpu" if architecture == "vit_t" else "meta"):
        sam = apply_strategy(build_model(model_config(architecture)), strategy_of_file(file))
    return count_parameters(sam.image_encoder.parameters())[0]


@pytest.mark.parametrize("path", sorted((CONF / "peft").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_says_where_its_settings_come_from(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    values = OmegaConf.load(path)
    name = values.get("name") or values.defaults[0]
    assert name == "auto" or re.fullmatch(rf"{name}(_\w+)?", path.stem)
