"""The command as it is typed: plans, refusals, and what it does not import."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refsam import cli
from refsam.records.paths import RunsFolder
from refsam.records.status import State, Status, read_status, write_status
from refsam.results.sweeps import read_manifest
from refsam.sweep import main
from refsam.system.files import read_yaml, write_json, write_yaml

CHECKOUT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("empty_machine")


def sweep(*arguments):
    """Run the command in this process; its exit status."""
    try:
        main(list(arguments))
    except SystemExit as end:
        return end.code
    return 0


def test_the_example_shows_eight_runs_a_baseline_and_two_requests(capsys):
    assert sweep("-m", "resource=gtx1080,v100", "n_images=1,2,5,10", "dry_run=true") == 0
    output = capsys.readouterr().out
    assert "9 runs (8 finetunings, 1 baseline), 2 kinds of request" in output
    assert "partition gpu, 1 × GTX1080, 8 cores, 32 GiB" in output
    assert "partition gpu, 1 × V100, 8 cores, 32 GiB" in output
    assert output.count("freeze_encoder") == 4
    assert "refsam prepare dataset=nuclei" in output
    assert "refsam prepare model=vit_b" in output


def test_what_is_swept_is_a_column_of_the_plan(capsys):
    asked = [
        "-m",
        "resource=v100",
        "model=vit_nano",
        "n_images=1",
        "peft=full",
        "n_objects=5",
        "dry_run=true",
    ]
    assert sweep(*asked, "train.lr=1e-5,1e-3", "evaluate.crop=null,[64,64]") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(" v100")]
    assert [row[1:-2] for row in rows] == [
        *(["baseline", "0", "null"], ["baseline", "0", "[64,", "64]"]),
        *(["full", "1", "5", "null", "1e-05"], ["full", "1", "5", "[64,", "64]", "1e-05"]),
        *(["full", "1", "5", "null", "0.001"], ["full", "1", "5", "[64,", "64]", "0.001"]),
    ]


def test_a_copied_resource_that_keeps_its_name_is_refused(capsys, tmp_path):
    (tmp_path / "resource").mkdir()
    text = (CHECKOUT / "conf" / "resource" / "v100.yaml").read_text(encoding="utf-8")
    (tmp_path / "resource" / "mine.yaml").write_text(text.replace("gpu: V100", "gpu: H100"), encoding="utf-8")
    asked = ["-m", "--config-dir", str(tmp_path), "resource=v100,mine", "n_images=1", "dry_run=true"]
    assert sweep(*asked) == 2
    assert "v100 is the name of two resources (resource=v100 and resource=mine)" in capsys.readouterr().err


def test_the_initial_model_is_evaluated_on_the_resource_that_comes_first(capsys):
    for first, second in (("gtx1080", "v100"), ("v100", "gtx1080")):
        asked = ["-m", f"resource={first},{second}", "model=vit_nano", "n_images=1", "dry_run=true"]
        assert sweep(*asked) == 0
        before, found, after = capsys.readouterr().out.partition(f"1 × {second.upper()}")
        assert found
        assert (" baseline " in before, " baseline " in after) == (True, False)


def test_the_config_group_and_the_number_ask_for_the_same_runs(capsys):
    sweep("-m", "resource=v100", "n_images=1,2,5,10", "dry_run=true")
    direct = capsys.readouterr().out
    sweep("-m", "resource=v100", "n_train_images=1,2,5,10", "dry_run=true")
    assert capsys.readouterr().out == direct


def test_text_that_looks_like_a_number_stays_text(capsys):
    assert sweep("-m", "name=2026_11_28", "resource=v100", "n_images=1", "dry_run=true") == 0
    assert "Sweep 2026_11_28:" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(tmp_path):
    sweep("-m", "resource=v100", "n_images=1,2", "dry_run=true")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_all_that_is_missing_is_one_list(capsys):
    assert sweep("-m", "cluster=local", "dataset=synthetic", "model=vit_b,vit_t", "on_invalid=skip") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "refsam: 3 things are in the way:"
    assert [line.rpartition("refsam prepare ")[2] for line in lines[1:]] == [
        "dataset=synthetic",
        "model=vit_b",
        "model=vit_t",
    ]


def test_a_plan_says_what_the_data_set_holds_and_what_looks_wrong(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    labels = np.zeros((64, 64), np.uint8)
    labels[10:30, 10:30], labels[40:50, 40:50] = 1, 2
    for kind, pixels, suffix in (("images", labels * np.uint8(90), "JPG"), ("labels", labels, "png")):
        (tmp_path / "mine" / kind).mkdir(parents=True)
        for i in range(4):
            options = {"exif": exif} if suffix == "JPG" and i == 0 else {}
            Image.fromarray(pixels).save(tmp_path / "mine" / kind / f"{i}.{suffix}", **options)
    own = ["dataset=folder", f"dataset.root={tmp_path / 'mine'}", "dataset.images=images/*.jpg"]
    assert sweep("-m", "resource=v100", "model=vit_nano", "n_images=1,2", *own, "dry_run=true") == 0
    output = capsys.readouterr().out
    assert (
        "Data set folder: 4 images (2 to train, 1 to validate, 1 to test), 64 × 64 pixels, grey, uint8\n"
        "  8 objects: 2 to 2 per image (median 2), the smallest of 100 pixels (median 250)\n"
    ) in output
    assert "1 of 4 images (images/0) is turned as their orientation in EXIF says" in output
    assert sweep("-m", "resource=v100", "model=vit_nano", "n_images=1", *own, "dataset.channels=[1]") == 2
    error = capsys.readouterr().err
    assert "dataset.channels=1, but" in error
    assert error.count("\n") == 1


def test_checkpoints_need_room(capsys, synthetic):
    arguments = ["-m", "cluster=local", "model=vit_h", "model.weights=random", "peft=full", "n_objects=1"]
    seeds = ",".join(map(str, range(400)))
    data = f"dataset.root={synthetic.root}"
    assert sweep(*arguments, "dataset=synthetic", data, f"seed={seeds}", "baseline=false") == 2
    error = capsys.readouterr().err
    assert "GB free, and the checkpoints of the runs to do take about 7296.8 GB" in error


def test_a_named_sweep_takes_overrides_on_top(capsys):
    assert sweep("--config-name", "demo", "n_images=1", "dry_run=true") == 0
    assert "Sweep demo: 3 runs (2 finetunings, 1 baseline)" in capsys.readouterr().out


def test_invalid_combinations_are_left_out_and_named(capsys):
    assert sweep("-m", "resource=v100", "model=vit_b,vit_l", "dry_run=true") == 0
    output = capsys.readouterr().out
    assert "2 runs (1 finetuning, 1 baseline)" in output
    assert "model=vit_l: peft=auto: resource v100 has no settings for vit_l" in output


def test_what_a_sweep_excludes_is_left_out_and_is_no_error(capsys):
    asked = ["-m", "resource=v100", "peft=full,lora", "exclude=[{peft.name: lora}]", "on_invalid=error"]
    assert sweep(*asked, "dry_run=true") == 0
    output = capsys.readouterr().out
    assert "2 runs (1 finetuning, 1 baseline)" in output
    assert "peft=lora: exclude: peft.name=lora" in output
    assert sweep("-m", "resource=v100", "peft=lora", "exclude=[{peft.name: lora}]", "dry_run=true") == 2
    assert "exclude must leave something of the sweep" in capsys.readouterr().err


def test_a_plan_says_where_runs_are_evaluated(capsys):
    asked = ["-m", "resource=gtx1080,v100", "n_images=1,2", "dry_run=true", "resource.request.time=1:00:00"]
    assert sweep(*asked) == 0
    runs = set(re.findall(r"\b[0-9a-f]{10}\b", capsys.readouterr().out))
    assert sweep(*asked, "evaluate.where=medium_8g") == 0
    output = capsys.readouterr().out
    assert set(re.findall(r"\b[0-9a-f]{10}\b", output)) == runs
    for gpu in ("GTX1080", "V100"):
        assert f"\npartition gpu, 1 × {gpu}, 8 cores, 32 GiB, 1:00:00" in output
    assert output.count("\nThen evaluated on partition medium, no GPU, 8 cores, 8 GiB, 2-00:00:00\n") == 2
    # The initial model is only evaluated, so it goes there at once, with the time of the resource's file.
    assert "\npartition medium, no GPU, 8 cores, 8 GiB, 2-00:00:00" in output
    assert "5 runs (4 finetunings, 1 baseline), 3 kinds of request" in output


def test_a_plan_says_all_that_the_command_would_refuse(tmp_path, capsys):
    asked = ["-m", "resource=gtx1080", "model=vit_b", "n_images=1", "cluster=auto"]
    assert sweep(*asked, "dry_run=true") == 0
    output = capsys.readouterr().out
    missing = [line.removeprefix("Missing: ") for line in output.splitlines() if line.startswith("Missing: ")]
    assert any("this machine has no GTX1080 GPU" in line for line in missing)
    assert any("the pretrained weights of vit_b are not" in line for line in missing)
    assert "Runs are executed on this machine: " in output
    assert sweep(*asked) == 2
    error = capsys.readouterr().err
    assert [line for line in missing if line not in error] == []


def test_a_plan_says_what_else_its_sweep_has(tmp_path, capsys):
    folder = RunsFolder(tmp_path / "runs")
    recorded = {"runs": [{"run_id": "an-earlier-run"}, {"run_id": "another"}]}
    folder.sweep("study").root.mkdir(parents=True)
    write_json(folder.sweep("study").manifest, recorded)
    assert sweep("-m", "n_images=1", "name=study", f"runs={folder.root}", "dry_run=true") == 0
    assert "Sweep study has 2 other runs already, which stay in it." in capsys.readouterr().out
    assert sweep("-m", "n_images=1", "name=other", f"runs={folder.root}", "dry_run=true") == 0
    assert "already" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "recipe",
    ["covid_if", "peft_micro_sam", "peft_micro_sam_late", "peft_micro_sam_late_ft", "peft_trashcan"],
)
def test_the_plan_of_a_study_is_the_one_in_the_documentation(capsys, recipe):
    assert sweep("--config-name", recipe, "dry_run=true") == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    documented = (CHECKOUT / "docs" / f"{recipe}_plan.txt").read_text(encoding="utf-8").splitlines()
    of_this_machine = ("Missing: ", "Runs ")
    assert [line for line in printed if not line.startswith(of_this_machine)] == documented


BAD_INPUT = [
    (["resource=gtx1081"], "resource: 'gtx1081' is not a valid choice (did you mean gtx1080?)"),
    (["train=quik"], "train: 'quik' is not a valid choice (did you mean quick?)"),
    (["--config-path", "/not/there"], "--config-path: there is no config.yaml in what was given"),
    (
        ["model=vit_nano", "model.custom.depth=0"],
        "model.custom.depth must be an integer >= 1, got 0",
    ),
    (
        ["model=vit_nano", "model.custom.embed_dim=64"],
        "model.custom.embed_dim must be a multiple of 3 (model.custom.num_heads), got 64",
    ),
    (
        ["model=vit_nano", "model.custom.prompt_embed_dim=20"],
        "model.custom.prompt_embed_dim must be a multiple of 8",
    ),
    (
        ["model=vit_nano", "model.custom.global_attn_indexes=[1,4]"],
        "model.custom.global_attn_indexes must be blocks from 0 to 3 (model.custom.depth), got 4",
    ),
    (["--config-name", "dmo"], "--config-name: 'dmo' is not a configuration (did you mean demo?)"),
    (["train.epochs=abc"], "train.epochs must be an integer, got 'abc'"),
    (["seed=1.5"], "seed must be an integer, got '1.5'"),
    (["on_invalid=foo"], "on_invalid must be skip or error, got 'foo'"),
    (["evaluate.modes=point"], "evaluate.modes must be a list"),
    (["train.epoch=3"], "train.epoch: there is no such field (did you mean epochs?)"),
    (["resorce=v100"], "resorce: there is no such field (did you mean resource?)"),
    (["lr=1e-4"], "lr: there is no such field (did you mean train.lr?)"),
    (["modes=[amg]"], "modes: there is no such field (did you mean evaluate.modes?)"),
    (
        ["-m", "dataset=folder", "dataset.root=/not/there,really"],
        "one folder with a comma in its name: \"dataset.root='/not/there,really'\"",
    ),
    (["dataset=folder", "dataset.root=~/not/there"], f"dataset.root {Path.home()}/not/there is not a folder"),
    (["+foo=1"], "foo: there is no such field"),
    (["n_images=1,,2"], "the override 'n_images=1,,2' cannot be read"),
    (["runs=a;b"], "the override 'runs=a;b' cannot be read; expected KEY=VALUE"),
    (["=3,4"], "the override '=3' has no key"),
    (["n_images=1,x"], "n_images must be all, or an integer >= 1, got 'x'"),
    (["n_images=null"], "n_images must be all, or an integer >= 1, got None"),
    (["n_images=[1,2]"], "n_images must be all, or an integer >= 1, got [1, 2]"),
    (
        ["n_images=interval(1,2)"],
        "n_images must be values with commas, choice(…), range(…) or glob(…), got interval(1,2)",
    ),
    (["n_images=range(1,1)"], "the sweep is empty"),
    (["n_train_images=3"], "n_train_images: '3' is not a valid choice; choose from 1, 2, 5, 10"),
    (["resource=null"], "a config group was given no name"),
    (["resource={a:1}"], "resource must be one of its choices, got '{a:1}'"),
    (
        ["model=[vit_b,vit_t]"],
        "model must be one choice, got [vit_b,vit_t]; a sweep over several: -m model=vit_b,vit_t",
    ),
    (["~seed"], "seed must be given"),
    (["+seed=1"], "seed=+seed, but the field is there already"),
    (["~nope"], "nope=~nope, but there is no such field"),
    (["train.decoder=maybe"], "train.decoder must be true or false, got 'maybe'"),
    (["cluster.parallel=[1]"], "cluster.parallel must be text, got '[1]'"),
    (["cluster.parallel=-1"], "cluster.parallel must be auto, or an integer >= 1, got '-1'"),
    (["evaluate.small_grid=3"], "evaluate.small_grid must be names with values"),
    (["evaluate.modes=[[box]]"], "evaluate.modes must be a list of point, box"),
    (["train.lr=inf"], "train.lr must be a number > 0, got inf"),
    (["train.box_distortion=nan"], "train.box_distortion must be a number from 0, got nan"),
    (["seed=4294967296"], "seed must be an integer from 0 to 4294967295, got 4294967296"),
    (
        ["resource.settings.vit_b.n_objects=0"],
        "resource.settings.vit_b.n_objects must be an integer >= 1, got 0",
    ),
    (
        ["resource.settings.vit_b.peft=auto"],
        "resource.settings.vit_b.peft must be the name of a finetuning strategy, got 'auto'",
    ),
    (["runs="], "runs must be a path of printable characters without line breaks, got ''"),
    (["runs='~nobody_of_this_name/x'"], "runs=~nobody_of_this_name/x, but the home folder"),
    ([f"runs={'a' * 300}"], ", but it cannot be looked at (File name too long)"),
    ([f"model.weights={'a' * 300}"], ", but it cannot be looked at (File name too long)"),
    (
        ["dataset=folder", "dataset.root="],
        "dataset.root must be a path of printable characters without line breaks, got ''",
    ),
    (["n_images=0"], "n_images must be all, or an integer >= 1, got 0"),
    (["n_images=1,-1"], "n_images must be all, or an integer >= 1, got -1"),
    (
        ["n_images=11"],
        "n_images must be an integer from 1 to 10, the images of dataset=nuclei for training (validation "
        "has 1, test 37), got 11",
    ),
    (["n_images="], "n_images must be all, or an integer >= 1, got ''"),
    (["n_images=choice()"], "choice"),
    (
        ["evaluate.where=medium_9g"],
        ", got 'medium_9g' (did you mean medium_8g?)",
    ),
    (["evaluate.where=a b"], "evaluate.where must be run, or the name of a resource, got 'a b'"),
    (["n_objects=few"], "n_objects must be auto, or an integer >= 1, got 'few'"),
    (["train.lr=-1"], "train.lr must be a number > 0, got -1.0"),
    (
        ["train.patch_shape=[100,100]"],
        "train.patch_shape must be two multiples of 32",
    ),
    (
        ["evaluate.modes=[scribble]"],
        "evaluate.modes must be a list of point, box",
    ),
    (
        ["peft=lora", "peft.freeze=[image_encoder]"],
        "peft.freeze=[image_encoder] does not go with peft.name=lora",
    ),
    (["peft=lora", "model=vit_t"], "peft.name=lora does not go with model.architecture=vit_t"),
    (
        ["model=vit_nano", "model.weights=pretrained"],
        "model.weights=pretrained, but no weights of",
    ),
    (
        ["model=vit_nano", "model.custom=null"],
        "model.architecture must be one of vit_t, vit_b",
    ),
    (["model.weights=/not/there.pt"], "model.weights: /not/there.pt is not a file"),
    (["resource=v100", "model=vit_l"], "peft=auto: resource v100 has no settings for vit_l"),
    (["dataset=folder"], "dataset.root must be given"),
    (["dataset=folder", "dataset.root=/not/there"], "dataset.root /not/there is not a folder"),
    *(([f"name={name}"], "name must be") for name in ("a/b", "..", ".hidden", "-x", "a" * 101, "a b")),
    (
        ["name=a$(touch executed)"],
        "the override 'name=a$(touch executed)' cannot be read; expected KEY=VALUE",
    ),
    (["name=für"], "the override 'name=für' cannot be read; expected KEY=VALUE"),
    (["cluster=local", "cluster.script_only=true"], "cluster.script_only=true, but with cluster="),
    (
        ["resource=v100", "n_images=1,11", "on_invalid=error"],
        "for training (validation has 1, test 37), got 11",
    ),
    (["cluster=local", "model=vit_nano"], "refsam prepare dataset=nuclei"),
    (["cluster=local", "dataset=synthetic", "model.weights=random"], "refsam prepare dataset=synthetic"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_INPUT, ids=[" ".join(row[0]) for row in BAD_INPUT])
def test_bad_input_is_one_sentence_and_exit_status_2(arguments, sentence, capsys, tmp_path):
    assert sweep("-m", *arguments) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.startswith("refsam: ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        ("/proc/x", "it cannot be written"),
        ("{file}/x", "is a file; expected a folder"),
        ("'a\ntouch executed'", "must be a path of printable characters without line breaks"),
    ],
)
def test_a_runs_folder_that_cannot_be_written_is_refused(runs, sentence, capsys, tmp_path):
    (tmp_path / "file").touch()
    prepare_synthetic(tmp_path)
    runs = runs.format(file=tmp_path / "file")
    assert sweep("-m", "cluster=local", "model=vit_nano", "dataset=synthetic", f"runs={runs}") == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def prepare_synthetic(tmp_path):
    from refsam.configuration.compose import compose
    from refsam.datasets.prepare import prepare

    prepare(compose(["dataset=synthetic", f"data={tmp_path / 'data'}"]).dataset, say=lambda text: None)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("n_images=0", "n_images must be all, or an integer >= 1, got 0"),
        (
            "n_images=1,2",
            "n_images must be one value without -m, got 1,2; a sweep: -m n_images=1,2",
        ),
        ("name=a,b", "a sweep: -m name=a,b; a comma in the value: \"name='a,b'\""),
        ("model=vit_b,vit_t", "model must be one value without -m, got vit_b,vit_t"),
        (
            "evaluate.modes=box,point",
            "evaluate.modes must be a list, got box,point; write evaluate.modes=[box,point]",
        ),
        ("resource=null", "a config group was given no name"),
        ("dataset=folder", "dataset.root must be given"),
        ("cluster.script_only=true", "cluster.script_only=true, but without -m a run is executed"),
    ],
)
def test_bad_input_is_one_sentence_without_m_too(override, sentence, capsys):
    assert sweep(override) == 2
    error = capsys.readouterr().err
    assert error.startswith("refsam: ")
    assert sentence in error
    assert error.count("\n") == 1


def test_scripts_are_written_where_no_slurm_is_and_nothing_is_executed(tmp_path, capsys, monkeypatch):
    prepare_synthetic(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_CONF", raising=False)
    asked = ["-m", "resource=v100,medium_8g", "n_images=1", "model=vit_nano", "dataset=synthetic"]
    assert sweep(*asked, "baseline=false", "cluster.script_only=true", "name=by_hand") == 0
    scripts = RunsFolder(tmp_path / "runs").sweep("by_hand").scripts
    output = capsys.readouterr().out
    for name in ("1-gpu-V100.sh", "2-medium.sh"):
        assert f"  sbatch {scripts / name}\n" in output
        subprocess.run(["/bin/bash", "-n", scripts / name], check=True)
        (scripts / name).write_text("old")
    for again in (["continue", "by_hand"], ["continue", "by_hand", "--json"]):
        assert cli.main(again) == 0
    assert "old" not in {path.read_text() for path in scripts.iterdir()}
    assert not list(tmp_path.rglob("attempts"))


def test_a_sweep_remembers_every_command_that_asked_for_it(tmp_path, monkeypatch):
    prepare_synthetic(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_CONF", raising=False)
    asked = ["-m", "resource=v100", "model=vit_nano", "dataset=synthetic", "baseline=false", "name=study"]
    for count in (1, 2, 1):
        assert sweep(*asked, "cluster.script_only=true", f"n_images={count}") == 0
    manifest = read_manifest(RunsFolder(tmp_path / "runs").sweep("study"))
    assert [command[-1] for command in manifest.commands] == ["n_images=2", "n_images=1"]  # the last one last
    assert all(command[1:-2] == asked for command in manifest.commands)
    assert len(manifest.runs) == 2


def test_a_dry_run_lists_what_no_job_script_can_carry(tmp_path, capsys):
    prepare_synthetic(tmp_path)
    asked = ["-m", "cluster=slurm", "cluster.script_only=true", "resource=v100", "model=vit_nano"]
    given = ["dataset=synthetic", "cluster.template=sccc"]
    assert sweep(*asked, *given, "dry_run=true") == 0
    sentence = "cluster.template must be default, scc or the path of a file, got sccc (did you mean scc?)"
    assert f"Missing: {sentence}" in capsys.readouterr().out
    assert sweep(*asked, *given) == 2
    assert f"refsam: {sentence}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_published_data_set_with_other_images_in_its_folder_is_refused(capsys, synthetic, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(synthetic.root, own)
    next((own / "images").iterdir()).unlink()
    assert sweep("-m", "cluster=local", "model=vit_nano", "dataset=synthetic", f"dataset.root={own}") == 2
    assert "holds 15 of the 16 images of synthetic" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"runs": [{}]}', "\\0"])
def test_a_damaged_manifest_is_named_and_left_as_it_is(content, capsys, synthetic, tmp_path):
    manifest = RunsFolder(tmp_path / "runs").sweep("known").manifest
    manifest.parent.mkdir(parents=True)
    manifest.write_text(content)
    asked = ["-m", "cluster=local", "model=vit_nano", "dataset=synthetic", f"dataset.root={synthetic.root}"]
    assert sweep(*asked, "name=known") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"refsam: {manifest} is damaged")
    assert error.count("\n") == 1
    assert manifest.read_text() == content
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["sweeps"]


@pytest.mark.parametrize("content", ["a: [", "runs: 3\nnothing: true\n"])
def test_a_run_to_do_with_a_damaged_configuration_is_left_out(content, capsys, synthetic, tmp_path):
    asked = [
        *("-m", "cluster=slurm", "cluster.script_only=true", "resource=medium_8g", "model=vit_nano"),
        *(
            "peft=full",
            "n_objects=5",
            "dataset=synthetic",
            f"dataset.root={synthetic.root}",
            "baseline=false",
        ),
    ]
    assert sweep(*asked, "dry_run=true") == 0
    digest = re.search(r" full .* ([0-9a-f]{10}) ", capsys.readouterr().out)[1]
    folder = RunsFolder(tmp_path / "runs")
    config = folder.run(f"vit_nano-full-n5-medium_8g-synthetic-s0-{digest}").config
    config.parent.mkdir(parents=True)
    config.write_text(content)
    # Alone it is refused, and nothing is written.
    assert sweep(*asked) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"refsam: {config} is damaged")
    assert error.endswith("; remove the directory of the run, and the same command starts it again\n")
    assert error.count("\n") == 1
    assert list(folder.root.iterdir()) == [config.parent]
    # The others go on without it.
    assert sweep(*asked, "n_images=5,2") == 1
    output, error = capsys.readouterr()
    assert "2 runs (2 finetunings, 0 baselines), 1 kind of request; 1 planned, 1 unreadable." in output
    (said,) = (line for line in output.splitlines() if "is damaged" in line)
    assert said.startswith(f"Left alone: {config} is damaged")
    assert error == "refsam: 1 of the runs have no result; the lines above say why\n"
    assert len(list(folder.root.glob("vit_nano-full-n2-*/config.yaml"))) == 1
    assert len(list(folder.sweeps.glob("*/scripts/**/*.sh"))) == 1
    assert config.read_text() == content


@pytest.mark.parametrize(
    ("name", "why", "exit_status"),
    [
        ("results/metrics.json", "format 4, this one reads up to 3", 1),
        ("config.yaml", "it has the field train.later", 2),
        ("manifest.json", "format 2, this one reads up to 1", 2),
    ],
)
def test_what_a_newer_refsam_has_written_is_left_as_it_is(
    name, why, exit_status, capsys, synthetic, tmp_path
):
    asked = [
        *("-m", "cluster=slurm", "cluster.script_only=true", "resource=medium_8g", "model=vit_nano"),
        *("peft=full", "n_objects=5", "dataset=synthetic", f"dataset.root={synthetic.root}"),
        *("baseline=false", "name=one"),
    ]
    assert sweep(*asked) == 0
    folder = RunsFolder(tmp_path / "runs")
    (config,) = folder.root.glob("*/config.yaml")
    run = folder.run(config.parent.name)
    if name == "results/metrics.json":
        write_status(run, Status(State.completed, attempt=1))
        run.results.mkdir()
        write_json(run.metrics, {"format": 4, "rows": {"box": "what later versions have"}})
    elif name == "config.yaml":
        values = read_yaml(run.config)
        write_yaml(run.config, {**values, "train": values["train"] | {"later": 1}}, sealed=True)
    else:
        write_json(folder.sweep("one").manifest, {"format": 2, "runs": []})
    written = folder.sweep("one").manifest if name == "manifest.json" else run.root / name
    content = written.read_bytes()
    status = read_status(run)
    capsys.readouterr()
    assert sweep(*asked) == exit_status
    output, error = capsys.readouterr()
    assert f"{written} was written by a newer version of refsam ({why}); update refsam\n" in output + error
    assert "remove" not in output + error
    assert written.read_bytes() == content
    assert read_status(run) == status


def test_a_data_set_that_is_of_no_use_leaves_the_others_alone(capsys, synthetic, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(synthetic.root, own)
    next((own / "labels").iterdir()).write_bytes(b"")
    arguments = ["-m", "cluster=local", "model=vit_nano", "dataset=folder", "dry_run=true"]
    assert sweep(*arguments, f"dataset.root={synthetic.root},{own}") == 0
    output = capsys.readouterr().out
    assert "1 left out" in output
    assert f"dataset.root={own}: dataset.labels: {own}/labels/" in output
    assert sweep(*arguments, f"dataset.root={own}") == 2
    assert "cannot be read as an image" in capsys.readouterr().err


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--cfg", "job"],
        ["--info", "defaults"],
        ["-m", "resource=gtx1080,v100", "n_images=1,2", "dry_run=true"],
    ],
    ids=" ".join,
)
def test_what_answers_at_a_prompt_imports_no_torch(arguments):
    done = command("-X", "importtime", "-m", "refsam.sweep", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {
        line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line
    }
    assert "hydra" in imported
    assert imported.isdisjoint({"torch", "micro_sam", "torch_em", "segment_anything", "elf", "numba"})
