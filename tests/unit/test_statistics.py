"""Means over images and how sure they are."""

import math

import numpy as np
import pytest

from refsam.records.bootstrap import bootstrap_interval
from refsam.records.metrics import METRICS
from refsam.science.evaluation.statistics import summary


def image(value: float, n_objects: int = 4) -> dict[str, float]:
    seconds = {"seconds_embedding": 1.0, "seconds_prompts": 2.0, "seconds_postprocessing": 0.5}
    return {**dict.fromkeys(METRICS, value), **seconds, "n_objects": n_objects, "n_predicted": 3}


def test_an_interval_is_where_the_means_of_resampled_images_lie():
    """That is 1.96 standard errors on either side of the mean of many values."""
    values = np.random.default_rng(0).normal(0.5, 0.1, 400).tolist()
    low, high = bootstrap_interval(values, seed=1)
    error = np.std(values) / math.sqrt(len(values))
    assert low == pytest.approx(np.mean(values) - 1.96 * error, abs=0.001)
    assert high == pytest.approx(np.mean(values) + 1.96 * error, abs=0.001)


def test_the_same_seed_gives_the_same_interval_and_few_images_none():
    values = [0.1, 0.5, 0.9, 0.2, 0.3, 0.4]
    assert bootstrap_interval(values, 3) == bootstrap_interval(values, 3)
    assert bootstrap_interval(values, 3) != bootstrap_interval([*values[:5], 0.8], 3)
    assert bootstrap_interval(values[:5], 3) is None


def test_images_without_objects_count_nowhere():
    rows = [*[image(0.2)] * 3, *[image(0.6)] * 3, image(math.nan, n_objects=0)]
    assert summary(rows, 0) == summary(rows[:6], 0)
    means = summary(rows, 0)
    assert means["SA50"] == pytest.approx(0.4)
    assert (means["n_test_images"], means["n_objects"], means["n_predicted"]) == (6, 24, 18)
    assert (means["seconds_per_image"], means["seconds_prompts"]) == (3.5, 2.0)
    low, high = means["intervals"]["SA50"]
    assert 0.2 <= low < 0.4 < high <= 0.6


def test_a_metric_that_a_mode_does_not_have_is_none():
    means = summary([image(0.2) | {"mSA": math.nan}, image(0.4) | {"mSA": math.nan}], 0)
    assert means["mSA"] is None
    assert "mSA" not in means["intervals"]
    assert means["SA50"] == pytest.approx(0.3)
