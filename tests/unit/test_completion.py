"""What a shell completes: `refsam` and `python -m refsam.sweep`, asked as shells ask and in real ones."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from refsam import cli
from refsam.commands.field_help import all_fields
from refsam.commands.override_words import continued
from refsam.completion import COMPLETERS
from refsam.orchestration.planning import checks
from refsam.records.paths import RunsFolder

SWEEP = "python -m refsam.sweep"
RUN = "vit_b-lora-n5-v100-0123abcd"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to type in, with runs and an executable Python and refsam on the PATH."""
    runs = RunsFolder(tmp_path / "runs")
    for sweep in ("study", "pilot"):
        runs.sweep(sweep).root.mkdir(parents=True)
    runs.run(RUN).root.mkdir()
    runs.run(RUN).config.touch()
    (tmp_path / "bin").mkdir()
    for name, words in {"python": "", "refsam": " -m refsam.cli"}.items():
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REFSAM_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(line, *options):
    """The process that a shell would start, when it has ended, with its answer, that of file descriptor 8."""
    module = "refsam.sweep" if SWEEP in line else "refsam.cli"
    command = [sys.executable, *options, "-m", module]
    read, write = os.pipe()
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "fish",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    done = subprocess.run(
        ["bash", "-c", f'exec 8>&{write}; exec "$@"', "bash", *command],
        env=environment,
        pass_fds=[write],
        capture_output=True,
        text=True,
        check=True,
    )
    os.close(write)
    with os.fdopen(read) as answer:
        return done, answer.read().split("\n")


@pytest.mark.parametrize(
    ("begun", "whole"),
    [
        ("reso", ["resource=", "resource."]),
        ("resource=gtx", ["resource=gtx1080"]),
        ("resource=gtx1080,v", ["resource=gtx1080,v100"]),
        ("resource=v100,v", []),  # it stands there already
        ("n_train_images=1,2,", ["n_train_images=1,2,10", "n_train_images=1,2,5"]),
        ("train.optimizer=adam8", ["train.optimizer=adam8bit"]),
        ("train.optimizer=adam,page", ["train.optimizer=adam,paged_adam8bit"]),
        ("model.fam", ["model.family="]),
        ("evaluate.modes=[amg,ai", ["evaluate.modes=[amg,ais"]),
        ("evaluate.where=gtx", ["evaluate.where=gtx1080"]),
        ("evaluate.save_predictions=t", ["evaluate.save_predictions=true"]),
        ("train.precision=bf", ["train.precision=bfloat16"]),
        ("train.lr=", ["train.lr=1e-5"]),  # the default
        ("cluster.template=s", ["cluster.template=scc"]),
        ("no_such.field=", []),
    ],
)
def test_an_override_goes_on_with_what_it_can_be(begun, whole):
    assert list(continued(begun)) == whole


def test_a_persons_own_choices_are_completed(tmp_path):
    (tmp_path / "resource").mkdir()
    (tmp_path / "resource" / "h100.yaml").write_text("name: h100\n")
    assert list(continued("resource=h1", [tmp_path])) == ["resource=h100"]


@pytest.mark.slow
def test_every_field_is_completed_with_its_words():
    for field in all_fields():
        assert continued(field.name)[f"{field.name}="] == field.words


def test_every_value_that_is_completed_is_allowed():
    listed = [rule for rule in checks._RULES if rule.choices]
    assert len(listed) > 20
    for rule in listed:
        assert all(rule.holds(choice) or rule.holds([choice]) for choice in rule.choices), rule.field


def test_every_word_that_a_command_takes_is_completed():
    (commands,) = (each for each in cli.parser_and_commands()[0]._actions if isinstance(each.choices, dict))
    words = [(name, each) for name, command in commands.choices.items() for each in command._actions]
    positional = [(name, each) for name, each in words if not each.option_strings]
    assert len(positional) > 20
    assert [(name, each.metavar) for name, each in positional if not each.choices] == [
        (name, each.metavar) for name, each in positional if each.metavar in COMPLETERS
    ]


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("refsam sta", ["status"]),
        ("refsam status ", ["pilot", "study"]),
        ("refsam status --js", ["--json"]),
        ("refsam status --runs ", ["bin/", "runs/"]),
        ("refsam collect study --where a=b pi", ["pilot"]),
        ("refsam show vit", [RUN]),
        ("refsam cancel ", ["pilot", "study", RUN]),
        ("refsam list --runs elsewhere ", [""]),
        ("refsam predict s", ["study"]),
        ("refsam predict study --output runs ru", ["runs/"]),
        ("refsam evaluate study --json evaluate.mod", ["evaluate.modes="]),
        ("refsam evaluate study train.l", [""]),
        ("refsam prepare dataset=nuclei_", ["dataset=nuclei_coco"]),
        ("refsam plot --kind study,par", ["study,pareto"]),
        ("refsam retry study --reason out", ["out_of_memory"]),
        ("refsam sweep -m resource=gtx1080,v", ["resource=gtx1080,v100"]),
        ("X=1 refsam completion f", ["fish"]),
        (f"{SWEEP} -m resource=gtx1080,v", ["resource=gtx1080,v100"]),
        (f"{SWEEP} n_images=1 -m --config-name de", ["demo"]),
        (f"{SWEEP} --config-name demo resource=v", ["resource=v100"]),
        (f"{SWEEP} --cf", ["--cfg"]),
        (f"{SWEEP} runs=r", ["runs=runs/"]),
        (f"cd x && {SWEEP} resource=v", ["resource=v100"]),
    ],
)
def test_a_command_line_goes_on_with_what_it_can_be(line, whole, folder):
    done, answer = asked(line)
    assert sorted(answer) == sorted(whole)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("line", [f"{SWEEP} -m resource=gtx1080,v", "refsam status s"])
def test_an_answer_to_a_shell_composes_nothing_and_imports_nothing_heavy(line, folder):
    imported = {
        each.rsplit("|", 1)[-1].strip().split(".")[0]
        for each in asked(line, "-X", "importtime")[0].stderr.splitlines()
    }
    assert "argcomplete" in imported
    assert imported.isdisjoint({"torch", "hydra", "pandas", "numpy", "matplotlib", "rich"})


@pytest.mark.slow
@pytest.mark.parametrize("shell", [shell for shell in ("bash", "zsh", "fish") if shutil.which(shell)])
def test_a_tab_completes_in_a_real_shell(shell, folder):
    (folder / "thirty.py").touch()
    press = in_fish if shell == "fish" else Terminal(shell)
    press(f"{SWEEP} -m resource=gtx1080,v1", "resource=gtx1080,v100")
    press(f"{SWEEP} model.fam", "model.family=")
    press(f"{folder}/bin/{SWEEP} --config-name de", "demo")
    press(f"{SWEEP} runs=ru", "runs=runs/")
    press("refsam status stu", "study")
    press("refsam show vit", RUN)
    press("python thi", "thirty.py")  # every other command of Python is completed as before


class Terminal:
    """A shell in a terminal, where the key is pressed."""

    def __init__(self, shell):
        options = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}[shell]
        environment = {**os.environ, "TERM": "dumb", "PS1": "$ "}
        self.terminal = pexpect.spawn(
            shell, options, env=environment, encoding="utf-8", dimensions=(50, 200), timeout=60
        )
        self.terminal.sendline(f'eval "$(refsam completion {shell})"; echo REA""DY')
        self.terminal.expect("READY\r")

    def __call__(self, begun, whole):
        self.terminal.send(f"{begun}\t")
        self.terminal.expect_exact(begun.rpartition(" ")[0] + f" {whole}")
        self.terminal.sendline("\x15")  # clears the line


def in_fish(begun, whole):
    code = f"refsam completion fish | source; complete --do-complete '{begun}'"
    done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True)
    (word,) = done.stdout.splitlines()
    assert word.partition("\t")[0] == whole
    assert done.stderr == ""
