"""What has to be said below a table of means: on how many images they rest, and what else a ± holds."""

import pandas as pd

from refsam.configuration.split import LEAST_TEST_IMAGES
from refsam.records.settings import SPLIT_SEED
from refsam.results.fields import fields

TOO_FEW = (
    f"With fewer than {LEAST_TEST_IMAGES} test images there is no interval and no test: these are too few to "
    "estimate the variation between images."
)
OTHER_TEST_SETS = (
    "± includes the variation between splits: with dataset.split_seed=null each seed has its own split."
)


def notes(frame: pd.DataFrame, several_seeds: bool) -> tuple[str, ...]:
    """Sentences about the rows that a table is made of.

    Args:
        several_seeds: whether any of its cells is a mean.
    """
    said = [f"Test images: {text}."] if (text := test_images(frame)) else []
    return (*said, *fold_notes(frame), *seed_notes(frame, several_seeds))


def fold_notes(frame: pd.DataFrame) -> tuple[str, ...]:
    """Of these sentences what a value is that folds are joined to (refsam.results.folds)."""
    folds = sorted({int(number) for number in frame.loc[frame["fold"].isna(), "folds"].dropna()})
    if not folds:
        return ()
    numbers = " or ".join(map(str, folds))
    return (f"Cross-validation: means over the test images of all {numbers} folds, each tested once.",)


def seed_notes(frame: pd.DataFrame, several_seeds: bool) -> tuple[str, ...]:
    """Of these sentences what a ± holds beside the training; nothing where it holds the training alone."""
    return (OTHER_TEST_SETS,) if several_seeds and split_follows_seed(frame) else ()


def test_images(frame: pd.DataFrame) -> str:
    """How many images are behind the rows: `12`, or `10 to 12`."""
    counts = frame["n_test_images"].dropna()
    if counts.empty:
        return ""
    least, most = int(counts.min()), int(counts.max())
    return str(least) if least == most else f"{least} to {most}"


def split_follows_seed(frame: pd.DataFrame) -> bool:
    """Whether runs of one setting were tested on different images, because their split follows the seed."""
    apart = ["dataset", *([SPLIT_SEED] if SPLIT_SEED in fields(frame) else [])]
    splits = frame.dropna(subset=["split_seed"]).groupby(apart, dropna=False)["split_seed"]
    return bool((splits.nunique() > 1).any())
