"""k-fold cross-validation in results: the folds of a setting are one row with one value, or are named."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from measured_runs import images, write_run, write_sweep

from refsam import cli
from refsam.errors import ConfigError
from refsam.records.paths import RunsFolder
from refsam.records.status import State
from refsam.results.collect import collect
from refsam.results.folds import join_folds, runs_of
from refsam.results.tables.strategies import over_seeds
from refsam.results.tables.wide import wide_table

OWN = (
    "dataset=folder",
    "dataset.root=d",
    "model=vit_nano",
    "model.weights=random",
    "peft=full",
    "n_objects=2",
)
# SA50 of ten images by the folds that test them: 4, 3 and 3 of them.
FOLDS = (images(0.1, 0.2, 0.3, 0.4), {"b0": 0.5, "b1": 0.6, "b2": 0.7}, {"c0": 0.9, "c1": 0.8, "c2": 1.0})
MEAN = 5.5 / 10


def study(
    root: Path,
    strategies: dict[str, float],
    seeds: tuple[int, ...] = (0,),
    states: dict[str, State] | None = None,
) -> RunsFolder:
    """A sweep `study` of three folds of each strategy and seed; the strategy's number is added to the SA50 of
    all images. Runs are named STRATEGY-sSEED-fFOLD; those with a state have no results.
    """
    folder = RunsFolder(root)
    named = {}
    for strategy, more in strategies.items():
        for seed in seeds:
            for fold, values in enumerate(FOLDS, start=1):
                name = f"{strategy}-s{seed}-f{fold}"
                state = (states or {}).get(name, State.completed)
                shown = {image: value + more + 0.01 * seed for image, value in values.items()}
                write_run(
                    folder,
                    name,
                    {"box": shown, "point": {image: value / 2 for image, value in shown.items()}},
                    (
                        *OWN,
                        f"peft={strategy}",
                        "n_images=2",
                        f"seed={seed}",
                        "evaluate.folds=3",
                        f"evaluate.fold={fold}",
                    ),
                    state,
                    {"best_epoch": fold, "seconds_total": 10.0 * fold, "seconds_to_best": 5.0 * fold}
                    | {"peak_memory_gib": float(fold), "trainable_parameters": 1000},
                    {"device": "cpu", "cpu": "a CPU", "precision": "float32"},
                )
                if state is not State.completed:
                    folder.run(name).metrics.unlink()
                named[name] = {"peft": strategy, "evaluate.fold": str(fold)}
    write_sweep(folder, named)
    return folder


def table(folder: RunsFolder) -> pd.DataFrame:
    return collect(folder.sweep("study"), folder)


def ask(folder: RunsFolder, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main([*arguments, "--runs", str(folder.root)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_value_of_folds_is_the_mean_over_all_of_their_test_images(tmp_path):
    frame = table(study(tmp_path, {"full": 0.0}))
    assert frame["fold"].tolist() == [1, 1, 2, 2, 3, 3]
    joined = join_folds(frame)
    assert (len(joined.incomplete), joined.sentences) == (0, [])
    (box,) = joined.frame[joined.frame["mode"] == "box"].to_dict("records")
    of_images = [value for fold in FOLDS for value in fold.values()]
    assert box["SA50"] == pytest.approx(np.mean(of_images), abs=1e-12)
    assert np.mean(of_images) == pytest.approx(MEAN)
    assert box["SA50"] != pytest.approx(frame[frame["mode"] == "box"]["SA50"].mean(), abs=1e-3)  # 4, 3 and 3
    assert box["n_test_images"] == 10
    assert runs_of(box["run_id"]) == ["full-s0-f1", "full-s0-f2", "full-s0-f3"]
    assert (box["seconds_total"], box["best_epoch"], box["peak_memory_gib"]) == (20.0, 2, 3.0)
    assert pd.isna(box["fold"])
    assert pd.isna(box["SA50_low"])
    assert box["status"] == "completed"
    assert joined.frame.dtypes.equals(frame.dtypes)


@pytest.mark.slow
def test_what_is_over_seeds_is_over_joined_folds(tmp_path):
    joined = join_folds(table(study(tmp_path, {"full": 0.0, "lora": 0.1}, seeds=(0, 1)))).frame
    wide = wide_table(joined, ("strategy",), ("n_images",), ("SA50",), {"mode": "box"})
    assert [line[0].n for line in wide.cells] == [2, 2]
    assert wide.cells[0][0].mean == pytest.approx(MEAN + 0.005)
    assert wide.cells[0][0].deviation == pytest.approx(np.std([0.0, 0.01], ddof=1))
    assert any("all 3 folds" in note for note in wide.notes)
    strategies = over_seeds(joined)
    assert strategies["n_seeds"].tolist() == [2, 2]
    assert strategies["n_test_images"].tolist() == [10, 10]


def test_folds_that_are_not_joined_are_averaged_by_nothing(tmp_path):
    frame = table(study(tmp_path, {"full": 0.0}))
    with pytest.raises(ConfigError, match=r"differ in fold \(1, 2, 3\)"):
        wide_table(frame, ("strategy",), ("n_images",), ("SA50",))
    with pytest.raises(ConfigError, match=r"differ in fold"):
        over_seeds(frame)
    each = wide_table(frame, ("strategy",), ("fold",), ("SA50",), {"mode": "box"})
    assert [cell.mean for cell in each.cells[0]] == pytest.approx([0.25, 0.6, 0.9])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "words"), [(State.failed, "has failed"), (State.planned, "is planned"), (None, "is missing")]
)
def test_an_incomplete_set_of_folds_is_left_out_and_said_by_every_command(state, words, tmp_path, capsys):
    folder = study(tmp_path, {"full": 0.0, "lora": 0.1}, states={"lora-s0-f2": state} if state else {})
    if state is None:
        runs = [f"{name}-s0-f{fold}" for name in ("full", "lora") for fold in (1, 2, 3)]
        write_sweep(folder, {run: {} for run in runs if run != "lora-s0-f2"})
    said = f"lora: left out, because of 3 folds fold 2 {words}"
    joined = join_folds(table(folder))
    assert joined.sentences == [said]
    assert set(joined.frame["strategy"]) == {"full"}
    assert set(joined.incomplete["strategy"]) == {"lora"}
    status, out, _ = ask(folder, capsys, "collect", "study", "--rows", "strategy", "--format", "markdown")
    assert (status, said in out, "| lora" in out) == (0, True, False)
    status, out, _ = ask(folder, capsys, "collect", "study", "--study", "peft", "--format", "markdown")
    assert (status, said in out, "| lora" in out) == (0, True, False)
    status, out, _ = ask(folder, capsys, "strategies", "study")
    assert (status, said in out, " lora " in out) == (0, True, False)
    status, out, _ = ask(folder, capsys, "plot", "study", "--kind", "heatmap")
    assert (status, said in out) == (0, True)
    status, out, _ = ask(folder, capsys, "compare", "study", "--baseline", "peft=full", "--json")
    answer = json.loads(out)
    assert (status, answer["comparisons"]) == (0, [])
    assert said in answer["notes"]
    status, out, _ = ask(folder, capsys, "recommend", "--memory", "32", "--cpu", "--json")
    answer = json.loads(out)
    assert (status, answer["winner"]["strategy"], answer["runner_up"]) == (0, "full", None)
    assert f"{said}." in answer["notes"]
    assert ask(folder, capsys, "report", "study")[0] == 0
    assert said in folder.sweep("study").report.read_text()
    status, out, _ = ask(folder, capsys, "collect", "study")
    lines = [line for line in out.splitlines() if line.startswith("lora ")]
    assert len(lines) == (2 if state is None else 3)  # each fold that there is
    assert said in out


def test_a_mode_that_some_folds_have_not_is_left_out_alone(tmp_path):
    folder = study(tmp_path, {"full": 0.0})
    metrics = folder.run("full-s0-f3").metrics
    values = json.loads(metrics.read_text())
    values["rows"] = [row for row in values["rows"] if row["mode"] == "box"]
    metrics.write_text(json.dumps(values))
    joined = join_folds(table(folder))
    assert joined.frame["mode"].tolist() == ["box"]
    assert joined.sentences == ["full: left out, because of 3 folds fold 3 is not measured in mode point"]


def test_strategies_are_compared_over_the_images_of_all_folds(tmp_path, capsys):
    folder = study(tmp_path, {"full": 0.0, "lora": 0.1})
    status, out, _ = ask(
        folder, capsys, "compare", "study", "--baseline", "peft=full", "--where", "mode=box", "--json"
    )
    answer = json.loads(out)
    (row,) = answer["comparisons"]
    assert (status, answer["problems"]) == (0, [])
    assert (row["n_test_images"], row["n_left_out"], row["seeds"]) == (10, 0, [0])
    assert row["baseline"] == pytest.approx(MEAN)
    assert row["difference"] == pytest.approx(0.1)
    assert row["run_ids"] == ["lora-s0-f1", "lora-s0-f2", "lora-s0-f3"]
    assert any("Bengio" in note for note in answer["notes"])
    by_run = ask(
        folder, capsys, "compare", "study", "--baseline", "full-s0-f2", "--where", "mode=box", "--json"
    )
    assert json.loads(by_run[1])["comparisons"] == answer["comparisons"]
    status, _, error = ask(folder, capsys, "compare", "study", "--baseline", "peft=full", "--where", "fold=1")
    assert (status, "folds are compared together" in error) == (2, True)


def test_the_advice_rests_on_the_images_of_all_folds_and_repeats_them(tmp_path, capsys):
    folder = study(tmp_path, {"full": 0.0, "lora": 0.1})
    status, out, _ = ask(folder, capsys, "recommend", "--memory", "32", "--cpu", "--json")
    answer = json.loads(out)
    assert (status, answer["problems"]) == (0, [])
    winner = answer["winner"]
    assert (winner["strategy"], winner["quality"]["n_test_images"]) == ("lora", 10)
    assert winner["quality"]["mean"] == pytest.approx(MEAN + 0.1)
    assert winner["quality"]["low"] < winner["quality"]["mean"] < winner["quality"]["high"]
    assert winner["quality"]["n_runs"] == 1  # folds are no seeds
    assert winner["training_from"].startswith("the mean of 3 folds,")
    assert answer["difference"]["n_images"] == 10
    words = answer["command"].split()
    assert words[:4] == ["python", "-m", "refsam.sweep", "-m"]  # all folds again
    assert "evaluate.folds=3" in words
    assert not any(word.startswith("evaluate.fold=") for word in words)


def test_results_csv_has_a_row_for_each_fold_and_figures_one_point_for_all(tmp_path, capsys, monkeypatch):
    from matplotlib.figure import Figure

    folder = study(tmp_path, {"full": 0.0, "lora": 0.1})
    status, out, _ = ask(folder, capsys, "collect", "study")
    assert status == 0
    assert len([line for line in out.splitlines() if line.startswith("lora ")]) == 1
    rows = pd.read_csv(folder.sweep("study").results)
    assert sorted(rows[rows["mode"] == "box"]["fold"]) == [1, 1, 2, 2, 3, 3]
    assert set(rows["folds"]) == {3}
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    for kind in ("study", "pareto", "memory"):
        drawn.clear()
        assert ask(folder, capsys, "plot", "study", "--kind", kind)[0] == 0
        bars = [each for panel in drawn[0].axes for each in panel.containers]
        assert not any(each.has_xerr or each.has_yerr for each in bars)  # nothing is called a deviation
    status, out, error = ask(folder, capsys, "plot", "study", "--kind", "study", "--where", "fold=1")
    assert (status, error) == (0, "")


def test_where_no_set_of_folds_is_complete_it_is_said_instead_of_a_table(tmp_path, capsys):
    folder = study(tmp_path, {"full": 0.0}, states={"full-s0-f3": State.failed})
    said = "no set of folds is complete: full: left out, because of 3 folds fold 3 has failed"
    for command in (
        ("strategies", "study"),
        ("plot", "study"),
        ("collect", "study", "--where", "mode=box", "--rows", "strategy"),
    ):
        status, _, error = ask(folder, capsys, *command)
        assert (status, said in error) == (2, True), command
    status, _, error = ask(folder, capsys, "compare", "study", "--baseline", "full-s0-f1")
    assert status == 0
    folder = study(tmp_path / "two", {"full": 0.0, "lora": 0.0}, states={"full-s0-f3": State.failed})
    status, _, error = ask(folder, capsys, "compare", "study", "--baseline", "full-s0-f1")
    assert (status, "full-s0-f1 is fold 1 of 3, which are not complete" in error) == (2, True)
