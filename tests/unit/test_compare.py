"""Differences to a baseline, paired over test images; the statistics are held against scipy's."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from measured_runs import images, write_run, write_sweep
from scipy import stats

from refsam import cli
from refsam.records.bootstrap import RESAMPLES, bootstrap_interval
from refsam.records.metrics import Measurement
from refsam.records.paths import RunsFolder
from refsam.records.per_image import read_values
from refsam.records.status import State, Status, write_status
from refsam.results.comparing.compare import Difference, holm, paired_difference
from refsam.system.files import write_json


@pytest.fixture
def folder(tmp_path: Path) -> RunsFolder:
    """A sweep of full finetuning and LoRA, one seed, and LoRA with five images; ten test images."""
    folder = RunsFolder(tmp_path / "runs")
    full = np.linspace(0.2, 0.7, 10)
    noise = np.random.default_rng(3).normal(0, 0.02, 10)
    write_run(folder, "vit_b-full-n1", {"box": images(*full), "point": images(*(full / 2))})
    write_run(folder, "vit_b-lora-n1", {"box": images(*(full + 0.1 + noise))})
    write_run(folder, "vit_b-lora-n5", {"box": images(*(full + noise)), "point": images(*(full / 2 + noise))})
    write_sweep(
        folder,
        {
            "vit_b-full-n1": {"peft": "full"},
            "vit_b-lora-n1": {"peft": "lora"},
            "vit_b-lora-n5": {"peft": "lora", "n_images": 5},
        },
    )
    return folder


def run(folder: RunsFolder, *arguments: str) -> int:
    return cli.main(["compare", "study", "--runs", str(folder.root), *arguments])


def compared(folder: RunsFolder, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    status = run(folder, "--json", *arguments)
    assert status == 0
    return json.loads(capsys.readouterr().out)


def test_an_interval_is_scipy_s_percentile_bootstrap():
    values = np.random.default_rng(0).gamma(2, 0.1, 40)
    low, high = bootstrap_interval(values.tolist(), seed=0)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    )
    error = values.std() / math.sqrt(len(values))
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.1 * error)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.1 * error)
    assert RESAMPLES >= 1000


def test_a_difference_is_scipy_s_paired_bootstrap_and_signed_rank_test():
    random = np.random.default_rng(5)
    first = random.uniform(0.2, 0.8, 30)
    second = first + random.normal(0.05, 0.1, 30)
    found = paired_difference({0: images(*first)}, {0: images(*second)})
    assert found is not None
    expected = stats.bootstrap(
        (second, first),
        lambda other, baseline, axis=-1: np.mean(other - baseline, axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.difference == pytest.approx(second.mean() - first.mean())
    assert (found.baseline, found.mean) == (pytest.approx(first.mean()), pytest.approx(second.mean()))
    assert found.low == pytest.approx(expected.low, abs=0.002)
    assert found.high == pytest.approx(expected.high, abs=0.002)
    assert found.p == pytest.approx(stats.wilcoxon(second, first).pvalue)
    assert found.excludes_zero == (expected.low > 0 or expected.high < 0)


def test_intervals_hold_the_true_difference_about_as_often_as_they_say():
    """95 % is for many images; of 40 the percentile bootstrap holds a little less."""
    random = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        first = random.uniform(0.2, 0.8, 40)
        found = paired_difference({0: images(*first)}, {0: images(*(first + random.normal(0.05, 0.1, 40)))})
        assert found is not None
        held += found.low <= 0.05 <= found.high
    assert 0.91 <= held / 400 <= 0.98


def test_adjusted_probabilities_are_those_of_holm_s_paper():
    """Worked by hand: the smallest times 4, the next times 3, …; at least the one before, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_image_is_averaged_over_the_seeds_that_both_have():
    baseline = {0: images(0.1, 0.3), 1: images(0.3, 0.5)}
    other = {0: images(0.2, 0.5), 1: images(0.6, 0.7), 2: images(1.0, 1.0)}
    found = paired_difference(baseline, other)
    assert found is not None
    assert found.seeds == (0, 1)
    assert found.n_images == 2
    assert (found.baseline, found.mean) == (pytest.approx(0.3), pytest.approx(0.5))
    assert found.p is None  # of so few images


def test_seeds_that_test_on_other_images_pair_each_with_itself():
    """A seeded split has other test images for each seed."""
    baseline = {0: {"a": 0.1, "b": 0.2}, 1: {"b": 0.6, "c": 0.3}}
    other = {0: {"a": 0.2, "b": 0.3}, 1: {"b": 0.8, "c": 0.4}}
    found = paired_difference(baseline, other)
    assert found is not None
    assert (found.n_images, found.n_left_out) == (3, 0)
    assert found.difference == pytest.approx((0.1 + (0.1 + 0.2) / 2 + 0.1) / 3)


def test_settings_without_a_common_seed_are_averaged_before_they_are_compared():
    found = paired_difference({0: images(0.1, 0.2)}, {1: images(0.3, 0.4), 2: images(0.5, 0.6)})
    assert found is not None
    assert found.difference == pytest.approx(0.3)
    assert found.seeds == (1, 2)


def test_images_that_only_one_has_are_counted_and_left_out():
    found = paired_difference({0: {"a": 0.1, "b": 0.2, "c": 0.3}}, {0: {"b": 0.3, "c": 0.4, "d": 1.0}})
    assert found is not None
    assert (found.n_images, found.n_left_out) == (2, 2)
    assert found.difference == pytest.approx(0.1)
    assert paired_difference({0: {"a": 0.1}}, {0: {"b": 0.1}}) is None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0.2,), (0.5,), (None, None, None, None)),
        ((0.2,) * 5, (0.5,) * 5, (None, None, None, None)),
        ((0.2, 0.4, 0.6) * 2, (0.2, 0.4, 0.6) * 2, (0.0, 0.0, 1.0, False)),
        ((0.25, 0.5, 0.75) * 2, (0.5, 0.75, 1.0) * 2, (0.25, 0.25, 0.03125, True)),
    ],
    ids=["one image", "five images", "no difference", "no variance"],
)
def test_the_edges_have_no_surprises(first, second, expected):
    found = paired_difference({0: images(*first)}, {0: images(*second)})
    assert isinstance(found, Difference)
    low, high, p, excludes = expected
    assert (found.low, found.high, found.excludes_zero) == (low, high, excludes)
    assert found.p == (p if p is None else pytest.approx(p))


def test_every_other_setting_is_compared_in_the_modes_that_both_have(folder, capsys):
    found = compared(folder, capsys, "--baseline", "model=vit_b,peft=full")
    assert found["baseline"]["run_ids"] == ["vit_b-full-n1"]
    rows = {(row["strategy"], row["n_images"], row["mode"]): row for row in found["comparisons"]}
    assert list(rows) == [("lora", 1, "box"), ("lora", 5, "box"), ("lora", 5, "point")]
    better, same = rows["lora", 1, "box"], rows["lora", 5, "box"]
    assert better["difference"] == pytest.approx(0.1, abs=0.02)
    assert better["excludes_zero"]
    assert not same["excludes_zero"]
    assert better["p_holm"] == pytest.approx(3 * better["p"])
    assert [row["n_test_images"] for row in found["comparisons"]] == [10] * 3  # beside those of the training
    (path,) = [Path(name) for name in found["files"] if name.endswith(".csv")]
    with path.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["difference"]) for row in written] == [
        row["difference"] for row in found["comparisons"]
    ]
    assert [(row["n_images"], row["n_test_images"]) for row in written] == [
        ("1", "10"),
        ("5", "10"),
        ("5", "10"),
    ]
    origin = json.loads(path.with_suffix(".json").read_text())
    assert origin["run_ids"] == ["vit_b-full-n1", "vit_b-lora-n1", "vit_b-lora-n5"]
    assert "| lora | 5 | box | 10 |" in path.with_suffix(".md").read_text()


def test_the_table_says_what_is_compared_and_how(folder, capsys):
    assert run(folder, "--baseline", "vit_b-full-n1", "--where", "mode=box") == 0
    text = capsys.readouterr().out
    assert "Compared with full, 1 image (seed 0)." in text
    assert "Holm for the 2 comparisons" in text
    assert "point" not in text


def test_a_run_is_named_by_its_beginning_and_stands_alone(folder, capsys):
    write_run(folder, "vit_b-full-n1-s1", {"box": images(*np.linspace(0.3, 0.8, 10))})
    sweep = json.loads(folder.sweep("study").manifest.read_text())
    fixed = sweep["runs"][0]["overrides"]
    sweep["runs"].append({"run_id": "vit_b-full-n1-s1", "overrides": {**fixed, "seed": 1}})
    write_json(folder.sweep("study").manifest, sweep)
    found = compared(folder, capsys, "--baseline", "vit_b-full-n1", "--where", "mode=box")
    assert found["baseline"]["run_ids"] == ["vit_b-full-n1"]
    other_seed = found["comparisons"][0]
    assert (other_seed["run_ids"], other_seed["seeds"]) == (["vit_b-full-n1-s1"], [1])
    found = compared(folder, capsys, "--baseline", "peft=full", "--where", "mode=box")
    assert found["baseline"]["run_ids"] == ["vit_b-full-n1", "vit_b-full-n1-s1"]


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        (
            "model=vit_b",
            "one of 3 settings: full, 1 image; lora, 1 image; lora, 5 images; choose by strategy=full or",
        ),
        (
            "peft=lora",
            "--baseline='peft=lora', which may be one of 2 settings: 1 image; 5 images; choose by n_images=1",
        ),
        (
            "peft=full,n_images=5",
            "no setting with results has all these values; there are full, 1 image; lora",
        ),
        ("peft=lroa", "did you mean lora"),
        ("modle=vit_b", "did you mean model"),
        ("vit_b-lora", "one of vit_b-lora-n1; vit_b-lora-n5"),
        ("vit_b-fulll-n1", "did you mean vit_b-full-n1"),
        ("", "got nothing"),
    ],
)
def test_a_baseline_that_is_unclear_is_refused_with_the_candidates(folder, capsys, baseline, words):
    assert run(folder, "--baseline", baseline) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["study", "--baseline", "peft=full", "--metric", "SA_50"], "did you mean SA50"),
        (["study", "--baseline", "peft=full", "--where", "mode=boxes"], "did you mean box"),
        (["study", "--baseline", "peft=full", "--style", "nowhere"], "not a file"),
        (["stduy", "--baseline", "peft=full"], "did you mean study"),
        (["study"], "--baseline must be a run or AXIS=VALUE, such as model=vit_b, got nothing"),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, arguments, words):
    assert cli.main(["compare", *arguments, "--runs", str(folder.root)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_sweep_without_a_completed_run_says_so(tmp_path, capsys):
    folder = RunsFolder(tmp_path / "runs")
    write_run(folder, "a", {"box": images(0.1)}, state=State.running)
    write_sweep(folder, {"a": {"peft": "full"}})
    assert run(folder, "--baseline", "peft=full") == 0
    assert "No run of sweep study is completed yet" in capsys.readouterr().out


def test_a_run_that_has_not_ended_is_no_baseline(folder, capsys):
    write_status(folder.run("vit_b-lora-n1"), Status(State.running, attempt=1))
    assert run(folder, "--baseline", "vit_b-lora-n1") == 2
    assert "run vit_b-lora-n1 is running" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image,mode\nhalf", "is damaged"),
        ("image,mode,n_objects,SA50\na,box,three,0.5\n", "is damaged"),
        ("\x00\xff", "is damaged"),
        (None, "is missing"),
        ("image,mode,n_objects,SA50\na,box,3,0.5\n", "does not have the images"),
    ],
)
def test_a_damaged_per_image_file_is_named_and_the_others_are_compared(folder, capsys, content, words):
    path = folder.run("vit_b-lora-n1").per_image
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode("latin-1"))
    assert run(folder, "--baseline", "peft=full", "--json") == 1
    out, error = capsys.readouterr()
    assert words in error
    assert str(path) in error
    assert {row["n_images"] for row in json.loads(out)["comparisons"]} == {5}


def test_images_without_a_value_and_files_of_the_first_format_are_read(tmp_path):
    path = tmp_path / "per_image.csv"
    path.write_text("image,mode,n_objects,SA50\na,box,3,0.5\nb,box,2,nan\nc,box,0,0.0\nd,point,1,0.25\n")
    assert read_values(path, "SA50") == {Measurement("box"): {"a": 0.5}, Measurement("point"): {"d": 0.25}}


def test_runs_that_were_configured_differently_are_settings_of_their_own(tmp_path, capsys):
    """The table has no column of the learning rate, and runs that differ in it are no seeds."""
    folder = RunsFolder(tmp_path / "runs")
    base = ("resource=local", "model=vit_nano", "model.weights=random", "peft=full", "n_objects=10")
    values = {"slow": ("1e-5", 0), "slow1": ("1e-5", 1), "fast": ("1e-3", 0)}
    for number, (name, (rate, seed)) in enumerate(values.items()):
        overrides = (*base, "n_images=1", f"train.lr={rate}", f"seed={seed}")
        write_run(folder, name, {"box": images(0.1 * number, 0.3, 0.4)}, overrides)
    write_sweep(folder, {name: {} for name in values})
    assert run(folder, "--baseline", "peft=full") == 2
    assert "train.lr=" in capsys.readouterr().err
    found = compared(folder, capsys, "--baseline", "lr=1e-3")
    assert found["baseline"]["run_ids"] == ["fast"]
    (row,) = found["comparisons"]
    assert (row["train.lr"], row["run_ids"], row["seeds"]) == (1e-5, ["slow", "slow1"], [0])


def test_the_forest_plot_has_a_panel_per_mode_and_carries_its_origin(folder, capsys):
    assert run(folder, "--baseline", "peft=full", "--plot", "--width", "1") == 0
    figures = [Path(line) for line in capsys.readouterr().out.splitlines() if "/figures/" in line]
    assert [path.suffix for path in figures] == [".png", ".pdf", ".svg"]
    assert "3 runs: vit_b-full-n1" in figures[2].read_text()


@pytest.mark.parametrize("width", [1, 2])
def test_nothing_overlaps_or_is_cut_off_in_the_forest_plot(folder, monkeypatch, width):
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    assert run(folder, "--baseline", "peft=full", "--plot", "--width", str(width)) == 0
    page = drawn[0]
    page.canvas.draw()
    assert [panel.get_title() for panel in page.axes] == ["Box", "Point"]
    # An axis keeps ticks beyond its ends, which are not drawn.
    numbers = [
        label.get_window_extent()
        for panel in page.axes
        for label in panel.get_xticklabels()
        if label.get_visible() and label.get_text() and _is_inside(label, panel)
    ]
    boxes = [*(panel.get_tightbbox() for panel in page.axes), page._supxlabel.get_window_extent()]
    for some in (numbers, boxes):
        for number, box in enumerate(some):
            assert not any(box.overlaps(other) for other in some[:number])
            assert box.x0 >= -1
            assert box.y0 >= -1
            assert box.x1 <= page.bbox.x1 + 1
            assert box.y1 <= page.bbox.y1 + 1


def _is_inside(label: Text, panel: Axes) -> bool:
    low, high = panel.get_xlim()
    return low <= label.get_position()[0] <= high


def test_runs_of_another_folder_are_compared_too(folder, tmp_path, capsys):
    theirs = RunsFolder(tmp_path / "theirs")
    write_run(theirs, "vit_b-full-n10", {"box": images(*np.linspace(0.4, 0.9, 10))})
    write_sweep(theirs, {"vit_b-full-n10": {"peft": "full", "n_images": 10}})
    joined = ("--join", str(theirs.root), "--baseline", "vit_b-full-n1")
    found = compared(folder, capsys, *joined)
    (row,) = [each for each in found["comparisons"] if each["n_images"] == 10]
    assert row["difference"] == pytest.approx(0.2)
    assert all(Path(path).parent == folder.joined.tables for path in found["files"])
    assert not (folder.sweep("study").tables).exists()
    assert run(folder, "--join", str(tmp_path / "nobody"), "--baseline", "vit_b-full-n1") == 2
    assert capsys.readouterr().err == f"refsam: --join '{tmp_path}/nobody' is not a folder\n"
