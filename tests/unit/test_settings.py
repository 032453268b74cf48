"""Settings: which runs may be averaged, and the fields that tell the others apart."""

import csv
from pathlib import Path
from typing import Any

import pytest
from recorded_sweeps import complete, write_manifest

from refsam import cli
from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze, from_values
from refsam.configuration.patch_pool import with_patch_pool
from refsam.records import settings
from refsam.records.identity import identity, run_id
from refsam.records.paths import RunsFolder
from refsam.records.settings import (
    Setting,
    differing,
    full_name,
    names_of,
    same_text,
    schema_fields,
    setting_values,
    short_name,
)
from refsam.results.collect import collect, first_prompt
from refsam.results.figures.page import by_number, series
from refsam.results.sweeps import read_manifest

GIVEN = ("peft=full", "n_objects=5", "n_images=2", "model=vit_nano", "model.weights=random")


def differing_names(settings: list[Setting]) -> list[str]:
    return names_of(differing(settings))


def setting(*overrides: str) -> Setting:
    return setting_values(with_patch_pool(compose([*GIVEN, *overrides])))


def sweep(root: Path, *runs: tuple[str, ...], values: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)) -> RunsFolder:
    """Completed runs of a sweep `study` with these overrides, and these SA50."""
    folder = RunsFolder(root)
    run_ids = []
    for overrides, value in zip(runs, values, strict=False):
        config = with_patch_pool(compose([*GIVEN, *overrides]))
        paths = folder.run(run_id(config, identity(config, "data", None)))
        paths.results.mkdir(parents=True)
        freeze(paths.config, config)
        complete(paths, value, gpu=None)
        run_ids.append(paths.run_id)
    write_manifest(folder, "study", run_ids)
    return folder


def collected(folder: RunsFolder) -> list[dict[str, Any]]:
    with folder.sweep("study").results.open() as file:
        return [row for row in csv.DictReader(file) if row["mode"] == "box"]


def test_seeds_are_no_setting_and_what_changes_no_result_is_none() -> None:
    others = (
        *("seed=3", "train.workers=1", "runs=/x", "train.engine=micro_sam", "resource.request.time=1:00:00"),
        *("evaluate.batch_size=2", "evaluate.pictures=0", "dataset.root=/elsewhere", "dataset.split_seed=0"),
    )
    assert differing_names([setting(), *(setting(each) for each in others)]) == []


def test_every_field_that_differs_is_named_in_the_schema_s_order() -> None:
    found = differing(
        [setting(), setting("evaluate.crop=[64,64]", "train.lr=1e-3", "train.precision=float32")]
    )
    assert found == [
        {"train.lr": 1e-5, "train.precision": "auto", "evaluate.crop": None},
        {"train.lr": 1e-3, "train.precision": "float32", "evaluate.crop": [64, 64]},
    ]
    assert list(found[1]) == ["train.lr", "train.precision", "evaluate.crop"]


def test_what_a_choice_brings_along_is_no_field_of_its_own() -> None:
    choices = ("model=vit_t", "peft=lora", "peft=freeze_encoder", "dataset=synthetic", "resource=v100")
    assert differing_names([setting(), *(setting(each) for each in choices)]) == []
    assert differing_names([setting(), setting("model.custom.depth=3")]) == ["model.custom.depth"]
    assert differing_names([setting(), setting("resource.request.gpu=H100")]) == ["resource.request.gpu"]


def test_fields_of_the_training_say_nothing_about_a_baseline() -> None:
    found = differing([setting("train.lr=1e-3"), setting(), setting("kind=baseline", "train.lr=1")])
    assert found == [{"train.lr": 1e-3}, {"train.lr": 1e-5}, {}]


def test_data_sets_of_one_name_are_told_apart_by_what_they_hold() -> None:
    def data(root: str, fingerprint: str | None) -> Setting:
        config = compose([*GIVEN, "dataset=folder", f"dataset.root={root}"])
        config.dataset.fingerprint = fingerprint
        return setting_values(config)

    assert differing_names([data("/a", "1"), data("/b", "1")]) == []  # a copy
    assert differing_names([data("/a", "1"), data("/b", "2")]) == ["dataset.root"]
    assert differing_names([data("/a", "1"), data("/a", "2")]) == ["dataset.fingerprint"]  # it was changed
    assert differing_names([data("/a", None), data("/b", None)]) == ["dataset.root"]
    assert differing_names([data("/a", None), data("/a", "1")]) == []  # recorded before there were any


def test_a_split_that_follows_one_seed_is_that_of_this_seed() -> None:
    followed, fixed = setting("dataset.split_seed=null"), setting()
    assert differing_names([followed, fixed]) == []
    several = [followed, setting("dataset.split_seed=null", "seed=1"), setting("seed=2")]
    assert [each["dataset.split_seed"] for each in differing(several)] == [None, None, 0]
    ordered = [setting("dataset.split=ordered"), setting("dataset.split=ordered", "dataset.split_seed=3")]
    assert differing_names(ordered) == []


def test_runs_that_differ_in_their_seed_are_resolved_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = [("seed=1",), ("seed=2",)]
    following = [("seed=1", "dataset.split_seed=null"), ("seed=2", "dataset.split_seed=null")]
    folder = sweep(tmp_path / "runs", *fixed, *following)
    resolved: list[Any] = []

    def counted(kind: Any, values: dict[str, Any]) -> Any:
        resolved.append(values)
        return from_values(kind, values)

    monkeypatch.setattr(settings, "_RESOLVED", {})
    monkeypatch.setattr(settings, "from_values", counted)
    runs = read_manifest(folder.sweep("study")).runs
    found = [settings.read_setting(folder.run(run.run_id).config) for run in runs]
    assert len(resolved) == 1 + len(following)  # a null is another split for each seed
    assert found == [setting(*overrides) for overrides in (*fixed, *following)]
    found[0]["train.lr"] = "changed"
    assert found[1]["train.lr"] != "changed"


def test_short_names_are_unambiguous() -> None:
    assert short_name("train.lr") == "lr"
    assert short_name("train.batch_size") == "train.batch_size"  # evaluate has one, too
    assert short_name("model.name") == "model.name"
    names = list(map(short_name, schema_fields()))
    assert len(set(names)) == len(names)
    assert all(full_name(name) == field for name, field in zip(names, schema_fields(), strict=True))


@pytest.mark.parametrize(
    ("first", "second"), [("1e-3", "0.001"), ("[64,64]", "[64, 64]"), ("5", "5.0"), ("x", "x")]
)
def test_values_are_compared_as_what_they_are(first: str, second: str) -> None:
    assert same_text(first, second)
    assert not same_text(first, "0.002")


def test_what_is_swept_is_a_column_of_results_csv(tmp_path: Path) -> None:
    folder = sweep(tmp_path, ("train.lr=1e-3",), (), ("kind=baseline",), ("evaluate.crop=[64,64]",))
    assert cli.main(["collect", "study", "--runs", str(tmp_path)]) == 0
    rows = [(row["train.lr"], row["evaluate.crop"]) for row in collected(folder)]
    assert rows == [("0.001", "null"), ("0.00001", "null"), ("", "null"), ("0.00001", "[64, 64]")]


def test_a_wide_table_is_refused_until_what_is_swept_is_an_axis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path, ("train.lr=1e-5",), ("train.lr=1e-3",), ("train.lr=1e-3", "seed=1"))
    command = ["collect", "study", "--runs", str(tmp_path), "--metric", "SA50", "--format", "csv"]
    assert cli.main([*command, "--rows", "strategy"]) == 2
    assert capsys.readouterr().err == (
        "refsam: these cells hold runs that differ in train.lr (1e-05, 0.001); add it to --rows or "
        "--columns, or fix it with --where train.lr=1e-05\n"
    )
    for rows in (["--rows", "strategy,train.lr"], ["--rows", "lr", "--columns", "strategy"]):
        assert cli.main([*command, *rows, "--where", "mode=box"]) == 0
    assert cli.main([*command, "--rows", "strategy", "--where", "lr=1e-3,mode=box", "--name", "one"]) == 0
    shown = (folder.sweep("study").tables / "one.csv").read_text()
    assert shown.splitlines()[1].startswith("full,0.5,0.14")
    assert cli.main([*command, "--rows", "train.epochs"]) == 2
    assert "'train.epochs' does not differ between these runs" in capsys.readouterr().err


def test_the_strategies_table_has_a_row_for_each_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path, ("train.lr=1e-5",), ("train.lr=1e-3",), ("train.lr=1e-3", "seed=1"))
    assert cli.main(["strategies", "study", "--runs", str(tmp_path), "--markdown"]) == 0
    heading, _, first, second = capsys.readouterr().out.splitlines()[:4]
    assert heading.startswith("| model | strategy | images | lr | seeds | test images | mIoU")
    assert first.startswith("| vit_nano | full | 2 | 1e-05 | 1 | 12 |")
    assert second.startswith("| vit_nano | full | 2 | 0.001 | 2 | 12 |")


def test_a_mean_over_seeds_says_that_its_split_follows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    following = ("dataset.split_seed=null",)
    sweep(tmp_path / "follows", following, (*following, "seed=1"))
    sweep(tmp_path / "fixed", (), ("seed=1",))
    sentence = "± includes the variation between splits: with dataset.split_seed=null"
    for command in (["strategies"], ["collect", "--rows", "strategy", "--format", "markdown"]):
        for runs, said in (("follows", True), ("fixed", False)):
            name, *options = command
            assert cli.main([name, "study", *options, "--runs", str(tmp_path / runs)]) == 0
            assert (sentence in capsys.readouterr().out) == said


def test_runs_that_differ_in_nothing_are_no_seeds_of_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path, (), ("seed=1",))
    first, second = sorted(path for path in tmp_path.iterdir() if path.name != "sweeps")
    (second / "config.yaml").write_bytes((first / "config.yaml").read_bytes())
    alike = f"{first.name[:-10]}0123456789"  # as of other images under the same name
    second.rename(second.with_name(alike))
    manifest = folder.sweep("study").manifest
    manifest.write_text(manifest.read_text().replace(second.name, alike))
    assert cli.main(["collect", "study", "--rows", "strategy", "--runs", str(folder.root)]) == 2
    assert "differ in nothing but run_id" in capsys.readouterr().err


def test_figures_have_a_line_a_panel_or_a_page_for_each_value(tmp_path: Path) -> None:
    others = (
        "evaluate.crop=[64,64]",
        "model.custom.depth=3",
        "train.lr=1e-2",
        "train.lr=1e-4",
        "n_objects=9",
    )
    folder = sweep(tmp_path, (), *((each,) for each in others), values=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    shown = series(first_prompt(collect(folder.sweep("study"), folder)))
    shown = shown[shown["mode"] == "box"]
    assert shown["dataset"].tolist() == [
        "nuclei, crop null",
        "nuclei, crop [64, 64]",
        *["nuclei, crop null"] * 4,
    ]
    assert set(shown["model"]) == {"vit_nano, depth 3", "vit_nano, depth 4"}
    names = sorted(set(shown["strategy"]), key=by_number)
    assert names == [
        *("full, lr 1e-05, objects 5", "full, lr 1e-05, objects 9", "full, lr 0.0001, objects 5"),
        "full, lr 0.01, objects 5",
    ]
    assert not [name for name in shown.columns if "." in name]
