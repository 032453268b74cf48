"""k-fold cross-validation: how the images are split, and which runs it is."""

import re
from dataclasses import replace

import pytest

from refsam.configuration.compose import compose
from refsam.configuration.schema import RefsamConfig
from refsam.configuration.split import n_test_images, of_folds, split_folds, split_of, split_sizes
from refsam.errors import ConfigError
from refsam.orchestration.planning.checks import check_values, combination_problem
from refsam.records.identity import identity, run_id
from refsam.records.settings import differing, setting_values

NAMES = [f"image_{index:02}" for index in range(10)]
OWN = (
    "dataset=folder",
    "dataset.root=d",
    "model=vit_nano",
    "model.weights=random",
    "peft=full",
    "n_objects=2",
)


def config(*overrides: str) -> RefsamConfig:
    return compose([*OWN, *overrides])


@pytest.mark.parametrize("folds", [2, 3, 4, 7, 10])
def test_each_image_tests_in_one_fold_and_neither_trains_nor_validates_there(folds):
    splits = [split_folds(NAMES, 0, 1, fold, folds) for fold in range(1, folds + 1)]
    assert sorted(index for split in splits for index in split.test) == list(range(10))
    for split in splits:
        assert sorted((*split.pool, *split.validation, *split.test)) == list(range(10))
        assert len(split.validation) == 1
    sizes = [len(split.test) for split in splits]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)  # so that the first fold trains on the fewest images


def test_folds_depend_on_the_seed_of_the_split_and_on_the_names_alone():
    chosen = split_folds(NAMES, 0, 1, 1, 3)
    assert [NAMES[index] for index in chosen.test] == ["image_09", "image_03", "image_01", "image_06"]
    assert split_folds(list(NAMES), 0, 1, 1, 3) == chosen
    assert split_folds(NAMES, 1, 1, 1, 3) != chosen
    others = (
        "peft=lora",
        "n_images=2",
        "seed=4",
        "kind=baseline",
        "dataset.train_pool=2",
        "dataset.n_unused=1",
    )
    for other in others:
        given = config("evaluate.folds=3", "evaluate.fold=1", other)
        assert split_of(given, NAMES) == chosen, other
    following = config("evaluate.folds=3", "evaluate.fold=1", "seed=1", "dataset.split_seed=null")
    assert split_of(following, NAMES) == split_folds(NAMES, 1, 1, 1, 3)


def test_the_folds_do_not_all_validate_on_the_same_image():
    validated = [split_folds(NAMES, 0, 2, fold, 5).validation for fold in range(1, 6)]
    assert len({index for each in validated for index in each}) == 10


@pytest.mark.parametrize("most", [None, 1, 3, 20])
def test_the_numbers_of_images_are_those_of_the_splits(most):
    given = config("evaluate.folds=3", f"evaluate.max_images={'null' if most is None else most}")
    splits = [split_of(each, NAMES) for each in of_folds(given)]
    assert n_test_images(given, NAMES) == sum(len(split.test[:most]) for split in splits)
    first = splits[0]
    assert split_sizes(given.dataset, NAMES, 3) == (len(first.pool), len(first.validation), len(first.test))


@pytest.mark.parametrize("folds", ["1", "0", "-2"])
def test_fewer_than_two_folds_are_refused(folds):
    with pytest.raises(ConfigError, match=rf"evaluate\.folds must be null, or an integer >= 2, got {folds}"):
        check_values(config(f"evaluate.folds={folds}"))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("evaluate.folds=11",), r"evaluate\.folds=11, and dataset=folder has 10 images"),
        (("evaluate.folds=3", "dataset.test=a*"), r"evaluate\.folds=3 does not go with dataset\.test=a\*"),
        (("evaluate.folds=3", "dataset.split=ordered"), "does not go with dataset.split=ordered"),
        (("evaluate.fold=2",), r"evaluate\.fold: 2 was given without evaluate\.folds"),
        (
            ("evaluate.folds=3", "evaluate.fold=4"),
            r"evaluate\.fold must be null, or an integer from 1 to 3, got 4",
        ),
        (("evaluate.folds=2", "dataset.n_validation=5"), "10 images in 2 folds cannot be split"),
        (
            ("evaluate.folds=2", "n_images=5"),
            "from 1 to 4, .* in a fold .validation has 1, test 5., got 5",
        ),
    ],
)
def test_folds_that_cannot_be_are_refused_in_a_sentence(overrides, sentence):
    problem = combination_problem(config("n_images=2", *overrides), 10, NAMES)
    assert problem is not None
    assert re.search(sentence, problem)


def test_a_fold_is_a_run_of_its_own_and_no_setting():
    given = of_folds(config("evaluate.folds=3", "n_images=2"))
    ids = [run_id(each, identity(each, "data", None)) for each in given]
    assert len(set(ids)) == 3
    assert [each.rsplit("-", 1)[0].rpartition("-")[2] for each in ids] == ["f1", "f2", "f3"]
    assert not any(differing([setting_values(each) for each in given]))
    without = config("n_images=2")
    assert "folds" not in identity(without, "data", None)["evaluate"]
    assert list(differing([setting_values(without), setting_values(given[0])])[0]) == ["evaluate.folds"]
    pools = [replace(given[0], dataset=replace(given[0].dataset, train_pool=pool)) for pool in (5, 10)]
    assert len({run_id(each, identity(each, "data", None)) for each in pools}) == 1
