"""The images that a job trains, validates and tests on. micro-sam's data sets sample the patches.

A sample depends on the run's seed, the epoch and its index alone: neither on the number of workers, nor on
what the process did before, so a resumed run sees what an uninterrupted one would have seen.
"""

import math
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.measure import label as connected_components
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torch_em.data.sampler import MinInstanceSampler
from torch_em.transform.raw import normalize

from refsam.configuration.patch_pool import FIXED, pool_size
from refsam.configuration.schema import AUTO, DatasetConfig, Normalization, RefsamConfig
from refsam.configuration.split import Split, n_images_problem, split_of
from refsam.datasets.listing import list_pairs
from refsam.datasets.pair import Pair
from refsam.datasets.pairs import read_pair
from refsam.errors import ConfigError
from refsam.science.hardware import GIB

# torch-em's 500 would stop one run in five on an image of 4000 x 4000 pixels with a single object.
SAMPLING_ATTEMPTS = 5000
# More processes for samples than this have no GPU to wait for them. A choice that was not measured.
MOST_WORKERS = 4
# Memory for the samples of a pool and of the validation, which come again: 70 patches of 512 x 512.
KEPT_SAMPLES_GIB = 0.5

Sample = tuple[torch.Tensor, torch.Tensor]
TorchLoader = DataLoader[Sample]
Image = tuple[NDArray[Any], NDArray[np.uint32]]  # an image and its labels


def load_pairs(dataset: DatasetConfig, pairs: Sequence[Pair]) -> list[Image]:
    """Images, (H, W) or (H, W, 3), and their labels, (H, W) uint32, in the order of `pairs`.

    The images are uint8; with `dataset.normalize=patch` they have the values of their files.

    Raises:
        ConfigError: when a file cannot be used, or an image and its labels differ in height or width.
    """
    return [read_pair(pair, dataset, for_patches=True) for pair in pairs]


def test_images(config: RefsamConfig) -> list[Pair]:
    """The test images in the split's order, at most `evaluate.max_images` of them."""
    pairs, split = _split(config)
    return [pairs[index] for index in split.test[: config.evaluate.max_images]]


def validation_images(config: RefsamConfig) -> list[Pair]:
    """The images of validation, on which the parameters of automatic segmentation are searched."""
    pairs, split = _split(config)
    return [pairs[index] for index in split.validation]


# pytest would take a function that is called test_… and imported into a test module for a test.
test_images.__test__ = False  # type: ignore[attr-defined]


def training_loaders(config: RefsamConfig) -> tuple[TorchLoader, TorchLoader]:
    """The loaders of training and validation patches.

    A batch is x, (batch, 3, H, W) float32 from 0 to 255, grey images repeated, and y, (batch, 4, H, W)
    float32: ids, foreground, distances to centers and to boundaries; without the decoder (batch, 1, H, W):
    ids only. H and W are `train.patch_shape`; smaller images are padded with zeros where `dataset.padding`
    is on.

    An epoch of training has as many samples as patches fit into the images, and at least `train.min_samples`,
    drawn from a pool of patches (`train.patch_pool`) or new in every epoch (`begin_epoch`). Validation has
    the same patches in every epoch, or new ones (`train.validation_patches`).

    Raises:
        ConfigError: when `n_images` is more than the split has for training, or a file cannot be used.
    """
    pairs, split = _split(config)
    sizes = len(split.pool), len(split.validation), len(split.test)
    if problem := n_images_problem(config, sizes):
        raise ConfigError(problem)
    training = load_pairs(config.dataset, [pairs[index] for index in split.pool[: config.n_images]])
    validation = load_pairs(config.dataset, [pairs[index] for index in split.validation])
    return patch_loaders(config, training, validation)


def patch_loaders(
    config: RefsamConfig, training: Sequence[Image], validation: Sequence[Image]
) -> tuple[TorchLoader, TorchLoader]:
    """The loaders of `training_loaders` for images that are read already.

    Args:
        training: pairs of an image, (H, W) or (H, W, 3), and its labels, (H, W) uint32.
        validation: the same.
    """
    length = max(config.train.min_samples, _fitting_patches(config, training))
    held_out = config.train.validation_samples or _fitting_patches(config, validation)
    fixed = held_out if config.train.validation_patches == FIXED else None
    return (
        _seeded_loader(config, training, SeededSampler(length, config.seed, pool_size(config, length))),
        _seeded_loader(config, validation, SeededSampler(held_out, config.seed, fixed, shuffled=False)),
    )


def _fitting_patches(config: RefsamConfig, images: Sequence[Image]) -> int:
    """What torch-em counts as the length of an image, summed over the images."""
    height, width = config.train.patch_shape
    return sum(math.ceil(labels.shape[0] / height * labels.shape[1] / width) for _, labels in images)


def _seeded_loader(config: RefsamConfig, images: Sequence[Image], sampler: "SeededSampler") -> TorchLoader:
    # Each worker would keep its own.
    keep_gib = KEPT_SAMPLES_GIB / max(1, worker_count(config)) if sampler.pool is not None else 0.0
    samples = SeededSamples(_patches(config, images, len(sampler)), config.seed, keep_gib)
    return _loader(config, samples, sampler)


class SeededSamples(Dataset[Sample]):
    """A data set of random patches whose sample `key` is always the same one.

    `key` is epoch * length + index. Whatever the wrapped data set draws from the generators of random, numpy
    and torch (on the CPU), it draws from a seed derived from the run's seed, the epoch and the index.

    Args:
        keep_gib: memory for samples that come again, the first ones to come.
    """

    def __init__(self, patches: Any, seed: int, keep_gib: float = 0.0) -> None:
        self.patches = patches
        self.seed = seed
        self._room = int(keep_gib * GIB)
        self._kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, key: int) -> Sample:
        if key in self._kept:
            return self._kept[key]
        epoch, index = divmod(key, len(self))
        with _seeded(self.seed, epoch, index):
            image, target = self.patches[index]
        size = image.nbytes + target.nbytes
        if self._room >= size:
            self._kept[key] = image, target
            self._room -= size
        return image, target


class SeededSampler(Sampler[int]):
    """The keys of one epoch of SeededSamples, in an order that depends on the seed and on `epoch` alone.

    With a `pool` of n the keys are 0 to n-1, in an order that is shuffled anew each time that all of them
    have come; an epoch goes on in it where the one before has ended. Without, no key comes twice. Where they
    are not `shuffled`, they come in their order.

    `begin_epoch` sets `epoch` (from 0), and `first`: how many keys of the epoch came before an interruption.
    """

    def __init__(self, length: int, seed: int, pool: int | None = None, *, shuffled: bool = True) -> None:
        self.length = length
        self.seed = seed
        self.pool = pool
        self.shuffled = shuffled
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return islice(self._keys(), self.first, None)

    def _keys(self) -> Iterator[int]:
        first = self.epoch * self.length
        if self.pool is not None:
            rounds = range(first // self.pool, math.ceil((first + self.length) / self.pool))
            keys = np.concatenate([self._order(number, self.pool) for number in rounds])
            start = first - rounds.start * self.pool
            return iter(keys[start : start + self.length].tolist())
        return iter((first + self._order(self.epoch, self.length)).tolist())

    def _order(self, number: int, length: int) -> NDArray[Any]:
        if not self.shuffled:
            return np.arange(length)
        return np.random.default_rng((self.seed, number)).permutation(length)


class EnoughObjects:
    """Accepts patches that micro-sam can prompt: an object of `min_size` pixels beside something else.

    torch-em's MinInstanceSampler counts ids. The transforms that come after it count connected areas, so an
    object that the patch's border cuts into slivers would leave a patch without any object, on which training
    stops.
    """

    def __init__(self, min_size: int) -> None:
        self.enough = MinInstanceSampler(2, min_size=min_size)

    def __call__(self, image: NDArray[Any], labels: NDArray[Any]) -> bool:
        return bool(self.enough(image, connected_components(labels, background=0, connectivity=1)))


def _split(config: RefsamConfig) -> tuple[list[Pair], Split]:
    pairs = list_pairs(config.dataset)
    return pairs, split_of(config, [pair.name for pair in pairs])


def _patches(config: RefsamConfig, images: Sequence[Image], n_samples: int) -> Any:
    """micro-sam's data set of `n_samples` random patches of the images, with flips as augmentation."""
    # Takes 15 s, which tests and test_images need not pay.
    from refsam.science.micro_sam import default_sam_dataset

    return default_sam_dataset(
        raw_paths=[_channels_first(image) for image, _ in images],
        raw_key=None,
        label_paths=[labels for _, labels in images],
        label_key=None,
        raw_transform=_stretched if config.dataset.normalize == Normalization.patch else None,
        patch_shape=tuple(config.train.patch_shape),
        with_segmentation_decoder=config.train.decoder,
        with_channels=True,
        with_padding=config.dataset.padding,
        sampler=EnoughObjects(config.dataset.min_object_size),
        min_size=config.dataset.min_object_size,
        n_samples=n_samples,
        max_sampling_attempts=SAMPLING_ATTEMPTS,
    )


def _stretched(patch: NDArray[Any]) -> NDArray[np.float32]:
    """A patch (3, H, W) from 0 to 255 by its own minimum and maximum, as the resource study has it."""
    return normalize(patch) * 255


def _channels_first(image: NDArray[Any]) -> NDArray[Any]:
    """(3, H, W) from (H, W), repeated, or (H, W, 3)."""
    if image.ndim == 2:
        return np.repeat(image[None], 3, axis=0)
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def worker_count(config: RefsamConfig) -> int:
    """Processes that prepare samples; `auto` leaves one core to the training, and takes none on a CPU.

    A step on a CPU takes all cores and a hundred times as long as its sample; a GPU would wait for it.
    """
    if config.train.workers != AUTO:
        return int(config.train.workers)
    if not _on_gpu(config):
        return 0
    cores = min(config.resource.request.cores, len(os.sched_getaffinity(0)))
    return min(cores - 1, MOST_WORKERS)


def _on_gpu(config: RefsamConfig) -> bool:
    return torch.cuda.is_available() and config.resource.device != "cpu"


def _loader(config: RefsamConfig, samples: SeededSamples, sampler: SeededSampler) -> TorchLoader:
    # Every worker would hold the validation's few samples a second time, for which one is enough.
    workers = worker_count(config) if sampler.shuffled else min(1, worker_count(config))
    loader = DataLoader(
        samples,
        batch_size=config.train.batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=_on_gpu(config),
        worker_init_fn=_leave_signals_to_the_run,
        # Without a generator of its own, each pass through the loader would draw from the global one.
        generator=torch.Generator().manual_seed(config.seed),
    )
    loader.shuffle = sampler.shuffled  # asked for by torch-em's trainers
    return loader


def begin_epoch(loader: TorchLoader, epoch: int, first_batch: int) -> None:
    """Let the next pass through the loader of training patches be `epoch`, from batch `first_batch` on."""
    sampler = loader.sampler
    assert isinstance(sampler, SeededSampler)
    sampler.epoch, sampler.first = epoch, first_batch * (loader.batch_size or 1)


def begin_validation(loader: TorchLoader, epoch: int) -> int | None:
    """Let the next pass through the loader of validation patches be that of `epoch`.

    Returns:
        The epoch where each has patches of its own; None where all have the same.
    """
    sampler = loader.sampler
    assert isinstance(sampler, SeededSampler)
    sampler.epoch = epoch
    return epoch if sampler.pool is None else None


def _leave_signals_to_the_run(worker: int) -> None:
    """Slurm signals all processes of a job, and the run answers; its training ends the workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ending_workers(loaders: Sequence[TorchLoader]) -> Iterator[None]:
    """End the worker processes of `loaders` when the block ends, also when it raises.

    Nothing else would: the workers are kept from epoch to epoch, and they ignore the SIGTERM by which the
    interpreter ends such processes before it waits for them. The loaders can be used again afterwards.
    """
    others = set(multiprocessing.active_children())
    try:
        yield
    finally:
        try:
            for loader in loaders:
                iterator, loader._iterator = loader._iterator, None
                if isinstance(iterator, _MultiProcessingDataLoaderIter):
                    iterator._shutdown_workers()
        finally:
            # What an interruption has left: of the lines above, or of an iterator that was half made.
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
                worker.join()


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Seed random, numpy and torch (on the CPU) from `numbers`, and restore their states at the end."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    words = np.random.SeedSequence(numbers).generate_state(4)
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(int(words[0]))
            np.random.seed(words[1])
            # torch.manual_seed would seed the GPUs too, whose states are not restored here.
            torch.default_generator.manual_seed(int(words[2]) << 32 | int(words[3]))
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
