"""What stands for two things under one name is refused or told apart before anything runs."""

from dataclasses import replace
from pathlib import Path

import pytest
from measured_runs import write_run, write_sweep

from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze
from refsam.configuration.patch_pool import with_patch_pool
from refsam.configuration.schema import RefsamConfig
from refsam.errors import ConfigError
from refsam.orchestration.operating.sweep_state import look
from refsam.orchestration.operating.sweep_view import as_json, lines
from refsam.orchestration.planning.one_name import Asked, add, check_recorded, other_settings
from refsam.orchestration.slurm.questions import SlurmQuery
from refsam.records.paths import RunsFolder
from refsam.records.settings import labels, setting_values

GIVEN = ("peft=full", "n_objects=5", "resource=v100")


def config(*overrides: str) -> RefsamConfig:
    return with_patch_pool(compose([*GIVEN, *overrides]))


def test_a_resource_under_the_name_of_another_is_refused() -> None:
    copy = config("resource.request.gpu=H100")
    runs: dict[str, Asked] = {}
    add(runs, "run", (config(), {"resource": "v100"}))
    with pytest.raises(ConfigError) as refused:
        add(runs, "run", (copy, {"resource": "mine"}))
    assert str(refused.value) == (
        "resource.name: v100 is the name of two resources (resource=v100 and resource=mine), which ask for "
        "the GPUs V100 and H100; give one of them another name"
    )


def test_a_recorded_run_of_another_gpu_is_refused(tmp_path: Path) -> None:
    folder = RunsFolder(tmp_path)
    folder.run("run").root.mkdir()
    freeze(folder.run("run").config, config())
    check_recorded({"run": (config("resource.request.time=1:00:00"), {}), "new": (config(), {})}, folder)
    check_recorded({"run": (config("resource.request.gpu=v100"), {})}, folder)
    with pytest.raises(
        ConfigError, match=r"H100 was given for resource v100, but in .*config\.yaml .* for V100"
    ):
        check_recorded({"run": (config("resource.request.gpu=H100"), {})}, folder)


def test_what_a_run_has_one_of_is_not_swept_and_modes_are_joined() -> None:
    runs: dict[str, Asked] = {}
    add(runs, "run", (config("evaluate.modes=[box]"), {}))
    add(runs, "run", (config("evaluate.modes=[point,box]", "evaluate.rounds=2"), {}))
    evaluate = runs["run"][0].evaluate
    assert (evaluate.modes, evaluate.rounds) == (["box", "point"], 2)
    runs = {"run": (config("evaluate.modes=[amg]", "evaluate.grid=small"), {})}
    with pytest.raises(ConfigError, match=r"evaluate\.grid: small and study were given for the same run run"):
        add(runs, "run", (config("evaluate.modes=[amg]"), {}))


def test_a_sweep_of_the_same_name_with_other_settings_is_said(tmp_path: Path) -> None:
    folder = RunsFolder(tmp_path)
    for name, overrides in (("slow", ("train.lr=1e-6",)), ("seed", ("train.lr=1e-5", "seed=1"))):
        write_run(folder, name, {"box": {"a": 0.5}}, (*GIVEN, *overrides))
    planned = {"new": setting_values(config("train.lr=1e-5"))}
    write_sweep(folder, {"seed": {}})
    assert list(other_settings("study", folder, planned)) == []
    assert list(other_settings("nothing", folder, planned)) == []
    write_sweep(folder, {"slow": {}, "seed": {}})
    (sentence,) = other_settings("study", folder, planned)
    assert (
        sentence == "sweep study has 2 runs of other commands, which differ from these in lr (1e-06, 1e-05)"
    )


def test_labels_tell_every_run_apart() -> None:
    lora = ("peft=lora", "peft.rank=8")
    configs = {
        "vit_b-full-n5-v100-nuclei-s0-1111111111": config(),
        "vit_b-full-n5-v100-nuclei-s0-2222222222": config("train.lr=1e-3"),
        "vit_b-full-n5-v100-nuclei-s0-3333333333": config("n_objects=7"),
        "vit_b-lora-n5-v100-nuclei-s0-4444444444": config("peft=lora"),
        "vit_b-lora-n5-v100-nuclei-s0-5555555555": config(*lora),
        "vit_b-initial-nuclei-s0-6666666666": config("kind=baseline"),
    }
    found = labels({run: setting_values(each) for run, each in configs.items()})
    assert list(found.values()) == [
        "vit_b-full-n5-v100-nuclei-s0 lr=1e-05 n_objects=5",
        "vit_b-full-n5-v100-nuclei-s0 lr=0.001",
        "vit_b-full-n5-v100-nuclei-s0 lr=1e-05 n_objects=7",
        "vit_b-lora-n5-v100-nuclei-s0 rank=4 lr=1e-05",
        "vit_b-lora-n5-v100-nuclei-s0 rank=8 lr=1e-05",
        "vit_b-initial-nuclei-s0",
    ]
    twins = {f"a-{number}": setting_values(replace(config(), seed=number)) for number in (1, 2)}
    assert labels(twins) == {"a-1": "a-1", "a-2": "a-2"}


def test_status_names_runs_by_what_was_swept(tmp_path: Path) -> None:
    folder = RunsFolder(tmp_path)
    for name, rate in (("full-s0-1", "1e-5"), ("full-s0-2", "1e-3")):
        write_run(folder, name, {"box": {"a": 0.5}}, (*GIVEN, f"train.lr={rate}"))
    state = look("study", folder, ["full-s0-1", "full-s0-2"], SlurmQuery())
    shown = [line.text.split("  ")[0] for line in lines(state)]
    assert shown[2:4] == ["full-s0 lr=1e-05", "full-s0 lr=0.001"]
    assert [run["fields"] for run in as_json(state)["runs"]] == [{"train.lr": 1e-5}, {"train.lr": 1e-3}]
