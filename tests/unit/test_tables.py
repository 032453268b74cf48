"""Wide tables, the studies' tables and their formats; what was read of records is not read again."""

import csv
import io
import json
import re
import shutil
import subprocess
from typing import Any

import openpyxl
import pandas as pd
import pyarrow.parquet
import pytest
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexMacroNode, LatexWalker

from refsam import cli
from refsam.errors import ConfigError
from refsam.records.paths import RunsFolder
from refsam.records.status import State, Status, write_status
from refsam.results import index
from refsam.results.collect import COLUMNS, METRICS, collect, join
from refsam.results.provenance import one_line, provenance
from refsam.results.published import PUBLISHED, published_runs
from refsam.results.run_rows import INTEGERS
from refsam.results.tables.formats import as_csv, as_latex, as_markdown, write_table
from refsam.results.tables.studies import hugging_face_study, peft_study, resource_study
from refsam.results.tables.wide import time_text, wide_table
from refsam.system.files import read_json, read_yaml, write_json, write_yaml

CONFIG = {
    "kind": "finetuning",
    "resource": {"name": "local"},
    "model": {"name": "vit_nano", "weights": "/my/own model.pt"},
    "peft": {"name": "full"},
    "dataset": {"name": "nuclei"},
    "n_images": 1,
    "n_objects": 5,
    "seed": 0,
}


def row(strategy: str, n_images: int, sa50: float, **others: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(COLUMNS),
        "run_id": f"{strategy}-{n_images}-{others}",
        "sweep": "study",
        "status": "completed",
        "round": 0,
        "resource": "v100",
        "model": "vit_b",
        "weights": "pretrained",
        "dataset": "covid_if",
        "strategy": strategy,
        "n_images": n_images,
        "mode": "box",
        "SA50": sa50,
        "seed": 0,
        **others,
    }


def frame_of(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(dict.fromkeys(INTEGERS, "Int64"))


@pytest.fixture
def seeds() -> pd.DataFrame:
    """Two strategies, two numbers of images, three seeds, and the initial model."""
    rows = [row("baseline", 0, 0.3)]
    for seed in range(3):
        rows += [row("full", 1, 0.5 + 0.01 * seed, seed=seed), row("full", 5, 0.6 + 0.01 * seed, seed=seed)]
        rows += [row("a_b & 50%", 1, 0.7, seed=seed)]
    return frame_of(*rows)


def write_runs(folder: RunsFolder, sweep: str, values: dict[str, float]) -> None:
    """A sweep of completed runs with these SA50."""
    for run_id, value in values.items():
        paths = folder.run(run_id)
        paths.results.mkdir(parents=True, exist_ok=True)
        metrics = {**dict.fromkeys(METRICS, value), "n_images": 12, "seconds_per_image": 0.5}
        later = {**metrics, "mode": "box", "round": 1, "mask_input": True, "intervals": {"SA50": [0.1, 0.9]}}
        first = {**metrics, "mode": "box", "round": 0, "mask_input": False}
        write_json(paths.metrics, {"format": 2, "rows": [first, later]})
        write_status(paths, Status(State.completed, attempt=1))
    overrides = {"resource": "local", "model": "vit_nano", "dataset": "nuclei", "peft": "full"}
    runs = [
        {"run_id": run_id, "overrides": {**overrides, "n_images": 1, "seed": seed}}
        for seed, run_id in enumerate(values)
    ]
    folder.sweep(sweep).root.mkdir(parents=True, exist_ok=True)
    write_json(folder.sweep(sweep).manifest, {"format": 1, "name": sweep, "runs": runs, "skipped": []})


def has_siunitx() -> bool:
    """Whether pdflatex is there with what tables need (texlive-latex-base, -recommended, -science)."""
    if shutil.which("pdflatex") is None or shutil.which("kpsewhich") is None:
        return False
    found = subprocess.run(["kpsewhich", "siunitx.sty", "booktabs.sty"], capture_output=True, text=True)
    return len(found.stdout.split()) == 2


def test_cells_are_means_over_seeds_and_the_best_of_a_row_is_marked(seeds):
    table = wide_table(seeds, ("strategy",), ("n_images",), ("SA50",))
    assert table.rows == [("baseline",), ("full",), ("a_b & 50%",)]
    assert table.headings == ["baseline", "1 image", "5 images"]
    one, five = table.cells[1][1:]
    assert (one.mean, one.deviation, one.n) == (pytest.approx(0.51), pytest.approx(0.01), 3)
    assert not one.best
    assert five.best
    assert table.cells[1][0] is None


def test_the_best_of_a_row_is_that_of_its_mode():
    rows = [row("full", count, 0.1 * count, mode=mode) for count in (1, 5) for mode in ("box", "point")]
    table = wide_table(frame_of(*rows), ("strategy",), ("n_images",), ("SA50",))
    assert table.headings == ["box 1 image", "box 5 images", "point 1 image", "point 5 images"]
    assert [cell.best for cell in table.cells[0]] == [False, True, False, True]
    table = wide_table(frame_of(*rows), ("strategy", "n_images"), ("mode",), ("SA50",))
    assert not any(cell.best for line in table.cells for cell in line)  # equal


def test_rounds_with_and_without_the_mask_are_no_seeds_of_each_other():
    runs = [row("full", 1, 0.5, run_id="a", round=1, mask_input=mask) for mask in (False, True)]
    with pytest.raises(ConfigError, match=r"differ in mask_input \(False, True\)"):
        wide_table(frame_of(*runs), ("round",), ("n_images",), ("SA50",))
    assert len(wide_table(frame_of(*runs), ("round", "mask_input"), ("n_images",), ("SA50",)).rows) == 2


def test_smaller_is_better_for_times():
    rows = [row("full", count, 0.5, seconds_total=seconds) for count, seconds in ((1, 60.0), (5, 90.0))]
    table = wide_table(frame_of(*rows), ("strategy",), ("n_images",), ("seconds_total",))
    assert [cell.best for cell in table.cells[0]] == [True, False]


def test_a_cell_never_mixes_what_differs_in_more_than_the_seed(seeds):
    with pytest.raises(ConfigError, match=r"differ in strategy \(a_b & 50%, full\); add it to --rows"):
        wide_table(seeds, ("model",), ("n_images",), ("SA50",))
    assert wide_table(seeds, ("model",), ("n_images",), ("SA50",), {"strategy": "full"}).cells[0][1].n == 3


@pytest.mark.parametrize(
    ("rows", "columns", "metric", "where", "words"),
    [
        ("stratgy", "n_images", "SA50", {}, "did you mean strategy"),
        ("strategy", "n_images", "SA_50", {}, "did you mean SA50"),
        ("strategy", "n_images", "SA50", {"model": "vit_l"}, "there are vit_b|did you mean vit_b"),
        ("strategy", "strategy", "SA50", {}, "one of them"),
    ],
)
def test_axes_metrics_and_values_that_do_not_exist_are_named(seeds, rows, columns, metric, where, words):
    with pytest.raises(ConfigError, match=words):
        wide_table(seeds, (rows,), (columns,), (metric,), where)


def test_markdown_and_csv_hold_the_same_numbers(seeds):
    table = wide_table(seeds, ("strategy",), ("n_images",), ("SA50",))
    assert "| full |  | 0.510 ± 0.010 | **0.610 ± 0.010** |" in as_markdown(table)
    lines = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert float(lines[1]["5 images"]) == pytest.approx(0.61)
    assert float(lines[1]["5 images std"]) == pytest.approx(0.01)


def test_latex_has_as_many_cells_as_columns_and_escapes_names(seeds):
    text = as_latex(wide_table(seeds, ("strategy",), ("n_images",), ("SA50",)))
    columns = re.search(r"\\begin\{tabular\}\{(.*)\}\n", text)[1]
    assert columns == "l" + "S[table-format=1.3]" + "S[table-format=1.3(2)]" * 2
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in lines] == [3] * 4
    assert r"a\_b \& 50\%" in text
    assert r"\bfseries 0.610 \pm 0.010" in text
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize("of", ["seeds", "published", "peft", "hugging_face"])
def test_latex_needs_no_more_than_it_says_and_compiles_where_latex_is(seeds, tmp_path, of):
    tables = {
        "seeds": lambda: wide_table(seeds, ("strategy",), ("n_images",), ("SA50",)),
        "published": lambda: resource_study(published_runs()),
        "peft": lambda: peft_study(seeds),
        "hugging_face": lambda: hugging_face_study(seeds),
    }
    (path,) = write_table(tables[of](), tmp_path / "written", ("latex",), provenance(seeds))
    body = path.read_text()
    assert set(re.findall(r"\\usepackage\{(\w+)\}", body)) == {"booktabs", "siunitx"}
    if not has_siunitx():
        return  # test_the_latex_of_every_table_is_latex has parsed it
    packages = r"\documentclass{article}\usepackage{booktabs,siunitx}"
    document = packages + r"\begin{document}" + body + r"\end{document}"
    (tmp_path / "table.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "table.pdf").stat().st_size > 1000


def test_excel_holds_numbers_and_no_formulas(seeds, tmp_path):
    seeds.loc[seeds["strategy"] == "full", "strategy"] = "=1+1"
    table = wide_table(seeds, ("strategy",), ("n_images",), ("SA50",))
    (path,) = write_table(table, tmp_path / "table", ("excel",), provenance(seeds))
    sheet = openpyxl.load_workbook(path).active
    values = {line[0].value: line for line in sheet.iter_rows(min_row=2)}
    assert values["=1+1"][0].data_type == "s"
    assert values["=1+1"][3].value == pytest.approx(0.61)
    assert values["=1+1"][3].font.bold
    assert "±" in values["=1+1"][3].number_format


def test_the_columns_of_excel_are_as_wide_as_their_cells(seeds, tmp_path):
    name = "vit_b_em_organelles_with_a_long_name"
    seeds.loc[seeds["strategy"] == "full", "strategy"] = name
    table = wide_table(seeds, ("strategy",), ("n_images",), ("SA50",))
    (path,) = write_table(table, tmp_path / "table", ("excel",), provenance(seeds))
    sheet = openpyxl.load_workbook(path).active
    widths = [sheet.column_dimensions[letter].width for letter in "ABCD"]
    assert widths[0] >= len(name)
    shown = max(len(line.split(" | ")[3]) for line in as_markdown(table).splitlines()[2:] if "±" in line)
    assert widths[3] >= shown - len("****")


def test_the_published_table_of_the_resource_study_comes_out_as_published():
    table = resource_study(published_runs())
    published = read_yaml(PUBLISHED)["times"]
    assert table.headings == ["1 image", "2 images", "5 images", "10 images"]
    assert table.rows == [(each["resource"], each["strategy"], each["start"]) for each in published]
    cells = [[cell.text for cell in line] for line in table.cells]
    assert cells == [[f"{epoch}, {time}" for epoch, time in each["images"].values()] for each in published]
    first = "| v100 | full | vit_b | 3, 0:05:07 | 10, 0:14:01 | 10, 0:14:09 | 20, 0:26:24 |"
    assert first in as_markdown(table)


def test_published_times_stand_beside_measured_ones_of_the_same_kind():
    same = {"mode": None, "best_epoch": 5, "seconds_to_best": 400.0}
    measured = frame_of(
        row("full", 1, 0.0, **same),
        row("full", 5, 0.0, **{**same, "best_epoch": 7, "seconds_to_best": 600.0}),
        row("dora", 1, 0.0, **same),  # of which nothing is published
    )
    table = resource_study(measured, published_runs())
    kinds = ("measured", "published", "difference")
    assert table.headings == [f"{count} {kind}" for count in ("1 image", "5 images") for kind in kinds]
    texts = {
        line[table.row_axes.index("strategy")]: [None if cell is None else cell.text for cell in cells]
        for line, cells in zip(table.rows, table.cells, strict=True)
    }
    assert texts["full"] == [
        *("5, 0:06:40", "3, 0:05:07", "+2, +0:01:33"),
        *("7, 0:10:00", "10, 0:14:09", "-3, -0:04:09"),
    ]
    assert texts["dora"] == ["5, 0:06:40", None, None, None, None, None]
    elsewhere = resource_study(measured.assign(dataset="nuclei"), published_runs())
    assert all(cells[1] is None for cells in elsewhere.cells)


def test_published_values_are_those_of_the_resource_study_alone(capsys):
    assert cli.main(["collect", "study", "--study", "peft", "--published"]) == 2
    assert capsys.readouterr().err == "refsam: --published needs --study resource, got peft\n"


def test_a_time_is_written_as_the_study_writes_it():
    assert [time_text(seconds) for seconds in (307, 71494)] == ["0:05:07", "19:51:34"]


def test_the_other_studies_tables_have_their_units():
    costs = {"trainable_parameters": 16_300_000, "peak_memory_gib": 49.7, "seconds_total": 90.0}
    quality = {"mIoU": 0.8146, "mF1": 0.8935, "seconds_per_image": 0.0287}
    frame = frame_of(row("lora", 1, 0.5, **costs, **quality), row("full", 1, 0.6, **quality))
    peft = as_markdown(peft_study(frame))
    assert "| vit_b | lora | 1 | 16.30 | 49.70 | 1.50 | 0.500 |" in peft
    assert "| vit_b | lora | box | 81.46 | 89.35 | 28.70 |" in as_markdown(hugging_face_study(frame))
    frame.loc[frame["strategy"] == "lora", ["mIoU_qlora_sam", "mF1_qlora_sam"]] = 0.75, 0.85
    measured = as_markdown(hugging_face_study(frame))
    assert "mIoU % | mF1 % | mIoU_qlora_sam % | mF1_qlora_sam % | inference ms" in measured
    assert "| vit_b | lora | box | 81.46 | 89.35 | 75.00 | 85.00 | 28.70 |" in measured


def test_only_records_that_changed_are_read_again(tmp_path, monkeypatch):
    folder = RunsFolder(tmp_path / "runs")
    write_runs(folder, "study", {"a": 0.1, "b": 0.2, "c": 0.3})
    first = collect(folder.sweep("study"), folder)
    read: list[str] = []
    original = index.run_rows

    def remembered(paths: Any, run_id: str, overrides: Any) -> Any:
        read.append(run_id)
        return original(paths, run_id, overrides)

    monkeypatch.setattr(index, "run_rows", remembered)
    pd.testing.assert_frame_equal(collect(folder.sweep("study"), folder), first)
    assert read == []
    write_runs(folder, "other", {"b": 0.9})
    again = collect(folder.sweep("study"), folder)
    assert read == ["b"]
    assert again["run_id"].tolist() == ["a", "a", "b", "b", "c", "c"]
    assert again["SA50"].tolist() == [0.1, 0.1, 0.9, 0.9, 0.3, 0.3]
    assert again["round"].tolist() == [0, 1] * 3
    assert again["SA50_low"].dropna().unique() == [0.1]


def test_a_damaged_index_is_made_again(tmp_path):
    folder = RunsFolder(tmp_path / "runs")
    write_runs(folder, "study", {"a": 0.1})
    first = collect(folder.sweep("study"), folder)
    folder.sweep("study").index.write_bytes(b"nothing")
    pd.testing.assert_frame_equal(collect(folder.sweep("study"), folder), first)


def test_runs_that_leave_the_manifest_leave_the_table(tmp_path):
    folder = RunsFolder(tmp_path / "runs")
    write_runs(folder, "study", {"a": 0.1, "b": 0.2})
    collect(folder.sweep("study"), folder)
    write_runs(folder, "study", {"b": 0.2})
    assert set(collect(folder.sweep("study"), folder)["run_id"]) == {"b"}


def test_several_people_s_runs_are_joined_and_contradictions_are_named(tmp_path, capsys):
    mine, theirs = RunsFolder(tmp_path / "mine"), RunsFolder(tmp_path / "theirs")
    write_runs(mine, "study", {"a": 0.1, "b": 0.2})
    write_runs(theirs, "study", {"b": 0.3, "c": 0.4})
    joined = join([(mine.sweep("study"), mine), (theirs.sweep("study"), theirs)])
    frame = joined.frame
    assert frame["run_id"].unique().tolist() == ["a", "b", "c"]
    assert [conflict.run_id for conflict in joined.conflicts] == ["b"]
    assert joined.directories == {"a": mine.run("a"), "b": mine.run("b"), "c": theirs.run("c")}
    assert frame.loc[frame["run_id"] == "b", "SA50"].unique() == [0.2]
    command = ["collect", "study", "--runs", str(mine.root), "--join", str(theirs.root)]
    assert cli.main(command) == 1
    assert "run b has other results" in capsys.readouterr().err
    assert len(pd.read_csv(mine.joined.results)) == 6


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    folder = RunsFolder(tmp_path / "runs")
    write_runs(folder, "study", {"a": 0.1})
    folder.sweep("study").results.mkdir()
    assert cli.main(["collect", "study", "--runs", str(folder.root)]) == 1
    error = capsys.readouterr().err
    assert error == f"refsam: {folder.sweep('study').results} cannot be read or written: Is a directory\n"


def test_a_table_s_name_is_a_file_s_name_whatever_was_chosen(tmp_path):
    folder = RunsFolder(tmp_path / "runs")
    write_runs(folder, "study", {"a": 0.1})
    write_yaml(folder.run("a").config, CONFIG)
    command = ["collect", "study", "--rows", "model", "--where", "weights=/my/own model.pt"]
    assert cli.main([*command, "--runs", str(folder.root)]) == 0
    names = {path.name for path in folder.sweep("study").tables.iterdir()}
    assert "SA50-model-by-n_images-_my_own_model.pt.tex" in names


def test_the_same_run_of_two_sweeps_is_one_row_that_names_both(tmp_path):
    folder = RunsFolder(tmp_path / "runs")
    write_runs(folder, "first", {"a": 0.1})
    write_runs(folder, "second", {"a": 0.1, "b": 0.2})
    assert cli.main(["collect", "--all", "--runs", str(folder.root)]) == 0
    table = pd.read_csv(folder.joined.results).drop_duplicates("run_id").set_index("run_id")
    assert table["sweep"].to_dict() == {"a": "first, second", "b": "second"}


def test_collect_writes_a_wide_table_in_four_formats_with_its_origin(tmp_path, capsys):
    folder = RunsFolder(tmp_path / "runs")
    write_runs(folder, "study", {"a": 0.1})
    command = ["collect", "study", "--rows", "model", "--columns", "n_images", "--metric", "SA50"]
    assert cli.main([*command, "--name", "mine", "--runs", str(folder.root)]) == 0
    files = sorted(path.name for path in folder.sweep("study").tables.iterdir())
    assert files == ["mine.csv", "mine.json", "mine.md", "mine.tex", "mine.xlsx"]
    origin = json.loads((folder.sweep("study").tables / "mine.json").read_text())
    assert (origin["run_ids"], origin["sweeps"]) == (["a"], ["study"])
    assert "| vit_nano | 0.100 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["collect"], "name one sweep"),
        (["collect", "study", "--format", "word"], "must be one of csv"),
        (["collect", "study", "--rows", "model", "--name", "../x"], "not the name of a file"),
        (["collect", "study", "--rows", "model", "--where", "model"], "AXIS=VALUE"),
        (["plot", "study", "--kind", "pie"], "must be one of study"),
        (["plot", "study", "--metric", "SA_50"], "did you mean SA50"),
        (["plot", "study", "--style", "nowhere"], "not a file"),
        (["plot", "study", "--mode", "bx"], "mode=bx: no run of the sweep has this value"),
        (["plot", "study", "--x", "imges"], "is not an axis"),
        (
            ["plot", "study", "--kind", "heatmap", "--x", "model", "--y", "model"],
            "model is one of --y and of --x",
        ),
        (["strategies", "study", "--where", "model=x"], "model=x: no run of the sweep has this value"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, arguments, words):
    folder = RunsFolder(tmp_path / "runs")
    write_runs(folder, "study", {"a": 0.1})
    assert cli.main([*arguments, "--runs", str(folder.root)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_an_initial_model_never_mixes_with_what_was_trained(seeds):
    where = {"strategy": "full", "n_images": "1"}
    table = wide_table(seeds, ("model",), ("resource",), ("SA50",), where)
    assert (table.cells[0][0].mean, table.cells[0][0].n) == (pytest.approx(0.51), 3)
    alone = wide_table(seeds, ("model",), ("resource",), ("SA50",), {"strategy": "baseline"})
    assert alone.cells[0][0].mean == 0.3


@pytest.mark.parametrize("study", [resource_study, peft_study, hugging_face_study])
def test_the_studies_tables_never_mix_what_differs_in_more_than_the_seed(study):
    costs = {"best_epoch": 3, "seconds_to_best": 60.0, "mIoU": 0.5, "seconds_per_image": 0.1}
    frame = frame_of(
        row("full", 5, 0.5, **costs),
        row("full", 5, 0.7, **costs, weights="random"),
        row("full", 5, 0.6, **costs, dataset="nuclei"),
        row("full", 5, 0.6, **costs, dataset="nuclei", n_objects=3, seed=1),
        row("full", 5, 0.6, **costs, dataset="nuclei", n_objects=4, seed=2),
        row("full", 1, 0.6, **costs, dataset="nuclei", n_objects=4, seed=2),
    )
    table = study(frame)
    assert {"dataset", "weights", "n_objects"} < set(table.row_axes)
    assert all(cell is None or cell.n == 1 for line in table.cells for cell in line)


def test_tables_carry_their_origin_where_their_format_has_a_place(tmp_path):
    folder = RunsFolder(tmp_path / "runs")
    write_runs(folder, "study", {"a": 0.1, "b": 0.2})
    command = ["collect", "study", "--rows", "model", "--name", "mine", "--runs", str(folder.root)]
    assert cli.main(command) == 0
    sweep = folder.sweep("study")
    line = "sweep study; commit not known; refsam"
    markdown, latex = ((sweep.tables / f"mine.{suffix}").read_text() for suffix in ("md", "tex"))
    assert markdown.startswith(f"<!-- {line}")
    assert latex.startswith(f"% {line}")
    book = openpyxl.load_workbook(sweep.tables / "mine.xlsx")
    assert book.properties.description.startswith(line)
    assert "2 runs: a, b" in book.properties.description
    sidecar = read_json(sweep.root / "results.json")
    assert (sidecar["files"], sidecar["run_ids"]) == (["results.csv", "results.parquet"], ["a", "b"])
    inside = json.loads(pyarrow.parquet.read_schema(sweep.results_parquet).metadata[b"refsam"])
    assert inside == {name: value for name, value in sidecar.items() if name != "files"}
    assert cli.main(["strategies", "study", "--runs", str(folder.root)]) == 0
    assert read_json(sweep.root / "strategies.json")["run_ids"] == ["a", "b"]


def test_of_very_many_runs_metadata_name_a_thousand_and_the_file_beside_all(seeds):
    runs = [row("full", 1, 0.5, run_id=f"run{number}", seed=number) for number in range(1500)]
    origin = provenance(frame_of(*runs))
    assert len(origin["run_ids"]) == 1500
    line = one_line(origin)
    assert "1500 runs: run0, run1," in line
    assert "run999, and those that the JSON file beside it names" in line


def test_the_latex_of_every_table_is_latex(seeds):
    walker = LatexWalker(as_latex(wide_table(seeds, ("strategy",), ("n_images",), ("SA50",))))
    nodes, _, _ = walker.get_latex_nodes()  # raises where braces or environments do not match
    (tabular,) = (node for node in nodes if isinstance(node, LatexEnvironmentNode))
    assert tabular.environmentname == "tabular"
    rules = [node.macroname for node in tabular.nodelist if isinstance(node, LatexMacroNode)]
    assert [name for name in rules if name.endswith("rule")] == ["toprule", "midrule", "bottomrule"]
    assert rules.count("\\") == 4
