"""Our evaluation against micro-sam's own, on the same files, and its record."""

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from drawn_images import draw_pair, ignore
from micro_sam.evaluation import run_evaluation
from micro_sam.evaluation.inference import run_inference_with_prompts
from micro_sam.util import _compute_hash
from segment_anything import SamPredictor

from refsam.configuration.compose import compose
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.datasets.pair import Pair
from refsam.records.metrics import QLORA_SAM_METRICS, Measurement, read_metrics
from refsam.records.paths import RunPaths
from refsam.science.evaluation import evaluate, images, measuring, single_pass, unmeasured
from refsam.science.evaluation.images import center_of, shared_embeddings
from refsam.science.evaluation.prompts import rounds
from refsam.science.metrics import segmentation_metrics
from refsam.science.models import initial_predictor

MODES = ("point", "box")
FIRST_PROMPTS = [Measurement(mode) for mode in MODES]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These images are small; several threads only wait for each other where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def discs(tmp_path: Path) -> list[Pair]:
    """Three 8 bit images of discs, two of them touching or cut by the border somewhere."""
    folder = tmp_path / "data"
    folder.mkdir()
    return [draw_pair(folder, f"image{number}", seed=number) for number in range(3)]


@pytest.fixture
def baseline_config(tmp_path: Path) -> RefsamConfig:
    config = compose(["model=vit_nano", "dataset=synthetic", "seed=3", f"data={tmp_path / 'data'}"])
    config.kind = Kind.baseline
    config.evaluate.modes = list(MODES)
    config.evaluate.batch_size = 2
    config.evaluate.save_predictions = True
    return config


@pytest.fixture
def nano(baseline_config: RefsamConfig) -> SamPredictor:
    predictor, _, _ = initial_predictor(baseline_config.model, baseline_config.seed, "cpu")
    return predictor


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "runs" / "vit_nano-baseline")
    paths.root.mkdir(parents=True)
    return paths


def metrics_of(paths: RunPaths, mode: str) -> dict[str, Any]:
    """The row of a mode's first prompt in metrics.json."""
    return next(row for row in read_metrics(paths.metrics) if (row["mode"], row["round"]) == (mode, 0))


def _micro_sam_predictions(
    predictor: SamPredictor, pairs: list[Pair], folder: Path, mode: str, config: RefsamConfig
) -> list[Path]:
    run_inference_with_prompts(
        predictor,
        [pair.image for pair in pairs],
        [pair.label for pair in pairs],
        embedding_dir=folder / "embeddings",
        prediction_dir=folder / mode,
        use_points=mode == "point",
        use_boxes=mode == "box",
        n_positives=1 if mode == "point" else 0,
        n_negatives=0,
        dilation=config.evaluate.dilation,
        batch_size=config.evaluate.batch_size,
    )
    return [folder / mode / pair.image.name for pair in pairs]


def _images_in_record(paths: RunPaths) -> list[tuple[str, str]]:
    with paths.per_image.open(encoding="utf-8", newline="") as file:
        return [(row["image"], row["mode"]) for row in csv.DictReader(file)]


def test_segmentations_and_metrics_are_those_of_micro_sam(baseline_config, nano, discs, run, tmp_path):
    evaluate(baseline_config, nano, discs, run, ignore)
    assert [row["mode"] for row in read_metrics(run.metrics)] == list(MODES)
    for mode in MODES:
        saved = [run.predictions(mode) / f"{pair.name}.tif" for pair in discs]
        theirs = _micro_sam_predictions(nano, discs, tmp_path / "micro_sam", mode, baseline_config)
        for ours, their in zip(saved, theirs, strict=True):
            assert imageio.imread(ours).dtype == np.uint32
            np.testing.assert_array_equal(imageio.imread(ours), imageio.imread(their))
        assert any(imageio.imread(ours).max() > 1 for ours in saved)

        expected = run_evaluation([pair.label for pair in discs], saved, verbose=False).iloc[0]
        names = {"mSA": "mSA", "SA50": "SA50", "SA75": "SA75", "Precision": "precision", "Recall": "recall"}
        for theirs_name, ours_name in {**names, "F1 Score": "F1"}.items():
            assert metrics_of(run, mode)[ours_name] == pytest.approx(expected[theirs_name], abs=1e-9)
        assert metrics_of(run, mode)["n_test_images"] == len(discs)


def test_metrics_of_a_good_prediction_equal_run_evaluation(tmp_path, discs):
    """A random model matches nothing; shifted labels have scores between 0 and 1."""
    predictions = []
    for pair in discs:
        predictions.append(tmp_path / f"shifted_{pair.name}.tif")
        tifffile.imwrite(predictions[-1], np.roll(tifffile.imread(pair.label), 3, axis=1))
    expected = run_evaluation([pair.label for pair in discs], predictions, verbose=False).iloc[0]
    ours = [
        segmentation_metrics(tifffile.imread(prediction), tifffile.imread(pair.label))
        for prediction, pair in zip(predictions, discs, strict=True)
    ]
    assert 0 < expected["mSA"] < 1
    for theirs_name, ours_name in {"mSA": "mSA", "SA50": "SA50", "SA75": "SA75", "F1 Score": "F1"}.items():
        mean = np.mean([metrics[ours_name] for metrics in ours])
        assert mean == pytest.approx(expected[theirs_name], abs=1e-9)


def test_a_killed_evaluation_goes_on_with_the_missing_images(
    baseline_config, nano, discs, run, tmp_path, monkeypatch
):
    whole = RunPaths(tmp_path / "runs" / "uninterrupted")
    whole.root.mkdir()
    evaluate(baseline_config, nano, discs, whole, ignore)

    def killed_after_two(phase: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(baseline_config, nano, discs, run, killed_after_two)
    assert len(_images_in_record(run)) == 2 * len(MODES)
    assert unmeasured(baseline_config, run) == FIRST_PROMPTS
    rows_before = run.per_image.read_text().splitlines()

    embedded = _count_calls(monkeypatch, single_pass, "embed")
    evaluate(baseline_config, nano, discs, run, ignore)
    assert len(embedded) == 1
    assert run.per_image.read_text().splitlines()[: len(rows_before)] == rows_before
    assert unmeasured(baseline_config, run) == []
    for mode in MODES:
        interrupted, uninterrupted = (_without_seconds(metrics_of(paths, mode)) for paths in (run, whole))
        assert interrupted == uninterrupted


def _without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("seconds")}


def _count_calls(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[object]:
    calls: list[object] = []
    original: Callable[..., object] = getattr(module, name)

    def counted(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        return original(*arguments, **named)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_a_complete_evaluation_is_not_repeated_and_a_new_mode_is_added(
    baseline_config, nano, discs, run, monkeypatch
):
    baseline_config.evaluate.modes = ["box"]
    evaluate(baseline_config, nano, discs, run, ignore)
    embedded = _count_calls(monkeypatch, single_pass, "embed")
    evaluate(baseline_config, nano, discs, run, ignore)
    assert embedded == []

    boxes = metrics_of(run, "box")
    baseline_config.evaluate.modes = list(MODES)
    decoded = _count_calls(monkeypatch, measuring, "rounds")
    evaluate(baseline_config, nano, discs, run, ignore)
    assert [arguments[3] for arguments in decoded] == ["point"] * len(discs)
    assert metrics_of(run, "box") == boxes


def test_predictions_that_are_asked_for_later_are_made_up_for(baseline_config, nano, discs, run):
    baseline_config.evaluate.save_predictions = False
    evaluate(baseline_config, nano, discs, run, ignore)
    before = metrics_of(run, "box")
    baseline_config.evaluate.save_predictions = True
    assert unmeasured(baseline_config, run) == FIRST_PROMPTS
    evaluate(baseline_config, nano, discs, run, ignore)
    assert len(list(run.predictions("box").glob("*.tif"))) == len(discs)
    after = metrics_of(run, "box")
    assert _without_seconds(after) == {**_without_seconds(before), "predictions_saved": True}
    assert unmeasured(baseline_config, run) == []


def test_metrics_of_another_study_that_are_asked_for_later_are_made_up_for(baseline_config, nano, discs, run):
    with torch.no_grad():  # a random model has no logit of 0.5
        for layers in nano.model.mask_decoder.output_hypernetworks_mlps:
            for parameter in layers.layers[-1].parameters():
                parameter *= 100
    evaluate(baseline_config, nano, discs, run, ignore)
    before = metrics_of(run, "box")
    assert before["mIoU_qlora_sam"] is None
    # A file of the time when there were no such metrics.
    table = pd.read_csv(run.per_image, keep_default_na=False, dtype=str)
    table.drop(columns=list(QLORA_SAM_METRICS)).to_csv(run.per_image, index=False, lineterminator="\n")
    baseline_config.evaluate.modes = ["box", "no_prompt"]
    baseline_config.evaluate.metrics = "qlora_sam"
    assert unmeasured(baseline_config, run) == [Measurement("box"), Measurement("no_prompt")]
    evaluate(baseline_config, nano, discs, run, ignore)
    after, without = metrics_of(run, "box"), metrics_of(run, "no_prompt")
    assert (after["mIoU"], after["mF1"]) == (before["mIoU"], before["mF1"])
    assert 0 < after["mIoU_qlora_sam"] < after["mF1_qlora_sam"] < 1
    assert after["mIoU_qlora_sam"] != after["mIoU"]
    assert without["mIoU"] is not None
    assert without["mIoU_qlora_sam"] is None
    assert unmeasured(baseline_config, run) == []
    rows = pd.read_csv(run.per_image)
    assert rows.loc[rows["mode"] == "point", "mIoU"].notna().all()  # measured before, and kept
    assert rows.loc[rows["mode"] == "box", "mIoU_qlora_sam"].mean() == pytest.approx(after["mIoU_qlora_sam"])
    assert rows.loc[rows["mode"] != "box", "mIoU_qlora_sam"].isna().all()


def test_the_embedding_is_computed_once_per_image(baseline_config, nano, discs, run, monkeypatch):
    embedded = _count_calls(monkeypatch, single_pass, "embed")
    evaluate(baseline_config, nano, discs, run, ignore)
    assert len(embedded) == len(discs)


def test_runs_with_the_same_encoder_share_the_embeddings_on_the_disk(
    baseline_config, nano, discs, run, tmp_path, monkeypatch
):
    rows = []
    for cache, expected in (("off", 3), ("memory", 3), ("disk", 0)):
        embedded = _count_calls(monkeypatch, images, "precompute_image_embeddings")
        baseline_config.train.embedding_cache = cache
        paths = RunPaths(run.root / str(len(rows)))
        evaluate(baseline_config, nano, discs, paths, ignore)
        assert len(embedded) == expected
        rows.append(list(csv.DictReader(paths.per_image.open(newline=""))))
        monkeypatch.undo()
    computed, read = ([row.pop("seconds_embedding") for row in one] for one in rows[1:])
    assert computed == read  # seconds of the computation, not of the reading
    for one in rows:
        for row in one:
            row.pop("seconds_prompts")
            row.pop("seconds_postprocessing")
            row.pop("seconds_embedding", None)
    assert rows[0] == rows[1] == rows[2]


def test_only_an_encoder_that_other_runs_have_is_kept_on_the_disk(baseline_config, nano, run, monkeypatch):
    assert shared_embeddings(baseline_config, nano, run) is not None
    baseline_config.kind = Kind.finetuning
    assert shared_embeddings(baseline_config, nano, run) is None
    baseline_config.peft.freeze = ["image_encoder"]
    assert shared_embeddings(baseline_config, nano, run) is not None
    # Below a data folder that cannot be written, nothing is shared.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert shared_embeddings(baseline_config, nano, run) is None


def test_other_weights_are_measured_again(baseline_config, nano, discs, run, monkeypatch):
    run.checkpoints.mkdir()
    run.best.write_bytes(b"the first weights")
    baseline_config.kind = Kind.finetuning
    nano._hash = _compute_hash(run.best)
    evaluate(baseline_config, nano, discs, run, ignore)
    assert unmeasured(baseline_config, run) == []

    run.best.write_bytes(b"other weights")
    assert unmeasured(baseline_config, run) == FIRST_PROMPTS
    nano._hash = _compute_hash(run.best)
    embedded = _count_calls(monkeypatch, single_pass, "embed")
    evaluate(baseline_config, nano, discs, run, ignore)
    assert len(embedded) == len(discs)
    assert len(_images_in_record(run)) == len(discs) * len(MODES)


def test_progress_is_reported_from_nothing_to_all(baseline_config, nano, discs, run):
    reports = []
    evaluate(baseline_config, nano, discs, run, lambda *report: reports.append(report))
    assert reports == [("evaluating", done, 3) for done in range(4)]


def test_an_image_without_objects_has_a_row_and_is_not_in_the_means(
    baseline_config, nano, discs, run, tmp_path
):
    evaluate(baseline_config, nano, discs, run, ignore)
    without = RunPaths(tmp_path / "runs" / "with_an_empty_image")
    without.root.mkdir()
    empty = draw_pair(tmp_path, "empty", seed=9, objects=0)
    evaluate(baseline_config, nano, [empty, *discs], without, ignore)
    for mode in MODES:
        means, expected = (metrics_of(paths, mode) for paths in (without, run))
        assert means["n_test_images"] == 3
        assert means["SA50"] == expected["SA50"]
        assert means["mIoU"] == expected["mIoU"]
    assert ("empty", "box") in _images_in_record(without)


def test_only_images_without_objects_leave_no_metrics_and_valid_json(baseline_config, nano, run, tmp_path):
    empty = draw_pair(tmp_path, "empty", seed=9, objects=0)
    evaluate(baseline_config, nano, [empty], run, ignore)
    means = metrics_of(run, "box")
    assert means["n_test_images"] == 0
    assert means["SA50"] is None
    assert "NaN" not in run.metrics.read_text()


def test_colour_images_and_names_with_folders(baseline_config, nano, discs, run, tmp_path):
    colour = np.stack([tifffile.imread(discs[0].image)] * 3, axis=-1)
    tifffile.imwrite(tmp_path / "colour.tif", colour)
    evaluate(baseline_config, nano, [Pair("plate/1", tmp_path / "colour.tif", discs[0].label)], run, ignore)
    assert (run.predictions("box") / "plate__1.tif").exists()


def test_masks_of_the_prompts_make_miou_and_mf1(baseline_config, nano, discs, run, monkeypatch):
    """Each mask is the object's own, moved down by one row: the pixels can be counted without refsam."""

    def moved_objects(*arguments):
        for result in rounds(*arguments):
            yield replace(result, decoded=[replace(result.decoded[0], masks=moved)])

    labels = tifffile.imread(discs[0].label)
    objects = [labels == number for number in np.unique(labels)[1:]]
    moved = [np.roll(mask, 1, axis=0) for mask in objects]
    monkeypatch.setattr(measuring, "rounds", moved_objects)
    evaluate(baseline_config, nano, discs[:1], run, ignore)

    hits = sum((mask & truth).sum() for mask, truth in zip(moved, objects, strict=True))
    either = sum((mask | truth).sum() for mask, truth in zip(moved, objects, strict=True))
    metrics = metrics_of(run, "box")
    assert metrics["mIoU"] == pytest.approx(hits / either, abs=1e-12)
    assert metrics["mF1"] == pytest.approx(2 * hits / (hits + either), abs=1e-12)
    assert 0.5 < metrics["mIoU"] < 1


def test_a_mode_that_is_not_known_is_refused(baseline_config, nano, discs, run):
    baseline_config.evaluate.modes = ["scribble"]
    with pytest.raises(ValueError, match="scribble"):
        evaluate(baseline_config, nano, discs, run, ignore)


def test_a_model_with_another_prompt_frame_is_refused(baseline_config, nano, discs, run):
    nano.model.prompt_encoder.input_image_size = (256, 256)
    with pytest.raises(ValueError, match="256"):
        evaluate(baseline_config, nano, discs, run, ignore)


@pytest.mark.parametrize(
    ("shape", "crop", "expected"),
    [
        ((10, 20), None, (slice(0, 10), slice(0, 20))),
        ((10, 20, 3), [4, 6], (slice(3, 7), slice(7, 13))),
        ((10, 20), [40, 6], (slice(0, 10), slice(7, 13))),
    ],
)
def test_a_crop_is_taken_from_the_middle(shape, crop, expected):
    assert center_of(shape, crop) == expected
