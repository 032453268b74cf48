"""refsam annotate: the annotator with a run's model, and what it saves."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from training_runs import run_training, small_config

from refsam import cli
from refsam.configuration.frozen import freeze
from refsam.configuration.schema import DatasetConfig
from refsam.science import annotate as science

SQUARE = np.s_[10:40, 20:60]
# What a person does in the window, and closes it.
IN_THE_WINDOW = """
import sys, napari
from refsam import cli

def person():
    viewer = napari.current_viewer()
    from micro_sam.sam_annotator._state import AnnotatorState
    assert AnnotatorState().predictor is not None
    assert viewer.layers["image"].data.shape == (96, 120)
    viewer.layers["committed_objects"].data[10:40, 20:60] = 1
    viewer.close()

napari.run = person
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def run(synthetic: DatasetConfig, tmp_path: Path) -> Path:
    config = small_config(synthetic, "train.decoder=false", "train.epochs=1")
    paths, _ = run_training(config, tmp_path / "a-run")
    freeze(paths.config, config)
    return paths.root


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "new" / "cell_11.tif"
    path.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 4000, (96, 120), dtype=np.uint16)
    tifffile.imwrite(path, pixels)
    return path


def draw(monkeypatch: pytest.MonkeyPatch, *shown: int) -> list[int]:
    """In the place of a person: commits a square beside what is there. Returns what each window showed."""
    seen: list[int] = []

    def person(model, annotation):
        before = annotation.read_labels((96, 120))
        labels = np.zeros((96, 120), np.uint32) if before is None else before
        seen.append(int(labels.max()))
        labels[SQUARE] = labels.max() + 1
        return labels

    monkeypatch.setattr(science, "annotate", person)
    return seen


def test_what_is_saved_is_a_data_set_for_the_next_sweep(
    run: Path,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = draw(monkeypatch)
    words = ["annotate", str(run), str(image), "--output", str(tmp_path / "mine")]
    assert cli.main(words) == 0
    assert "cell_11.tif: 1 objects in " in capsys.readouterr().out
    labels = tifffile.imread(tmp_path / "mine" / "labels" / "cell_11.tif")
    assert (labels.dtype, labels[SQUARE].min(), labels.sum()) == (np.uint16, 1, labels[SQUARE].size)
    assert (tmp_path / "mine" / "images" / "cell_11.tif").read_bytes() == image.read_bytes()
    assert cli.main(["check-data", "dataset=folder", f"dataset.root={tmp_path / 'mine'}"]) == 0
    assert "objects       1; per image" in capsys.readouterr().out
    assert cli.main(words) == 0  # what was saved is shown again
    assert seen == [0, 1]


def test_another_image_of_the_same_name_is_refused(
    run: Path,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw(monkeypatch)
    words = ["annotate", str(run), str(image), "--output", str(tmp_path / "mine")]
    assert cli.main(words) == 0
    tifffile.imwrite(image, np.zeros((96, 120), np.uint16))
    assert cli.main(words) == 2
    assert "is another image of the same name" in capsys.readouterr().err


def test_without_napari_one_sentence_says_what_to_install(
    run: Path,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "napari" else find(name, *rest)
    )
    assert cli.main(["annotate", str(run), str(image), "--output", str(tmp_path / "mine")]) == 2
    assert "needs napari, which is not installed here" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


@pytest.mark.skipif(shutil.which("xvfb-run") is None, reason="no screen and no xvfb-run")
def test_the_annotator_opens_with_the_model_of_the_run(run: Path, image: Path, tmp_path: Path) -> None:
    script = tmp_path / "window.py"
    script.write_text(IN_THE_WINDOW)
    words = ["annotate", str(run), str(image), "--output", str(tmp_path / "mine")]
    command = ["xvfb-run", "--auto-servernum", sys.executable, str(script), *words]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    labels = tifffile.imread(tmp_path / "mine" / "labels" / "cell_11.tif")
    assert (labels[SQUARE].min(), labels.sum()) == (1, labels[SQUARE].size)
