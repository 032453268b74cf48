"""Text fields take the text as it was typed, from every place where overrides are read."""

from pathlib import Path

import pytest

from refsam.configuration.compose import combinations, compose, compose_sweep
from refsam.configuration.text_values import quote_text, text_shape

# What Hydra, or YAML, would read as a number or a truth value.
TEXTS = ("2026_11_28", "1e5", "true", "No", "007", "0x10", "1.50", "-3", "+1", "inf", "NaN", "1_000.5", "20")


@pytest.mark.parametrize("text", TEXTS)
def test_text_fields_take_it_as_typed(text: str) -> None:
    fields = ("name", "cluster.qos", "model.name")
    lists = (f"dataset.categories=[{text}, a]", f"+cluster.max_times={{gpu: {text}}}")
    config = compose([*(f"{field}={text}" for field in fields), *lists])
    assert config.name == config.cluster.qos == config.model.name == text
    assert config.dataset.categories == [text, "a"]
    assert config.cluster.max_times == {"gpu": text}
    assert Path(compose([f"runs={text}"]).runs).name == text


def test_sweeps_over_text_keep_it() -> None:
    jobs = combinations(["name=2026_11_28,1e5", "dataset.version=choice(true, 10)", "seed=1,2"])
    assert len(jobs) == 8
    configs = list(compose_sweep(["name=2026_11_28,1e5", "dataset.categories=[2_0],[1e5,b]"]))
    assert {config.name for config in configs} == {"2026_11_28", "1e5"}
    assert {tuple(config.dataset.categories) for config in configs} == {("2_0",), ("1e5", "b")}


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ("name=20", "name='20'"),
        ("name= 20 ", "name= '20' "),
        ("++name=1e5,2", "++name='1e5','2'"),
        ("name=null", "name=null"),
        ("name='20'", "name='20'"),
        ('name="20",30', "name=\"20\",'30'"),
        ("name=2024-05", "name=2024-05"),
        ("name=1 2", "name=1 2"),
        ("name=${seed}", "name=${seed}"),
        ("name=range(1,3)", "name=range(1,3)"),
        ("name=choice(1,2)", "name=choice('1','2')"),
        ("dataset.categories=[1,[2],a],[3]", "dataset.categories=['1',[2],a],['3']"),
        ("dataset.categories=1", "dataset.categories=1"),
        ("name=[1]", "name=[1]"),
        ("cluster.max_times={1: 60, b: 1:00}", "cluster.max_times={1: '60', b: 1:00}"),
        ("resource.settings.x.peft=1", "resource.settings.x.peft='1'"),
        ("n_train_images=1,2", "n_train_images='1','2'"),
        ("dataset=2024", "dataset='2024'"),
        ("seed=20", "seed=20"),
        ("train.lr=1e-4", "train.lr=1e-4"),
        ("train.patch_shape=[64,64]", "train.patch_shape=[64,64]"),
        ("peft.options.rank=2", "peft.options.rank=2"),
        ("n_objects=5", "n_objects=5"),
        ("evaluate.mask_input=[true]", "evaluate.mask_input=[true]"),
        ("no.such.field=20", "no.such.field=20"),
        ("--config-name", "--config-name"),
        ("name=[(", "name=[("),
        ("=20", "=20"),
        ("", ""),
    ],
)
def test_only_numbers_and_truth_values_of_text_fields_are_quoted(given: str, quoted: str) -> None:
    assert quote_text([given]) == [quoted]
    assert quote_text([quoted]) == [quoted]


def test_which_fields_are_text() -> None:
    text = ("name", "runs", "model.weights", "dataset", "dataset.categories.0", "resource.settings.x.peft")
    assert {text_shape(key) for key in text} == {""}
    assert text_shape("dataset.categories") == text_shape("peft.targets") == "["
    assert text_shape("cluster.max_times") == "{"
    others = ("seed", "train.epochs", "evaluate.crop", "train.workers", "model.custom", "dataset.normalize")
    assert {text_shape(key) for key in others} == {None}
