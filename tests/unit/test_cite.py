"""What to cite: the entries are BibTeX, and whatever a run can use has its rule."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import bibtexparser
import pandas as pd
import pytest

from refsam import cli
from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze
from refsam.configuration.optimizers import OPTIMIZERS
from refsam.models.families import FAMILIES
from refsam.models.strategies import STRATEGIES, Method
from refsam.records.paths import RunsFolder
from refsam.records.status import State, Status, write_status
from refsam.results.citations.cite import REFERENCES, RULES, _used, citations, references
from refsam.results.collect import join
from refsam.system.files import read_yaml, write_json

CONF = Path(__file__).parents[2] / "conf"
OWN = {"hf", "folder", "coco"}  # under these a user's own model or images go


@pytest.fixture(scope="module")
def rules() -> dict[str, Any]:
    return read_yaml(RULES)


@pytest.fixture
def folder(tmp_path: Path) -> RunsFolder:
    return RunsFolder(tmp_path / "runs")


def write_sweep(folder: RunsFolder, *runs: tuple[str, list[str]]) -> None:
    """A sweep `study` of runs that are planned, with the configuration that these overrides make."""
    planned = []
    for run_id, overrides in runs:
        paths = folder.run(run_id)
        paths.root.mkdir(parents=True)
        freeze(paths.config, compose(overrides))
        write_status(paths, Status(State.planned))
        planned.append({"run_id": run_id, "overrides": dict(each.split("=") for each in overrides)})
    folder.sweep("study").root.mkdir(parents=True)
    write_json(folder.sweep("study").manifest, {"format": 1, "name": "study", "runs": planned, "skipped": []})


def keys_of(folder: RunsFolder) -> set[str]:
    joined = join([(folder.sweep("study"), folder)])
    found = citations(joined.frame, joined.directories)
    return set(found.entries)


def test_every_entry_is_bibtex_with_what_a_reader_needs():
    library = bibtexparser.parse_string(REFERENCES.read_text(encoding="utf-8"))
    assert library.failed_blocks == []
    assert list(library.entries_dict) == list(references())
    for entry in library.entries:
        fields = entry.fields_dict
        assert {"author", "title"} <= set(fields)
        assert {"doi", "eprint", "howpublished"} & set(fields), entry.key
        assert ("eprint" in fields) == ("archiveprefix" in fields), entry.key
        if "eprint" in fields:
            assert re.fullmatch(r"\d{4}\.\d{5}", fields["eprint"].value), entry.key
        if "doi" in fields:
            assert re.fullmatch(r"10\.\d{4,}/\S+", fields["doi"].value), entry.key


def test_bibtex_itself_takes_all_entries_where_it_is_installed(tmp_path):
    if shutil.which("bibtex") is None:
        return  # the parser above has read them
    (tmp_path / "all.bib").write_text("\n".join(references().values()), encoding="utf-8")
    (tmp_path / "paper.aux").write_text("\\citation{*}\n\\bibstyle{plain}\n\\bibdata{all}\n")
    done = subprocess.run(["bibtex", "paper"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    written = (tmp_path / "paper.bbl").read_text(encoding="utf-8")
    assert written.count("\\bibitem") == len(references())


def test_every_rule_names_an_entry_and_every_entry_has_a_rule(rules):
    named = set(rules["always"])
    for name, section in rules.items():
        if name != "always":
            named |= {key for keys in section.values() for key in keys}
    assert named == set(references())


def test_whatever_a_run_can_use_has_its_rule(rules):
    def names(group: str) -> set[str]:
        values = [read_yaml(path) for path in (CONF / group).glob("*.yaml")]
        return {value["name"] for value in values if "name" in value} - OWN - {"auto"}

    assert names("model") == set(rules["models"])
    assert names("dataset") == set(rules["datasets"])
    assert set(STRATEGIES) == set(rules["strategies"])
    assert names("peft") <= set(rules["strategies"])
    assert set(OPTIMIZERS) == set(rules["optimizers"])
    assert set(FAMILIES) == set(rules["families"])
    hub_ids = {read_yaml(path).get("hub_id") for path in (CONF / "model").glob("*.yaml")} - {None}
    assert hub_ids == set(rules["hub_ids"])


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_s_rule_follows_who_changes_the_model(rules, name):
    strategy, keys = STRATEGIES[name], rules["strategies"][name]
    assert ("peft" in keys) == (strategy.method is Method.peft)
    assert ("peft_sam" in keys) == (strategy.method is not Method.parts)
    assert ("qlora" in keys) == strategy.quantized


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=vit_t_lm", "peft=full", "dataset=covid_if"], {"mobile_sam", "covid_if"}),
        (["model=vit_b", "peft=lora", "dataset=nuclei"], {"peft_sam", "lora", "mnfinder"}),
        (
            ["model=slimsam_77", "peft=qdora", "dataset=trashcan"],
            {"transformers", "slimsam", "peft_sam", "peft", "lora", "dora", "qlora", "trashcan"},
        ),
        (
            ["model=vit_b", "peft=full", "dataset=synthetic", "train.optimizer=adam8bit"],
            {"eight_bit_optimizers"},
        ),
    ],
)
def test_a_run_needs_what_it_uses_and_no_more(folder, overrides, expected):
    write_sweep(folder, ("a", overrides))
    assert keys_of(folder) == {"sam", "micro_sam", "torch_em"} | expected


def test_a_baseline_uses_no_strategy(folder):
    write_sweep(folder, ("a", ["model=vit_b", "peft=lora", "dataset=nuclei", "kind=baseline"]))
    assert keys_of(folder) == {"sam", "micro_sam", "torch_em", "mnfinder"}


def test_a_model_of_the_hub_is_known_by_its_id_under_any_name(folder):
    overrides = ["model=hf", "model.name=ours", "model.hub_id=wanglab/medsam-vit-base", "dataset=nuclei"]
    write_sweep(folder, ("a", [*overrides, "peft=full"]))
    assert {"medsam", "transformers"} <= keys_of(folder)


def test_a_run_without_a_configuration_is_judged_by_what_the_command_said(folder):
    write_sweep(folder, ("a", ["model=vit_t", "peft=dora", "dataset=nuclei"]))
    folder.run("a").config.unlink()
    assert {"mobile_sam", "dora", "mnfinder"} <= keys_of(folder)


def test_a_strategy_is_known_in_the_table_whatever_settings_stand_beside_it(folder):
    row = dict.fromkeys(("run_id", "model", "strategy", "dataset", "optimizer")) | {
        "run_id": "gone",
        "model": "vit_b",
        "dataset": "nuclei",
    }
    for label in ("dora", "dora, rank 8", "dora 50 %, rank 8", "dora, summed"):
        assert _used(row | {"strategy": label}, [folder]).strategy == "dora"
    assert _used(row, [folder]).strategy is None


def test_what_has_no_known_source_is_said_and_the_file_stays_bibtex(folder, tmp_path, capsys):
    own = ["model=vit_b", "peft=full", "dataset=folder", "dataset.root=x", "dataset.name=my_cells"]
    write_sweep(folder, ("a", own))
    target = tmp_path / "study.bib"
    command = ["cite", "study", "--runs", str(folder.root)]
    assert cli.main([*command, "--output", str(target)]) == 0
    out = capsys.readouterr().out
    assert "3 entries" in out
    assert "Data set my_cells: its source is not known here" in out
    library = bibtexparser.parse_string(target.read_text(encoding="utf-8"))
    assert library.failed_blocks == []
    assert set(library.entries_dict) == {"sam", "micro_sam", "torch_em"}
    assert cli.main(command) == 0
    assert capsys.readouterr().out == target.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stuy"], "did you mean study"),
        (["study", "--output", "nowhere/x.bib"], "nowhere is not a folder"),
        (["study", "--output", "."], "is a folder"),
        (["study", "--where", "model=vit_x"], "no run of the sweep has this value"),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    write_sweep(folder, ("a", ["model=vit_b", "peft=full", "dataset=nuclei"]))
    assert cli.main(["cite", *arguments, "--runs", str(folder.root)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_sweep_without_runs_needs_nothing():
    empty = pd.DataFrame(
        {name: [] for name in ("run_id", "status", "model", "strategy", "dataset", "optimizer")}
    )
    assert citations(empty, {}).text == ""
