"""What benchmarks.train_step does with steps that run out of memory, and with what was measured before."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gradients, rows, train_step
from benchmarks.gates import ReplayedGates
from benchmarks.train_step import MICRO_SAM, NOT_TRIED, OUT_OF_MEMORY, REFSAM
from benchmarks.train_step_figure import save_steps

FIXED = {"object_chunk": "auto", "checkpoint_encoder": "auto", "attention": "auto", "decoder": False}
MOST = {MICRO_SAM: 5, REFSAM: 45}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str]]:
    """Engine, number of objects and precision of the steps that were taken; micro-sam's fits 5 objects."""
    taken: list[tuple[str, int, str]] = []

    def step(arguments: Namespace, output: Path, replay: Path | None, **changes: Any) -> dict[str, Any]:
        values = {**vars(arguments), **changes}
        taken.append((values["engine"], values["n_objects"], values["precision"]))
        row = {name: values[name] for name in train_step.CHOSEN}
        fits = values["n_objects"] <= MOST[values["engine"]]
        return row | ({"cpu_seconds": 2.0, "above_base_mib": 512} if fits else {"outcome": OUT_OF_MEMORY})

    monkeypatch.setattr(train_step, "run_step", step)
    monkeypatch.setattr(train_step, "compare", lambda *_: {"seconds_ratio": 1.0})
    return taken


def arguments(*counts: int, **changes: Any) -> Namespace:
    values = {
        "precision": "float32",
        "micro_sam_precision": None,
        "n_sub_iterations": 8,
        "own_prompts": False,
    }
    return Namespace(models=["vit_t"], strategies=["full"], counts=counts, **FIXED, **{**values, **changes})


def test_an_engine_that_ran_out_of_memory_is_not_tried_with_more(measured: list[Any]) -> None:
    found = [row for pair in train_step.benchmark(arguments(10, 1, 45), []) for row in pair]
    outcomes = {(row["engine"], row["n_objects"]): row.get("outcome") for row in found}
    assert outcomes == {
        (MICRO_SAM, 1): None,
        (REFSAM, 1): None,
        (MICRO_SAM, 10): OUT_OF_MEMORY,
        (REFSAM, 10): None,
        (MICRO_SAM, 45): NOT_TRIED,
        (REFSAM, 45): None,
    }
    assert (MICRO_SAM, 45, "float32") not in measured
    assert [row["n_objects"] for row in found if "seconds_ratio" in row] == [1]


def test_what_was_measured_before_is_not_measured_again(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    first = [row for pair in train_step.benchmark(arguments(1, 10), []) for row in pair]
    rows.write_csv("steps", train_step.COLUMNS, first)
    measured.clear()
    later = arguments(1, 10, 25, micro_sam_precision="bfloat16")
    found = [row for pair in train_step.benchmark(later, rows.read_csv("steps")) for row in pair]
    assert [(row["engine"], row["n_objects"], row.get("outcome")) for row in found] == [
        (MICRO_SAM, 25, NOT_TRIED),
        (REFSAM, 25, None),
    ]
    assert [row["precision"] for row in found] == ["bfloat16", "float32"]
    assert measured == [(REFSAM, 25, "float32")]


def test_the_figure_has_a_panel_for_each_model_and_strategy(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from matplotlib.figure import Figure

    saved: list[Figure] = []
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.train_step_figure.save_figure", lambda _, figure: saved.append(figure))
    given = arguments(1, 5, 10, 45)
    given.models, given.strategies = ["vit_t", "vit_b"], ["full", "lora"]
    found = [row for pair in train_step.benchmark(given, []) for row in pair]
    rows.write_csv("steps", train_step.COLUMNS, found)
    save_steps("steps")
    (figure,) = saved
    assert len(figure.axes) == 8
    titles = [axis.get_title().splitlines()[0] for axis in figure.axes[:4]]
    assert titles == ["vit_t, full", "vit_t, lora", "vit_b, full", "vit_b, lora"]
    seconds = {line.get_label(): list(line.get_xdata()) for line in figure.axes[0].get_lines()}
    assert seconds["micro-sam's step"] == [1, 5]
    assert seconds["micro-sam's step: out of memory"] == [10, 45]
    assert seconds["refsam's step"] == [1, 5, 10, 45]


def test_the_patch_with_the_most_objects_is_taken_and_has_to_have_enough() -> None:
    torch = pytest.importorskip("torch")
    images = [torch.full((1, 3, 2, 4), float(number)) for number in range(3)]
    labels = [
        torch.tensor(ids).view(1, 1, 2, 4) for ids in ([0] * 6 + [1, 2], [0, 1, 2, 3, 4, 4, 4, 4], [1] * 8)
    ]
    patches = list(zip(images, labels, strict=True))
    image, _ = train_step.crowded(patches, 4)
    assert float(image[0, 0, 0, 0]) == 1.0
    with pytest.raises(ValueError, match="5 objects are asked for, and no patch has more than 4"):
        train_step.crowded(patches, 5)


def test_replayed_gates_pass_what_another_step_let_through() -> None:
    def part() -> torch.nn.Sequential:
        return torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Sequential(torch.nn.ReLU()))

    first, second = part(), part()
    recorded = ReplayedGates([first], None)
    x = torch.tensor([-2.0, -1e-8, 1e-8, 3.0])
    assert torch.equal(first(x), x.relu())
    assert recorded.switched_share == 0.0
    replayed = ReplayedGates([second], recorded.kept)
    moved = torch.tensor([-2.0, 1e-8, -1e-8, 3.0], requires_grad=True)
    second(moved).sum().backward()
    assert moved.grad is not None
    assert moved.grad.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert replayed.switched_share == 3 / 8  # two of the first ReLU, and the -1e-8 that it let through
    with pytest.raises(ValueError, match="2 ReLUs, and gates of 1"):
        ReplayedGates([part()], recorded.kept[:1])


def test_a_gradient_above_the_bound_is_listed_with_what_each_step_is_off_from_float64(tmp_path: Path) -> None:
    exact = {
        "interactive: a": torch.tensor([3.0, 4.0]),
        "segmentation: b": torch.tensor([6.0, 8.0]),
        "segmentation: c": torch.tensor([0.0, 5.0]),
        "segmentation: rounding": torch.tensor([1e-9, 0.0]),
    }
    nudged = {"segmentation: b": torch.tensor([0.0, 0.01])}
    steps = {
        MICRO_SAM: {name: value + nudged.get(name, 0.0) for name, value in exact.items()},
        REFSAM: exact,
        "own": {name: 1.5 * value for name, value in exact.items()},
        train_step.DOUBLE: {name: value.double() for name, value in exact.items()},
    }
    for name, values in steps.items():
        (tmp_path / name).mkdir()
        torch.save({"gradients": values}, tmp_path / name / "step.pt")
    row = {"model": "vit_t", "peft": "full", "n_objects": 2, "switched_gates": 1e-6}
    (interactive, segmentation), above = gradients.compare(tmp_path, row)
    assert (interactive["parameters"], interactive["above_bound"], interactive["worst"]) == (1, 0, 0.0)
    assert (segmentation["parameters"], segmentation["above_bound"]) == (2, 1)
    assert segmentation["own_gates_median"] == pytest.approx(0.5, abs=2e-3)
    assert (segmentation["worst_parameter"], segmentation["switched_gates"]) == ("b", 1e-6)
    (found,) = above
    assert found["parameter"] == "segmentation: b"
    assert found["difference"] == pytest.approx(1e-3, rel=1e-2)
    assert found["micro_sam_error"] == pytest.approx(1e-3, rel=1e-2)
    assert found["refsam_error"] == 0.0
