"""The composer's shortcuts give what Hydra composes."""

import itertools

import pytest
from hydra import compose as hydra_compose
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException

from refsam.configuration.compose import Composer, compose, hydra_session, without_hydra
from refsam.configuration.frozen import freeze, from_values, load, to_config, to_values
from refsam.configuration.schema import RefsamConfig
from refsam.orchestration.planning.checks import check_values, combination_problem
from refsam.system.files import read_yaml, write_yaml

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


@pytest.mark.slow
def test_every_run_of_a_product_is_what_hydra_composes(hydra, composer):
    for overrides in itertools.product(*AXES):
        composed = to_values(from_values(RefsamConfig, composer.values([*overrides, *FIXED])))
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
    assert to_values(from_values(RefsamConfig, composer.values(second))) == full(hydra, second)


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


def test_a_configuration_that_was_frozen_before_a_field_was_there_means_what_it_meant_then(tmp_path, hydra):
    path = tmp_path / "config.yaml"
    freeze(path, to_config(hydra(["model=vit_nano", "peft=full"])))
    values = read_yaml(path)
    kept = {
        *("epochs", "max_steps", "batch_size", "min_samples", "validation_samples", "lr", "optimizer"),
        *("scheduler_factor", "scheduler_patience", "early_stopping", "patch_shape", "n_sub_iterations"),
        *("mask_prob", "box_distortion", "decoder", "precision", "workers"),
    }
    write_yaml(path, {**values, "train": {name: values["train"][name] for name in kept}})
    for config in (load(path), from_values(RefsamConfig, read_yaml(path))):
        train = config.train
        assert (train.engine, train.joint, train.loss, train.save) == ("micro_sam", "separate", "dice", "all")
        assert (train.attention, train.embedding_cache, train.patch_pool) == ("eager", "off", None)
        assert (train.checkpoint_encoder, train.checkpoint_decoder) == ("off", "off")
        check_values(config)
        assert combination_problem(config, 49, None) is None


def test_what_one_test_composes_is_not_changed_by_another_one(monkeypatch, tmp_path):
    """The tests' compositions are made once for all of them."""
    first = compose(["peft=full"])
    first.evaluate.modes.clear()
    assert compose(["peft=full"]).evaluate.modes
    monkeypatch.setenv("REFSAM_RUNS", str(tmp_path))
    assert compose(["peft=full"]).runs == str(tmp_path) != first.runs
