"""What the report says, from records that are written by hand; how it looks is tested in a browser."""

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from recorded_sweeps import (
    HOSTILE,
    HOSTILE_RUN,
    complete,
    draw_picture,
    environment,
    fail,
    study,
    write_manifest,
    write_run,
)

from refsam import cli
from refsam.records.logs import log_end
from refsam.records.paths import RunsFolder
from refsam.records.per_image import COLUMNS as PER_IMAGE
from refsam.records.status import Reason
from refsam.results.collect import collect, join
from refsam.results.report import drawings
from refsam.results.report.cost import costs, read_power
from refsam.results.report.failures import failures
from refsam.results.report.machine_paths import Shortened
from refsam.results.report.origin import configuration, environments
from refsam.results.report.overview import bests
from refsam.results.report.pictures import MOST, pictures
from refsam.results.report.sources import asked_sweeps, printable
from refsam.system.files import write_json

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text in each of some of them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag  # well formed: every element is closed where it was opened

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [value or "" for _, values in self.elements if (value := values.get(name)) is not None]


def report_of(folder: RunsFolder, *arguments: str, sweep: str = "study") -> tuple[int, str]:
    status = cli.main(["report", sweep, "--runs", str(folder.root), *arguments])
    return status, folder.sweep(sweep).report.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunsFolder, str]:
    folder = study(tmp_path_factory.mktemp("report") / "runs")
    status, text = report_of(folder)
    assert status == 0
    return folder, text


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn elsewhere, and take the most time."""
    monkeypatch.setattr(drawings, "KINDS", {})


def visible(text: str) -> str:
    return " ".join(Page(text).texts["body"][0].split())


@pytest.mark.slow
def test_the_report_says_what_was_run_and_how(recorded):
    _, text = recorded
    words = visible(text)
    for expected in (
        "8 runs of 1 sweep",
        "python -m refsam.sweep -m resource=v100 peft=full,lora n_images=1,5 name=study",
        "0123456789abcdef0123456789abcdef01234567",
        "vit_b from the registry, hash feed",
        "Tesla V100-SXM2-32GB",
        "Example CPU",
        "2.15.0",
        "train.learning_rate",
        "qlora needs a GPU",
    ):
        assert expected in words


def test_states_failures_and_the_ends_of_their_logs_are_there(recorded):
    folder, text = recorded
    words = visible(text)
    assert "5 completed" in words
    assert "2 failed (out_of_memory 1, timeout 1)" in words
    assert "last line" in words
    assert "It has no log." in words
    assert "train.object_chunk=2" in words
    page = Page(text)
    anchors = [link.removeprefix("#") for link in page.attributes("href") if link.startswith("#")]
    assert set(anchors) <= set(page.attributes("id"))
    assert {"run-1", "run-2"} <= set(anchors)
    log = folder.run(HOSTILE_RUN).attempt(2) / "job.out"
    assert f"…/{log.relative_to(folder.root.parent)}" in words


def test_the_overview_says_data_set_model_and_what_varies(recorded):
    words = visible(recorded[1])
    assert "Data setnuclei Modelvit_b What variesstrategy (" in words  # a term and its description
    assert "images (1, 5, 10)" in words
    assert "full, images 5, 12 test images" in words  # the best run


def test_folders_of_the_machine_are_named_only_where_that_is_asked_for(
    recorded, tmp_path, capsys, without_figures
):
    folder, text = recorded
    assert str(folder.root.parent) not in text
    own = RunsFolder(tmp_path / "runs")
    paths = write_run(own, "bad", dataset="nuclei")
    message = "Nothing to read in /scratch/somebody/cells/a.tif, see https://example.org/a/b"
    fail(paths, Reason.error, message, 'File "/opt/env/lib/x.py", line 1\n')
    command = ["/somewhere/refsam/sweep.py", "-m", "data=/scratch/somebody", f"runs={own.root}"]
    write_manifest(own, "study", ["bad"], commands=[command])
    for options, left_out in (((), True), (("--paths",), False)):
        said = visible(report_of(own, *options)[1])
        for folder_of_machine in ("/scratch/somebody", "/opt/env/lib", str(tmp_path)):
            assert (folder_of_machine not in said) == left_out
        assert "https://example.org/a/b" in said
    assert "data=/scratch/somebody" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/runs/a/job.out", "…/runs/a/job.out"),
        ("/data/b/nuclei", "…/b/nuclei"),
        ("/data/My Cells", "…/My Cells"),
        ("images/*.tif", "images/*.tif"),
        ("s/image, 1/2 and/or </b>", "s/image, 1/2 and/or </b>"),
        ("(/tmp/a/b) model.weights=/x/y/z.pt", "(…/b) model.weights=…/z.pt"),
        ("data:image/webp;base64,AA/BB/CC", "data:image/webp;base64,AA/BB/CC"),
    ],
)
def test_of_a_path_the_part_stays_that_means_something_to_others(text, expected):
    shortened = Shortened([Path("/home/me/runs")], ["/data/a/nuclei", "/data/b/nuclei"])
    assert shortened.text(text) == expected


def test_the_tables_the_figures_and_the_pictures_are_there(recorded):
    _, text = recorded
    page = Page(text)
    captions = " ".join(page.texts["caption"])
    for expected in ("SA50 over training images", "mIoU over training images", "Best epoch", "memory", "mF1"):
        assert expected in captions
    sources = page.attributes("src")
    drawn = [source for source in sources if source.startswith("data:image/svg+xml;base64,")]
    assert len(drawn) == 4 * 4  # study, memory, pareto and the heat map in four looks; no run has a history
    svg = base64.b64decode(drawn[0].partition(",")[2]).decode("utf-8")
    assert "<svg" in svg
    assert "<metadata>" not in svg
    photographs = [source for source in sources if source.startswith("data:image/webp;base64,")]
    assert len(photographs) == 3  # the baseline, full and lora
    assert len(page.attributes("alt")) == len(sources)
    assert all(page.attributes("alt"))
    assert "6 other pictures are in the run directories" in visible(text)


def test_everything_from_records_is_escaped(recorded):
    _, text = recorded
    page = Page(text)
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]
    assert all(source.startswith("data:") for source in page.attributes("src"))
    assert "b" in [tag for tag, _ in page.elements]
    assert page.texts["title"] == ["study – refsam report"]
    words = visible(text)
    assert HOSTILE in words
    assert HOSTILE_RUN in words
    assert "7*7" in words  # not calculated by the template
    data = json.loads(page.texts["script"][0])
    (strategies,) = [each for each in data["columns"] if each["name"] == "strategy"]
    assert HOSTILE in strategies["words"]
    block = text[text.index('id="data"') : text.index("</script>", text.index('id="data"'))]
    assert "<" not in block
    assert "\x1b" not in text


def test_nothing_may_be_loaded_and_only_its_own_script_runs(recorded):
    _, text = recorded
    page = Page(text)
    (policy,) = [
        values["content"]
        for _, values in page.elements
        if values.get("http-equiv") == "Content-Security-Policy"
    ]
    directives = dict(part.strip().split(" ", 1) for part in str(policy).split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["img-src"] == "data:"
    for name, content in (("script-src", page.texts["script"][1]), ("style-src", page.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode()
        assert directives[name] == f"'sha256-{digest}'"
    assert not [values for _, values in page.elements if "style" in values]
    linked = [link for link in page.attributes("href") if not link.startswith("#")]
    assert linked == ["data:,", "https://doi.org/10.1002/advs.202100707"]
    assert "srcset" not in text


def test_the_script_has_every_row_and_the_page_the_first_ones(recorded):
    _, text = recorded
    page = Page(text)
    data = json.loads(page.texts["script"][0])
    assert len(data["anchors"]) == 5 * 2 + 2 + 1 + 1
    assert {len(column["values"]) for column in data["columns"]} == {len(data["anchors"])}
    by_name = {column["name"]: column for column in data["columns"]}
    assert by_name["SA50"]["values"][:2] == [0.2, 0.1]
    assert by_name["n_images"]["digits"] == 0
    assert by_name["status"]["words"] == ["completed", "failed", "planned", "invalid"]
    assert "dataset" in by_name  # the same for all: it can be added
    assert not by_name["dataset"]["shown"]
    assert "All rows and columns are in results.csv, beside this file." in visible(text)
    assert "Sorting and filtering need a browser that runs scripts." in page.texts["noscript"][0]


def test_the_best_run_of_each_mode_stands_beside_the_initial_model(recorded):
    folder, _ = recorded
    box, point = bests(collect(folder.sweep("study"), folder))
    assert (box.mode, box.metric, box.value, box.interval) == ("box", "SA50", "0.600", "0.500 to 0.700")
    assert "full" in box.what
    assert box.initial == "0.200"
    assert (point.value, point.initial) == ("0.300", "0.100")


def test_a_manifest_from_before_all_commands_were_kept_has_the_last_one(tmp_path):
    folder = RunsFolder(tmp_path / "runs")
    sweep = write_manifest(folder, "study", [])
    manifest = json.loads(sweep.manifest.read_text(encoding="utf-8"))
    command = manifest.pop("commands")[0]
    write_json(sweep.manifest, manifest | {"command": command})
    (asked,) = asked_sweeps([(sweep, folder)])
    assert asked.commands == ["python -m refsam.sweep " + " ".join(command[1:])]


def test_costs_are_those_of_all_attempts_and_the_energy_follows_from_them(tmp_path):
    folder = RunsFolder(tmp_path / "runs")
    complete(write_run(folder, "run"))
    sweep = write_manifest(folder, "study", ["run"])
    runs = join([(sweep, folder)]).directories
    total = costs(collect(sweep, folder), runs, read_power()).total
    assert (total.runs, total.hours, total.gpu_hours, total.core_hours) == (1, 1.5, 1.5, 6.0)
    expected = (1.5 * 300 + 6.0 * 12 + 1.5 * 4.0 * 0.3725) * 1.67 / 1000
    assert total.kwh == pytest.approx(expected)
    own = costs(collect(sweep, folder), runs, read_power(pue=1.1, gpu_watts=100.0)).total
    assert own.kwh == pytest.approx((1.5 * 100 + 6.0 * 12 + 1.5 * 4.0 * 0.3725) * 1.1 / 1000)


def test_what_the_accounting_of_slurm_says_counts(tmp_path):
    folder = RunsFolder(tmp_path / "runs")
    paths = write_run(folder, "run")
    complete(paths, gpu=None)
    recorded: dict[str, Any] = {"elapsed_seconds": 7200.0, "gpu_hours": 4.0, "cpu_hours": 16.0}
    write_json(paths.costs, {**recorded, "queue_seconds": 1.0, "max_rss_gib": 3.0, "attempts": 1})
    sweep = write_manifest(folder, "study", ["run"])
    found = costs(collect(sweep, folder), join([(sweep, folder)]).directories, read_power())
    assert (found.total.hours, found.total.gpu_hours, found.total.core_hours) == (2.0, 4.0, 16.0)
    assert found.total.gib_hours == 2.0 * 32
    assert found.gpus == [("GPU, model not known", 200.0)]


@pytest.mark.parametrize(
    ("name", "watts"),
    [
        ("Tesla V100-SXM2-32GB", 300),
        ("Tesla V100-PCIE-32GB", 250),
        ("NVIDIA GeForce GTX 1080 Ti", 250),
        ("NVIDIA GeForce GTX 1080", 180),
        ("Quadro RTX 5000", 230),
        ("NVIDIA A100-SXM4-80GB", 400),
        ("NVIDIA RTX A4000", 200),
        (None, 200),
    ],
)
def test_the_power_of_a_gpu_is_known_by_its_name(name, watts):
    assert read_power().of_gpu(name) == watts


def test_the_configuration_tells_what_runs_have_in_common_from_what_differs(tmp_path):
    folder = RunsFolder(tmp_path / "runs")
    runs = [write_run(folder, f"run{number}", peft={"rank": 4}) for number in range(3)]
    runs[0].config.write_bytes(b"\xff damaged")
    found = configuration(runs)
    assert found.runs == 2
    assert {"resource.request.memory_gb", "train.learning_rate", "n_images"} <= {
        fact.name for fact in found.common
    }
    other = write_run(folder, "other", n_images=1)
    different = {fact.name: fact.values for fact in configuration([*runs, other]).different}
    assert {(value.text, value.runs) for value in different["n_images"]} == {("5", 2), ("1", 1)}
    assert {(value.text, value.runs) for value in different["peft.rank"]} == {("4", 2), ("not set", 1)}


def test_runs_of_several_versions_and_machines_are_counted(tmp_path):
    folder = RunsFolder(tmp_path / "runs")
    runs = {name: write_run(folder, name) for name in ("one", "two", "three")}
    write_json(runs["one"].environment, environment())
    write_json(runs["two"].environment, {**environment(gpu=None), "dirty": True, "host": "node08"})
    runs["three"].environment.write_text("{damaged")
    found = environments(runs, dict.fromkeys(runs, "vit_b"))
    assert found.runs == 2
    assert sorted(machine.gpu for machine in found.machines) == ["", "Tesla V100-SXM2-32GB"]
    assert any("changes that are not committed" in value.text for value in found.commits[0].values)


def test_a_sweep_without_a_completed_run_says_so(tmp_path, capsys):
    folder = RunsFolder(tmp_path / "runs")
    write_run(folder, "run")
    write_manifest(folder, "study", ["run"])
    status, text = report_of(folder)
    assert status == 0
    assert "No run of this sweep is completed yet, so there are no results" in visible(text)
    assert "No run of sweep study is completed yet" in capsys.readouterr().out
    assert "python -m refsam.sweep" in visible(text)


def test_a_sweep_without_any_run_has_a_report(tmp_path, without_figures):
    folder = RunsFolder(tmp_path / "runs")
    write_manifest(folder, "study", [])
    status, text = report_of(folder)
    assert status == 0
    assert "This sweep has no runs." in visible(text)


def test_damaged_records_are_named_and_counted(tmp_path, capsys, without_figures):
    folder = RunsFolder(tmp_path / "runs")
    for name in ("good", "bad"):
        complete(write_run(folder, name))
    folder.run("bad").metrics.write_text("{<b>")
    write_manifest(folder, "study", ["good", "bad"])
    status, text = report_of(folder)
    assert status == 1
    assert "1 run of 2 has damaged records" in visible(text)
    assert "…/runs/bad/results/metrics.json is damaged" in visible(text)
    assert "runs with damaged records: 1 of 2" in capsys.readouterr().err


def test_a_damaged_manifest_is_named(tmp_path, capsys):
    folder = RunsFolder(tmp_path / "runs")
    sweep = write_manifest(folder, "study", [])
    sweep.manifest.write_text("{")
    assert cli.main(["report", "study", "--runs", str(folder.root)]) == 1
    assert f"{sweep.manifest} is damaged" in capsys.readouterr().err
    assert not sweep.report.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stduy"], "did you mean study"),
        ([], "name one sweep or several"),
        (["study", "--pue", "0.5"], "--pue must be a number from 1, got 0.5"),
        (["study", "--pue", "nan"], "--pue must be a number from 1, got nan"),
        (["study", "--gpu-watts", "-1"], "--gpu-watts must be a number from 0, got -1"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, tmp_path, capsys):
    folder = RunsFolder(tmp_path / "runs")
    sweep = write_manifest(folder, "study", [])
    assert cli.main(["report", *arguments, "--runs", str(folder.root)]) == 2
    assert words in capsys.readouterr().err
    assert not sweep.report.exists()


def test_several_sweeps_have_one_report_with_the_commands_of_all(tmp_path, capsys, without_figures):
    folder = RunsFolder(tmp_path / "runs")
    for name in ("one", "two"):
        complete(write_run(folder, name))
        write_manifest(folder, name, [name], commands=[["refsam", f"name={name}"], ["other", f"name={name}"]])
    assert cli.main(["report", "--all", "--runs", str(folder.root), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["report"] == str(folder.joined.report)
    assert answer["states"] == {"completed": 2}
    assert answer["bytes"] == folder.joined.report.stat().st_size
    words = visible(folder.joined.report.read_text(encoding="utf-8"))
    assert "2 runs of 2 sweeps" in words
    assert "python -m refsam.sweep name=one" in words
    assert "python -m refsam.sweep name=two" in words
    assert folder.joined.results.exists()


def test_of_two_folders_with_a_run_the_one_that_completed_it_counts(tmp_path):
    folders = [RunsFolder(tmp_path / name) for name in ("mine", "theirs")]
    for folder in folders:
        write_run(folder, "run")
        write_manifest(folder, "study", ["run"])
    complete(folders[1].run("run"))
    runs = join([(folder.sweep("study"), folder) for folder in folders]).directories
    assert runs == {"run": folders[1].run("run")}


def test_of_many_failures_the_first_hundred_have_sections_and_all_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("refsam.results.report.failures.MOST", 1)
    folder = RunsFolder(tmp_path / "runs")
    for name in ("one", "two"):
        fail(write_run(folder, name), Reason.error, "It broke.", f"log of {name}\n")
    sweep = write_manifest(folder, "study", ["one", "two"])
    found = failures(collect(sweep, folder), join([(sweep, folder)]).directories)
    assert [each.log for each in found.shown] == ["log of one"]
    assert found.shown[0].log_path == str(folder.run("one").attempt(2) / "job.out")
    assert found.total == 2


def test_the_end_of_a_log_has_whole_lines_and_the_last_state_of_a_progress_bar(tmp_path):
    log = tmp_path / "job.out"
    log.write_bytes(b"first\n" + b"x" * 100 + b"\n 1 %\r50 %\r99 %\nend \xff\n")
    assert log_end(log, 60, 30) == "99 %\nend \ufffd"
    assert log_end(log, 1, 1000) == "end \ufffd"


def test_control_characters_are_made_visible_and_colours_left_out():
    assert printable("\x1b[1;31mred\x1b[0m \x1b]0;title\x07a\tb\nc\x00\x9b") == "red a\tb\nc\ufffd\ufffd"


def test_the_best_run_of_each_method_is_shown_on_the_same_image(tmp_path):
    folder = RunsFolder(tmp_path / "runs")
    names = []
    for number in range(MOST + 2):
        paths = write_run(folder, f"run{number}", strategy=f"s{number:02}")
        complete(paths, sa50=number / 100)
        for mode in ("box", "point"):
            draw_picture(paths, mode, "shared.tif")
        names.append(paths.run_id)
    worse = write_run(folder, "worse", strategy=f"s{MOST + 1:02}")
    complete(worse, sa50=0.0)
    draw_picture(worse, "box", "alone.tif")
    sweep = write_manifest(folder, "study", [*names, "worse"])
    found = pictures(collect(sweep, folder), join([(sweep, folder)]).directories)
    chosen = [each for group in found.modes.values() for each in group]
    assert len(chosen) == MOST
    assert {each.image for each in chosen} == {"shared.tif"}
    assert list(found.modes) == ["box", "point"]
    assert found.others == 2 * (MOST + 2) + 1 - MOST
    assert f"s{MOST + 1:02}" in " ".join(each.what for each in chosen)
    assert chosen[0].words == "12 objects, 10 predicted; SA50 0.250, mIoU 0.500"


def test_a_picture_that_cannot_be_opened_is_named(tmp_path):
    folder = RunsFolder(tmp_path / "runs")
    paths = write_run(folder, "run")
    complete(paths)
    draw_picture(paths, "box", "image.tif")
    paths.picture("box", "image.tif").write_bytes(b"no picture")
    paths.per_image.write_text(f"{','.join(PER_IMAGE)}\ndamaged\n")
    sweep = write_manifest(folder, "study", ["run"])
    found = pictures(collect(sweep, folder), join([(sweep, folder)]).directories)
    assert found.modes == {}
    damaged, no_picture = found.problems
    assert damaged.startswith(f"{paths.per_image} is damaged: ")
    assert no_picture == f"{paths.picture('box', 'image.tif')} is not an image"
