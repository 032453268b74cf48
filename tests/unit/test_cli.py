"""The command `refsam`: what it prints, where, and with which exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from refsam import __version__, cli
from refsam.configuration.resources import folder as resource_folder
from refsam.errors import ConfigError
from refsam.records.paths import RunsFolder, SweepPaths
from refsam.records.status import Reason, State, Status, write_status
from refsam.results.collect import METRICS
from refsam.system.files import write_json


@pytest.fixture
def folder(tmp_path: Path) -> RunsFolder:
    folder = RunsFolder(tmp_path / "runs")
    folder.sweeps.mkdir(parents=True)
    return folder


def write_sweep(folder: RunsFolder, name: str, states: dict[str, State]) -> SweepPaths:
    """A sweep whose runs are in the given states; completed ones have metrics."""
    sweep = folder.sweep(name)
    sweep.root.mkdir()
    overrides = {"resource": "local", "model": "vit_nano", "dataset": "nuclei", "model.weights": "random"}
    runs = []
    for number, (run_id, state) in enumerate(states.items(), start=1):
        paths = folder.run(run_id)
        paths.results.mkdir(parents=True)
        reason = Reason.timeout if state is State.failed else None
        write_status(paths, Status(state, reason, attempt=1))
        if state is State.completed:
            values = {**dict.fromkeys(METRICS, 1 / 3), "n_images": 3, "seconds_per_image": 0.5}
            write_json(paths.metrics, {"box": values})
        runs.append({"run_id": run_id, "overrides": {**overrides, "peft": "full", "n_images": number}})
    write_json(sweep.manifest, {"format": 1, "name": name, "runs": runs, "skipped": []})
    return sweep


def call(*arguments: str, folder: RunsFolder) -> int:
    return cli.main([*arguments, "--runs", str(folder.root)])


def test_collect_writes_the_results_and_prints_the_table(folder, capsys):
    sweep = write_sweep(folder, "demo", {"a": State.completed, "b": State.failed})
    assert call("collect", "demo", folder=folder) == 0
    output = capsys.readouterr().out
    assert "0.333" in output
    assert "failed (timeout)" in output
    assert f"2 rows in {sweep.results}" in output
    assert sweep.results.read_text().count("\n") == 3


def test_collect_as_json_keeps_all_digits(folder, capsys):
    write_sweep(folder, "demo", {"a": State.completed})
    assert call("collect", "demo", "--json", folder=folder) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["SA50"] == pytest.approx(1 / 3, abs=1e-14)
    assert row["best_epoch"] is None


def test_plot_names_the_files_it_wrote(folder, capsys):
    sweep = write_sweep(folder, "demo", {"a": State.completed, "b": State.completed})
    assert call("plot", "demo", folder=folder) == 0
    named = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.suffix for path in named] == [".png", ".pdf", ".svg"]
    assert all(path.parent == sweep.figures and path.stat().st_size > 1000 for path in named)


def test_a_sweep_without_a_completed_run_is_no_error(folder, capsys):
    sweep = write_sweep(folder, "demo", {"a": State.running})
    assert call("collect", "demo", folder=folder) == 0
    assert "No run of this sweep is completed yet" in capsys.readouterr().out
    assert call("plot", "demo", folder=folder) == 0
    assert "nothing to draw" in capsys.readouterr().out
    assert not sweep.figures.exists()


def test_list_counts_the_states(folder, capsys):
    write_sweep(folder, "first", {"a": State.completed, "b": State.completed, "c": State.failed})
    write_sweep(folder, "second", {"d": State.pending})
    assert call("list", folder=folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["first", "2", "completed,", "1", "failed"],
        ["second", "1", "pending"],
    ]


def test_list_of_an_empty_folder_says_so(folder, capsys):
    assert call("list", folder=folder) == 0
    assert "no sweeps" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["collect", "plot"])
def test_an_unknown_sweep_is_one_sentence_with_the_nearest_name(folder, capsys, command):
    write_sweep(folder, "covid_if", {})
    assert call(command, "covid_fi", folder=folder) == 2
    error = capsys.readouterr().err
    assert error.startswith("refsam: sweep 'covid_fi'")
    assert "did you mean covid_if?" in error
    assert error.count("\n") == 1


def test_a_runs_folder_that_is_not_there_is_bad_input(tmp_path, capsys):
    assert cli.main(["list", "--runs", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_damaged_record_is_named_and_the_status_says_so(folder, capsys):
    write_sweep(folder, "demo", {"a": State.completed, "b": State.completed})
    folder.run("b").metrics.write_text("{")
    assert call("collect", "demo", folder=folder) == 1
    output = capsys.readouterr()
    assert str(folder.run("b").metrics) in output.err
    assert "runs with damaged records: 1 of 2" in output.err
    assert "0.333" in output.out


def test_a_damaged_manifest_is_named(folder, capsys):
    sweep = write_sweep(folder, "demo", {})
    sweep.manifest.write_text("{")
    assert call("collect", "demo", folder=folder) == 1
    assert str(sweep.manifest) in capsys.readouterr().err
    assert call("list", folder=folder) == 1


def test_ctrl_c_is_one_line(folder, capsys, monkeypatch):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("refsam.results.sweeps.sweep_names", interrupted)
    assert call("list", folder=folder) == 130
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What `refsam prepare` fetches, instead of fetching it."""
    calls: list[tuple[str, str]] = []
    data = SimpleNamespace(prepare=lambda dataset: calls.append(("data", dataset.name)))
    weights = SimpleNamespace(fetch_weights=lambda name: calls.append(("weights", name)))
    monkeypatch.setitem(sys.modules, "refsam.datasets.prepare", data)
    monkeypatch.setitem(sys.modules, "refsam.science.fetch", weights)
    return calls


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [("data", "nuclei"), ("weights", "vit_b")]),
        (["dataset=synthetic"], [("data", "synthetic")]),
        (["model=vit_b_lm"], [("weights", "vit_b_lm")]),
        (["dataset=synthetic", "model=vit_b_lm"], [("data", "synthetic"), ("weights", "vit_b_lm")]),
        (["model=vit_nano"], []),
        (["model=vit_nano", "dataset=nuclei"], [("data", "nuclei")]),
        (["dataset=synthetic", "data=elsewhere"], [("data", "synthetic")]),
        # The overrides of a sweep, as its command has them.
        (
            ["-m", "resource=gtx1080,v100", "n_train_images=1,2", "model=vit_b,vit_t", "dataset=synthetic"],
            [("data", "synthetic"), ("weights", "vit_b"), ("weights", "vit_t")],
        ),
        (["resource=v100", "dataset=synthetic"], [("data", "synthetic"), ("weights", "vit_b")]),
        (["model=vit_b,vit_t"], [("weights", "vit_b"), ("weights", "vit_t")]),
        (["--config-name", "demo"], [("data", "nuclei")]),
        (
            ["--config-name", "covid_if", "model=vit_b,vit_b_lm"],
            [("data", "covid_if"), ("weights", "vit_b"), ("weights", "vit_b_lm")],
        ),
    ],
)
def test_prepare_fetches_what_is_named(fetched, overrides, expected):
    assert cli.main(["prepare", *overrides]) == 0
    assert fetched == expected


def test_prepare_refuses_an_unknown_choice_in_one_sentence(fetched, capsys):
    assert cli.main(["prepare", "dataset=nuclie"]) == 2
    error = capsys.readouterr().err
    assert "did you mean nuclei?" in error
    assert error.count("\n") == 1
    assert fetched == []


def test_prepare_finds_a_site_s_own_choices(fetched, tmp_path, capsys):
    site = tmp_path / "it's a site, mine"
    (site / "resource").mkdir(parents=True)
    text = (resource_folder("conf") / "resource" / "v100.yaml").read_text(encoding="utf-8")
    (site / "resource" / "h100.yaml").write_text(text.replace("v100", "h100"), encoding="utf-8")
    assert cli.main(["prepare", "--config-dir", str(site), "resource=h100", "dataset=synthetic"]) == 0
    assert fetched == [("data", "synthetic"), ("weights", "vit_b")]
    assert cli.main(["prepare", "--config-dir", str(site / "no"), "resource=h100"]) == 2
    assert capsys.readouterr().err.startswith("refsam: --config-dir must be a folder, got ")


def test_overrides_may_stand_on_either_side_of_an_option(monkeypatch):
    options = cli._options(["fit", "model=vit_t", "--engine", "refsam", "resource=local", "peft=full"])
    assert (options.overrides, options.engine) == (["model=vit_t", "resource=local", "peft=full"], "refsam")


@pytest.mark.parametrize(
    ("given", "unknown"),
    [
        (["fit", "model=vit_t", "--engines", "refsam"], "--engines refsam"),
        (["list", "model=vit_t"], "model=vit_t"),
    ],
)
def test_what_no_command_takes_is_named(given, unknown, capsys):
    with pytest.raises(SystemExit) as ended:
        cli._options(given)
    assert ended.value.code == 2
    assert f"unrecognized arguments: {unknown}" in capsys.readouterr().err


def test_bad_input_anywhere_is_one_sentence(capsys, monkeypatch):
    def refuse(dataset: object) -> None:
        raise ConfigError("dataset.root is not there")

    monkeypatch.setitem(sys.modules, "refsam.datasets.prepare", SimpleNamespace(prepare=refuse))
    assert cli.main(["prepare", "dataset=nuclei"]) == 2
    assert capsys.readouterr().err == "refsam: dataset.root is not there\n"


def test_sweep_hands_over_its_arguments(monkeypatch):
    given: list[Any] = []
    monkeypatch.setattr("refsam.sweep.main", given.append)
    assert cli.main(["sweep", "-m", "n_images=1,2", "--help"]) == 0
    assert given == [["-m", "n_images=1,2", "--help"]]


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"refsam {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["collect", "--help"], ["list"]])
def test_what_must_answer_at_once_imports_nothing_heavy(folder, arguments):
    code = (
        "import sys\nfrom refsam import cli\ntry:\n    cli.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('imported:', {'torch', 'pandas', 'hydra', 'matplotlib', 'numpy'} & set(sys.modules))"
    )
    arguments = [*arguments, "--runs", str(folder.root)] if arguments == ["list"] else arguments
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "imported: set()"


def test_a_mistyped_command_suggests_the_nearest(capsys):
    assert cli.main(["statsu"]) == 2
    assert capsys.readouterr().err == (
        "refsam: 'statsu' is not a command (did you mean status?); refsam --help lists them\n"
    )


def test_the_environment_names_the_runs_folder(folder, capsys, monkeypatch, tmp_path):
    write_sweep(folder, "study", {"a": State.completed})
    monkeypatch.chdir(tmp_path.parent)
    assert cli.main(["list"]) == 2
    assert (
        "the runs folder does not exist: 'runs'; run a sweep first, or give the folder"
        in capsys.readouterr().err
    )
    assert cli.main(["list", "--runs", "elsewhere"]) == 2
    assert capsys.readouterr().err == "refsam: --runs 'elsewhere' is not a folder\n"
    monkeypatch.setenv("REFSAM_RUNS", str(folder.root))
    assert cli.main(["list"]) == 0
    assert capsys.readouterr().out.split()[0] == "study"


def test_a_sweep_goes_into_the_runs_folder_of_the_environment(tmp_path):
    command = [sys.executable, "-m", "refsam.sweep", "--cfg", "job"]
    environment = {**os.environ, "REFSAM_RUNS": str(tmp_path)}
    done = subprocess.run(
        [*command, "--resolve"], capture_output=True, text=True, check=True, env=environment
    )
    assert f"\nruns: {tmp_path}\n" in done.stdout
