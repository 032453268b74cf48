"""Every kind of figure: what it shows, that it is readable in any form, and that it is on the page."""

import itertools
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from refsam import cli
from refsam.records.paths import RunsFolder
from refsam.records.status import State, Status, write_status
from refsam.results.collect import COLUMNS, METRICS, directories_of
from refsam.results.figures.draw import draw_all
from refsam.results.figures.page import FILLS, LINES, MARKERS, Page, models_of, strategy_lines
from refsam.results.figures.scatter import pareto_front
from refsam.results.published import published_runs
from refsam.results.run_rows import INTEGERS
from refsam.system.files import write_json

KINDS = ("study", "memory", "pareto", "training", "heatmap")
TWELVE = [*("full", "lora", "freeze_encoder", "dora", "qlora", "fact"), *(f"strategy_{n}" for n in range(6))]


def row(model: str, strategy: str, n_images: int, seed: int, mode: str = "box") -> dict[str, Any]:
    """A run whose quality and costs follow from what it is."""
    quality = 0.3 + 0.02 * n_images + 0.01 * seed + 0.001 * len(strategy)
    return {
        **dict.fromkeys(COLUMNS),
        "run_id": f"{model}-{strategy}-{n_images}-{seed}",
        "sweep": "study",
        "status": "completed",
        "round": 0,
        "resource": "medium_32g",
        "model": model,
        "weights": "pretrained",
        "dataset": "covid_if",
        "strategy": strategy,
        "n_images": n_images,
        "seed": seed,
        "mode": mode,
        "SA50": quality if mode == "box" else quality / 2,
        "trainable_parameters": 1_000_000 * (1 + len(strategy)),
        "peak_memory_gib": 5.0 + len(strategy) + 0.1 * seed,
        "seconds_total": 60.0 * n_images * (1 + 0.1 * seed) * len(strategy),
    }


def frame_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(INTEGERS, "Int64"))


def study(
    folder: RunsFolder,
    models: list[str],
    strategies: list[str],
    seeds: int,
    modes: tuple[str, ...] = ("box", "ais", "point"),
) -> pd.DataFrame:
    """Every combination, with a history each, and the initial models."""
    rows = [row(model, "baseline", 0, 0, mode) for model in models for mode in modes]
    for model, strategy, n_images, seed in itertools.product(models, strategies, (1, 2, 5, 10), range(seeds)):
        rows += [row(model, strategy, n_images, seed, mode) for mode in modes]
        paths = folder.run(rows[-1]["run_id"])
        paths.root.mkdir(parents=True)
        lines = [f"{epoch},{1 / (epoch + 1 + 0.1 * seed)}" for epoch in range(9)]
        paths.history.write_text("\n".join(["epoch,validation_metric", *lines, ""]))
    return frame_of(rows)


@pytest.fixture
def folder(tmp_path: Path) -> RunsFolder:
    return RunsFolder(tmp_path / "runs")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved from here on."""
    figures: list[Figure] = []
    original = Figure.savefig

    def remembered(self: Figure, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        if self not in figures:
            figures.append(self)

    monkeypatch.setattr(Figure, "savefig", remembered)
    return figures


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize(
    ("models", "strategies", "seeds"),
    [
        (["vit_nano"], ["full", "lora", "freeze_encoder"], 1),
        (["vit_b", "vit_b_lm", "vit_t_em_organelles"], ["full", "lora", "late_ft 25 %"], 3),
        (["vit_b"], TWELVE, 2),
    ],
    ids=["one model", "models and seeds", "twelve strategies"],
)
def test_nothing_overlaps_or_is_cut_off(folder, tmp_path, drawn, width, models, strategies, seeds):
    frame = study(folder, models, strategies, seeds)
    draw_all(
        frame,
        directories_of(frame, folder),
        tmp_path / "figures",
        KINDS,
        page=Page(columns=width, kinds=("svg",)),
    )
    assert len(drawn) >= len(KINDS)
    for page in drawn:
        page.canvas.draw()
        panels = [panel for panel in page.axes if panel.get_visible()]
        boxes = [panel.get_tightbbox() for panel in panels]
        boxes += [legend.get_window_extent() for legend in page.legends]
        boxes += [text.get_window_extent() for text in page.texts]
        for number, box in enumerate(boxes):
            assert box.x0 >= -1
            assert box.y0 >= -1
            assert box.x1 <= page.bbox.x1 + 1
            assert box.y1 <= page.bbox.y1 + 1
            assert not any(box.overlaps(other) for other in boxes[:number])
        for panel in panels:
            labels = [label.get_window_extent() for label in panel.get_xticklabels() if label.get_text()]
            numbers = [text.get_window_extent() for text in panel.texts]
            for texts in (labels, numbers):
                assert not any(
                    first.overlaps(second) for place, first in enumerate(texts) for second in texts[:place]
                )


def test_every_series_has_a_look_of_its_own(folder, tmp_path, drawn):
    frame = study(folder, ["vit_b", "vit_l"], TWELVE, 1, ("box",))
    draw_all(frame, directories_of(frame, folder), tmp_path / "figures", KINDS[:2], page=Page(kinds=("svg",)))
    *quality, memory = drawn
    assert len(quality) == 2  # more strategies than there are styles of lines
    shown = []
    for page in quality:
        lines = [line for line in page.legends[0].legend_handles if line.get_linestyle() != "None"]
        assert len({str(line._unscaled_dash_pattern) for line in lines}) == len(lines) <= len(LINES)
        shown += [line.get_label() for line in lines]
    assert len(set(shown)) == len(TWELVE)
    looks = {
        (bars.lines[0].get_marker(), bars.lines[0].get_fillstyle()) for bars in memory.axes[0].containers
    }
    assert len(looks) == 2 * len(TWELVE)


def test_styles_of_lines_and_markers_do_not_repeat():
    names = [f"strategy_{number}" for number in range(len(LINES))]
    assert len(set(map(str, strategy_lines(names).values()))) == len(LINES)
    assert len(set(MARKERS)) == len(MARKERS) >= 28  # the strategies of conf/peft
    assert len(set(FILLS)) == len(FILLS)


def test_colours_are_apart_for_every_kind_of_colour_vision():
    with Page().styled():
        palette = [to_rgb(color) for color in rcParams["axes.prop_cycle"].by_key()["color"]]
    # Viénot, Brettel, Mollon 1999: linear RGB as somebody without red or green cones sees it.
    without_red = ((0.11238, 0.88762, 0), (0.11238, 0.88762, 0), (0.00401, -0.00401, 1))
    without_green = ((0.29275, 0.70725, 0), (0.29275, 0.70725, 0), (-0.02234, 0.02234, 1))
    for matrix in (None, without_red, without_green):
        seen = []
        for color in palette:
            linear = [channel**2.2 for channel in color]
            if matrix is not None:
                linear = [
                    sum(weight * each for weight, each in zip(line, linear, strict=True)) for line in matrix
                ]
            seen.append([max(0.0, channel) ** (1 / 2.2) for channel in linear])
        for first, second in itertools.combinations(seen, 2):
            assert sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5 > 0.1


def test_points_have_the_deviation_over_seeds(folder, tmp_path, drawn):
    frame = study(folder, ["vit_b"], ["full"], 3, ("box",))
    draw_all(
        frame,
        directories_of(frame, folder),
        tmp_path / "figures",
        ("pareto", "memory"),
        page=Page(kinds=("svg",)),
    )
    pareto, memory = drawn
    for bars, n_images in zip(pareto.axes[0].containers, (1, 2, 5, 10), strict=True):
        across, up = (line.get_segments()[0] for line in bars.lines[2])
        seconds = 60.0 * n_images * 4
        assert across[1][0] - across[0][0] == pytest.approx(2 * 0.1 * seconds / 60)
        assert up[1][1] - up[0][1] == pytest.approx(2 * 0.01)
    assert len(memory.axes[0].containers) == 4
    for bars in memory.axes[0].containers:
        assert len(bars.lines[2]) == 1  # all runs train as many parameters
        assert bars.lines[0].get_ydata() == pytest.approx([9.1])


def test_the_front_is_what_nothing_faster_surpasses_up_to_the_edge(folder, tmp_path, drawn):
    assert pareto_front([3, 1, 2, 4], [0.5, 0.4, 0.3, 0.6]) == [1, 0, 3]
    frame = study(folder, ["vit_b"], ["full"], 1, ("box",))
    draw_all(
        frame, directories_of(frame, folder), tmp_path / "figures", ("pareto",), page=Page(kinds=("svg",))
    )
    (panel,) = drawn[0].axes
    (front,) = (line for line in panel.lines if line.get_label() == "Pareto front")
    assert front.get_xdata()[-1] == panel.get_xlim()[1]
    assert front.get_ydata() == pytest.approx([0.324, 0.344, 0.404, 0.504, 0.504])


def test_a_heat_map_has_a_panel_for_each_model_and_says_what_the_initial_one_reaches(folder, tmp_path, drawn):
    frame = study(folder, ["vit_b", "vit_l"], ["full", "lora"], 2, ("box", "point"))
    paths = draw_all(frame, {}, tmp_path / "figures", ("heatmap",), page=Page(kinds=("svg",)), mode="point")
    assert [path.name for path in paths] == [
        "heatmap_SA50_point_strategy_n_images_covid_if_medium_32g.svg".lower()
    ]
    first, second, _ = drawn[0].axes
    assert [panel.get_title() for panel in (first, second)] == [
        "vit_b\nbaseline 0.154",
        "vit_l\nbaseline 0.154",
    ]
    assert first.texts[0].get_text() == "0.165\n± 0.004"
    assert len(first.texts) == 8


@pytest.mark.parametrize("kind", ["heatmap", "pareto", "study"])
def test_a_deviation_over_seeds_says_whether_it_holds_other_test_sets(folder, tmp_path, drawn, kind):
    frame = study(folder, ["vit_b"], ["full"], 2)
    for split_seed, said in (
        (0, "over seeds"),
        (frame["seed"], "over seeds, each with a split of its own"),
    ):
        drawn.clear()
        rows = frame.assign(split_seed=split_seed)
        draw_all(rows, {}, tmp_path / "figures", (kind,), page=Page(kinds=("svg",)))
        titles = " ".join([drawn[0].get_suptitle(), *(panel.get_title() for panel in drawn[0].axes)])
        assert f"mean and standard deviation {said}" in titles
        assert ("test set" in titles) == ("test set" in said)


@pytest.mark.slow
def test_each_data_set_and_resource_has_figures_of_its_own(folder, tmp_path):
    frame = study(folder, ["vit_b"], ["full"], 1)
    both = pd.concat([frame, frame.assign(resource="v100", run_id=frame["run_id"] + "-v100")])
    paths = draw_all(
        both, {}, tmp_path / "figures", ("memory", "pareto", "heatmap"), page=Page(kinds=("svg",))
    )
    assert len(paths) == 6
    assert sum("v100" in path.name for path in paths) == 3
    one = draw_all(both, {}, tmp_path / "other", ("heatmap",), axes=("resource", "n_images"))
    assert [path.stem for path in one] == 3 * ["heatmap_sa50_box_n_images_resource_covid_if"]


def test_curves_of_joined_runs_are_read_where_each_run_is(tmp_path, drawn):
    mine, theirs = RunsFolder(tmp_path / "mine"), RunsFolder(tmp_path / "theirs")
    frames = [study(mine, ["vit_b"], ["full"], 1, ("box",)), study(theirs, ["vit_l"], ["full"], 1, ("box",))]
    directories = {**directories_of(frames[0], mine), **directories_of(frames[1], theirs)}
    draw_all(pd.concat(frames), directories, tmp_path / "figures", ("training",), page=Page(kinds=("svg",)))
    (page,) = drawn
    assert [panel.get_title().splitlines()[0] for panel in page.axes] == ["vit_b", "vit_l"]
    assert [len(panel.lines) for panel in page.axes] == [4, 4]


def test_weights_of_the_same_model_are_told_apart():
    rows = [row("vit_b", "full", 1, 0), row("vit_b", "full", 1, 0) | {"weights": "/somewhere/mine.pt"}]
    assert models_of(frame_of(rows))["shown_model"].tolist() == ["vit_b, pretrained", "vit_b, mine.pt"]
    assert models_of(frame_of(rows[:1]))["shown_model"].tolist() == ["vit_b"]


def test_the_published_study_is_drawn_with_its_axes_and_encodings(folder, tmp_path, drawn):
    paths = draw_all(published_runs(), {}, tmp_path, ("study",), "seconds_to_best", Page(kinds=("svg",)))
    resources = ["gtx1080", "medium_32g", "medium_64g", "rtx5000", "v100"]
    assert [path.stem for path in paths] == [f"seconds_to_best_covid_if_{name}" for name in resources]
    for page in drawn:
        assert [panel.get_title() for panel in page.axes] == [
            "vit_b\npretrained weights",
            "vit_b_lm\npretrained weights",
        ]
        labels = [label.get_text() for label in page.axes[0].get_xticklabels()]
        assert labels == ["baseline", "1", "2", "5", "10"]
    lines = {bars.get_label().split(", ")[-1]: bars.lines[0] for bars in drawn[-1].axes[0].containers}
    styles = {name: line.get_linestyle() for name, line in lines.items()}
    assert styles == {"full finetuning": "-", "LoRA": ":"}
    assert lines["full finetuning"].get_ydata() == pytest.approx([307, 841, 849, 1584])


def write_sweep(folder: RunsFolder) -> None:
    """A sweep `study` of one run that is completed, with everything that figures show."""
    paths = folder.run("a")
    paths.results.mkdir(parents=True)
    metrics = {**dict.fromkeys(METRICS, 0.1), "n_images": 3, "seconds_per_image": 0.5}
    write_json(paths.metrics, {"box": metrics})
    training = {"best_epoch": 1, "seconds_to_best": 5.0, "seconds_total": 9.0, "peak_memory_gib": 2.0}
    write_json(paths.training, {**training, "trainable_parameters": 1000})
    paths.history.write_text("epoch,validation_metric\n0,0.9\n1,0.5\n")
    write_status(paths, Status(State.completed, attempt=1))
    overrides = {"resource": "local", "model": "vit_nano", "dataset": "nuclei", "peft": "full", "n_images": 1}
    folder.sweep("study").root.mkdir(parents=True)
    runs = [{"run_id": "a", "overrides": overrides}]
    write_json(folder.sweep("study").manifest, {"format": 1, "name": "study", "runs": runs, "skipped": []})


def plot(folder: RunsFolder, *arguments: str) -> int:
    return cli.main(["plot", "study", "--runs", str(folder.root), "--kind", "all", *arguments])


@pytest.mark.slow
def test_every_figure_carries_its_origin_and_embeds_its_fonts(folder, capsys):
    write_sweep(folder)
    assert plot(folder, "--width", "1") == 0
    names = {Path(line).stem for line in capsys.readouterr().out.splitlines()}
    assert names == {
        *("sa50_nuclei_local", "memory_parameters_nuclei_local", "pareto_sa50_box_nuclei_local"),
        *("training_curves_nuclei_local", "heatmap_sa50_box_strategy_n_images_nuclei_local"),
    }
    figures = folder.sweep("study").figures
    for name in names:
        sidecar = json.loads((figures / f"{name}.json").read_text())
        assert sidecar["run_ids"] == ["a"]
        assert sidecar["files"] == [f"{name}.{kind}" for kind in ("png", "pdf", "svg")]
        for kind in ("png", "svg", "pdf"):
            assert b"1 runs: a" in (figures / f"{name}.{kind}").read_bytes()
        pdf = (figures / f"{name}.pdf").read_bytes()
        assert b"/FontFile2" in pdf  # TrueType, embedded
        assert b"/Type3" not in pdf


@pytest.mark.slow
def test_a_damaged_history_is_named_and_the_exit_status_says_so(folder, capsys):
    write_sweep(folder)
    folder.run("a").history.write_text("epoch,validation_metric\nfirst,0.9\n")
    assert plot(folder) == 1
    captured = capsys.readouterr()
    assert f"{folder.run('a').history} is damaged" in captured.err
    assert "training_curves" not in captured.out
    assert "memory_parameters" in captured.out
