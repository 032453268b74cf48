"""Rounds of prompts and the automatic modes against micro-sam's own functions, with the same model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from drawn_images import draw_pair, ignore, write_pair
from drawn_models import KnownDistances, draw_discs
from matplotlib.patches import Patch
from micro_sam.evaluation import run_evaluation_for_iterative_prompting
from micro_sam.evaluation.inference import run_inference_with_iterative_prompting
from micro_sam.evaluation.instance_segmentation import run_instance_segmentation_grid_search_and_inference
from micro_sam.instance_segmentation import (
    AutomaticMaskGenerator,
    AutomaticPromptGenerator,
    DecoderAdapter,
    InstanceSegmentationWithDecoder,
)
from segment_anything import SamPredictor
from training_runs import TINY

from refsam.configuration.compose import compose
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.datasets.pair import Pair
from refsam.records.metrics import Measurement, measurement, read_metrics
from refsam.records.paths import RunPaths
from refsam.science.engine.cache import DiskStore
from refsam.science.evaluation import evaluate, pictures, unmeasured
from refsam.science.evaluation import images as evaluation_images
from refsam.science.evaluation.grid_search import combinations, grid_values
from refsam.science.evaluation.images import embed, load_image
from refsam.science.evaluation.measuring import _seed, measure
from refsam.science.evaluation.segmenting import NO_DECODER, Model
from refsam.science.models import build_unetr, initial_predictor, segmentation_decoder
from refsam.system.files import read_json

SEED = 3
SMALL_GRID = {
    "amg": {"pred_iou_thresh": [0.6, 0.7, 0.9], "stability_score_thresh": [0.5, 0.85]},
    "ais": {"center_distance_threshold": [0.3, 0.6], "distance_smoothing": [1.0, 1.6], "min_size": [0, 60]},
    "apg": {"boundary_distance_threshold": [0.3, 0.6], "nms_threshold": [0.5, 0.9], "min_size": [5, 60]},
}
GENERATORS = {"ais": InstanceSegmentationWithDecoder, "apg": AutomaticPromptGenerator}


@pytest.fixture
def config() -> RefsamConfig:
    config = compose([*TINY, "dataset=synthetic", f"seed={SEED}"])
    config.kind = Kind.baseline
    config.evaluate = replace(
        config.evaluate, batch_size=2, save_predictions=True, points_per_side=3, small_grid=SMALL_GRID
    )
    config.evaluate.grid = "small"
    return config


@pytest.fixture
def predictor(config: RefsamConfig) -> SamPredictor:
    torch.set_num_threads(1)
    return initial_predictor(config.model, SEED, "cpu")[0]


@pytest.fixture
def decoder(config: RefsamConfig, predictor: SamPredictor) -> DecoderAdapter:
    state = build_unetr(predictor.model, config.model, None, SEED, "cpu").state_dict()
    return segmentation_decoder(predictor.model, config.model, state, "cpu")


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Two images to test and one to validate."""
    return [draw_pair(tmp_path, f"image{number}", seed=number, objects=5) for number in range(3)]


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    return paths


def rows_of(paths: RunPaths) -> dict[Measurement, dict[str, Any]]:
    return {measurement(row): row for row in read_metrics(paths.metrics)}


def saved(paths: RunPaths, each: Measurement, pair: Pair) -> np.ndarray:
    return tifffile.imread(paths.predictions(*each) / f"{pair.name}.tif")


@pytest.mark.parametrize("mode", ["point", "box"])
@pytest.mark.parametrize("mask_input", [False, True], ids=["without masks", "with masks"])
def test_rounds_are_those_of_micro_sams_iterative_prompting(
    config, predictor, pairs, run, tmp_path, mode, mask_input
):
    """Predictions on every image and round, and the table that micro-sam makes of the saved ones."""
    config.evaluate = replace(config.evaluate, modes=[mode], rounds=2, mask_input=[mask_input])
    evaluate(config, predictor, pairs, run, ignore)
    theirs = tmp_path / "micro_sam"
    for pair in pairs:
        _seed(f"{SEED}:{pair.name}")
        run_inference_with_iterative_prompting(
            predictor,
            [pair.image],
            [pair.label],
            embedding_dir=None,
            prediction_dir=theirs,
            start_with_box_prompt=mode == "box",
            dilation=config.evaluate.dilation,
            batch_size=2,
            n_iterations=3,
            use_masks=mask_input,
        )
    wanted = [Measurement(mode, number, mask_input and number > 0) for number in range(3)]
    ours = tmp_path / "ours"
    for each in wanted:
        for pair in pairs:
            their = imageio.imread(theirs / f"iteration{each.round:02}" / pair.image.name)
            np.testing.assert_array_equal(saved(run, each, pair), their)
            (ours / f"iteration{each.round:02}").mkdir(parents=True, exist_ok=True)
            imageio.imwrite(ours / f"iteration{each.round:02}" / pair.image.name, saved(run, each, pair))
    assert not np.array_equal(saved(run, wanted[0], pairs[0]), saved(run, wanted[2], pairs[0]))

    table = run_evaluation_for_iterative_prompting(
        [pair.label for pair in pairs], ours, tmp_path / "results", start_with_box_prompt=mode == "box"
    )
    names = {"mSA": "mSA", "SA50": "SA50", "Precision": "precision", "Recall": "recall", "F1 Score": "F1"}
    for each, (_, expected) in zip(wanted, table.iterrows(), strict=True):
        for theirs_name, ours_name in names.items():
            assert rows_of(run)[each][ours_name] == pytest.approx(expected[theirs_name], abs=1e-9)


def test_every_round_is_a_row_and_more_rounds_add_to_it(config, predictor, pairs, run, monkeypatch):
    config.evaluate = replace(config.evaluate, modes=["box"], rounds=1, save_predictions=False)
    evaluate(config, predictor, pairs, run, ignore)
    before = rows_of(run)
    assert list(before) == [
        Measurement("box"),
        Measurement("box", 1, False),
        Measurement("box", 1, True),
    ]
    config.evaluate.rounds = 2
    assert unmeasured(config, run) == [Measurement("box", 2, False), Measurement("box", 2, True)]
    evaluate(config, predictor, pairs, run, ignore)
    after = rows_of(run)
    assert {each: after[each] for each in before} == before
    assert len(after) == 5


@pytest.mark.parametrize("mode", ["amg", "ais", "apg"])
def test_automatic_modes_and_their_search_are_those_of_micro_sam(config, predictor, run, tmp_path, mode):
    """The same parameters are found on the validation image, and the same predictions made with them."""
    shapes = ((96, 120), (110, 100), (100, 128))
    pairs = [
        draw_pair(tmp_path, f"drawn{number}", number, objects=6, shape=shape)
        for number, shape in enumerate(shapes)
    ]
    decoder = KnownDistances(load_image(config, pair)[1] for pair in pairs)
    draw_discs(predictor)
    *tested, validation = pairs
    config.evaluate = replace(config.evaluate, modes=[mode], points_per_side=8)
    evaluate(config, predictor, tested, run, ignore, decoder=decoder, validation=[validation])
    if mode == "amg":
        generator = AutomaticMaskGenerator(predictor, points_per_side=8, points_per_batch=2)
    else:
        generator = GENERATORS[mode](predictor, decoder)
    folder = tmp_path / "micro_sam"
    (folder / "predictions").mkdir(parents=True)
    values = grid_values(config.evaluate, mode)
    _, labels = load_image(config, validation)
    tifffile.imwrite(tmp_path / "validation.tif", labels)
    run_instance_segmentation_grid_search_and_inference(
        generator,
        values,
        [validation.image],
        [tmp_path / "validation.tif"],
        [pair.image for pair in tested],
        embedding_dir=None,
        prediction_dir=folder / "predictions",
        experiment_folder=folder,
        result_dir=folder / "search",
        fixed_generate_kwargs={"batch_size": 2} if mode == "apg" else None,
        verbose_gs=False,
    )
    row = rows_of(run)[Measurement(mode)]
    found = read_json(run.grid_search)[mode]
    assert found["tried"] == len(combinations(values)) > 3
    best = pd.read_csv(next((folder / "results").glob("*.csv"))).iloc[0]
    assert 0 < found["mSA"] < 1
    assert found["mSA"] == pytest.approx(best["best_msa"], abs=1e-9)
    assert {name: row["parameters"][name] for name in values} == {name: best[name] for name in values}
    for pair in tested:
        their = imageio.imread(folder / "predictions" / pair.image.name)
        np.testing.assert_array_equal(saved(run, Measurement(mode), pair), their)
        assert their.max() > 1
    assert row["n_predicted"] > 0
    assert unmeasured(config, run) == []


def test_parameters_are_searched_again_only_for_other_values(config, predictor, decoder, pairs, run):
    config.evaluate.modes = ["ais"]
    images = {"decoder": decoder, "validation": pairs[2:]}
    reports: list[tuple[str, int, int]] = []

    def listen(phase: str, done: int, total: int) -> None:
        reports.append((phase, done, total))
        if (phase, done) == ("evaluating", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(config, predictor, pairs[:2], run, listen, **images)
    assert reports == [("searching", 0, 1), ("evaluating", 0, 2), ("evaluating", 1, 2)]
    searched = read_json(run.grid_search)["ais"]
    evaluate(config, predictor, pairs[:2], run, ignore, **images)
    assert read_json(run.grid_search)["ais"] == searched
    assert unmeasured(config, run) == []

    config.evaluate.grid = "defaults"
    assert unmeasured(config, run) == [Measurement("ais")]
    evaluate(config, predictor, pairs[:2], run, ignore, **images)
    parameters = rows_of(run)[Measurement("ais")]["parameters"]
    assert parameters["center_distance_threshold"] == 0.5
    assert parameters["settings"] == {"grid": "defaults"}
    assert unmeasured(config, run) == []


def test_a_mode_that_needs_a_decoder_has_a_row_that_says_so(config, predictor, pairs, run):
    config.evaluate.modes = ["ais", "box", "apg"]
    evaluate(config, predictor, pairs[:1], run, ignore, validation=pairs[2:])
    rows = rows_of(run)
    for mode in ("ais", "apg"):
        row = rows[Measurement(mode)]
        assert row["note"] == NO_DECODER
        assert (row["SA50"], row["n_test_images"], row["seconds_per_image"]) == (None, 0, None)
    assert rows[Measurement("box")]["n_test_images"] == 1
    assert unmeasured(config, run) == []


def test_without_a_prompt_one_mask_is_compared_with_the_union_of_all_objects(config, predictor, pairs, run):
    config.evaluate.modes = ["no_prompt"]
    evaluate(config, predictor, pairs[:1], run, ignore)
    image, labels = load_image(config, pairs[0])
    embed(predictor, image).tiles[0].select(predictor)
    with torch.no_grad():
        mask = predictor.predict_torch(None, None, multimask_output=False)[0][0, 0].numpy()
    row = rows_of(run)[Measurement("no_prompt")]
    hits, either = (mask & (labels > 0)).sum(), (mask | (labels > 0)).sum()
    assert row["mIoU"] == pytest.approx(hits / either, abs=1e-12)
    assert (row["SA50"], row["mSA"]) == (None, None)
    np.testing.assert_array_equal(saved(run, Measurement("no_prompt"), pairs[0]) > 0, mask)


def test_a_large_image_is_measured_in_tiles(config, predictor, decoder, tmp_path, run, monkeypatch):
    """Tiles of 64 pixels and a halo of 16, on an image of 96 x 120 pixels."""
    monkeypatch.setattr(evaluation_images, "TILE_SHAPE", (64, 64))
    monkeypatch.setattr(evaluation_images, "TILE_HALO", (16, 16))
    image, labels = load_image(config, draw_pair(tmp_path, "large", seed=5, objects=8))
    embedded = embed(predictor, image, longest=100)
    assert embedded.tiled
    assert len(embedded.tiles) == 4
    covered = np.zeros(labels.shape, dtype=int)
    for tile in embedded.tiles:
        covered[tile.inner] += 1
    assert (covered == 1).all()

    config.evaluate = replace(
        config.evaluate, modes=["point", "box", "amg", "ais", "apg", "no_prompt"], rounds=1
    )
    model = Model(predictor, decoder, config.evaluate)
    parameters = {mode: {} for mode in ("ais", "apg")}
    parameters["amg"] = {"pred_iou_thresh": 0.01, "stability_score_thresh": 0.3}
    wanted = [
        *(Measurement(mode, number) for mode in ("point", "box") for number in (0, 1)),
        *(Measurement(mode) for mode in ("amg", "ais", "apg", "no_prompt")),
    ]
    found = dict(measure(model, embedded, labels, wanted, parameters, SEED, "large"))
    assert list(found) == wanted
    for outcome in found.values():
        assert outcome.segmentation.shape == labels.shape
        assert 0 <= outcome.metrics["mIoU"] <= 1


def test_tiles_see_what_an_image_of_their_own_would(config, predictor, tmp_path, monkeypatch):
    """An object in the middle of a tile gets the mask that it has when the tile is the whole image."""
    monkeypatch.setattr(evaluation_images, "TILE_SHAPE", (64, 64))
    monkeypatch.setattr(evaluation_images, "TILE_HALO", (16, 16))
    labels = np.zeros((64, 128), dtype="uint16")
    labels[20:40, 84:110] = 1
    image, labels = load_image(config, write_pair(tmp_path, "wide", labels, np.random.default_rng(0)))
    model = Model(predictor, None, config.evaluate)
    wanted = [Measurement("box"), Measurement("box", 1, True)]
    in_tiles = dict(measure(model, embed(predictor, image, longest=100), labels, wanted, {}, SEED, "wide"))
    alone = embed(predictor, image[:, 48:])
    by_itself = dict(measure(model, alone, labels[:, 48:], wanted, {}, SEED, "wide"))
    for each in wanted:
        np.testing.assert_array_equal(in_tiles[each].segmentation[:, 48:], by_itself[each].segmentation)
        assert in_tiles[each].metrics == by_itself[each].metrics
        assert by_itself[each].segmentation.any()


def test_a_tiled_embedding_is_read_back_from_the_disk(config, predictor, decoder, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_images, "TILE_SHAPE", (64, 64))
    monkeypatch.setattr(evaluation_images, "TILE_HALO", (16, 16))
    image, labels = load_image(config, draw_pair(tmp_path, "large", seed=5, objects=8))
    store = DiskStore(tmp_path / "store")
    computed = embed(predictor, image, store, longest=100)
    monkeypatch.delattr(evaluation_images, "precompute_image_embeddings")
    read = embed(predictor, image, store, longest=100)
    assert read.seconds == computed.seconds
    model = Model(predictor, decoder, config.evaluate)
    wanted = [Measurement("box"), Measurement("ais")]
    both = [dict(measure(model, one, labels, wanted, {"ais": {}}, SEED, "large")) for one in (computed, read)]
    for each in wanted:
        np.testing.assert_array_equal(both[0][each].segmentation, both[1][each].segmentation)


def test_objects_at_the_border_tiny_touching_and_filling_ones_can_all_be_corrected(
    config, predictor, decoder, tmp_path, run
):
    """Prompts, rounds and metrics exist for each; an object of one pixel counts as any other."""
    labels = np.zeros((48, 64), dtype="uint16")
    labels[0:10, 0:12] = 1  # in the corner
    labels[20, 30] = 2  # one pixel
    labels[30:40, 10:20], labels[30:40, 20:30] = 3, 4  # touching
    full = np.ones((48, 64), dtype="uint16")
    generator = np.random.default_rng(0)
    pairs = [
        write_pair(tmp_path, "edges", labels, generator),
        write_pair(tmp_path, "full", full, generator),
    ]
    config.evaluate = replace(
        config.evaluate, modes=["point", "box", "ais", "apg"], rounds=2, grid="defaults"
    )
    evaluate(config, predictor, pairs, run, ignore, decoder=decoder)
    rows = rows_of(run)
    assert len(rows) == 12
    assert {row["n_objects"] for row in rows.values()} == {5}
    assert {row["n_test_images"] for row in rows.values()} == {2}
    assert all(0 <= row["SA50"] <= 1 and 0 <= row["mIoU"] <= 1 for row in rows.values())


def test_an_empty_prediction_scores_zero(config, predictor, decoder, pairs, run, monkeypatch):
    """No mask is likely enough, and no distance small enough for a seed."""
    config.evaluate.modes = ["amg", "ais", "apg"]
    config.evaluate.small_grid = {
        "amg": {"pred_iou_thresh": [9.0], "stability_score_thresh": [0.9]},
        "ais": {"center_distance_threshold": [-1.0]},
        "apg": {"center_distance_threshold": [-1.0]},
    }
    evaluate(config, predictor, pairs[:1], run, ignore, decoder=decoder, validation=pairs[2:])
    for row in read_metrics(run.metrics):
        assert {row[name] for name in ("mSA", "SA50", "precision", "recall", "F1", "mIoU", "mF1")} == {0.0}
        assert (row["n_predicted"], row["n_test_images"]) == (0, 1)


def test_the_grid_of_the_study_is_micro_sams(config):
    sizes = {}
    for mode in ("amg", "ais", "apg"):
        config.evaluate.grid = "study"
        sizes[mode] = len(combinations(grid_values(config.evaluate, mode)))
    assert sizes == {"amg": 210, "ais": 525, "apg": 750}


def test_pictures_show_objects_found_missed_and_wrong(tmp_path, monkeypatch):
    """Of three objects one is found and two are missed; a prediction beside them is wrong."""
    labels = np.zeros((60, 80), dtype="uint32")
    labels[5:25, 5:25], labels[5:25, 40:60], labels[40:55, 10:30] = 1, 2, 3
    segmentation = np.zeros_like(labels)
    segmentation[5:25, 7:27], segmentation[40:55, 50:70] = 7, 9
    named = []
    monkeypatch.setattr(
        pictures, "Patch", lambda color, label: named.append(label) or Patch(color=color, label=label)
    )
    image = np.full(labels.shape, 50, dtype="uint8")
    pictures.draw(image, labels, segmentation, tmp_path / "pictures" / "box-a.png")
    assert named == ["1 wrong", "2 missed", "1 found"]
    drawn = imageio.imread(tmp_path / "pictures" / "box-a.png")
    for colour in (pictures.TRUTH, pictures.PREDICTED, pictures.FOUND, pictures.MISSED, pictures.WRONG):
        red, green, blue = (int(colour[first : first + 2], 16) for first in (1, 3, 5))
        assert (drawn[..., :3] == (red, green, blue)).all(axis=-1).any()


def test_the_picture_of_a_foreground_tells_pixels_and_no_objects(tmp_path, monkeypatch):
    """Of two squares of 400 of 4800 pixels a mask finds one, and as many pixels beside them."""
    truth = np.zeros((60, 80), dtype=bool)
    predicted = np.zeros_like(truth)
    truth[5:25, 5:25], truth[35:55, 5:25] = True, True
    predicted[5:25, 5:25], predicted[5:25, 50:70] = True, True
    named = []
    monkeypatch.setattr(
        pictures, "Patch", lambda color, label: named.append(label) or Patch(color=color, label=label)
    )
    pictures.draw_foreground(np.full(truth.shape, 50, dtype="uint8"), truth, predicted, tmp_path / "a.png")
    assert named == ["8% wrong", "8% missed", "8% found"]
    drawn = imageio.imread(tmp_path / "a.png")
    for colour in (pictures.FOUND, pictures.MISSED, pictures.WRONG):
        red, green, blue = (int(colour[first : first + 2], 16) for first in (1, 3, 5))
        assert (drawn[..., :3] == (red, green, blue)).all(axis=-1).any()


def test_pictures_of_the_first_images_are_drawn_once_they_are_asked_for(
    config, predictor, decoder, pairs, run
):
    config.evaluate = replace(
        config.evaluate, modes=["box", "no_prompt"], rounds=1, pictures=0, save_predictions=False
    )
    evaluate(config, predictor, pairs, run, ignore)
    assert not (run.results / "pictures").exists()
    before = {each: row["SA50"] for each, row in rows_of(run).items()}
    config.evaluate.pictures = 2
    assert unmeasured(config, run) == [Measurement("box"), Measurement("no_prompt")]
    evaluate(config, predictor, pairs, run, ignore)
    assert sorted(path.name for path in (run.results / "pictures").iterdir()) == [
        *("box-image0.png", "box-image1.png", "no_prompt-image0.png", "no_prompt-image1.png")
    ]
    assert {each: row["SA50"] for each, row in rows_of(run).items()} == before
    assert unmeasured(config, run) == []
