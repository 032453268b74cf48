"""The patches that a job trains and validates on."""

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import micro_sam.util
import numpy as np
import pooch
import psutil
import pytest
import tifffile
import torch
from micro_sam.training.util import ConvertToSamInputs
from omegaconf import OmegaConf
from segment_anything.utils.transforms import ResizeLongestSide
from torch_em.data.sampler import MinInstanceSampler
from torch_em.transform.label import MinSizeLabelTransform

from refsam.configuration.compose import compose
from refsam.configuration.schema import DatasetConfig, Normalization, RefsamConfig, TrainConfig
from refsam.configuration.split import split_images
from refsam.datasets.listing import list_pairs
from refsam.datasets.pairs import read_pair
from refsam.datasets.prepare import prepare
from refsam.errors import ConfigError
from refsam.models.weights_cache import published_files, weights_path, weights_present
from refsam.science import data, fetch
from refsam.science.models import load_model

CONF = Path(__file__).parents[2] / "conf"


def run_config(dataset: DatasetConfig, n_images: int = 2, **train: object) -> RefsamConfig:
    """A run on small patches; only what the loaders look at is filled in."""
    given = OmegaConf.load(CONF / "train" / "default.yaml")
    values = {"patch_shape": [128, 128], "min_samples": 4, "validation_samples": 2, **train}
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), given, values))
    config = RefsamConfig(dataset=dataset, train=settings, n_images=n_images, seed=7)
    config.resource.device = "cpu"
    config.evaluate.max_images = None
    return config


def batches(loader: data.TorchLoader, epoch: int | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if epoch is not None:
        loader.sampler.epoch = epoch
    return [(x.clone(), y.clone()) for x, y in loader]


def same(first: list[tuple[torch.Tensor, ...]], second: list[tuple[torch.Tensor, ...]]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


def write_pair(root: Path, name: str, image: np.ndarray, labels: np.ndarray) -> None:
    for kind, pixels in (("images", image), ("labels", labels)):
        (root / kind).mkdir(exist_ok=True)
        tifffile.imwrite(root / kind / f"{name}.tif", pixels)


@pytest.mark.slow
def test_batches_are_what_micro_sams_trainers_take(nuclei: DatasetConfig) -> None:
    train, validation = data.training_loaders(run_config(nuclei, patch_shape=[256, 320]))
    for loader in (train, validation):
        x, y = next(iter(loader))
        assert x.shape == (1, 3, 256, 320)
        assert x.dtype == torch.float32
        assert x.min() >= 0
        assert 1 < x.max() <= 255
        assert y.shape == (1, 4, 256, 320)
        ids, foreground = y[0, 0], y[0, 1]
        assert torch.equal(foreground, (ids > 0).float())
        assert ids.max() >= 1
        assert 0 <= y[0, 2:].min() <= y[0, 2:].max() <= 1
    assert train.shuffle
    assert not validation.shuffle


def test_without_the_decoder_the_target_is_the_ids_alone(synthetic: DatasetConfig) -> None:
    train, _ = data.training_loaders(run_config(synthetic, decoder=False))
    _, y = next(iter(train))
    assert y.shape == (1, 1, 128, 128)


def test_an_epoch_has_all_patches_of_the_images_and_at_least_min_samples(synthetic: DatasetConfig) -> None:
    lengths = {}
    for min_samples in (4, 50):
        train, validation = data.training_loaders(run_config(synthetic, n_images=3, min_samples=min_samples))
        lengths[min_samples] = len(train)
        assert len(validation) == 2
    assert lengths == {4: 3 * 4, 50: 50}


def test_two_workers_and_none_give_the_same_patches(synthetic: DatasetConfig) -> None:
    loaders = [data.training_loaders(run_config(synthetic, workers=workers)) for workers in (0, 2)]
    for epoch in (0, 1):
        assert same(*(batches(train, epoch) for train, _ in loaders))
    assert same(*(batches(validation) for _, validation in loaders))


class CountedPatches:
    """Random samples, and how many were made."""

    def __init__(self) -> None:
        self.made = 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> data.Sample:
        self.made += 1
        return torch.full((3, 8, 8), float(index)), torch.rand(1, 8, 8)


@pytest.mark.parametrize(("keep_gib", "made"), [(1.0, 3), (0.0, 6)])
def test_samples_that_come_again_are_made_once(keep_gib: float, made: int) -> None:
    patches = CountedPatches()
    samples = data.SeededSamples(patches, 0, keep_gib)
    first, second = ([samples[key] for key in range(3)] for _ in range(2))
    assert same(first, second)
    assert patches.made == made


@pytest.mark.parametrize(
    ("workers", "cores", "gpu", "expected"),
    [
        ("auto", 8, True, 4),
        ("auto", 2, True, 1),
        ("auto", 1, True, 0),
        ("auto", 8, False, 0),
        (3, 1, False, 3),
    ],
)
def test_workers_follow_the_cores_where_a_gpu_would_wait(
    synthetic: DatasetConfig,
    monkeypatch: pytest.MonkeyPatch,
    workers: object,
    cores: int,
    gpu: bool,
    expected: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    config = run_config(synthetic, workers=workers)
    config.resource.device = "auto"
    config.resource.request.cores = cores
    assert data.worker_count(config) == expected


def loader_with_workers(config: RefsamConfig) -> data.TorchLoader:
    samples = data.SeededSamples(CountedPatches(), 0)
    return data._loader(config, samples, data.SeededSampler(len(samples), 0))


def test_a_signal_to_all_processes_of_a_job_leaves_the_workers_alone(synthetic: DatasetConfig) -> None:
    loader = loader_with_workers(run_config(synthetic, workers=2))
    others = psutil.Process().children()
    first = batches(loader, 0)
    workers = [child for child in psutil.Process().children() if child not in others]
    assert len(workers) == 2
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGUSR2)
    assert same(batches(loader, 0), first)


@pytest.mark.slow
def test_workers_end_when_their_run_is_killed(synthetic: DatasetConfig) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def run() -> None:
        loader = loader_with_workers(run_config(synthetic, workers=2))
        batches(loader, 0)
        there.send([worker.pid for worker in psutil.Process().children()])
        signal.pause()

    process = context.Process(target=run)
    process.start()
    workers = [psutil.Process(pid) for pid in here.recv()]
    process.kill()
    process.join()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert len(workers) == 2
    assert not alive


def test_a_resumed_run_sees_the_patches_that_it_would_have_seen(synthetic: DatasetConfig) -> None:
    through, _ = data.training_loaders(run_config(synthetic))
    epochs = [batches(through, epoch) for epoch in range(3)]
    np.random.seed(99)
    resumed, _ = data.training_loaders(run_config(synthetic))
    assert same(batches(resumed, 2), epochs[2])
    assert not same(epochs[0], epochs[1])


def test_validation_has_the_same_patches_in_every_epoch(synthetic: DatasetConfig) -> None:
    _, validation = data.training_loaders(run_config(synthetic))
    first = batches(validation)
    torch.manual_seed(3)
    assert same(batches(validation), first)


def test_another_seed_gives_other_patches(synthetic: DatasetConfig) -> None:
    config = run_config(replace(synthetic, split="ordered"))
    loaders = [data.training_loaders(replace(config, seed=seed))[0] for seed in (1, 2)]
    assert not same(*(batches(loader, 0) for loader in loaders))


def test_sampling_leaves_the_global_generators_as_they_were(synthetic: DatasetConfig) -> None:
    train, validation = data.training_loaders(run_config(synthetic))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), np.random.random(), torch.rand(()))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    batches(train, 0)
    batches(validation)
    assert (random.random(), np.random.random(), torch.rand(())) == expected


def test_smaller_training_sets_are_contained_in_larger_ones(
    nuclei: DatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[list[str]] = []
    original = data.load_pairs

    def noted(dataset: DatasetConfig, pairs: list[data.Pair]) -> list[tuple[np.ndarray, np.ndarray]]:
        loaded.append([pair.name for pair in pairs])
        return original(dataset, pairs)

    monkeypatch.setattr(data, "load_pairs", noted)
    for n_images in (1, 2, 5, 10):
        data.training_loaders(run_config(nuclei, n_images))
    training, validation = loaded[::2], loaded[1::2]
    assert [len(names) for names in training] == [1, 2, 5, 10]
    assert all(training[-1][: len(names)] == names for names in training)
    assert all(names == validation[0] and len(names) == 1 for names in validation)
    test = [pair.name for pair in data.test_images(run_config(nuclei))]
    assert len(test) == len(set(test)) == 48 - 10 - 1
    assert not set(test) & {*training[-1], *validation[0]}


def test_covid_if_is_split_as_in_the_resource_study() -> None:
    names = [f"gt_image_{number:03}" for number in range(49)]
    split = split_images(names, "ordered", 0, 10, 1, 2)
    assert (split.pool, split.validation, split.test) == (tuple(range(10)), (10,), tuple(range(13, 49)))


def test_test_images_are_limited_in_the_splits_order(nuclei: DatasetConfig) -> None:
    config = run_config(nuclei)
    every = data.test_images(config)
    config.evaluate.max_images = 3
    assert data.test_images(config) == every[:3]


@pytest.mark.parametrize("n_images", [0, -1, 12])
def test_more_images_than_there_are_for_training_are_refused(synthetic: DatasetConfig, n_images: int) -> None:
    with pytest.raises(ConfigError, match=rf"n_images must be an integer from 1 to 10, .*, got {n_images}"):
        data.training_loaders(run_config(synthetic, n_images))


def test_small_images_are_padded_with_zeros(
    tmp_path: Path, dataset: Callable[..., DatasetConfig], synthetic: DatasetConfig
) -> None:
    for number, (image, labels) in enumerate(data.load_pairs(synthetic, list_pairs(synthetic)[:4])):
        write_pair(tmp_path, str(number), image[:100, :110] + 1, labels[:100, :110])
    train, _ = data.training_loaders(run_config(dataset("folder", tmp_path), 1))
    for x, y in train:
        assert x.shape == (1, 3, 128, 128)
        assert (x[0, 0] == 0).sum() == 128 * 128 - 100 * 110
        assert not y[0, 0][x[0, 0] == 0].any()


def test_a_set_of_grey_rgb_and_16_bit_images_makes_equal_batches(
    tmp_path: Path, dataset: Callable[..., DatasetConfig], synthetic: DatasetConfig
) -> None:
    kinds = [
        lambda image: image,
        lambda image: np.stack([image, image // 2, image // 4], axis=-1),
        lambda image: image.astype(np.uint16) * 50,
        lambda image: image,
    ]
    loaded = data.load_pairs(synthetic, list_pairs(synthetic)[:4])
    for number, ((image, labels), kind) in enumerate(zip(loaded, kinds, strict=True)):
        write_pair(tmp_path, str(number), kind(image), labels)
    config = dataset("folder", tmp_path)
    read = data.load_pairs(config, list_pairs(config))
    assert [image.shape for image, _ in read] == [(256, 256), (256, 256, 3), (256, 256), (256, 256)]
    assert all(image.dtype == np.uint8 and labels.dtype == np.uint32 for image, labels in read)
    train, _ = data.training_loaders(run_config(replace(config, split="ordered"), 2, batch_size=3))
    for x, _ in train:
        assert x.shape[1:] == (3, 128, 128)


def hot_pixels(root: Path) -> np.ndarray:
    """An image of dark values from 0 to 1 with one hot pixel, as a float TIFF with labels; its values."""
    pixels = np.linspace(0, 1, 128 * 128, dtype=np.float64).astype(np.float32) ** np.float32(5.27)
    pixels[-1] = 8.14
    image = pixels.reshape(128, 128)
    labels = np.zeros((128, 128), dtype=np.uint16)
    labels[40:80, 40:80], labels[90:110, 10:30] = 1, 2
    for name in ("0", "1", "2"):
        write_pair(root, name, image, labels)
    return image


@pytest.mark.parametrize(("normalize", "mean"), [("patch", 5.0), ("auto", 42.8)])
def test_a_hot_pixel_darkens_patches_of_the_resource_study_and_not_those_of_everyday_use(
    tmp_path: Path, dataset: Callable[..., DatasetConfig], normalize: str, mean: float
) -> None:
    hot_pixels(tmp_path)
    config = replace(dataset("folder", tmp_path), normalize=Normalization(normalize))
    for loader in data.training_loaders(run_config(config, 1)):
        for x, _ in loader:
            assert x.mean().item() == pytest.approx(mean, abs=0.05)


def test_the_resource_studys_patches_are_stretched_one_by_one_and_its_test_images_as_a_whole(
    tmp_path: Path, dataset: Callable[..., DatasetConfig]
) -> None:
    image = hot_pixels(tmp_path)
    config = replace(dataset("folder", tmp_path), normalize=Normalization.patch)
    train, _ = data.training_loaders(run_config(config, 1, patch_shape=[64, 64]))
    for x, _ in train:
        assert (x.min().item(), x.max().item()) == (0, pytest.approx(255, abs=1e-3))
    whole, _ = read_pair(list_pairs(config)[0], config)
    assert np.array_equal(np.repeat(whole[..., None], 3, axis=2), micro_sam.util._to_image(image))
    # The encoder's own stretching, which follows in the evaluation, leaves it as it is.
    assert np.array_equal(micro_sam.util._to_image(whole)[..., 0], whole)


def test_a_patch_with_crumbs_only_stops_micro_sams_training_and_is_drawn_again_here() -> None:
    labels = np.zeros((64, 64), dtype=np.uint32)
    labels[:3, :3] = 1
    assert MinInstanceSampler()(labels, labels)
    assert not data.EnoughObjects(25)(labels, labels)
    left = torch.from_numpy(MinSizeLabelTransform(min_size=25)(labels).astype(np.float32))[None, None]
    convert = ConvertToSamInputs(transform=ResizeLongestSide(1024))
    with pytest.raises(RuntimeError, match="No foreground objects"):
        convert(torch.zeros(1, 3, 64, 64), left, 1, 0, False, 5)
    labels[10:20, 10:20] = 2
    assert MinInstanceSampler()(labels, labels)
    assert data.EnoughObjects(25)(labels, labels)


def test_validation_has_new_patches_in_every_epoch_where_that_is_asked_for(synthetic: DatasetConfig) -> None:
    _, fixed = data.training_loaders(run_config(synthetic))
    new = [data.training_loaders(run_config(synthetic, validation_patches="new"))[1] for _ in range(2)]
    assert [data.begin_validation(fixed, epoch) for epoch in (0, 1)] == [None, None]
    assert same(batches(fixed, 0), batches(fixed, 1))
    assert not same(batches(new[0], 0), batches(new[0], 1))
    # A resumed run goes on with what the other would have seen.
    assert data.begin_validation(new[1], 1) == 1
    assert same(batches(new[1]), batches(new[0], 1))


def test_validation_without_a_number_has_as_many_patches_as_fit(synthetic: DatasetConfig) -> None:
    config = run_config(replace(synthetic, n_validation=3), validation_samples=None)
    assert len(data.training_loaders(config)[1]) == 3 * 4


def test_an_image_and_a_label_image_of_different_size_are_refused(
    tmp_path: Path, dataset: Callable[..., DatasetConfig]
) -> None:
    write_pair(tmp_path, "a", np.zeros((20, 20), dtype=np.uint8), np.ones((20, 21), dtype=np.uint8))
    config = dataset("folder", tmp_path)
    with pytest.raises(ConfigError, match=r"dataset\.labels.*images/a"):
        data.load_pairs(config, list_pairs(config))


def test_every_patch_has_an_object_even_where_borders_cut_them_into_slivers() -> None:
    enough = data.EnoughObjects(min_size=25)
    slivers = np.zeros((64, 64), dtype=np.uint32)
    slivers[5:15, 0] = 1
    slivers[30:50, 0] = 1  # one id, two areas of 10 and 20 pixels
    assert not enough(slivers, slivers)
    slivers[30:50, 1] = 1
    assert enough(slivers, slivers)
    assert not enough(slivers, np.ones_like(slivers))  # nothing beside the object


# Downloads


COVID_IF = "torch_em.data.datasets.light_microscopy.covid_if.get_covid_if_data"


def test_covid_if_is_complete_when_its_folder_is_there(
    tmp_path: Path, dataset: Callable[..., DatasetConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(path: Path, download: bool) -> None:
        assert download
        assert not path.exists()  # torch-em would take the folder for the data
        path.mkdir()
        for number in range(49):
            (path / f"gt_image_{number:03}.h5").touch()

    monkeypatch.setattr(COVID_IF, download)
    said: list[str] = []
    prepare(dataset("covid_if", tmp_path / "covid_if"), said.append)
    assert said == [f"dataset covid_if is ready: 49 images with labels in {tmp_path / 'covid_if'}"]
    assert [path.name for path in tmp_path.iterdir()] == ["covid_if"]


def test_a_failed_download_of_covid_if_leaves_nothing_and_names_the_command(
    tmp_path: Path, dataset: Callable[..., DatasetConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(path: Path, download: bool) -> None:
        path.mkdir()
        (path / "half.zip").touch()
        raise ConnectionError("no route to the host")

    monkeypatch.setattr(COVID_IF, download)
    with pytest.raises(ConfigError, match=r"ConnectionError.*refsam prepare dataset=covid_if"):
        prepare(dataset("covid_if", tmp_path / "covid_if"))
    assert list(tmp_path.iterdir()) == []


def test_cached_weights_of_another_hash_than_the_registry_s_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path))
    weights_path("vit_b_lm").parent.mkdir()
    weights_path("vit_b_lm").write_bytes(b"of another version")
    refused = r"models/vit_b_lm must have the hash xxh128:\w+, got xxh128:\w+; remove it and fetch it again"
    with pytest.raises(ConfigError, match=refused):
        fetch.fetch_weights("vit_b_lm")
    with pytest.raises(ConfigError, match=refused):
        load_model(compose(["model=vit_b_lm"]).model, 0, "cpu")


def test_every_published_model_is_known_by_all_its_files() -> None:
    published = set(micro_sam.util.models().registry)
    models = {name for name in published if not name.endswith("_decoder")}
    assert {file for model in models for file in published_files(model)} == published


@pytest.mark.parametrize("there", [[], ["vit_t_lm"]])
def test_a_run_downloads_no_weights(
    there: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path))
    registry = micro_sam.util.models()
    for name in there:
        weights_path(name).parent.mkdir(exist_ok=True)
        weights_path(name).write_bytes(b"weights")
        registry.registry[name] = pooch.file_hash(str(weights_path(name)))
    monkeypatch.setattr(registry, "fetch", lambda name, **_: pytest.fail("the network was asked"))
    monkeypatch.setattr(micro_sam.util, "models", lambda: registry)
    with pytest.raises(ConfigError, match=r"not in micro-sam's cache; .*: refsam prepare model=vit_t_lm"):
        load_model(compose(["model=vit_t_lm"]).model, 0, "cpu")


def test_a_download_of_another_hash_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path))
    registry = micro_sam.util.models()

    def download(name: str, progressbar: bool) -> None:
        raise ValueError("XXH128 hash of downloaded file (vit_b) does not match the known hash")

    monkeypatch.setattr(registry, "fetch", download)
    monkeypatch.setattr(micro_sam.util, "models", lambda: registry)
    refused = r"vit_b could not be downloaded \(the downloaded file has another hash\)"
    with pytest.raises(ConfigError, match=refused):
        fetch.fetch_weights("vit_b")


def test_weights_come_with_their_decoder_from_the_cache_of_micro_sam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path))
    registry = micro_sam.util.models()
    fetched: list[str] = []

    def download(name: str, progressbar: bool) -> None:
        fetched.append(name)
        weights_path(name).parent.mkdir(exist_ok=True)
        weights_path(name).touch()

    monkeypatch.setattr(registry, "fetch", download)
    monkeypatch.setattr(fetch, "require_published", lambda registry, name: None)
    monkeypatch.setattr(micro_sam.util, "models", lambda: registry)
    assert not weights_present("vit_b_lm")
    assert fetch.fetch_weights("vit_b_lm") == registry.abspath / "vit_b_lm"
    assert fetch.fetch_weights("vit_b") == weights_path("vit_b")
    assert weights_present("vit_b")
    assert fetched == ["vit_b_lm", "vit_b_lm_decoder", "vit_b"]
    with pytest.raises(ConfigError, match=r"model\.name 'vit_x'.*vit_b_lm"):
        fetch.fetch_weights("vit_x")
