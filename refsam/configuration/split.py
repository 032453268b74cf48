"""Which images of a data set train, validate and test. Pure arithmetic on names, shared by plan and
science.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from refsam.configuration.schema import ALL, DatasetConfig, RefsamConfig
from refsam.system.names import normalized

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
        config: of a fold, where there are folds.
        names: of all its images, sorted.
    """
    dataset, evaluate = config.dataset, config.evaluate
    if evaluate.folds is not None and evaluate.fold is not None:
        return split_folds(names, split_seed(config), dataset.n_validation, evaluate.fold, evaluate.folds)
    return split_images(
        names,
        dataset.split,
        split_seed(config),
        dataset.train_pool,
        dataset.n_validation,
        dataset.n_unused,
        dataset.test,
    )


def of_folds(config: RefsamConfig) -> list[RefsamConfig]:
    """The configurations of all folds, where there are folds and none is chosen; else the one that it is."""
    evaluate = config.evaluate
    if evaluate.folds is None or evaluate.fold is not None:
        return [config]
    folds = range(1, evaluate.folds + 1)
    return [replace(config, evaluate=replace(evaluate, fold=fold)) for fold in folds]


def split_sizes(dataset: DatasetConfig, names: Sequence[str], folds: int | None) -> tuple[int, int, int]:
    """How many images train at most, validate and test, whatever the seed; of folds in the first one, which
    trains on no more than any other. Raises as `split_images` does.
    """
    if folds is not None:
        split = split_folds(names, 0, dataset.n_validation, 1, folds)
    else:
        given = dataset.train_pool, dataset.n_validation, dataset.n_unused, dataset.test
        split = split_images(names, "ordered", 0, *given)
    return len(split.pool), len(split.validation), len(split.test)


def with_all_images(config: RefsamConfig, total: int, names: Sequence[str] | None) -> RefsamConfig:
    """The configuration with `n_images=all` replaced by how many images are for training, in every fold.

    Args:
        total: images of the data set.
        names: of them, where they are known. Without them, nobody knows how many of a published split train,
            and `dataset.train_pool` is taken.
    """
    if config.n_images != ALL:
        return config
    dataset = config.dataset
    if names is None and dataset.test is not None:
        return replace(config, n_images=dataset.train_pool)
    names = names or [str(index) for index in range(total)]
    return replace(config, n_images=split_sizes(dataset, names, config.evaluate.folds)[0])


def n_images_problem(config: RefsamConfig, sizes: tuple[int, int, int]) -> str | None:
    """Why a run cannot be trained on `n_images` images; None where it can, as on all of them.

    Args:
        sizes: how many images are for training, validation and test.
    """
    train, validation, test = sizes
    if config.n_images == ALL or 1 <= config.n_images <= train:
        return None
    return (
        f"n_images must be an integer from 1 to {train}, the images of dataset={config.dataset.name} for "
        f"training{'' if config.evaluate.folds is None else ' in a fold'} (validation has {validation}, test "
        f"{test}), got {config.n_images}"
    )


def n_test_images(config: RefsamConfig, names: Sequence[str]) -> int:
    """How many images test, in all folds where there are folds. Raises as `split_images` does."""
    folds, most = config.evaluate.folds, config.evaluate.max_images or len(names)
    if folds is None:
        return min(len(split_of(config, names).test), most)
    size, larger = divmod(len(names), folds)
    return larger * min(size + 1, most) + (folds - larger) * min(size, most)


def split_folds(names: Sequence[str], seed: int, n_validation: int, fold: int, folds: int) -> Split:
    """Split `names` (sorted, unique) for one fold of k-fold cross-validation (Stone 1974; Hastie, Tibshirani
    and Friedman 2009, section 7.10): each image tests in exactly one fold, and none trains or validates in
    the fold that it tests in.

    The images are dealt to the folds in the order of `split_images` with `seeded`, so the sizes of the test
    sets differ by one at most. The other folds follow in turn, the next one first: its first images validate,
    so that not all folds depend on the same one, and all that are left are the pool.

    Args:
        fold: which one tests, from 1.
        folds: how many there are.

    Raises:
        ValueError: when no image is left to train on.
    """
    order = _seeded(range(len(names)), names, seed)
    rest = [index for turn in range(1, folds) for index in order[(fold - 1 + turn) % folds :: folds]]
    pool, validation = rest[n_validation:], rest[:n_validation]
    if not pool:
        raise ValueError(
            f"{len(names)} images in {folds} folds cannot be split into training, {n_validation} for "
            "validation and test"
        )
    return Split(tuple(pool), tuple(validation), tuple(order[fold - 1 :: folds]))


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
        order = _seeded(order, names, seed)
    validation_stop = pool + n_validation
    rest = order[validation_stop + n_unused :]
    return Split(tuple(order[:pool]), tuple(order[pool:validation_stop]), tuple(published or rest))


def _seeded(indices: Iterable[int], names: Sequence[str], seed: int) -> list[int]:
    """Indices into `names` in the order of a hash of seed and name."""
    return sorted(indices, key=lambda index: hashlib.sha256(f"{seed}:{names[index]}".encode()).digest())
