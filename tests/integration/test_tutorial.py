"""docs/tutorial.md, from ten images to the labels of an eleventh, with its commands as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
SIZE = 256  # pixels


def draw(folder: Path) -> None:
    """Ten images of discs with their label images, and an eleventh without, where the tutorial has them."""
    generator = np.random.default_rng(1)
    rows, columns = np.indices((SIZE, SIZE))
    for name in ("my_images/images", "my_images/labels", "new"):
        (folder / name).mkdir(parents=True)
    for number in range(1, 12):
        labels = np.zeros((SIZE, SIZE), np.uint16)
        for index in range(16):
            row, column = 32 + 64 * (index // 4), 32 + 64 * (index % 4)
            inside = (rows - row) ** 2 + (columns - column) ** 2 < generator.uniform(12, 28) ** 2
            labels[inside] = index + 1
        image = (generator.normal(60, 10, labels.shape) + 120 * (labels > 0)).clip(0, 255).astype("uint8")
        name = f"cell_{number:02}.tif"
        if number == 11:
            tifffile.imwrite(folder / "new" / name, image)
        else:
            tifffile.imwrite(folder / "my_images" / "images" / name, image)
            tifffile.imwrite(folder / "my_images" / "labels" / name, labels)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder after all commands of the page, and what they printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    draw(folder)
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(paths), "COLUMNS": "120"}
    environment.pop("REFSAM_RUNS", None)
    printed = ""
    for kind, text in re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        command = ["bash", "-ec", text] if kind == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    return folder, printed


def test_the_tutorial_ends_with_labels_of_the_eleventh_image(world: tuple[Path, str]) -> None:
    folder, printed = world
    labels = tifffile.imread(folder / "segmented" / "labels" / "cell_11.tif")
    assert labels.shape == (SIZE, SIZE)
    assert labels.max() > 0
    assert (folder / "segmented" / "overlays" / "cell_11.png").is_file()
    objects = (folder / "segmented" / "objects.csv").read_text(encoding="utf-8").splitlines()
    assert len(objects) == 1 + len(np.unique(labels[labels > 0]))
    assert f"({SIZE}, {SIZE}) {labels.max()} objects" in printed


def test_the_tutorial_trains_with_one_and_with_three_images(world: tuple[Path, str]) -> None:
    folder, printed = world
    assert "3 to train, 1 to validate, 6 to test" in printed
    assert "3 runs (2 finetunings, 1 baseline)" in printed
    sweep = folder / "runs" / "sweeps" / "first"
    assert (sweep / "report.html").is_file()
    assert list((sweep / "figures").glob("*.png"))
