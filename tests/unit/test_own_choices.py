"""Mistakes in a person's own configuration files, and names of their own in the names of files."""

import pytest

from refsam.configuration.compose import compose_sweep
from refsam.configuration.composition_errors import explain
from refsam.records.paths import LONGEST_NAME, file_name


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"nam: x\n", "dataset/mine.yaml: dataset.nam: there is no such field (did you mean name?)"),
        (
            b"name: x\nmin_object_size: abc\n",
            "dataset/mine.yaml: dataset.min_object_size must be an integer, got 'abc'",
        ),
        (b"# @package foo\nname: x\n", "dataset/mine.yaml: foo: there is no such field"),
        (b"name: [a\n x: :", "{file}, line 2, column 3: expected ',' or ']', but got ':'; expected YAML"),
        (b'name: "a\n', "{file}, line 2, column 1: found unexpected end of stream; expected YAML"),
        (b"a\x00b: 3\n", "{file}: unacceptable character #x0000"),
        (b"\xff\xfename: x\n", "{file}: 'utf-8' codec can't decode byte 0xff in position 0"),
        (b"defaults: 3\n", "Invalid defaults list in 'dataset/mine', defaults must be a list (got int)"),
        (
            b"defaults:\n - nothere\nname: x\n",
            "dataset: there is no nothere.yaml, which the defaults of a configuration file name",
        ),
    ],
)
def test_a_mistake_in_a_file_of_config_dir_is_one_sentence_that_names_it(tmp_path, content, sentence):
    file = tmp_path / "dataset" / "mine.yaml"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        list(compose_sweep(["dataset=mine"], config_dir=str(tmp_path)))
    said = explain(raised.value)
    assert said is not None
    assert said.startswith(sentence.format(file=file))
    assert "\n" not in said
    assert not said.endswith(":")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("front_SA50_nuclei", "front_SA50_nuclei"),
        ("compare-SA50-peft=lora,model=vit_b", "compare-SA50-peft=lora_model=vit_b"),
        ("curves_a/b", "curves_a_b"),
        ("../../etc/passwd", "etc_passwd"),
        ("a\\b\nc\0d", "a_b_c_d"),
        ("Zellkerne (süß) 细胞", "Zellkerne_süß_细胞"),
    ],
)
def test_a_file_is_named_after_values_without_leaving_its_folder(name, expected):
    assert file_name(name) == expected


@pytest.mark.parametrize("name", ["..", "///", "", "x" * 300, "细" * LONGEST_NAME * 2])
def test_a_name_that_is_too_long_or_nothing_is_still_a_file_s_own(tmp_path, name):
    found = file_name(name)
    (tmp_path / f"{found}.json").touch()
    assert found != file_name(f"{name}.")
    assert [path.name for path in tmp_path.iterdir()] == [f"{found}.json"]
