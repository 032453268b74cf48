"""What `refsam predict` makes of its arguments before any model is opened: images, prompts, the run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from refsam import cli
from refsam.datasets.image_metadata import ImageMetadata, _of_ome
from refsam.datasets.new_images import NewImage, list_images
from refsam.datasets.prompt_files import match_labels, read_prompt_file
from refsam.errors import ConfigError
from refsam.orchestration.operating.chosen_run import choose_run
from refsam.records.metrics import Measurement, write_metrics
from refsam.records.paths import RunsFolder
from refsam.system.files import write_json, write_yaml

HEAVY = ("torch", "micro_sam", "pandas", "skimage", "tifffile", "transformers")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.tif", "b.ome.tiff", "notes.txt", ".hidden.tif", "day1/a.PNG", "out/labels/a.tif"):
        path = tmp_path / "new" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "new"


def named(*given: str) -> dict[str, str]:
    return {each.name: str(each.path) for each in list_images(given, Path("new/out"))}


def test_files_folders_and_patterns_name_images(images: Path) -> None:
    inside = {"a": "new/a.tif", "b": "new/b.ome.tiff", "day1__a": "new/day1/a.PNG"}
    assert named("new") == inside
    assert named("new/*.tif*") == {"a": "new/a.tif", "b": "new/b.ome.tiff"}
    assert named(str(images / "**/*.PNG")) == {"day1__a": str(images / "day1/a.PNG")}
    assert named("new/notes.txt") == {"notes": "new/notes.txt"}  # named itself: its bytes say what it is
    assert named("new/a.tif", "new/*.tif") == {"a": "new/a.tif"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("nowhere.tif",), "IMAGES: 'nowhere.tif' is not there; give files, folders or patterns"),
        (("new/*.jpg",), "IMAGES: 'new/*.jpg' names no image"),
        (("new/out",), "IMAGES: 'new/out' names no image"),
        (("new/a.tif", "new/day1/a.PNG"), "would both be written as 'a'"),
    ],
)
def test_what_names_no_image_or_one_name_twice_is_refused(
    images: Path, given: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ConfigError) as error:
        named(*given)
    assert sentence in str(error.value)


ASKED = [NewImage(Path("new/a.tif"), "a"), NewImage(Path("new/b.ome.tiff"), "b")]


def test_a_csv_file_has_a_row_for_each_object(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(
        "\ufeffimage, x_min, y_min, x_max, y_max, x, y, note\na,1,2,3,4,2,3,\nb.ome.tiff,0,0,9.5,9,1,1,x\n"
    )
    found = read_prompt_file(path, ASKED)
    assert found.kind == "box and point"
    assert [(row.line, row.box, row.point) for row in found.rows["b"]] == [
        (3, (0.0, 0.0, 9.5, 9.0), (1.0, 1.0))
    ]
    found.check("b", (9, 10))
    with pytest.raises(ConfigError, match=r"line 3 of .* is not within image b, which has 9 x 10 pixels"):
        found.check("b", (10, 9))
    path.write_text("x,y\n5,6\n")
    assert read_prompt_file(path, ASKED[:1]).rows["a"][0].point == (5.0, 6.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has the columns (none), and needed are image, and x_min"),
        ("image,x\na,1\n", "has the columns image, x, and needed are"),
        ("x,y\n1,2\n", "has the columns x, y"),
        ("image,x,y\nc,1,2\n", "line 2 of"),
        ("image,x,y\na,1,\n", "line 2 of"),
        ("image,x,y\na,1\n", "lacks a number in x,y"),
        ("image,x,y\na,1,nan\n", "not finite"),
        ("image,x_min,y_min,x_max,y_max\na,3,0,1,4\n", "needed are x_min < x_max and y_min < y_max"),
        ("image,x,y\n\x00a,1,2\n", "line 2 of"),
    ],
)
def test_a_csv_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_prompt_file(path, ASKED)
    assert str(error.value).startswith("--prompts: ")
    assert sentence in str(error.value)
    assert str(path) in str(error.value)


def test_label_images_have_the_names_of_their_images(images: Path) -> None:
    for name in ("a.png", "b.tif", "other.tif"):
        (images.parent / name).touch()
    (images.parent / "labels").mkdir()
    for name in ("a.png", "b.tif"):
        (images.parent / name).rename(images.parent / "labels" / name)
    out = Path("new/out")
    assert match_labels("labels", ASKED, out) == {"a": Path("labels/a.png"), "b": Path("labels/b.tif")}
    assert match_labels("other.tif", ASKED[:1], out) == {"a": Path("other.tif")}
    with pytest.raises(ConfigError, match="has no label image for 1 of 2 images, such as 'b'"):
        match_labels("labels/a.png", ASKED, out)


@pytest.fixture
def folder(tmp_path: Path) -> RunsFolder:
    """A sweep of three runs: SA50 of box is highest for the second, whose best.pt is gone."""
    folder = RunsFolder(tmp_path / "runs")
    runs = []
    for name, box, ais in (("one-1", 0.5, 0.4), ("two-2", 0.9, 0.9), ("three-3", 0.6, 0.2)):
        paths = folder.run(name)
        paths.checkpoints.mkdir(parents=True)
        paths.results.mkdir()
        write_yaml(paths.config, {"kind": "finetuning"})
        if name != "two-2":
            paths.best.touch()
        corrected = {**Measurement("box", 3)._asdict(), "SA50": 1.0 if name == "one-1" else 0.0}
        rows = [
            {**Measurement(mode)._asdict(), "SA50": value} for mode, value in (("box", box), ("ais", ais))
        ]
        write_metrics(paths.metrics, [*rows, corrected])
        runs.append({"run_id": name, "overrides": {}})
    folder.sweep("study").root.mkdir(parents=True)
    write_json(folder.sweep("study").manifest, {"format": 1, "name": "study", "runs": runs, "skipped": []})
    return folder


def test_the_best_run_of_a_sweep_is_that_with_the_highest_value_and_a_model(folder: RunsFolder) -> None:
    found = choose_run("study", runs=folder.root)
    assert found.words == "run one-1, the best of 2 by SA50 of ais: 0.400"
    by_box = choose_run("study", "SA50", "box", folder.root)
    assert by_box.paths == folder.run("three-3")
    assert choose_run(folder.sweep("study").root, "SA50", "box").paths.root == folder.run("three-3").root
    assert choose_run("thr", runs=folder.root).paths == folder.run("three-3")
    assert choose_run(folder.run("one-1").root).paths.run_id == "one-1"


def test_a_sweep_that_found_nothing_says_so(folder: RunsFolder) -> None:
    for name in ("one-1", "three-3"):
        write_metrics(folder.run(name).metrics, [{**Measurement("amg")._asdict(), "SA50": 0.0}])
    first, warning = choose_run("study", runs=folder.root).words.splitlines()
    assert first.endswith("by SA50 of amg: 0.000")
    assert warning == "With amg no run of this sweep found an object in a test image, so none is expected."


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("stud", None), "'stud' is neither a run nor a sweep"),
        (("one-1", "SA50"), "metric: SA50 was given with run one-1"),
        (("study", "mIoU"), "sweep 'study' has no run with a model for which mIoU was measured"),
        (("study", "iou"), "metric must be one of mSA"),
    ],
)
def test_what_names_no_model_is_one_sentence(
    folder: RunsFolder, given: tuple[str, str | None], sentence: str
) -> None:
    with pytest.raises(ConfigError) as error:
        choose_run(*given, runs=folder.root)
    assert sentence in str(error.value)


def test_a_dry_run_and_the_package_itself_import_nothing_heavy(folder: RunsFolder, images: Path) -> None:
    arguments = ["predict", "study", "new", "--output", "new/out", "--runs", str(folder.root), "--dry-run"]
    program = (
        "import sys, json, refsam\n"
        f"from refsam import cli\nstatus = cli.main({arguments!r})\n"
        f"print(json.dumps([status, [name for name in {HEAVY!r} if name in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    words, plan, found = done.stdout.splitlines()
    assert words.startswith("run one-1, the best of 2")
    assert plan == "3 images would be segmented into new/out, 0 of them are there"
    assert json.loads(found) == [0, []]


def test_an_output_that_is_a_file_is_refused(
    folder: RunsFolder, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", "study", "new", "--output", "new/notes.txt", "--runs", str(folder.root)]
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == "refsam: --output: new/notes.txt is a file, and a folder is needed\n"


def test_the_parts_of_an_array_are_all_images_and_none_twice(
    folder: RunsFolder, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", "study", "new", "--output", "new/out", "--runs", str(folder.root), "--dry-run"]
    counts = []
    for part in ("1/2", "2/2"):
        assert cli.main([*command, "--part", part]) == 0
        counts.append(int(capsys.readouterr().out.splitlines()[1].split()[0]))
    assert counts == [2, 1]
    for part in ("0/2", "3/2", "1", "a/b"):
        assert cli.main([*command, "--part", part]) == 2
        said = capsys.readouterr().err
        assert said == f"refsam: --part must be K/N with K from 1 to N, such as 1/4, got {part!r}\n"


@pytest.mark.parametrize(
    "text",
    [
        "<OME",
        "<OME/>",
        '<!DOCTYPE x []><OME><Image><Pixels PhysicalSizeX="1" PhysicalSizeY="1"/></Image></OME>',
        '<OME><Image><Pixels PhysicalSizeX="1"/></Image></OME>',
        '<OME><Image><Pixels PhysicalSizeX="a" PhysicalSizeY="-1"/></Image></OME>',
        '<OME><Image><Pixels PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeXUnit="pixel"/></Image></OME>',
    ],
)
def test_ome_metadata_that_cannot_be_used_are_none(text: str) -> None:
    assert _of_ome(text) == ImageMetadata()
