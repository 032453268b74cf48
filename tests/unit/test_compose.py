"""The composer's shortcuts give what Hydra composes."""

import itertools

import pytest
from hydra import compose as hydra_compose
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException

from refsam.configuration.compose import Composer, hydra_session, typed, without_hydra
from refsam.configuration.frozen import freeze, load, to_config, to_values

AXES = [
    ["resource=gtx1080", "resource=v100", "resource=medium"],
    ["model=vit_b", "model=vit_nano", "model=vit_t_lm"],
    ["peft=auto", "peft=lora"],
    ["n_train_images='1'", "n_train_images='10'"],
]
FIXED = ["peft.rank=8", "train.lr=3", "data=/elsewhere", "dataset=covid_if"]


@pytest.fixture
def hydra():
    with hydra_session():
        yield lambda overrides: without_hydra(hydra_compose("config", overrides=list(overrides)))


@pytest.fixture
def composer(hydra):
    loader = GlobalHydra.instance().config_loader()
    return Composer(hydra, lambda key: bool(loader.get_group_options(key)))


def full(hydra, overrides):
    return to_values(to_config(hydra(overrides)))


def test_every_run_of_a_product_is_what_hydra_composes(hydra, composer):
    for overrides in itertools.product(*AXES):
        composed = to_values(typed(composer.values([*overrides, *FIXED])))
        assert composed == full(hydra, [*overrides, *FIXED])


@pytest.mark.parametrize(
    "second",
    [
        ["resource=v100", "n_images=3"],  # the group's number and the direct one, which wins
        ["resource=v100", "n_images=3", "n_train_images='1'"],
        ["resource=v100", "n_images=7", "++seed=4"],
        ["resource=v100", "n_images=7", "~resource.settings.vit_b"],
        ["resource=v100", "n_images=7", "resource.request.cores=3", "name='a b'"],
        ["n_images=7"],
        ["resource=v100", "n_images=7", "evaluate.modes=[box]", "train.patch_shape=[64,64]"],
    ],
)
def test_runs_that_do_not_fit_the_shortcut_are_what_hydra_composes_too(hydra, composer, second):
    composer.values(["resource=gtx1080", "n_images=3"])
    assert to_values(typed(composer.values(second))) == full(hydra, second)


def test_a_wrong_type_in_a_later_run_is_an_error(composer):
    composer.values(["seed=1"])
    with pytest.raises(Exception, match="could not be converted to Integer"):
        composer.values(["seed=x"])


def test_an_unknown_key_in_a_later_run_is_an_error(composer):
    composer.values(["seed=1"])
    with pytest.raises(ConfigCompositionException):
        composer.values(["sead=1"])


def test_a_frozen_configuration_is_read_back_as_it_was(tmp_path, hydra):
    config = to_config(hydra(["model=vit_nano", "peft=lora", "seed=3", "dataset.root='/a b/ü'"]))
    freeze(tmp_path / "config.yaml", config)
    assert load(tmp_path / "config.yaml") == config
