"""Which images of a data set train, validate and test. Pure arithmetic on names, shared by plan and
science.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from refsam.configuration.schema import RefsamConfig
from refsam.datasets.names import normalized

SEEDED = "seeded"
# Fewer images say nothing of a difference: Wilcoxon's two-sided test of 5 cannot have a p below 0.06.
LEAST_TEST_IMAGES = 6


def split_seed(config: RefsamConfig) -> int:
    """The seed that shuffles the images of a seeded split."""
    return config.seed if config.dataset.split_seed is None else config.dataset.split_seed


@dataclass(frozen=True)
class Split:
    """Indices into the sorted list of a data set's images."""

    pool: tuple[int, ...]  # the first n_images of it train
    validation: tuple[int, ...]
    test: tuple[int, ...]


def split_of(config: RefsamConfig, names: Sequence[str]) -> Split:
    """The split of a run's data set. Raises as `split_images` does.

    Args:
        names: of all its images, sorted.
    """
    dataset = config.dataset
    return split_images(
        names,
        dataset.split,
        split_seed(config),
        dataset.train_pool,
        dataset.n_validation,
        dataset.n_unused,
        dataset.test,
    )


def split_images(
    names: Sequence[str],
    mode: str,
    seed: int,
    train_pool: int,
    n_validation: int,
    n_unused: int = 0,
    test: str | None = None,
) -> Split:
    """Split `names` (sorted, unique) into training pool, validation and test.

    With `seeded`, the order is that of a hash of seed and name: it is the same on every machine and Python,
    the smaller training sets are contained in the larger ones, and neither validation nor test depends on
    n_images. With `ordered`, it is the given one, as the resource study takes its files.

    A data set too small for the whole pool keeps at least a quarter of its images (and one) for testing. With
    `test`, a pattern of names as the shell has them, these images test, and the others are for the rest.

    Raises:
        ValueError: when not even one image for each of the three is there.
    """
    total = len(names)
    pattern = None if test is None else normalized(test)
    published = [
        index for index in range(total) if pattern is not None and fnmatchcase(names[index], pattern)
    ]
    if test is not None and not published:
        raise ValueError(f"no image for testing has a name like {test}")
    n_test = len(published) or max(1, total // 4)
    pool = min(train_pool, total - n_validation - n_unused - n_test)
    if pool < 1:
        raise ValueError(
            f"{total} images cannot be split into training, {n_validation} for validation and test"
        )
    order = sorted(set(range(total)) - set(published))
    if mode == SEEDED:
        order.sort(key=lambda index: hashlib.sha256(f"{seed}:{names[index]}".encode()).digest())
    validation_stop = pool + n_validation
    rest = order[validation_stop + n_unused :]
    return Split(tuple(order[:pool]), tuple(order[pool:validation_stop]), tuple(published or rest))
