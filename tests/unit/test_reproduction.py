"""A command that asks for a run that is there asks for that very run."""

import pytest

from refsam.configuration.compose import compose
from refsam.configuration.frozen import to_values
from refsam.configuration.patch_pool import with_patch_pool
from refsam.configuration.reproduction import overrides_for, value_text
from refsam.configuration.schema import RefsamConfig
from refsam.records.identity import identity


def resolved(overrides: list[str]) -> RefsamConfig:
    return with_patch_pool(compose(overrides))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "model=vit_b_lm peft=lora n_objects=10 n_images=2",
            "model=vit_b_lm peft=lora dataset=nuclei n_images=2 n_objects=10",
        ),
        (
            "model=vit_nano peft=late_ft_8 train=quick train.lr=1e-4 n_objects=5 seed=3",
            "model=vit_nano peft=late_ft_8 dataset=nuclei train=quick n_images=5 n_objects=5 seed=3 "
            "train.lr=0.0001",
        ),
        (
            "model=vit_t peft=dora peft.rank=8 n_objects=5 evaluate=study n_images=1 "
            "evaluate.crop=[256,256] evaluate.max_images=12 train.max_steps=350",
            "model=vit_t peft=dora dataset=nuclei evaluate=study n_images=1 n_objects=5 "
            "peft.rank=8 train.max_steps=350 evaluate.max_images=12 evaluate.crop=[256,256]",
        ),
        (
            "model=vit_b peft=freeze_encoder dataset=folder dataset.root='/my,images' "
            "dataset.images='a*.tif' n_objects=1 n_images=1",
            "model=vit_b peft=freeze_encoder dataset=folder dataset.root='/my,images' n_images=1 n_objects=1 "
            "dataset.images='a*.tif'",
        ),
        (
            "model=vit_b peft=full dataset=folder dataset.root=/mine dataset.name=mine "
            "dataset.on_problem=skip dataset.categories=[cell] n_objects=1 n_images=1",
            "model=vit_b peft=full dataset=folder dataset.root=/mine n_images=1 n_objects=1 "
            "dataset.name=mine dataset.categories=[cell] dataset.on_problem=skip",
        ),
    ],
)
def test_a_command_asks_for_the_run_that_is_there(given, expected):
    config = resolved(given.split())
    found = overrides_for(config, ["resource=v100"])
    assert found == ["resource=v100", *expected.split()]
    there = resolved(found)
    first, second = (identity(each, "", None) for each in (config, there))
    assert first.pop("resource") == "local"
    assert second.pop("resource") == "v100"
    assert first == second
    assert to_values(there)["evaluate"] == to_values(config)["evaluate"]


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 1e-05, [256, 256], "nuclei", "null", "3", "", "it's", "a\\b", "end\\", "C:\\'x'"),
        *("ü a,b=c", r".*_encoder\..*\.attn\.(qkv|proj)"),
    ],
)
def test_every_value_comes_back_as_it_was(value):
    if isinstance(value, str):
        assert compose([f"dataset.images={value_text(value)}"]).dataset.images == value
    elif isinstance(value, list):
        assert compose([f"evaluate.crop={value_text(value)}"]).evaluate.crop == value
    elif isinstance(value, float):
        assert compose([f"train.lr={value_text(value)}"]).train.lr == value
    else:
        assert compose([f"train.object_chunk={value_text(value)}"]).train.object_chunk == value
