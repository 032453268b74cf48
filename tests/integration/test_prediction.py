"""New images segmented by the model of a run that is really trained: `refsam predict`, `refsam.load`."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from drawn_images import draw_pair
from training_runs import TINY, small_config

import refsam
from refsam.cli import main
from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze
from refsam.configuration.schema import DatasetConfig, Kind
from refsam.datasets.image_metadata import ImageMetadata, read_metadata
from refsam.errors import ConfigError
from refsam.records.paths import RunPaths
from refsam.records.predictions import PredictionsFolder
from refsam.science.data import load_pairs, test_images
from refsam.science.evaluation import images as evaluation_images
from refsam.science.evaluation import pictures
from refsam.science.evaluation.images import embed
from refsam.science.evaluation.prompts import first_prompts, parts_of
from refsam.science.evaluation.segmenting import Model, from_labels, from_prompts
from refsam.science.models import initial_predictor
from refsam.science.predict import objects_table
from refsam.science.run import execute
from refsam.system.files import read_json, write_json

# Values with which a model that was hardly trained finds something.
GRID = (
    "evaluate.grid=small",
    "evaluate.points_per_side=4",
    "evaluate.small_grid={amg:{pred_iou_thresh:[0.0,0.1],stability_score_thresh:[0.0,0.5]},"
    "ais:{center_distance_threshold:[0.6,0.9],boundary_distance_threshold:[0.9],min_size:[3]},"
    "apg:{center_distance_threshold:[0.6,0.9],boundary_distance_threshold:[0.9],min_size:[3]}}",
)
MODES = ("point", "box", "amg", "ais", "apg", "no_prompt")


@pytest.fixture(scope="module")
def run(synthetic: DatasetConfig, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run that has trained for two epochs with a decoder and measured two test images in all modes."""
    paths = RunPaths(tmp_path_factory.mktemp("runs") / "tiny-run")
    config = small_config(
        synthetic,
        "cluster=local",
        "train.decoder=true",
        f"evaluate.modes=[{','.join(MODES)}]",
        "evaluate.max_images=2",
        "evaluate.save_predictions=true",
        "evaluate.pictures=0",
        *GRID,
    )
    paths.root.mkdir()
    freeze(paths.config, config)
    execute(paths.root)
    return paths


@pytest.fixture(scope="module")
def tested(run: RunPaths) -> list[Path]:
    return [pair.image for pair in test_images(refsam.load(run.root).config)]


def measured_segmentation(run: RunPaths, mode: str, image: Path) -> Path:
    (path,) = run.predictions(mode).glob(f"*{image.stem}*")
    return path


def predict(run: RunPaths, output: Path, *arguments: str | Path) -> int:
    return main(["predict", str(run.root), *map(str, arguments), "--output", str(output), "--device", "cpu"])


@pytest.mark.parametrize("mode", MODES)
def test_a_test_image_gets_the_segmentation_that_was_measured(
    mode: str, run: RunPaths, tested: list[Path], synthetic: DatasetConfig, tmp_path: Path
) -> None:
    prompts = ["--prompts", Path(synthetic.root) / "labels"] if mode in ("point", "box") else []
    assert predict(run, tmp_path, *tested, "--mode", mode, *prompts) == 0
    sizes = []
    for image in tested:
        measured = tifffile.imread(measured_segmentation(run, mode, image))
        given = tifffile.imread(PredictionsFolder(tmp_path).labels(image.stem))
        np.testing.assert_array_equal(given, measured)
        sizes.append(int(measured.max()))
    assert max(sizes) > 0


def test_the_same_image_is_segmented_alike_from_a_file_and_from_an_array(
    run: RunPaths, tested: list[Path]
) -> None:
    model = refsam.load(run.root, device="cpu")
    assert isinstance(model, refsam.TrainedModel)
    assert model.mode == "ais"
    pixels = tifffile.imread(tested[0])
    from_file, from_array = model.segment(tested[0]), model.segment(pixels)
    assert from_file.dtype == np.uint32
    assert from_file.shape == pixels.shape
    np.testing.assert_array_equal(from_file, from_array)
    np.testing.assert_array_equal(from_file, tifffile.imread(measured_segmentation(run, "ais", tested[0])))


def test_values_of_16_bit_are_brought_to_8_bit_as_the_run_has_them(run: RunPaths, tmp_path: Path) -> None:
    deep = (np.random.default_rng(0).normal(900, 100, (80, 90)).clip(0)).astype("uint16")
    tifffile.imwrite(tmp_path / "deep.tif", deep)
    model = refsam.load(run.root, device="cpu")
    given = {"mode": "box", "objects": np.pad(np.ones((20, 20), int), ((10, 50), (20, 50)))}
    np.testing.assert_array_equal(model.segment(tmp_path / "deep.tif", **given), model.segment(deep, **given))


def test_boxes_and_points_of_a_csv_file_are_those_of_the_python_function(
    run: RunPaths, tested: list[Path], tmp_path: Path
) -> None:
    model = refsam.load(run.root, device="cpu")
    boxes, points = [[20, 30, 70, 80], [100, 10, 150, 60]], [[40, 50], [120, 30]]
    for columns, values, prompts in (
        ("x_min,y_min,x_max,y_max", boxes, {"boxes": boxes}),
        ("x,y", points, {"points": points}),
    ):
        lines = [",".join(map(str, [tested[0].name, *row])) for row in values]
        csv = tmp_path / f"{len(columns)}.csv"
        csv.write_text("\n".join([f"image,{columns}", *lines]))
        output = tmp_path / f"of-{csv.stem}"
        assert predict(run, output, *tested, "--prompts", csv) == 0
        labels = tifffile.imread(PredictionsFolder(output).labels(tested[0].stem))
        np.testing.assert_array_equal(labels, model.segment(tested[0], **prompts))
        assert labels.any()
        assert not tifffile.imread(PredictionsFolder(output).labels(tested[1].stem)).any()


def test_prompts_of_the_evaluation_are_first_prompts_also_in_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of 64 pixels with a halo of 16: boxes and points of the image are moved into each tile."""
    monkeypatch.setattr(evaluation_images, "TILE_SHAPE", (64, 64))
    monkeypatch.setattr(evaluation_images, "TILE_HALO", (16, 16))
    config = compose([*TINY, "dataset=synthetic"])
    predictor, _, _ = initial_predictor(config.model, 3, "cpu")
    model = Model(predictor, None, config.evaluate)
    labels = np.zeros((96, 128), dtype="uint32")
    labels[5:25, 5:30], labels[20:40, 84:110], labels[70:90, 10:30] = 1, 2, 3
    image = (60 + 120 * (labels > 0)).astype("uint8")
    whole, tiled = embed(predictor, image), embed(predictor, image, longest=100)
    assert len(tiled.tiles) == 4
    for mode in ("box", "point"):
        (part,) = parts_of(whole.tiles, labels)
        prompts = first_prompts(part, mode, config.evaluate.dilation, 8)
        for embedded in (whole, tiled):
            given = from_prompts(model, embedded, prompts)
            np.testing.assert_array_equal(given, from_labels(model, embedded, labels, mode))
            assert given.any()


def test_what_is_complete_is_skipped_and_what_has_changed_is_made_again(
    run: RunPaths, tested: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [tmp_path / path.name for path in tested]
    for path, copy in zip(tested, images, strict=True):
        copy.write_bytes(path.read_bytes())
    folder = PredictionsFolder(tmp_path / "out")
    assert predict(run, folder.root, *images) == 0
    assert "2 images segmented (ais)" in capsys.readouterr().out
    first, second = (folder.record(path.stem) for path in images)
    before = first.stat().st_mtime_ns, second.stat().st_mtime_ns
    assert predict(run, folder.root, *images) == 0
    assert "0 images segmented (ais), 0 objects, 2 were complete" in capsys.readouterr().out
    assert (first.stat().st_mtime_ns, second.stat().st_mtime_ns) == before

    folder.labels(images[0].stem).unlink()  # as where it was stopped
    assert predict(run, folder.root, tmp_path) == 0  # the folder itself, and not what is written below it
    assert "1 images segmented (ais)" in capsys.readouterr().out
    assert second.stat().st_mtime_ns == before[1]
    os.utime(images[1])
    assert predict(run, folder.root, *images, "--dry-run") == 0
    assert f"2 images would be segmented into {folder.root}, 2 of them are there" in capsys.readouterr().out
    assert second.stat().st_mtime_ns == before[1]
    assert predict(run, folder.root, *images) == 0
    assert second.stat().st_mtime_ns > before[1]
    assert pd.read_csv(folder.all_objects)["image"].isin([path.stem for path in images]).all()


def test_a_folder_of_another_mode_or_image_is_refused_and_left_as_it_is(
    run: RunPaths, tested: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = PredictionsFolder(tmp_path / "out")
    assert predict(run, folder.root, tested[0]) == 0
    labels = folder.labels(tested[0].stem).read_bytes()
    assert predict(run, folder.root, tested[0], "--mode", "amg") == 2
    assert f"--output: {folder.root} holds predictions with another mode" in capsys.readouterr().err
    other = tmp_path / "other" / tested[0].name
    other.parent.mkdir()
    other.write_bytes(tested[1].read_bytes())
    assert predict(run, folder.root, other) == 2
    assert "made of another image of the same name" in capsys.readouterr().err
    assert folder.labels(tested[0].stem).read_bytes() == labels


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_segmented(
    run: RunPaths, tested: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(tested[0].read_bytes()[:200])
    assert predict(run, tmp_path / "out", broken, tested[0]) == 2
    said = capsys.readouterr()
    assert "1 images segmented" in said.out
    assert str(broken) in said.err
    assert "1 of 2 images could not be segmented" in said.err
    assert PredictionsFolder(tmp_path / "out").names() == [tested[0].stem]


def test_the_size_of_a_pixel_the_date_and_the_description_are_kept(
    run: RunPaths, tested: list[Path], tmp_path: Path
) -> None:
    pixels = tifffile.imread(tested[0])
    ome = {"axes": "YX", "PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}
    said = {"AcquisitionDate": "2026-01-02T03:04:05", "Description": "day 1 & 2"}
    tifffile.imwrite(tmp_path / "omed.ome.tif", pixels, ome=True, metadata={**ome, **said})
    tifffile.imwrite(tmp_path / "imagej.tif", pixels, imagej=True, resolution=(4, 2), metadata={"unit": "um"})
    tifffile.imwrite(
        tmp_path / "tags.tif", pixels, resolution=(40000, 20000), resolutionunit="CENTIMETER", metadata=None
    )
    tifffile.imwrite(tmp_path / "none.tif", pixels, metadata=None)
    output = tmp_path / "out"
    assert predict(run, output, tmp_path, "--mode", "no_prompt") == 0
    folder = PredictionsFolder(output)
    assert folder.names() == ["imagej", "none", "omed", "tags"]
    for name in ("omed", "imagej", "tags"):
        kept = read_metadata(folder.labels(name))
        assert kept.pixel_size == pytest.approx((0.5, 0.25), rel=1e-6)
        table = pd.read_csv(folder.objects(name))
        np.testing.assert_allclose(table["area_um2"], table["area"] * 0.125, rtol=1e-6)
    kept = read_metadata(folder.labels("omed"))
    assert (kept.acquired, kept.description) == ("2026-01-02T03:04:05", "day 1 & 2")
    with tifffile.TiffFile(folder.labels("omed")) as file:  # for programs that read no OME
        assert file.pages.first.tags.valueof("ResolutionUnit") == 3
        assert file.pages.first.tags.valueof("XResolution") == (40000, 1)
    assert read_metadata(folder.labels("none")) == ImageMetadata()
    assert "area_um2" not in pd.read_csv(folder.objects("none"))


def test_the_table_has_area_centroid_and_mean_intensity_of_each_object() -> None:
    labels = np.zeros((20, 30), dtype="uint32")
    labels[2:4, 5:9], labels[10:13, 20:21] = 4, 7
    image = np.arange(600, dtype="uint16").reshape(20, 30)
    table = objects_table(labels, image, ImageMetadata((0.5, 2.0)))
    assert table.to_dict("list") == {
        "object": [4, 7],
        "area": [8, 3],
        "centroid_y": [2.5, 11.0],
        "centroid_x": [6.5, 20.0],
        "mean_intensity": [2.5 * 30 + 6.5, 11.0 * 30 + 20.0],
        "area_um2": [8.0, 3.0],
    }
    colours = objects_table(labels, np.stack([image] * 3, axis=-1), ImageMetadata())
    assert list(colours)[-3:] == ["mean_intensity_red", "mean_intensity_green", "mean_intensity_blue"]
    assert len(objects_table(np.zeros_like(labels), image, ImageMetadata())) == 0


def test_an_overlay_of_a_large_image_is_reduced_and_keeps_its_outlines(tmp_path: Path) -> None:
    labels = np.zeros((1000, 6000), dtype="uint32")
    labels[300:600, 2000:2600] = 1
    pictures.draw_overlay(np.full(labels.shape, 50, dtype="uint8"), labels, tmp_path / "a.png")
    import imageio.v3 as imageio

    drawn = imageio.imread(tmp_path / "a.png")
    assert drawn.shape == (341, 2048, 3)
    red, green, blue = (int(pictures.PREDICTED[first : first + 2], 16) for first in (1, 3, 5))
    outlined = (drawn == (red, green, blue)).all(axis=-1)
    assert outlined[150, [682, 683, 887, 886]].any()
    assert not outlined[50].any()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"image": np.zeros((5, 5, 4), "uint8")}, "image has shape (5, 5, 4)"),
        ({"image": np.full((5, 5), np.nan)}, "NaN or infinite"),
        ({"boxes": [[1, 2, 3]]}, "boxes has shape (1, 3)"),
        ({"boxes": [[5, 2, 3, 4]]}, "x_min < x_max"),
        ({"points": [1, 2]}, "points has shape (2,)"),
        ({"points": [[1, 2]], "point_labels": [[2]]}, "point_labels must be 1"),
        ({"points": [[1, 2]], "boxes": [[1, 1, 2, 2]] * 2}, "boxes are for 2 objects and points for 1"),
        ({"point_labels": [[1]]}, "without points"),
        ({"mode": "box"}, "mode: 'box' was given with no prompts"),
        ({"boxes": [[1, 2, 3, 4]], "mode": "ais"}, "mode: 'ais' was given with boxes or points"),
        ({"parameters": {"size": 1}}, "mode ais has no 'size'; expected center_distance_threshold"),
        ({"objects": np.ones((4, 4), int)}, "objects has shape (4, 4) and the image (40, 50)"),
        ({"objects": np.ones((40, 50))}, "objects has type float64"),
    ],
)
def test_what_the_python_function_cannot_use_is_one_sentence(
    given: dict[str, object], sentence: str, run: RunPaths
) -> None:
    model = refsam.load(run.root, device="cpu")
    with pytest.raises(ConfigError) as error:
        model.segment(**{"image": np.zeros((40, 50), "uint8"), **given})
    assert sentence in str(error.value)


def test_a_baseline_without_a_decoder_segments_with_amg_and_says_whose_parameters(
    synthetic: DatasetConfig, tested: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(small_config(synthetic, "evaluate.points_per_side=3"), kind=Kind.baseline)
    config.model.weights = "random"
    run = RunPaths(tmp_path / "runs" / "a-baseline")
    run.root.mkdir(parents=True)
    freeze(run.config, config)
    assert predict(run, tmp_path / "out", tested[0]) == 0
    said = capsys.readouterr()
    assert "1 images segmented (amg)" in said.out
    assert "mode amg was not evaluated in this run, so micro-sam's default parameters are used" in said.err
    assert predict(run, tmp_path / "other", tested[0], "--mode", "ais") == 2
    assert "mode='ais', but the model has no decoder" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    record = read_json(PredictionsFolder(tmp_path / "out").record(tested[0].stem))
    assert record["parameters"] == {"pred_iou_thresh": 0.88, "stability_score_thresh": 0.95}


def test_the_best_run_of_a_sweep_is_loaded_by_its_name(
    run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run.root.parent
    manifest = {
        "format": 1,
        "name": "study",
        "runs": [{"run_id": "tiny-run", "overrides": {}}],
        "skipped": [],
    }
    (folder / "sweeps" / "study").mkdir(parents=True)
    write_json(folder / "sweeps" / "study" / "manifest.json", manifest)
    monkeypatch.setenv("REFSAM_RUNS", str(folder))
    assert refsam.load("study", "SA50", device="cpu").run_id == "tiny-run"
    assert refsam.load(folder / "sweeps" / "study", device="cpu").run_id == "tiny-run"
    assert refsam.load("tiny", device="cpu").run_id == "tiny-run"


def test_an_image_of_any_size_is_segmented_in_tiles(run: RunPaths, tmp_path: Path) -> None:
    pair = draw_pair(tmp_path, "large", seed=5, objects=8, shape=(200, 1100))
    ((image, labels),) = load_pairs(refsam.load(run.root).config.dataset, [pair])
    model = refsam.load(run.root, device="cpu")
    assert model.segment(image).shape == (200, 1100)
    assert model.segment(image, objects=labels, mode="point").any()
    assert model.segment(image, boxes=[[1000, 20, 1090, 100]])[:, :640].max() == 0  # left of the tile


def test_a_device_that_is_not_here_is_one_sentence(run: RunPaths) -> None:
    with pytest.raises(ConfigError, match="device='tpu9', and allowed here are auto, cpu"):
        refsam.load(run.root, device="tpu9")
    assert torch.is_grad_enabled()
