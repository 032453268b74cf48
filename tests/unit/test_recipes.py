"""What the recipes of the studies need beside their values, which test_studies_page.py compares."""

import pytest

from refsam.configuration.compose import compose
from refsam.configuration.schema import RefsamConfig
from refsam.configuration.split import split_images, with_all_images
from refsam.errors import ConfigError
from refsam.orchestration.planning.checks import check_values, combination_problem, excluded
from refsam.records.settings import differing, names_of, setting_values


def of_protocol(protocol: str) -> RefsamConfig:
    return compose(
        ["resource=v100", "model=vit_b", "peft=full", "n_objects=35", f"protocol={protocol}"], "covid_if"
    )


def test_the_text_of_the_resource_study_has_another_optimizer_and_validation() -> None:
    found = {}
    for protocol in ("text", "script"):
        config = of_protocol(protocol)
        dataset = config.dataset
        split = split_images(
            [f"{number:02}" for number in range(49)],
            *(dataset.split, 0, dataset.train_pool, dataset.n_validation, dataset.n_unused),
        )
        found[protocol] = config.train.optimizer, split.validation
        assert split.test == tuple(range(13, 49))
    assert found == {"text": ("adam", (10,)), "script": ("adamw", (10, 11, 12))}


def test_the_protocol_is_one_column_for_all_that_it_brings() -> None:
    settings = [setting_values(of_protocol(protocol)) for protocol in ("text", "script")]
    assert names_of(differing(settings)) == ["dataset.protocol"]
    other = setting_values(compose([*PROTOCOL_OF_OWN], "covid_if"))
    assert names_of(differing([settings[1], other])) == ["train.optimizer"]


PROTOCOL_OF_OWN = ("resource=v100", "model=vit_b", "peft=full", "n_objects=35", "train.optimizer=adam")


def test_a_sweep_leaves_out_the_combinations_that_it_excludes() -> None:
    reasons = {
        (resource, peft): excluded(
            compose([f"resource={resource}", "model=vit_b", f"peft={peft}"], "covid_if")
        )
        for resource in ("gtx1080", "v100")
        for peft in ("lora", "full")
    }
    assert {key for key, reason in reasons.items() if reason is not None} == {("gtx1080", "lora")}
    assert reasons["gtx1080", "lora"] == "exclude: resource.name=gtx1080 peft.name=lora"
    with pytest.raises(ConfigError, match=r"exclude must name fields of a run, got 'peft\.nam'"):
        excluded(compose(["exclude=[{peft.nam: lora}]"]))


@pytest.mark.parametrize(
    ("overrides", "total", "n_images"),
    [
        (["dataset=covid_if"], 49, 10),
        (["dataset=folder", "dataset.root=d", "dataset.train_pool=1000"], 40, 29),
        (["dataset=folder", "dataset.root=d", "evaluate.folds=3"], 40, 25),
        (["dataset=trashcan"], 7212, 5865),  # which of its images test is not known before they are there
    ],
)
def test_all_images_are_those_that_are_for_training(overrides: list[str], total: int, n_images: int) -> None:
    config = compose([*overrides, "n_images=all", "peft=full", "n_objects=5"])
    check_values(config)
    assert combination_problem(config, total) is None
    assert with_all_images(config, total, None).n_images == n_images


def test_epochs_without_a_limit_need_a_limit_of_steps() -> None:
    config = compose(["train.epochs=null", "peft=full", "n_objects=5"])
    check_values(config)
    assert (
        combination_problem(config, 48)
        == "train.epochs must be an integer >= 1 without train.max_steps, got null"
    )


@pytest.mark.parametrize(
    ("choice", "name", "quantization"),
    [("qlora", "qlora", "nf4"), ("qlora_fp4", "qlora", "fp4"), ("late_qlora_fp4", "late_qlora", "fp4")],
)
def test_the_peft_studys_4_bits_stand_beside_those_of_qlora(
    choice: str, name: str, quantization: str
) -> None:
    peft = compose([f"peft={choice}"]).peft
    assert (peft.name, peft.quantization, peft.double_quantization) == (name, quantization, True)
