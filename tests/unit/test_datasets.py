"""Finding, pairing, reading, checking and preparing images."""

import os
import shutil
import signal
import subprocess
import sys
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
from PIL import Image

from refsam.configuration import pinned
from refsam.configuration.schema import DatasetConfig, Normalization
from refsam.datasets import index, prepare, reading
from refsam.datasets.listing import count_images, list_pairs
from refsam.datasets.pair import DataMissing
from refsam.datasets.source import read_source
from refsam.errors import ConfigError
from refsam.models import weights_cache

MakeDataset = Callable[..., DatasetConfig]

LABELS = np.zeros((40, 50), dtype=np.uint16)
LABELS[5:15, 5:15] = 1
LABELS[20:30, 20:35] = 300


def read_image(path: Path, key: str | None = None, channels: reading.Channels | None = None) -> np.ndarray:
    return reading.open_image(path, key, channels).pixels()


def read_labels(path: Path, key: str | None = None) -> np.ndarray:
    return reading.open_labels(path, key).ids


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root


@pytest.fixture
def folder(tmp_path: Path, dataset: MakeDataset) -> DatasetConfig:
    """Three pairs of small images."""
    for number in range(3):
        for kind, pixels in (("images", LABELS * 7 + number), ("labels", LABELS)):
            path = tmp_path / kind / f"{number}.tif"
            path.parent.mkdir(exist_ok=True)
            tifffile.imwrite(path, pixels)
    return dataset("folder", tmp_path)


def facts_of_two_objects(
    dtype: str = "uint8", values: tuple[float, float] = (0.0, 255.0), source: str = ""
) -> index.ImageFacts:
    """The facts of an image whose labels are LABELS, without the hash."""
    record = reading.ImageRecord((40, 50), 1, 1, dtype, *values, source)
    return index.ImageFacts(record, (40, 50), 2, 0, 100, 125.0, 150, "")


# Pairing


@pytest.mark.parametrize(
    ("label", "names"),
    [(f"labels/a{suffix}.png", "a") for suffix in ("", "_mask", "_masks", "_label", "_labels", "_seg")],
)
def test_an_image_is_paired_with_the_label_of_its_stem_or_a_common_suffix(
    tmp_path: Path, dataset: MakeDataset, label: str, names: str
) -> None:
    config = dataset("folder", touch(tmp_path, "images/a.tif", label))
    (pair,) = list_pairs(config)
    assert pair.name == f"images/{names}"
    assert pair.label == tmp_path / label


def test_pairs_are_sorted_by_name_and_hidden_files_are_not_images(
    tmp_path: Path, dataset: MakeDataset
) -> None:
    touch(tmp_path, "images/b.tif", "images/a.png", "images/.DS_Store", "labels/a.tif", "labels/b.tif")
    assert [pair.name for pair in list_pairs(dataset("folder", tmp_path))] == ["images/a", "images/b"]


def test_masks_beside_the_images_are_no_images(tmp_path: Path, dataset: MakeDataset) -> None:
    touch(tmp_path, "a.tif", "a_mask.tif", "b.tif", "b_mask.tif")
    pairs = list_pairs(dataset("folder", tmp_path, images="*.tif", labels="*_mask.tif"))
    assert [pair.name for pair in pairs] == ["a", "b"]


def test_stems_that_repeat_are_paired_within_their_folders(tmp_path: Path, dataset: MakeDataset) -> None:
    touch(tmp_path, *(f"{day}/{kind}/1.tif" for day in ("mon", "tue") for kind in ("raw", "masks")))
    pairs = list_pairs(dataset("folder", tmp_path, images="*/raw/*.tif", labels="*/masks/*.tif"))
    assert [(pair.name, pair.label) for pair in pairs] == [
        ("mon/raw/1", tmp_path / "mon/masks/1.tif"),
        ("tue/raw/1", tmp_path / "tue/masks/1.tif"),
    ]


@pytest.mark.parametrize(
    ("files", "values", "words"),
    [
        (["images/a.tif", "labels/b.tif"], {}, ["dataset.images", "images/a.tif", "labels/b.tif"]),
        (["images/a.tif", "images/b.tif", "labels/a.tif"], {}, ["2 images", "1 label", "images/b.tif"]),
        (["images/a.tif", "labels/a.tif", "labels/a_mask.tif"], {}, ["dataset.labels", "exactly one"]),
        (["images/a.tif", "images/a.png", "labels/a.tif"], {}, ["dataset.images", "images/a"]),
        (["images/a.tif"], {}, ["dataset.labels", "labels/*", "matches no file"]),
        (["labels/a.tif"], {}, ["dataset.images", "images/*", "matches no file"]),
        (["a.tif"], {"images": "*.tif", "labels": "*.tif"}, ["dataset.labels", "HDF5"]),
        (["a.tif"], {"images": "/a.tif", "labels": "*.tif"}, ["dataset.images", "below dataset.root"]),
        (["a.tif"], {"images": "a.*", "labels": "*.tif"}, ["dataset.images", "dataset.labels"]),
        (["a.tif"], {"images": ".", "labels": "*.tif"}, ["dataset.images", "below dataset.root"]),
        (["a.tif"], {"images": "**.tif", "labels": "*.tif"}, ["dataset.images", "**/*.tif"]),
        (["images/\udcff.tif"], {"labels": "*/*"}, ["dataset.labels", "is not UTF-8"]),
    ],
)
def test_images_and_labels_that_do_not_pair_are_refused_in_one_sentence(
    tmp_path: Path, dataset: MakeDataset, files: list[str], values: dict[str, str], words: list[str]
) -> None:
    config = dataset("folder", touch(tmp_path, *files), **values)
    with pytest.raises(ConfigError) as caught:
        list_pairs(config)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_names_that_print_alike_are_equal_however_their_letters_are_composed(
    tmp_path: Path, dataset: MakeDataset
) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Präparat") for form in ("NFC", "NFD"))
    touch(tmp_path, f"images/{decomposed}1.tif", f"labels/{composed}1_mask.tif")
    touch(tmp_path, f"images/{composed}2.tif", f"labels/{decomposed}2.tif")
    pairs = list_pairs(dataset("folder", tmp_path))
    assert [pair.name for pair in pairs] == [f"images/{composed}1", f"images/{composed}2"]
    assert all(pair.image.is_file() and pair.label.is_file() for pair in pairs)
    (only,) = list_pairs(dataset("folder", tmp_path, images=f"images/{composed}1.tif"))
    assert only == pairs[0]
    touch(tmp_path, f"images/{composed}1.tif")
    with pytest.raises(ConfigError, match=r"dataset\.images matches 2 images .*one label"):
        list_pairs(dataset("folder", tmp_path))


def test_a_pattern_takes_its_suffix_in_capitals_too(tmp_path: Path, dataset: MakeDataset) -> None:
    touch(tmp_path, "images/a.tif", "images/b.TIF", "images/c.Ome.Tif", "images/d.png")
    touch(tmp_path, "labels/a.PNG", "labels/b.png", "labels/c.Ome.png")
    pairs = list_pairs(dataset("folder", tmp_path, images="images/*.tif", labels="labels/*.png"))
    assert [pair.image.name for pair in pairs] == ["a.tif", "b.TIF", "c.Ome.Tif"]


def test_a_link_to_nothing_is_no_image_less(tmp_path: Path, dataset: MakeDataset) -> None:
    touch(tmp_path, "images/a.tif", "labels/a.tif")
    (tmp_path / "images" / "b.tif").symlink_to(tmp_path / "moved" / "b.tif")
    with pytest.raises(ConfigError, match=r"dataset\.images .*b\.tif, a broken link"):
        list_pairs(dataset("folder", tmp_path))


def test_missing_data_names_the_command_that_fetches_it(tmp_path: Path, dataset: MakeDataset) -> None:
    for name in ("nuclei", "covid_if", "synthetic"):
        with pytest.raises(DataMissing, match=f"refsam prepare dataset={name}"):
            list_pairs(dataset(name, tmp_path / "none"))
    with pytest.raises(DataMissing, match=r"dataset\.root="):
        list_pairs(dataset("folder", tmp_path / "none"))


def test_a_published_data_set_is_counted_and_identified_before_it_is_fetched(
    tmp_path: Path, dataset: MakeDataset
) -> None:
    config = dataset("covid_if", tmp_path / "none")
    assert count_images(config) == 49
    assert index.fingerprint(config) == "zenodo-5092850"


def test_a_folder_is_identified_by_its_pixels_wherever_it_lies(folder: DatasetConfig, tmp_path: Path) -> None:
    cache = tmp_path.with_name(tmp_path.name + "_cache")
    before = index.fingerprint(folder, cache)
    moved = tmp_path.with_name(tmp_path.name + "_moved")
    tmp_path.rename(moved)
    config = replace(folder, root=str(moved))
    assert index.fingerprint(config, cache) == before
    assert len(before) == 16
    label = next((moved / "labels").iterdir())
    edited = tifffile.imread(label)
    edited[0, 0] = edited.max() + 1  # the size of the file does not change
    tifffile.imwrite(label, edited)
    assert index.fingerprint(config, cache) != before


# Reading


@pytest.mark.parametrize("suffix", ["tif", "png"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_grey_and_rgb_images_of_8_and_16_bit_are_read_as_they_are(
    tmp_path: Path, suffix: str, dtype: type, shape: tuple[int, ...]
) -> None:
    if suffix == "png" and dtype is np.uint16 and len(shape) == 3:
        suffix = "tif"  # pillow writes no RGB of 16 bit
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    path = tmp_path / f"a.{suffix}"
    iio.imwrite(path, pixels)
    read = read_image(path, None)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, pixels)


def test_alpha_and_axes_of_length_one_are_dropped(tmp_path: Path) -> None:
    iio.imwrite(tmp_path / "alpha.png", np.full((8, 9, 4), 7, dtype=np.uint8))
    tifffile.imwrite(tmp_path / "page.tif", np.ones((1, 8, 9), dtype=np.float32))
    assert read_image(tmp_path / "alpha.png", None).shape == (8, 9, 3)
    assert read_image(tmp_path / "page.tif", None).shape == (8, 9)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((5, 20, 20), dtype=np.uint8),
        np.zeros((20, 20, 2), dtype=np.uint8),
        np.full((20, 20), np.nan, dtype=np.float32),
        np.zeros((20, 20), dtype=np.complex64),
    ],
    ids=["stack", "two channels", "nan", "complex"],
)
def test_stacks_and_what_is_no_image_are_refused_with_the_file(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, pixels, photometric="minisblack")
    with pytest.raises(ConfigError, match=r"dataset\.images.*odd\.tif"):
        read_image(path, None)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.txt", "a.h5"])
def test_damaged_files_are_refused_with_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no image at all")
    with pytest.raises(ConfigError, match=name):
        read_image(tmp_path / name, "raw" if name.endswith("h5") else None)


def test_labels_are_ids_whatever_integer_or_whole_number_holds_them(tmp_path: Path) -> None:
    for dtype in (np.uint16, np.int32, np.float32):
        tifffile.imwrite(tmp_path / "a.tif", LABELS.astype(dtype))
        read = read_labels(tmp_path / "a.tif", None)
        assert read.dtype == np.uint32
        np.testing.assert_array_equal(read, LABELS)


def test_the_ids_of_a_palette_image_are_its_indices(tmp_path: Path) -> None:
    small = (LABELS % 256).astype(np.uint8)
    picture = Image.fromarray(small, mode="P")
    picture.putpalette([value for index in range(256) for value in (255 - index, index, 3)])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", None), small)


@pytest.mark.parametrize(
    "pixels",
    [-LABELS.astype(np.int16), LABELS + np.float32(0.5), np.zeros((8, 9, 3), dtype=np.uint8)],
    ids=["negative", "fractions", "rgb"],
)
def test_labels_that_are_no_ids_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "odd.tif", pixels)
    with pytest.raises(ConfigError, match=r"dataset\.labels.*odd\.tif"):
        read_labels(tmp_path / "odd.tif", None)


def test_one_hdf5_file_in_the_layout_of_covid_if_holds_image_and_labels(
    tmp_path: Path, dataset: MakeDataset
) -> None:
    for number in range(2):
        with h5py.File(tmp_path / f"gt_image_{number:03}.h5", "w") as file:
            file["raw/serum_IgG/s0"] = LABELS.astype(np.float32)
            file["labels/cells/s0"] = LABELS
    config = dataset("covid_if", tmp_path)
    pairs = list_pairs(config)
    assert [pair.name for pair in pairs] == ["gt_image_000", "gt_image_001"]
    assert pairs[0].image == pairs[0].label
    facts = index.inspect(pairs, config, tmp_path / "cache")
    fact = facts["gt_image_000"]
    assert replace(fact, content="") == facts_of_two_objects(
        "float32", (0.0, 300.0), "HDF5, raw/serum_IgG/s0"
    )
    with pytest.raises(ConfigError, match=r"dataset\.image_key 'raw/none'.*raw/serum_IgG/s0"):
        read_image(pairs[0].image, "raw/none")
    with pytest.raises(ConfigError, match=r"dataset\.label_key is null"):
        read_labels(pairs[0].label, None)


def test_auto_keeps_8_bit_and_stretches_16_bit_between_percentiles() -> None:
    grey = np.arange(200, dtype=np.uint8).reshape(10, 20)
    assert reading.to_8bit(grey, Normalization.auto) is grey
    values = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    stretched = reading.to_8bit(values, Normalization.auto)
    assert stretched.dtype == np.uint8
    assert (stretched[0] == 0).all()
    assert (stretched[-1] == 255).all()
    assert abs(int(stretched[50, 0]) - 128) <= 1


def test_the_other_normalizations_do_what_they_say() -> None:
    values = np.array([[10.0, 20.0], [30.0, 60.0]])
    np.testing.assert_array_equal(
        reading.to_8bit(values, Normalization.minmax), np.array([[0, 51], [102, 255]])
    )
    np.testing.assert_array_equal(reading.to_8bit(values, Normalization.none), values)
    assert not reading.to_8bit(np.full((3, 3), 900, dtype=np.uint16), Normalization.auto).any()
    with pytest.raises(ConfigError, match=r"dataset\.normalize none.*300"):
        reading.to_8bit(np.full((3, 3), 300.0), Normalization.none)


# Facts and checks


def test_facts_are_read_once_and_again_when_a_file_changes(
    folder: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = list_pairs(folder)
    read: list[str] = []
    original = index._inspect_pair

    def counted(pair: index.Pair, dataset: DatasetConfig) -> index.ImageFacts:
        read.append(pair.name)
        return original(pair, dataset)

    monkeypatch.setattr(index, "_inspect_pair", counted)
    first = index.inspect(pairs, folder, tmp_path / "cache")
    assert sorted(read) == ["images/0", "images/1", "images/2"]
    assert first["images/0"].n_objects == 2
    assert index.inspect(pairs[:2], folder, tmp_path / "cache") == {
        name: first[name] for name in ("images/0", "images/1")
    }
    assert len(read) == 3
    tifffile.imwrite(pairs[1].label, np.zeros_like(LABELS))
    os.utime(pairs[1].label, ns=(1, 1))
    assert index.inspect(pairs, folder, tmp_path / "cache")["images/1"].n_objects == 0
    assert read[3:] == ["images/1"]


def test_many_images_are_read_by_several_processes_with_the_same_facts(
    folder: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = list_pairs(folder)
    by_threads = index.inspect(pairs, folder, tmp_path / "threads")
    monkeypatch.setattr(index, "MANY", 2)
    monkeypatch.setattr(index.os, "sched_getaffinity", lambda process: {0, 1})
    processes: list[object] = []
    original = index.ProcessPoolExecutor

    def noted(*arguments: object) -> object:
        processes.append(arguments[0])
        return original(*arguments)

    monkeypatch.setattr(index, "ProcessPoolExecutor", noted)
    assert list(index.inspect(pairs, folder, tmp_path / "processes").items()) == list(by_threads.items())
    assert processes == [2]
    pairs[1].image.write_bytes(b"no image at all")
    with pytest.raises(ConfigError, match=r"1\.tif cannot be read"):
        index.inspect(pairs, folder, tmp_path / "processes")
    monkeypatch.setattr(index, "_inspect_pair", killed)
    with pytest.raises(ConfigError, match=r"dataset\.root: .*was killed"):
        index.inspect(pairs, folder, tmp_path / "other")


def killed(*arguments: object) -> None:
    """In a process that reads: what the kernel does when the memory is full."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_damaged_or_unwritable_cache_of_facts_does_no_harm(folder: DatasetConfig, tmp_path: Path) -> None:
    pairs = list_pairs(folder)
    facts = index.inspect(pairs, folder, tmp_path / "cache")
    (store,) = (tmp_path / "cache").iterdir()
    whole = store.read_text()
    for damaged in ('{"format": 1, "images": {"', whole.replace('"n_objects"', '"objects"'), "[]"):
        store.write_text(damaged)
        assert index.inspect(pairs, folder, tmp_path / "cache") == facts
    (tmp_path / "file").write_text("")
    assert index.inspect(pairs, folder, tmp_path / "file" / "cache") == facts


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        ({"label_shape": (40, 60)}, ["dataset.labels", "a", "40 × 50", "40 × 60"]),
        ({"n_objects": 0, "largest_object": 0}, ["dataset.labels", "a", "no object"]),
        ({"largest_object": 24}, ["dataset.min_object_size", "25", "24"]),
        ({}, ["train.patch_shape", "64 × 32", "40 × 50", "dataset.padding"]),
    ],
)
def test_images_that_a_run_cannot_use_are_refused(
    folder: DatasetConfig, fact: dict[str, object], words: list[str]
) -> None:
    facts = replace(facts_of_two_objects(), **fact)
    config = replace(folder, padding=False)
    with pytest.raises(ConfigError) as caught:
        index.check_images(config, {"a": facts}, (64, 32))
    assert all(word in str(caught.value) for word in words), caught.value


def test_small_images_are_fine_with_padding(folder: DatasetConfig) -> None:
    facts = facts_of_two_objects()
    index.check_images(folder, {"a": facts}, (64, 64))


# Preparing


def test_the_nuclei_are_48_real_images_with_verified_labels(nuclei: DatasetConfig, tmp_path: Path) -> None:
    pairs = list_pairs(nuclei)
    assert len(pairs) == nuclei.n_files == 48
    facts = index.inspect(pairs, nuclei, tmp_path)
    index.check_images(nuclei, facts, (512, 512))
    assert {fact.image.dtype for fact in facts.values()} == {"uint8", "uint16"}
    assert min(fact.n_objects for fact in facts.values()) == 8
    # One mask of the package gives 20 of its colours to two nuclei each, far apart.
    assert facts["images/training_2022-04-14_RPE1_5"].n_objects == 58
    # Another uses the same blue for several nuclei, and no blue at all for two.
    assert facts["images/validation_2022-05-26_RPE1_2198"].n_objects == 99
    labels = read_labels(pairs[0].label, None)
    np.testing.assert_array_equal(np.unique(labels), np.arange(labels.max() + 1))


def test_preparing_twice_changes_nothing_and_says_so(nuclei: DatasetConfig) -> None:
    files = {path: path.stat().st_mtime_ns for path in Path(nuclei.root).rglob("*")}
    said: list[str] = []
    prepare.prepare(nuclei, said.append)
    assert {path: path.stat().st_mtime_ns for path in Path(nuclei.root).rglob("*")} == files
    assert said == [f"dataset nuclei is there already: 48 images with labels in {nuclei.root}"]


@pytest.mark.slow
def test_an_interrupted_preparation_leaves_nothing(
    tmp_path: Path, dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataset("nuclei", tmp_path / "data" / "nuclei")
    written: list[str] = []
    original = prepare._write_pair

    def interrupted(folder: Path, name: str, image: np.ndarray, labels: np.ndarray) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        original(folder, name, image, labels)
        written.append(name)

    monkeypatch.setattr(prepare, "_write_pair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(config, say=lambda _: None)
    assert len(written) == 3
    assert list((tmp_path / "data").iterdir()) == []


def test_nuclei_come_from_a_downloaded_wheel_where_the_package_is_not_installed(
    tmp_path: Path, dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with prepare._mnfinder() as (installed, _):
        experiments = [path for path in installed.glob("*-data/*") if path.name == "2022-10-14_U2OS"]
        wheel = tmp_path / "mnfinder-1.2.3-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for experiment in experiments:
                for path in experiment.rglob("*.*"):
                    archive.write(path, path.relative_to(installed.parent))
    commands: list[list[str]] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        wheel.rename(Path(command[command.index("--dest") + 1]) / wheel.name)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(prepare, "_installed_mnfinder", lambda: None)
    monkeypatch.setattr(prepare.subprocess, "run", pip)
    config, given = dataset("nuclei", tmp_path / "nuclei"), pinned.sha256(wheel)
    shutil.copy(wheel, tmp_path / "kept")
    with pytest.raises(ConfigError, match=rf"{wheel.name} must have the hash 11b1f6ae\w+, got {given}"):
        prepare.prepare(config, say=lambda _: None)
    assert not Path(config.root).exists()
    (tmp_path / "kept").rename(wheel)
    monkeypatch.setitem(pinned._pinned()["files"], wheel.name, given)
    prepare.prepare(config, say=lambda _: None)
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert len(list_pairs(config)) == 8
    assert read_source(Path(config.root)) == {"file": wheel.name, "hash": f"sha256:{given}"}


def test_a_download_that_fails_says_which_command_helps(
    tmp_path: Path, dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no distribution found")

    monkeypatch.setattr(prepare, "_installed_mnfinder", lambda: None)
    monkeypatch.setattr(prepare.subprocess, "run", pip)
    with pytest.raises(ConfigError, match=r"no distribution found.*pip install --no-deps mnfinder==1\.2\.3"):
        prepare.prepare(dataset("nuclei", tmp_path / "nuclei"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_only_a_part_is_refused(tmp_path: Path, dataset: MakeDataset) -> None:
    config = dataset("synthetic", touch(tmp_path, "images/a.tif", "labels/a.tif"))
    with pytest.raises(ConfigError, match="1 of the 16 images"):
        prepare.prepare(config)


def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path, dataset: MakeDataset) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"dataset\.root .*cannot be written"):
        prepare.prepare(dataset("synthetic", tmp_path / "file" / "synthetic"))


def test_the_folder_data_set_is_only_looked_at(folder: DatasetConfig) -> None:
    said: list[str] = []
    prepare.prepare(folder, said.append)
    assert said == [
        f"dataset folder needs no preparation: 3 images with labels in {folder.root}",
    ]


def test_the_discs_are_the_same_on_every_call_and_apart_from_each_other(
    synthetic: DatasetConfig, tmp_path: Path
) -> None:
    again = replace(synthetic, root=str(tmp_path / "again"))
    prepare.prepare(again, say=lambda _: None)
    for first, second in zip(list_pairs(synthetic), list_pairs(again), strict=True):
        assert first.image.read_bytes() == second.image.read_bytes()
        assert first.label.read_bytes() == second.label.read_bytes()
    facts = index.inspect(list_pairs(synthetic), synthetic, tmp_path)
    assert len(facts) == 16
    assert all(fact.n_objects >= 8 and fact.image.shape == (256, 256) for fact in facts.values())


# Weights, imports


def test_weights_are_looked_for_where_micro_sam_puts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path))
    assert weights_cache.weights_path("vit_b_lm") == tmp_path / "models" / "vit_b_lm"
    assert not weights_cache.weights_present("vit_b_lm")
    touch(tmp_path, "models/vit_b_lm")
    assert not weights_cache.weights_present("vit_b_lm")  # its decoder is another file
    touch(tmp_path, "models/vit_b_lm_decoder")
    assert weights_cache.weights_present("vit_b_lm")
    assert not weights_cache.weights_present("vit_b")
    touch(tmp_path, "models/vit_b")
    assert weights_cache.weights_present("vit_b")
    monkeypatch.setenv("MICROSAM_CACHEDIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert weights_cache.weights_path("vit_t").parent == tmp_path / "cache" / "micro_sam" / "models"


def test_looking_for_images_imports_nothing_heavy() -> None:
    code = (
        "import sys, refsam.datasets.listing, refsam.datasets.index, refsam.datasets.prepare,"
        " refsam.models.weights_cache;"
        "print(sorted({'torch', 'numpy', 'h5py', 'imageio', 'tifffile', 'rich', 'hydra'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
