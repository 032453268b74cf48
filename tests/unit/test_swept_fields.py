"""Whatever is swept is an axis: for every field of the schema, two runs that differ in nothing else.

The fields are those of the schema's dataclasses, so a new one is in these tests by itself: either it changes
no run (then identity.py says why), or everything that shows results tells the two runs apart.
"""

import functools
import json
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from measured_runs import images, write_run, write_sweep

from refsam import cli
from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze, from_values, to_values
from refsam.configuration.patch_pool import with_patch_pool
from refsam.configuration.schema import RefsamConfig
from refsam.errors import ConfigError
from refsam.records.identity import identity, run_id
from refsam.records.paths import RunsFolder
from refsam.records.settings import (
    differing,
    labels,
    read_setting,
    schema_fields,
    setting_values,
    short_name,
)
from refsam.results.collect import collect
from refsam.results.comparing.settings import settings_of
from refsam.results.fields import telling_apart
from refsam.results.figures.page import KINDS as FORMATS
from refsam.results.figures.page import series
from refsam.results.report.comparisons import comparisons
from refsam.results.tables.strategies import over_seeds
from refsam.results.tables.studies import STUDIES
from refsam.results.tables.table import run_words, varying_axes
from refsam.results.tables.wide import wide_table
from refsam.system.files import write_text

GIVEN = ("peft=lora", "n_objects=5", "n_images=2", "model=vit_nano", "model.weights=random", "resource=v100")
AUTOMATIC = ("evaluate=prompts_and_automatic",)
# Runs have these in common, or are told apart by a column that all tables have.
AXES = ("resource.name", "n_images", "n_objects", "kind", "seed", "evaluate.fold")
SECTIONS = ("train", "evaluate", "dataset", "model", "peft", "resource")
FIELDS = [
    name
    for name in schema_fields()
    if name.partition(".")[0] in (*SECTIONS, *AXES)
    and name not in AXES
    and not name.startswith("evaluate.resource.")  # filled in by the plan, from evaluate.where
]
CHOICES = {
    "train.joint": "summed",  # of which strategies are named after
    "train.optimizer": "adamw",
    "peft.decoder": "freeze",
}
# One of each kind, of which every command is asked.
OF_EACH_KIND = (
    *("train.lr", "train.precision", "evaluate.crop", "evaluate.max_images", "dataset.root"),
    *("dataset.split_seed", "model.custom.depth", "model.weights", "peft.rank", "peft.options"),
)


def configurations(field: str) -> tuple[RefsamConfig, RefsamConfig]:
    """Two that differ in one field."""
    first, second = json.loads(common()), json.loads(common())
    if field in ("dataset.root", "dataset.fingerprint"):  # of a data set without a version
        first["dataset"] |= {"version": None, "fingerprint": "1"}
        second["dataset"] |= {"version": None, "fingerprint": "2"}
    *parents, last = field.split(".")
    place: Any = second
    kind: Any = RefsamConfig
    for name in parents:
        place, kind = place[name], plain(typing.get_type_hints(kind)[name])
    place[last] = CHOICES.get(field) or another(place[last], typing.get_type_hints(kind)[last])
    return from_values(RefsamConfig, first), from_values(RefsamConfig, second)


@functools.cache
def common() -> str:
    values = to_values(with_patch_pool(compose([*GIVEN, *AUTOMATIC])))
    values["evaluate"]["grid"] = "small"
    return json.dumps(values)


def plain(kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        return next(each for each in typing.get_args(kind) if each is not types.NoneType)
    return kind


def another(value: Any, kind: Any) -> Any:
    """Another value of a field of this type; whether a run could have it matters to no record."""
    kind = plain(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(member.value for member in kind if member.value != value)
    if isinstance(value, bool) or kind is bool:
        return not value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value + 1
    if isinstance(value, list) or typing.get_origin(kind) is list:
        (item,) = typing.get_args(kind) or (str,)
        return [*(value or []), 7 if item is int else "other"]
    if isinstance(value, dict):
        return {**value, "other": {"peft": "full", "n_objects": 1, "source": ""}}
    return 3 if kind is int else 0.5 if kind is float else "other"


def ids(first: RefsamConfig, second: RefsamConfig) -> tuple[str, str]:
    def name(config: RefsamConfig) -> str:
        data = config.dataset.fingerprint or "data"
        return run_id(config, identity(config, data, config.model.weights_hash))

    return name(first), name(second)


def recorded(root: Path, first: RefsamConfig, second: RefsamConfig) -> tuple[RunsFolder, list[str]]:
    """A sweep `study` of two completed runs with these configurations and different results."""
    folder = RunsFolder(root)
    training = {"peak_memory_gib": 3.0, "seconds_total": 60.0, "best_epoch": 2, "seconds_to_best": 30.0}
    training |= {"trainable_parameters": 1000}
    named = list(ids(first, second))
    if named[0] == named[1]:
        named[1] = f"{named[1]}x"  # of another runs folder
    for number, (name, config) in enumerate(zip(named, (first, second), strict=True)):
        values = np.linspace(0.1, 0.3, 8) + 0.2 * number
        environment = {"device": "cuda:0", "gpu": "V100", "precision": "float32"}
        write_run(folder, name, {"box": images(*values)}, training=training, environment=environment)
        freeze(folder.run(name).config, config)
        history = "epoch,train_loss,validation_metric,lr,train_time\n0,1.0,0.9,1e-5,1.0\n1,0.8,0.7,1e-5,2.0\n"
        write_text(folder.run(name).history, history)
    write_sweep(folder, {name: {} for name in named})
    return folder, named


def column(field: str, frame: pd.DataFrame) -> str | None:
    """By which column of the table runs that differ in a field are told apart."""
    axes = [*varying_axes(frame), "n_objects", "strategy"]
    of = {"model.name": "model", "model.weights": "weights", "dataset.name": "dataset"}
    if field in of:
        return of[field]
    if field in telling_apart(frame):
        return field
    return next((axis for axis in axes if frame[axis].nunique(dropna=False) > 1), None)


@pytest.mark.parametrize("field", FIELDS)
def test_two_runs_that_differ_in_a_field_are_told_apart_by_everything(field: str, tmp_path: Path) -> None:
    first, second = configurations(field)
    same_run = len(set(ids(first, second))) == 1
    if same_run and not any(differing([setting_values(first), setting_values(second)])):
        return  # identity.py says that it changes no result
    folder, named = recorded(tmp_path, first, second)
    frame = collect(folder.sweep("study"), folder)
    apart = column(field, frame)
    assert apart is not None, "another run, and no column tells it apart"
    for make in (
        lambda: wide_table(frame, ("seed",), ("n_images",), ("SA50",)),
        lambda: wide_table(frame, ("mode",), ("seed",), ("seconds_total",)),
    ):
        with pytest.raises(ConfigError, match=rf"differ in .*{apart}"):
            make()
    assert len(wide_table(frame, (apart,), ("n_images",), ("SA50",)).rows) == 2
    assert len(settings_of(frame)) == 2
    assert len({each.words(("strategy", "model", "dataset", "weights")) for each in settings_of(frame)}) == 2
    assert len({run_words(row, varying_axes(frame)) for row in frame.to_dict("records")}) == 2
    assert len(set(labels({run: read_setting(folder.run(run).config) for run in named}).values())) == 2
    names = series(frame)[["dataset", "model", "weights", "strategy"]].drop_duplicates()
    assert len(names) == 2
    for study in STUDIES.values():
        assert len(study(frame).rows) == 2
    if apart in ("dataset", "resource", "n_objects"):
        with pytest.raises(ConfigError, match=apart):
            over_seeds(frame)
    else:
        assert over_seeds(frame)["n_seeds"].tolist() == [1, 1]
    shown = comparisons(frame)
    assert not shown.notes
    assert all(len(table.lines) == 2 for table in shown.tables)


def test_every_kind_of_field_is_among_those_that_are_told_apart() -> None:
    assert set(OF_EACH_KIND) <= set(FIELDS)
    changing = [field for field in FIELDS if len(set(ids(*configurations(field)))) > 1]
    assert {field.partition(".")[0] for field in changing} == {
        "train",
        "evaluate",
        "dataset",
        "model",
        "peft",
    }


@pytest.mark.slow
@pytest.mark.parametrize("field", OF_EACH_KIND)
def test_every_command_tells_them_apart_or_names_the_field(
    field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, named = recorded(tmp_path / "runs", *configurations(field))
    apart = column(field, collect(folder.sweep("study"), folder))
    assert apart is not None

    def ask(*arguments: str) -> tuple[int, str, str]:
        status = cli.main([*arguments, "--runs", str(folder.root)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    status, _, error = ask("collect", "study", "--rows", "seed", "--columns", "mode")
    assert (status, f"differ in {apart}" in error) == (2, True)
    assert ask("collect", "study", "--rows", apart, "--columns", "mode", "--format", "csv")[0] == 0
    status, out, _ = ask("collect", "study")
    heading = short_name(apart) if "." in apart else {"n_images": "images"}.get(apart, apart)
    assert status == 0
    assert heading in out
    assert apart in folder.sweep("study").results.read_text().splitlines()[0]
    shown = [line for line in ask("status", "study")[1].splitlines() if "completed" in line][1:3]
    assert len({line.split("  ")[0] for line in shown}) == 2
    assert ask("strategies", "study", "--markdown")[1].count("| vit_nano") == 2
    status, out, _ = ask("compare", "study", "--baseline", named[0], "--json")
    (compared,) = json.loads(out)["comparisons"]
    assert (status, compared["run_ids"]) == (0, [named[1]])
    assert apart in compared
    status, out, _ = ask("recommend", "--memory", "32", "--gpu", "--json")
    answer = json.loads(out)
    assert status == 0
    if field.startswith(("dataset.", "evaluate.")):
        assert any("measured on other test images (1)" in note for note in answer["notes"])
    else:
        assert [answer[each]["run_ids"] for each in ("winner", "runner_up")] == [[named[1]], [named[0]]]
    drawn: list[Figure] = []
    with monkeypatch.context() as patched:
        patched.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
        for kind in ("study", "pareto", "memory", "training", "heatmap"):
            drawn.clear()
            assert ask("plot", "study", "--kind", kind)[0] == 0
            assert series_of(drawn[:: len(FORMATS)], kind) == 2
    assert ask("report", "study", "--json")[0] == 0
    assert heading in folder.sweep("study").report.read_text()
    assert ask("track", "study", "--to", "tensorboard")[0] == 0
    told = [parameters(folder, run) for run in named]
    assert told[0] != told[1]


def series_of(figures: list[Figure], kind: str) -> int:
    """How many lines, points or cells there are, none of which is a mean of several runs."""
    panels = [panel for figure in figures for panel in figure.axes]
    if kind == "heatmap":
        texts = [text.get_text() for panel in panels for text in panel.texts]
        assert not any("±" in text for text in texts)
        return len(texts)
    if kind == "training":
        return sum(len(panel.get_lines()) for panel in panels)
    bars: list[Any] = [each for panel in panels for each in panel.containers]
    assert not any(each.has_xerr or each.has_yerr for each in bars)
    return len(bars)


def parameters(folder: RunsFolder, run: str) -> dict[str, Any]:
    from refsam.results.trackers.tracked import tracked_run

    frame = collect(folder.sweep("study"), folder)
    told = tracked_run(frame[frame["run_id"] == run], folder.run(run))
    return told.parameters | {name: value for name, value in told.tags.items() if name != "run_id"}
