"""The table of a data set: `refsam check-data`, and what a plan says of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from refsam import cli
from refsam.configuration.schema import DatasetConfig
from refsam.datasets import index
from refsam.datasets.listing import list_pairs
from refsam.datasets.overview import Overview, overview, rows, short_lines

MakeDataset = Callable[..., DatasetConfig]


def labels(*sizes: int) -> np.ndarray:
    """(60, 80) with one square of each of the sizes."""
    image = np.zeros((60, 80), np.uint8)
    for i, size in enumerate(sizes):
        image[5 : 5 + size, 5 + 20 * i : 5 + 20 * i + size] = i + 1
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pairs: an RGB image of 16 bit among grey ones of 8 bit, one with a suffix in capitals."""
    root = tmp_path / "mine"
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for i in range(6):
        pixels = np.full((60, 80), 100 + i, np.uint8)
        pixels[0, 0] = 3
        suffix = "TIF" if i == 5 else "tif"
        if i == 0:
            deep = np.stack([pixels * np.uint16(9)] * 3, axis=2)
            tifffile.imwrite(root / "images/0.tif", deep, photometric="rgb")
        else:
            tifffile.imwrite(root / f"images/{i}.{suffix}", pixels)
        Image.fromarray(labels(10) if i == 0 else labels(6, 8, 10)).save(root / f"labels/{i}.png")
    return root


def look(config: DatasetConfig, cache: Path) -> Overview:
    pairs = list_pairs(config)
    return overview(config, pairs, index.inspect(pairs, config, cache))


def test_the_table_counts_what_is_there(folder: Path, tmp_path: Path, dataset: MakeDataset) -> None:
    found = look(dataset("folder", folder, images="images/*.tif"), tmp_path / "cache")
    assert dict(rows(found)) == {
        "data set": f"folder ({folder})",
        "images": "6 (.tif (5), .TIF (1))",
        "split": "4 to train, 1 to validate, 1 to test",
        "sizes": "60 × 80 pixels",
        "channels": "grey (5), RGB (1)",
        "types": "uint8 (5), uint16 (1); values from 3 to 900",
        "read as": "TIFF, axes YX, MINISBLACK (5), TIFF, axes YXS, RGB (1)",
        "objects": "16; per image: fewest 1, median 3, most 3",
        "object sizes": "smallest 36, median 64, largest 100 pixels",
    }
    assert short_lines(found) == [
        "Data set folder: 6 images (.tif (5), .TIF (1); 4 to train, 1 to validate, 1 to test), "
        "60 × 80 pixels, grey (5), RGB (1), uint8 (5), uint16 (1)",
        "  16 objects: 1 to 3 per image (median 3), the smallest of 36 pixels (median 64)",
    ]
    assert short_lines(found, with_root=True)[0].startswith(f"Data set folder ({folder}): 6 images")
    assert found.warnings == ()


def rewrite(path: Path, pixels: np.ndarray, **options: object) -> None:
    Image.fromarray(pixels).save(path, **options)


def test_what_looks_wrong_and_may_be_right_is_a_warning(
    folder: Path, tmp_path: Path, dataset: MakeDataset
) -> None:
    for path in (folder / "images").iterdir():
        path.unlink()
    exif = Image.Exif()
    exif[274] = 6
    grey = np.arange(60 * 80, dtype=np.uint8).reshape(60, 80)
    rewrite(folder / "images/0.png", np.rot90(grey), exif=exif)
    rewrite(folder / "images/1.png", grey, exif=exif)  # its labels were drawn on the unturned image
    rewrite(folder / "images/2.png", np.stack([grey] * 4, axis=2))
    rewrite(folder / "images/3.png", grey % 13)  # 12 bit, less the lower 4
    rewrite(folder / "images/4.png", np.full_like(grey, 200))
    rewrite(folder / "images/5.png", grey)
    two_pieces = labels(6, 8, 10)
    two_pieces[50:55, 5:10] = 1
    rewrite(folder / "labels/5.png", two_pieces)
    found = look(dataset("folder", folder), tmp_path / "cache").warnings
    of = "dataset folder: "
    assert found == (
        f"{of}1 of 16 objects, in 1 of 6 images (images/5), are in several pieces: training takes each piece "
        "as an object, the evaluation all of them as one",
        f"{of}1 of 6 images (images/0) is turned as their orientation in EXIF says",
        f"{of}1 of 6 images (images/1) is not turned as their orientation in EXIF says, because their labels "
        "have the size of the unturned image",
        f"{of}1 of 6 images (images/2) is read without their opacity, which differs between pixels; if it is "
        "a channel of its own, choose channels with dataset.channels",
        f"{of}1 of 6 images (images/3) is nearly black, of 8 bit without a value above 31; "
        "dataset.normalize=percentile stretches them",
        f"{of}1 of 6 images (images/4) is of one value in all pixels",
    )


def test_a_background_that_is_an_object_is_a_warning(
    folder: Path, tmp_path: Path, dataset: MakeDataset
) -> None:
    for path in (folder / "labels").iterdir():
        rewrite(path, labels(6, 8) + np.uint8(1))
    (warning,) = look(dataset("folder", folder), tmp_path / "cache").warnings
    assert warning == (
        "dataset folder: 6 of 6 images (images/0, images/1, images/2, …) are covered by one object for more "
        "than a half; the background has to be 0"
    )


def test_ids_that_are_classes_are_told_what_numbers_their_pieces(
    folder: Path, tmp_path: Path, dataset: MakeDataset
) -> None:
    for path in (folder / "labels").iterdir():
        rewrite(path, np.maximum(labels(6, 8), np.roll(labels(6, 8), 30, axis=0)))
    (warning,) = look(dataset("folder", folder), tmp_path / "cache").warnings
    assert "if the ids are classes, dataset.labels_are=components numbers the pieces" in warning
    said = dataset("folder", folder, labels_are="components")
    assert look(said, tmp_path / "cache").warnings == ()
    assert look(said, tmp_path / "cache").objects_per_image == (4, 4, 4)


def check(capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str, str]:
    status = cli.main(["check-data", "dataset=folder", *overrides])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_check_data_prints_the_table_and_refuses_what_no_run_could_use(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    status, out, err = check(capsys, f"dataset.root={folder}")
    assert (status, err) == (0, "")
    assert "objects       16; per image: fewest 1, median 3, most 3\n" in out
    status, out, err = check(capsys, f"dataset.root={folder}", "dataset.channels=[0,2]")
    assert (status, out) == (2, "")
    assert err.startswith("refsam: dataset.channels=2, but ")
    assert err.count("\n") == 1
    for path in (folder / "labels").iterdir():
        rewrite(path, (labels(6, 8) > 0).astype(np.uint8) * np.uint8(255))
    status, out, err = check(capsys, f"dataset.root={folder}")
    assert status == 2
    assert "images        6" in out
    assert "the labels of 6 of 6 images hold one id in several pieces" in err
    assert err.count("\n") == 1
    assert check(capsys, f"dataset.root={folder}", "dataset.labels_are=instances")[0] == 0
    assert check(capsys, f"dataset.root={folder / 'none'}")[0] == 2
