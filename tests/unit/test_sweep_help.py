"""python -m refsam.sweep --help: what a person reads before the first sweep."""

import subprocess
import sys

import pytest

from refsam.commands.field_help import all_fields, sweep_help


def sweep(*arguments):
    command = [sys.executable, "-m", "refsam.sweep", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_field_of_the_configuration_has_words():
    assert [field.name for field in all_fields() if not field.words] == []


def test_the_words_are_those_beside_the_field_and_not_of_the_next_one():
    words = {field.name: field.words for field in all_fields()}
    assert words["train.lr"] == "learning rate at the start"
    assert words["resource.settings"].startswith("What fits")  # above the field
    assert words["model.custom.position_scale"].startswith("of the random frequencies")  # below it
    assert words["on_invalid"] == "combinations that cannot run: skip, or error"
    assert words["dataset.normalize"] == "auto, none, minmax, percentile, patch"


def test_help_has_examples_choices_of_groups_and_a_line_for_each_field(tmp_path):
    (tmp_path / "resource").mkdir()
    (tmp_path / "resource" / "mine.yaml").write_text("name: mine\n")
    done = sweep("--help", "--config-dir", str(tmp_path))
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert sum("python -m refsam.sweep" in line for line in lines) == 3
    (resources,) = (line for line in lines if line.startswith("  resource "))
    assert {"gtx1080,", "mine"} <= set(resources.split())
    for field in all_fields():
        assert sum(line.split("=")[0].split()[:1] == [field.name] for line in lines) == 1, field.name
    assert "  train.lr=1e-5                      learning rate at the start" in lines


@pytest.mark.parametrize("width", [80, 120])
def test_help_is_as_wide_as_the_terminal(width):
    lines = sweep_help(width).splitlines()
    assert max(len(line) for line in lines if "python -m" not in line) <= width


@pytest.mark.parametrize("option", ["--cfg", "-c", "--info"])
def test_what_is_about_one_configuration_does_not_go_with_many(option):
    done = sweep("-m", "n_images=1,2", option, "job")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("refsam: --cfg and --info are about one configuration")
