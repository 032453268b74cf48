"""The figure of the resource study: what is drawn, and that it is on the page."""

from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from refsam.results.collect import COLUMNS, INTEGERS
from refsam.results.figures.study import figure


def rows_of(strategy: str, n_images: int, value: float, **others: Any) -> list[dict[str, Any]]:
    """A completed run's rows: SA50 is `value` for boxes and half of it for points."""
    row = {
        **dict.fromkeys(COLUMNS),
        "run_id": f"{strategy}-{n_images}",
        "strategy": strategy,
        "n_images": n_images,
        "status": "completed",
        "resource": "local",
        "model": "vit_nano",
        "weights": "random",
        "dataset": "nuclei",
        "seed": 0,
        **others,
    }
    return [{**row, "mode": "point", "SA50": value / 2}, {**row, "mode": "box", "SA50": value}]


def frame_of(*rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame([row for part in rows for row in part], columns=list(COLUMNS))
    return frame.astype({"SA50": "float64", **dict.fromkeys(INTEGERS, "Int64")})


@pytest.fixture
def study() -> pd.DataFrame:
    parts = [rows_of("baseline", 0, 0.2), rows_of("baseline", 0, 0.3, model="vit_b")]
    for model in ("vit_nano", "vit_b"):
        for number, strategy in enumerate(("full", "lora", "freeze_encoder", "dora")):
            parts += [
                rows_of(strategy, n, 0.3 + 0.05 * number + 0.03 * n, model=model) for n in (1, 2, 5, 10)
            ]
    return frame_of(*parts)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved from here on."""
    figures: list[Figure] = []
    original = Figure.savefig

    def remembered(self: Figure, *arguments: Any, **options: Any) -> None:
        if self not in figures:
            figures.append(self)
        original(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remembered)
    return figures


def test_boxes_above_points_and_models_side_by_side(study, tmp_path, drawn):
    paths = figure(study, tmp_path / "figures")
    assert [path.name for path in paths] == [f"sa50_nuclei_local.{kind}" for kind in ("png", "pdf", "svg")]
    panels = np.array(drawn[0].axes).reshape(2, 2)
    assert [panel.get_title() for panel in panels[0]] == [
        "vit_b\nrandom weights",
        "vit_nano\nrandom weights",
    ]
    assert [panel.get_ylabel() for panel in panels[:, 0]] == ["Box\nSA50", "Point\nSA50"]
    assert [label.get_text() for label in panels[1, 0].get_xticklabels()] == ["baseline", "1", "2", "5", "10"]
    title = drawn[0].get_suptitle()
    assert "nuclei" in title
    assert "local" in title


def test_lines_start_at_the_initial_model_and_hold_the_values(study, tmp_path, drawn):
    figure(study, tmp_path)
    lines = {bars.get_label(): bars.lines[0] for bars in drawn[0].axes[1].containers}
    assert set(lines) == {f"Box, {name}" for name in ("full finetuning", "LoRA", "frozen encoder", "DoRA")}
    assert lines["Box, LoRA"].get_ydata() == pytest.approx([0.2, 0.38, 0.41, 0.5, 0.65])
    assert list(lines["Box, LoRA"].get_xdata()) == [0, 1, 2, 3, 4]
    styles = [lines[f"Box, {name}"].get_linestyle() for name in ("full finetuning", "LoRA", "frozen encoder")]
    assert styles == ["-", ":", "--"]
    dashes = {str(line._unscaled_dash_pattern) for line in lines.values()}
    assert len(dashes) == 4


def test_box_is_above_and_the_other_modes_share_the_panels_below(tmp_path, drawn):
    rows = frame_of(rows_of("baseline", 0, 0.2), rows_of("full", 1, 0.5))
    below = [rows[rows["mode"] == "point"].assign(mode=mode) for mode in ("ais", "amg")]
    figure(pd.concat([rows, *below]), tmp_path)
    above, shared = drawn[0].axes
    assert [bars.get_label() for bars in above.containers] == ["Box, full finetuning"]
    assert [bars.get_label().split(",")[0] for bars in shared.containers] == ["AIS", "AMG", "Point"]
    looks = {(bars.lines[0].get_color(), bars.lines[0].get_marker()) for bars in shared.containers}
    assert len({color for color, _ in looks}) == len({marker for _, marker in looks}) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "models", [("vit_nano", "vit_b"), ("vit_nano",), ("vit_t_em_organelles", "vit_b_medical_imaging")]
)
def test_nothing_is_cut_off_or_overlaps(study, tmp_path, drawn, models):
    renamed = dict(zip(("vit_nano", "vit_b"), models, strict=False))
    chosen = study[study["model"].isin(list(renamed))]
    figure(chosen.assign(model=chosen["model"].map(renamed), resource="medium_32g"), tmp_path)
    canvas = drawn[0].canvas
    canvas.draw()
    page = drawn[0].bbox
    panels = [panel.get_tightbbox() for panel in drawn[0].axes]
    legend = drawn[0].legends[0].get_window_extent()
    (title,) = (text.get_window_extent() for text in drawn[0].texts)
    for box in [*panels, legend, title]:
        assert box.x0 >= page.x0
        assert box.y0 >= page.y0
        assert box.x1 <= page.x1 + 1
        assert box.y1 <= page.y1 + 1
    boxes = [*panels, legend, title]
    overlapping = [
        (first, second)
        for first in range(len(boxes))
        for second in range(first)
        if boxes[first].overlaps(boxes[second])
    ]
    assert overlapping == []


def test_the_picture_has_300_dots_per_inch_and_is_not_empty(study, tmp_path, drawn):
    png = matplotlib.image.imread(figure(study, tmp_path)[0])
    assert png.shape[1] == pytest.approx(drawn[0].get_figwidth() * 300, abs=1)
    assert png[..., :3].min() < 0.5


def test_every_resource_has_a_figure_with_the_shared_baseline(tmp_path, drawn):
    frame = frame_of(
        rows_of("baseline", 0, 0.2, resource="v100"),
        rows_of("full", 1, 0.5, resource="v100"),
        rows_of("full", 1, 0.4, resource="gtx1080"),
    )
    paths = figure(frame, tmp_path)
    assert sorted(path.name for path in paths if path.suffix == ".png") == [
        "sa50_nuclei_gtx1080.png",
        "sa50_nuclei_v100.png",
    ]
    for page, value in zip(drawn, (0.4, 0.5), strict=True):
        assert page.axes[0].containers[0].lines[0].get_ydata() == pytest.approx([0.2, value])


def test_seeds_are_a_mean_with_their_deviation(tmp_path, drawn):
    runs = [rows_of("full", 1, value, seed=seed) for seed, value in enumerate((0.4, 0.6))]
    figure(frame_of(rows_of("baseline", 0, 0.2), *runs), tmp_path)
    bars = drawn[0].axes[0].containers[0]
    assert bars.lines[0].get_ydata() == pytest.approx([0.2, 0.5])
    segment = bars.lines[2][0].get_segments()[1]
    assert segment[:, 1] == pytest.approx([0.5 - 0.02**0.5, 0.5 + 0.02**0.5])
    assert "standard deviation" in drawn[0].get_suptitle()


def test_a_checkpoint_is_named_by_its_file(tmp_path, drawn):
    figure(frame_of(rows_of("full", 1, 0.5, weights="/somewhere/else/mine.pt")), tmp_path)
    assert drawn[0].axes[0].get_title() == "vit_nano\nweights mine.pt"


def test_only_baselines_are_drawn_too(tmp_path):
    assert len(figure(frame_of(rows_of("baseline", 0, 0.2)), tmp_path)) == 3


def test_without_metrics_there_is_no_figure(tmp_path):
    nothing = frame_of([{**rows_of("full", 1, 0.5)[0], "SA50": None, "mode": None}])
    assert figure(nothing, tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()
