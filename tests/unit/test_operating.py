"""What the commands that look at sweeps say, on records as runs leave them and without any Slurm."""

import contextlib
import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refsam import cli
from refsam.errors import ConfigError, os_problem
from refsam.orchestration.operating import logs
from refsam.orchestration.operating.cancel import task_ranges
from refsam.orchestration.operating.sweep_state import look
from refsam.orchestration.operating.sweep_view import _cut, lines
from refsam.orchestration.operating.targets import find_run, find_target, short_names
from refsam.orchestration.slurm.questions import SlurmQuery
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.status import Reason, State, Status, now, read_status, write_status
from refsam.system.files import read_yaml_sections, write_json, write_yaml
from refsam.system.terminal import plain

HERE = os.uname().nodename
REQUEST = {"partition": "gpu", "gpu": "V100", "gpus": 1, "cores": 8, "memory_gb": 32, "time": "2-00:00:00"}
LOST = Status(State.running, attempt=1, host=HERE, pid=1, started_at=now(), updated_at=now())


@pytest.fixture
def folder(tmp_path: Path) -> RunsFolder:
    folder = RunsFolder(tmp_path / "runs")
    folder.sweeps.mkdir(parents=True)
    return folder


def training():
    """A run that has just said how far it is."""
    return Status(
        State.running,
        attempt=2,
        host="some_node",
        job_id="7_3",
        phase="training",
        epoch=3,
        epochs=100,
        best_epoch=2,
        best_metric=0.25,
        seconds_left=3600.0,
        started_at=now(),
        updated_at=now(),
    )


def add_run(folder: RunsFolder, run_id: str, status: Status, request=REQUEST) -> RunPaths:
    paths = folder.run(run_id)
    paths.root.mkdir()
    resource = {"name": "v100" if request["gpu"] else "cpu", "request": request}
    write_yaml(paths.config, {"kind": "finetuning", "resource": resource})
    write_status(paths, status)
    return paths


def add_sweep(folder: RunsFolder, name: str, *run_ids: str) -> None:
    folder.sweep(name).root.mkdir()
    runs = [{"run_id": run_id, "overrides": {}} for run_id in run_ids]
    write_json(folder.sweep(name).manifest, {"format": 1, "name": name, "runs": runs, "skipped": []})


def add_study(folder: RunsFolder) -> None:
    """A run of each kind, on two requests."""
    add_run(folder, "vit_b-lora-n1-v100-x-s0-aaaa", Status(State.completed, attempt=1, epoch=10, epochs=10))
    add_run(folder, "vit_b-lora-n2-v100-x-s0-bbbb", LOST)
    failed = Status(State.failed, Reason.out_of_memory, "The memory did not suffice", attempt=1)
    add_run(folder, "vit_b-full-n1-cpu-x-s0-cccc", failed, {**REQUEST, "gpu": None, "gpus": 0})
    runs = [path.name for path in folder.root.iterdir() if path != folder.sweeps]
    add_sweep(folder, "study", *sorted(runs, reverse=True), "never-submitted-dddd")


def test_a_request_that_lacks_something_is_not_known(folder):
    """As a person's edit leaves it, or another version of refsam; what has a default may be missing."""
    add_run(folder, "a", Status(), {"cores": 8, "gpu": None})
    without = {name: value for name, value in REQUEST.items() if name != "partition"}
    add_run(folder, "b", Status(), {**without, "of_a_later_version": 1})
    add_sweep(folder, "study", "a", "b")
    shown = [line for line in text(folder) if "1 run, 1 planned" in line and "Sweep" not in line]
    assert shown == [
        "request not known: 1 run, 1 planned",
        "1 × V100, 8 cores, 32 GiB, 2-00:00:00: 1 run, 1 planned",
    ]


def call(*arguments: str, folder: RunsFolder) -> int:
    return cli.main([*arguments, "--runs", str(folder.root)])


def text(folder: RunsFolder, width: int | None = None, slurm=None, room: int | None = None) -> list[str]:
    query = SlurmQuery() if slurm is None else SlurmQuery(slurm)
    run_ids = [path.name for path in sorted(folder.root.iterdir()) if path != folder.sweeps]
    return [line.text for line in lines(look("study", folder, run_ids, query), width, room)]


def test_status_has_a_line_for_each_group_and_each_run_and_the_sums(folder, capsys):
    add_study(folder)
    assert call("status", "study", folder=folder) == 0
    output = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].split(" resource.request")[0] for line in output] == [
        "run",
        "partition gpu, 1 × V100, 8 cores, 32 GiB, 2-00:00:00: 2 runs, 1 completed, 1 failed",
        "vit_b-lora-n2-v100-x-s0",
        "vit_b-lora-n1-v100-x-s0",
        "partition gpu, no GPU, 8 cores, 32 GiB, 2-00:00:00: 1 run, 1 failed",
        "vit_b-full-n1-cpu-x-s0",
        "request not known: 1 run, 1 planned",
        "never-submitted",
        "Sweep study: 4 runs, 1 completed, 1 planned, 2 failed",
    ]
    assert "failed (out_of_memory)" in output[5]
    assert output[5].endswith("The memory did not suffice")
    assert "failed (lost)" in output[2]
    assert output[7].split()[1] == "missing"
    assert "the command that made the sweep makes it again" in output[7]
    assert read_status(folder.run("vit_b-lora-n2-v100-x-s0-bbbb")).state is State.running  # only said


def test_status_as_json_has_the_fields_that_its_help_names(folder, capsys):
    add_study(folder)
    assert call("status", "--json", folder=folder) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["sweep"] == "study"
    assert value["states"] == {"completed": 1, "failed": 2, "planned": 1}
    assert value["slurm"] is None
    assert [len(group["run_ids"]) for group in value["groups"]] == [2, 1, 1]
    assert value["groups"][0]["request"] == REQUEST
    run = value["runs"][0]
    assert (run["run_id"], run["state"], run["reason"]) == ("vit_b-lora-n2-v100-x-s0-bbbb", "failed", "lost")
    with pytest.raises(SystemExit):
        cli.main(["status", "--help"])
    explained = capsys.readouterr().out
    assert all(name in explained for name in (*value, "elapsed_seconds", "damaged"))


def test_a_run_tells_its_progress_with_what_has_passed_since(folder):
    add_run(folder, "a-1", training())
    squeue = {
        "squeue": "7_3|RUNNING|gpu7|None|||refsam-\n",
        "sacct": "7_3|RUNNING|0:0|gpu7||refsam-\n",
    }
    time.sleep(1.1)
    state = look("study", folder, ["a-1"], SlurmQuery(lambda command: squeue[command[0]]))
    (run,) = state.runs
    assert 3590 < run.left < 3600
    row = lines(state)[2].text.split()
    assert row[:5] == ["a", "running", "(training)", "3/100", "0.2500"]
    assert row[-2:] == ["7_3", "some_node"]
    assert "at most for those that run" in lines(state)[-1].text


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(folder, width):
    add_study(folder)
    shown = text(folder, width, room=20)
    assert max(map(len, shown)) <= width
    assert any("complet" in line for line in shown)


def test_a_best_metric_is_named_and_said_to_be_better_when_lower(folder, capsys):
    add_run(folder, "a-1", training())
    words = "best validation metric so far, lower is better"
    assert f"best: {words} (its epoch)" in text(folder)
    add_sweep(folder, "study", "a-1")
    assert call("show", "a-1", "--full", folder=folder) in (0, 1)
    assert f"best_metric: 0.25 ({words})" in capsys.readouterr().out


def test_status_on_a_narrow_terminal_cuts_nothing_but_messages_and_names_what_it_leaves_out(folder):
    add_study(folder)
    run = training()
    add_run(folder, "vit_b-lora-n5-v100-x-s0-eeee", run)
    shown = text(folder, 50)
    assert not any("…" in line for line in shown)
    assert shown[-2] == (
        "Not shown, because the terminal is too narrow: epoch, best, elapsed, left, job, node, message; "
        "--wide shows all."
    )
    whole = text(folder, 200)
    assert "Not shown" not in "".join(whole)
    assert "3/100  0.2500 (2)" in "".join(whole)


def test_a_number_at_the_edge_of_the_terminal_is_left_out_as_a_whole():
    assert [_cut("2 runs, left 1:02:03", width) for width in (20, 19, 15, 14, 5)] == [
        "2 runs, left 1:02:03",
        "2 runs, left …",
        "2 runs, left …",
        "2 runs, left …",
        "2 ru…",
    ]


def test_slurm_that_is_not_there_is_one_sentence(folder, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    add_run(folder, "a-1", training())
    add_sweep(folder, "study", "a-1")
    assert call("status", folder=folder) == 0
    output = capsys.readouterr()
    assert "training" in output.out
    assert output.err.splitlines() == [
        "refsam: Slurm does not answer (there is no squeue on this machine): states are from the records "
        "and may be out of date"
    ]


def test_a_local_run_is_as_alive_as_its_lock_on_this_machine(folder):
    paths = add_run(folder, "a-1", LOST)
    add_run(folder, "b-1", Status(State.running, attempt=1, host="elsewhere"))
    program = (
        "import sys, pathlib; from refsam.records.paths import RunPaths\n"
        "from refsam.records.status import run_lock\n"
        f"with run_lock(RunPaths(pathlib.Path({str(paths.root)!r}))): print('held', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as holder:
        holder.stdout.readline()
        assert look("s", folder, ["a-1"], SlurmQuery()).runs[0].status.state is State.running
        holder.kill()
    lost, unknown = look("s", folder, ["a-1", "b-1"], SlurmQuery()).runs
    assert (lost.status.state, lost.status.reason) == (State.failed, Reason.lost)
    assert unknown.status.state is State.running
    assert "On elsewhere" in unknown.status.message


def test_a_damaged_record_is_named_and_the_exit_status_says_so(folder, capsys):
    add_study(folder)
    path = folder.run("vit_b-lora-n1-v100-x-s0-aaaa").status
    path.write_text("{")
    assert call("status", folder=folder) == 1
    assert str(path) in capsys.readouterr().out
    assert call("show", "aaaa", folder=folder) == 1
    assert str(path) in capsys.readouterr().err


def test_the_newest_sweep_is_meant_where_none_is_named(folder):
    add_study(folder)
    add_sweep(folder, "another")
    os.utime(folder.sweep("study").manifest, (time.time() + 60,) * 2)
    assert find_target(None, folder).sweep.name == "study"


def test_a_part_of_a_name_is_enough_where_only_one_run_has_it(folder):
    add_study(folder)
    assert find_run("lora-n1", folder).run_id == "vit_b-lora-n1-v100-x-s0-aaaa"
    with pytest.raises(
        ConfigError, match=r"'lora' may be one of vit_b-lora-n1.*, vit_b-lora-n2.*; give a part"
    ):
        find_run("lora", folder)
    with pytest.raises(ConfigError, match=r"did you mean vit_b-lora-n1-v100-x-s0\?"):
        find_run("vitb-lora-n1-v100", folder)
    target = find_target("full", folder)
    assert (target.run_ids, target.sweep.name) == (("vit_b-full-n1-cpu-x-s0-cccc",), "study")
    with pytest.raises(
        ConfigError, match=r"neither a sweep nor a part of a run's name \(did you mean study\?"
    ):
        find_target("stduy", folder)


def test_a_hash_is_shown_only_where_it_tells_runs_apart():
    assert short_names(["a-n1-0f", "a-n2-1f", "a-n2-2f"]) == {
        "a-n1-0f": "a-n1",
        "a-n2-1f": "a-n2-1f",
        "a-n2-2f": "a-n2-2f",
    }


def test_show_tells_everything_that_the_record_holds(folder, capsys):
    add_study(folder)
    paths = folder.run("vit_b-lora-n1-v100-x-s0-aaaa")
    paths.results.mkdir()
    write_json(paths.metrics, {"box": {"SA50": 0.5}})
    write_json(paths.environment, {"gpu": "Tesla V100"})
    write_json(paths.costs, {"gpu_hours": 1.25})
    paths.attempt(1).mkdir(parents=True)
    (paths.attempt(1) / "7_0_log.out").write_text("it went well\n")
    write_json(paths.attempt(1) / "attempt.json", {"settings": {"train.object_chunk": 2}})
    assert call("show", "lora-n1", "--full", folder=folder) == 0
    output = capsys.readouterr().out
    for words in (
        "state: completed",
        "SA50: 0.5",
        "gpu: Tesla V100",
        "gpu_hours: 1.25",
        "7_0_log.out",
        "train.object_chunk: 2",
    ):
        assert words in output
    assert call("show", "lora-n1", "--json", folder=folder) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["metrics"]["box"]["SA50"] == 0.5
    assert value["attempts"][0]["attempt"] == 1
    assert value["configuration"]["resource"]["name"] == "v100"
    assert value["training"] is None


def test_show_begins_with_five_lines(folder, capsys):
    add_study(folder)
    paths = folder.run("vit_b-lora-n1-v100-x-s0-aaaa")
    paths.results.mkdir()
    write_json(paths.metrics, {"box": {"SA50": 0.8125, "mSA": 0.5, "n_images": 12}, "point": {"SA50": 0.25}})
    write_json(paths.training, {"best_epoch": 3, "best_metric": 0.25})
    assert call("show", "lora-n1", folder=folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0] == paths.run_id
    assert lines[1].startswith("  completed")
    assert "best epoch 3, validation metric 0.2500 (lower is better)" in lines[2]
    assert lines[3] == "  test: box SA50 0.812, mSA 0.500; point SA50 0.250; 12 images"
    assert lines[4] == f"  {paths.root} (everything about it: --full; for programs: --json)"


def test_logs_prints_the_last_attempt_or_the_one_asked_for(folder, capsys):
    paths = add_run(folder, "a-1", Status(State.failed, Reason.error, attempt=2))
    for number, words in ((1, "first\n"), (2, "second\nlast [bold]line[/bold]\n")):
        paths.attempt(number).mkdir(parents=True)
        (paths.attempt(number) / f"{number}_0_log.out").write_text(words)
    assert call("logs", "a", folder=folder) == 0
    assert capsys.readouterr().out == "second\nlast [bold]line[/bold]\n"
    assert call("logs", "a", "--attempt", "1", folder=folder) == 0
    assert capsys.readouterr().out == "first\n"
    assert call("logs", "a", "--lines", "1", "--json", folder=folder) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["attempt"], value["text"]) == (2, "last [bold]line[/bold]\n")
    assert call("logs", "a", "--attempt", "3", folder=folder) == 2
    assert "--attempt must be one of those of run a-1 (1, 2), got 3" in capsys.readouterr().err


def test_a_log_is_followed_into_the_next_attempt_until_the_run_has_ended(folder, monkeypatch):
    monkeypatch.setattr(logs, "POLL_SECONDS", 0.01)
    paths = add_run(folder, "a-1", LOST)
    paths.attempt(1).mkdir(parents=True)
    first = paths.attempt(1) / "1_log.out"
    first.write_text("old\nnew\n")
    steps = [
        lambda: first.write_text("old\nnew\nnewer\n"),
        lambda: first.write_text("old\nnew\nnewer\nlast of 1\n"),
        lambda: (paths.attempt(2).mkdir(), (paths.attempt(2) / "2_log.out").write_text("again\n")),
    ]
    remaining = iter(steps)

    def is_open() -> bool:
        step = next(remaining, None)
        if step is not None:
            step()
        return step is not None

    seen = "".join(logs.follow(paths, None, is_open, last_lines=1))
    assert seen == "newer\nlast of 1\n--- attempt 2\nagain\n"


def test_sections_of_a_configuration_are_read_without_the_rest(tmp_path):
    path = tmp_path / "config.yaml"
    values = {
        "a": {"x": 1, "words": ["y", "z"]},
        "resource": {"request": {"time": "1:00:00"}},
        "b": [1],
        "n": 2,
    }
    write_yaml(path, values)
    assert read_yaml_sections(path, *values) == list(values.values())
    assert read_yaml_sections(path, "c", "n") == [None, 2]
    path.write_text("{resource: {name: v100}}")
    assert read_yaml_sections(path, "resource") == [{"name": "v100"}]
    path.write_text("resource:\n  - [\n")
    with pytest.raises(ValueError, match="is damaged"):
        read_yaml_sections(path, "resource")


@pytest.mark.parametrize("arguments", [["status"], ["show", "aaaa"], ["logs", "aaaa"]])
def test_looking_imports_nothing_heavy(folder, arguments):
    add_study(folder)
    code = (
        "import sys\nfrom refsam import cli\ncli.main(sys.argv[1:])\n"
        "print('imported:', {'torch', 'pandas', 'hydra', 'numpy', 'submitit'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, *arguments, "--runs", str(folder.root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "imported: set()"


def test_of_more_runs_than_there_is_room_for_those_that_run_and_fail_are_shown(folder):
    runs = [
        add_run(folder, f"done{number}-0", Status(State.completed, attempt=1)).run_id for number in range(30)
    ]
    add_run(folder, "failed-0", Status(State.failed, Reason.error, attempt=1))
    add_run(folder, "running-0", Status(State.running, attempt=1, host="elsewhere"))
    state = look("study", folder, [*runs, "failed-0", "running-0"], SlurmQuery())
    shown = [line.text for line in lines(state, 80, 8)]
    assert len(shown) == 8
    assert [line.split()[0] for line in shown[2:6]] == ["done0", "done1", "failed", "running"]
    assert shown[6] == "and 28 more"
    assert len(lines(state, 80, 3)) == 3


def test_tasks_are_named_as_scancel_takes_them():
    assert task_ranges(["7_2", "7_0", "7_1", "7_5", "9", "8_3"]) == ["7_[0-2,5]", "8_[3]", "9"]
    assert task_ranges([]) == []


@pytest.mark.parametrize(
    "command", ["status", "show", "cancel", "continue", "retry", "collect", "logs --follow"]
)
def test_ctrl_c_while_slurm_is_asked_is_one_sentence(folder, tmp_path, command):
    paths = add_run(folder, "a-1", training())
    paths.attempt(2).mkdir(parents=True)
    (paths.attempt(2) / "7_3_0_log.out").write_text("step 1\n")
    add_sweep(folder, "study", "a-1")
    (tmp_path / "bin").mkdir()
    for name in ("squeue", "sacct"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\nexec sleep 600\n")
        (tmp_path / "bin" / name).chmod(0o755)
    what = "study" if command in ("status", "cancel", "continue", "retry", "collect") else "a"
    process = subprocess.Popen(
        [sys.executable, "-m", "refsam.cli", *command.split(), what, "--runs", folder.root],
        env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "asked").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal: to everything in the foreground
    _, complaint = process.communicate(timeout=60)
    if command == "logs --follow":  # that is how a person ends it
        assert (process.returncode, complaint) == (0, "")
    else:
        assert (process.returncode, complaint) == (130, "refsam: stopped by Ctrl-C\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("h5py's own words"), "h5py's own words"),
        (OSError(), "OSError"),
        (OSError(errno.EIO, None), "Input/output error"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "/x cannot be read or written: Permission denied",
        ),
        (OSError(errno.ESTALE, None, "/x"), "/x cannot be read or written: Stale file handle"),
    ],
)
def test_an_error_of_the_system_always_has_words(error, words):
    assert os_problem(error) == words


EVIL = "\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b]8;;http://x\x1b\\link \x9b2J \u202egnp.exe \x1bc end"
PLAIN = "red link   gnp.exe  end"


@pytest.mark.parametrize(
    "command",
    [
        "status study",
        "show a",
        "logs a",
        "logs a --follow",
        "watch study",
        "collect study",
        "compare study a",
    ],
)
def test_a_terminal_gets_no_sequence_of_a_record_or_a_log_and_a_pipe_gets_logs_verbatim(folder, command):
    failed = Status(State.failed, Reason.error, EVIL, attempt=1, host=EVIL, started_at=now(), ended_at=now())
    paths = add_run(folder, "a-1", failed)
    paths.attempt(1).mkdir(parents=True)
    (paths.attempt(1) / "7_log.out").write_text(f"{EVIL}\n")
    add_sweep(folder, "study", "a-1")
    arguments = [sys.executable, "-m", "refsam.cli", *command.split(), "--runs", folder.root]
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "300"}
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        environment.pop(name, None)
    controller, terminal = pty.openpty()
    process = subprocess.Popen(arguments, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's other end is closed
        while part := os.read(controller, 65536):
            shown += part
    os.close(controller)
    process.wait()
    text = shown.decode()
    # Of rich's own, a live table moves the cursor and bold is a style.
    own = re.sub(r"\x1b\[(\?25[hl]|0m|1m|2m|2K|\d*A|1A)", "", text).replace("\r", "")
    assert own.replace("\n", "").isprintable(), repr(own)
    if command.startswith("logs"):
        assert PLAIN in text
        answer = subprocess.run(arguments, capture_output=True, check=True)
        assert answer.stdout.decode() == f"{EVIL}\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (EVIL, PLAIN),
        ("täglich 日本語 \U0001f600\n\tx", "täglich 日本語 \U0001f600\n\tx"),
        ("\x1b[38;5;196mx\x1b[K\x1b(B\x1bM\x90q\x9cy", "xy"),
        ("a\x1b[", "a"),
        ("no\xa0break", "no break"),
    ],
)
def test_plain_text_has_no_command_for_a_terminal(text, shown):
    assert plain(text) == shown
