"""Records that are damaged, gone or closed: what is known all the same, and what commands say of them."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from refsam import cli
from refsam.configuration.compose import compose
from refsam.configuration.frozen import freeze, load
from refsam.orchestration.lifecycle.attempt_records import end_attempt, known_attempts
from refsam.orchestration.lifecycle.attempts import begin_attempt
from refsam.orchestration.lifecycle.reconcile import reconcile
from refsam.orchestration.lifecycle.retries import decide
from refsam.orchestration.slurm.questions import SlurmQuery
from refsam.records.attempts import (
    BATCH,
    CHECKPOINTING,
    CHUNK,
    PRECISION,
    Attempt,
    read_attempt,
    write_attempt,
)
from refsam.records.identity import run_id
from refsam.records.metrics import METRICS, write_metrics
from refsam.records.paths import RunPaths, RunsFolder
from refsam.records.recovery import look_up, mend, read_record
from refsam.records.status import Reason, State, Status, read_status, run_lock, write_status
from refsam.system.files import write_json

START, END = "2026-01-02T03:00:00+00:00", "2026-01-02T04:30:00+00:00"
BROKEN = {"gone": None, "empty": b"", "half": b'{"state": "run', "binary": b"\xff\x00\x80", "a list": b"[1]"}
WRONG = [
    "null",
    "[]",
    "3",
    "{}",
    '{"state": "asleep"}',
    '{"state": ["completed"]}',
    '{"state": "unreadable"}',
    '{"state": "completed", "attempt": "three"}',
    '{"state": "completed", "attempt": -1}',
    '{"state": "completed", "attempt": true}',
    '{"state": "completed", "attempt": 1e9}',
    '{"state": "completed", "attempt": 1000000000}',
    '{"state": "failed", "reason": "bad luck"}',
    '{"state": "running", "epoch": {"a": [1]}}',
    '{"state": "running", "pid": -1}',
    '{"state": "running", "started_at": "yesterday"}',
    '{"state": "running", "started_at": "2026-01-02T03:00:00"}',
    '{"state": "running", "seconds_left": Infinity}',
    '{"state": "running", "message": {"a": 1}}',
    '{"state": "running", "epoch": 1' + "0" * 5000 + "}",
    "[" * 100_000,
]


@pytest.fixture
def folder(tmp_path):
    folder = RunsFolder(tmp_path / "runs")
    folder.sweeps.mkdir(parents=True)
    return folder


@pytest.fixture
def paths(folder):
    """A run that is frozen, and a sweep `study` of it and of one that is completed."""
    write_status(add_run(folder, "b-0"), Status(State.completed, attempt=1))
    return add_run(folder, "a-0")


CONFIG = compose(["resource=local", "model=vit_nano", "cluster=local", "dataset=synthetic"])


def add_run(folder: RunsFolder, run_id: str) -> RunPaths:
    paths = folder.run(run_id)
    paths.results.mkdir(parents=True)
    freeze(paths.config, CONFIG)
    runs = [{"run_id": path.name, "overrides": {}} for path in sorted(folder.root.glob("*-0"))]
    folder.sweep("study").root.mkdir(exist_ok=True)
    write_json(folder.sweep("study").manifest, {"format": 1, "name": "study", "runs": runs, "skipped": []})
    return paths


def break_status(paths: RunPaths, how: str) -> None:
    content = BROKEN[how]
    paths.status.unlink(missing_ok=True)
    if content is not None:
        paths.status.write_bytes(content)


def complete(paths: RunPaths) -> None:
    training = {"best_epoch": 3, "best_metric": 0.25, "epochs": 7, "iterations": 70, "seconds_total": 60.0}
    write_json(paths.training, training)
    values = {**dict.fromkeys(METRICS, 0.5), "n_images": 4, "seconds_per_image": 0.1, "pictures": 2}
    modes = CONFIG.evaluate.modes
    write_metrics(
        paths.metrics, [{"mode": mode, "round": 0, "mask_input": False, **values} for mode in modes]
    )


def call(folder: RunsFolder, *arguments: str) -> int:
    return cli.main([*arguments, "--runs", str(folder.root)])


@pytest.mark.parametrize("how", BROKEN)
def test_a_completed_run_without_its_status_is_completed_and_not_run_again(folder, paths, capsys, how):
    complete(paths)
    write_attempt(paths, 1, Attempt(state=State.completed, host="n1", started_at=START, ended_at=END))
    break_status(paths, how)
    status = read_record(paths)
    assert (status.state, status.attempt, status.host) == (State.completed, 1, "n1")
    assert (status.epoch, status.best_epoch, status.best_metric) == (7, 3, 0.25)
    assert not begin_attempt(paths)
    assert call(folder, "status") == 1
    assert str(paths.status) in capsys.readouterr().out
    assert call(folder, "list") == 1
    assert "1 damaged, 1 completed" in capsys.readouterr().out
    assert call(folder, "continue", "study") == 0
    assert "Nothing of sweep study is to be run again" in capsys.readouterr().out
    assert read_status(paths).state is State.completed  # and it is written again
    assert call(folder, "status") == 0


def test_a_run_whose_results_are_not_complete_is_not(paths):
    complete(paths)
    write_attempt(paths, 1, Attempt(state=State.completed, started_at=START, ended_at=END))
    break_status(paths, "gone")
    freeze(paths.config, replace(CONFIG, evaluate=replace(CONFIG.evaluate, modes=["box", "point", "amg"])))
    assert read_record(paths).state is State.planned
    paths.training.unlink()
    assert read_record(paths).state is State.planned


@pytest.mark.parametrize("how", BROKEN)
def test_no_attempt_is_overwritten_and_the_next_one_has_its_settings(paths, how):
    first = Attempt(
        used={CHUNK: 8, CHECKPOINTING: None, PRECISION: "float32"},
        host="n1",
        started_at=START,
        ended_at=END,
        state=State.failed,
        reason=Reason.out_of_memory,
        message="no room",
    )
    second = replace(first, settings={CHUNK: 4}, used=first.used | {CHUNK: 4})
    write_attempt(paths, 1, first)
    write_attempt(paths, 2, second)
    break_status(paths, how)
    status = read_record(paths)
    assert (status.state, status.reason, status.attempt) == (State.failed, Reason.out_of_memory, 2)
    assert status.message == "no room"
    assert begin_attempt(paths)
    assert [read_attempt(paths, 1), read_attempt(paths, 2)] == [first, second]
    assert read_attempt(paths, 3).settings == {CHUNK: 2}
    assert read_status(paths).attempt == 3


def test_a_status_that_was_set_back_overwrites_no_attempt(paths):
    write_attempt(paths, 3, Attempt(started_at=START, ended_at=END, state=State.failed, reason=Reason.error))
    before = read_attempt(paths, 3)
    write_status(paths, Status(State.failed, Reason.error, attempt=1))
    assert begin_attempt(paths)
    assert read_attempt(paths, 3) == before
    assert read_status(paths).attempt == 4


def test_attempts_that_got_no_further_are_still_counted(paths):
    interrupted = Attempt(
        steps=5, started_at=START, ended_at=END, state=State.failed, reason=Reason.preempted, job_id="7_1"
    )
    for number in range(1, 8):
        write_attempt(paths, number, interrupted)
    assert not decide(known_attempts(paths, 7)).again
    break_status(paths, "half")
    assert not decide(known_attempts(paths, read_record(paths).attempt)).again


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"settings": {"train.object_chunk": "four"}}'])
def test_the_settings_of_an_attempt_without_a_record_follow_from_those_before_it(paths, content):
    used = {CHUNK: 8, CHECKPOINTING: None, PRECISION: "float32"}
    memory = {"state": State.failed, "reason": Reason.out_of_memory, "started_at": START, "ended_at": END}
    write_attempt(paths, 1, Attempt(used=used, **memory))
    paths.attempt(2).mkdir()
    if content is not None:
        paths.attempt_record(2).write_bytes(content)
    assert [attempt.settings for attempt in known_attempts(paths, 2)] == [{}, {CHUNK: 4}]
    # It is cancelled before it has begun, and what it would have had is not forgotten.
    cancelled = Status(State.failed, Reason.cancelled, attempt=2)
    assert end_attempt(paths, cancelled).settings == {CHUNK: 4}
    write_status(paths, cancelled)
    assert begin_attempt(paths)
    assert read_attempt(paths, 3).settings == {CHUNK: 4}


def test_an_attempt_whose_record_is_damaged_is_ended_by_what_the_status_says(paths):
    write_json(paths.savings, {"object_chunk": 8, "checkpoint_every": None, "precision": "float32"})
    paths.attempt(1).mkdir(parents=True)
    paths.attempt_record(1).write_text("{")
    write_status(paths, Status(State.failed, Reason.out_of_memory, attempt=1, started_at=START))
    assert begin_attempt(paths)
    assert read_attempt(paths, 1).reason is Reason.out_of_memory
    assert read_attempt(paths, 2).settings == {CHUNK: 4}


def test_what_is_wrong_in_the_record_of_an_attempt_takes_nothing_else_with_it(paths):
    values = {"settings": {CHUNK: 2}, "used": {CHUNK: 2, PRECISION: 5}, "ended_at": "soon", "steps": 7}
    paths.attempt(1).mkdir(parents=True)
    write_json(paths.attempt_record(1), values)
    assert read_attempt(paths, 1) == Attempt(settings={CHUNK: 2}, used={CHUNK: 2}, steps=7)


def test_slurm_is_asked_about_the_job_that_only_a_link_to_its_log_names(folder, paths):
    paths.attempt(1).mkdir(parents=True)
    (paths.attempt(1) / "12_3_0_log.out").symlink_to("../../jobs/12_3_0_log.out")
    break_status(paths, "half")
    assert (read_record(paths).state, read_record(paths).job_id) == (State.pending, "12_3")
    says = {"squeue": "12_3|PENDING||Priority|||refsam-study-0\n", "sacct": ""}
    known, _ = reconcile(folder, ["a-0"], SlurmQuery(lambda command: says[command[0]]))
    assert known["a-0"].state is State.pending  # and is not submitted again
    (paths.attempt(1) / "12_3_0_log.out").rename(paths.attempt(1) / "12_3.out")
    assert read_record(paths).job_id == "12_3"
    (paths.attempt(1) / "12_3.out").rename(paths.attempt(1) / "12_0_log.out")
    assert read_record(paths).job_id == "12"


def test_a_job_that_slurm_has_requeued_is_not_submitted_again(folder, paths):
    ended = Attempt(
        job_id="12_3",
        started_at=START,
        ended_at=END,
        state=State.failed,
        reason=Reason.preempted,
        message="p",
    )
    write_attempt(paths, 1, ended)
    break_status(paths, "gone")
    says = {"squeue": "12_3|PENDING||BeginTime|||refsam-study-0\n", "sacct": ""}
    known, _ = reconcile(folder, ["a-0"], SlurmQuery(lambda command: says[command[0]]))
    assert known["a-0"].state is State.pending
    says = {"squeue": "", "sacct": "12_3|CANCELLED by 0|0:0|n1||refsam-study-0\n"}
    known, _ = reconcile(folder, ["a-0"], SlurmQuery(lambda command: says[command[0]]))
    assert (known["a-0"].state, known["a-0"].reason, known["a-0"].message) == (
        State.failed,
        Reason.preempted,  # as its own process has written
        "p",
    )
    assert read_attempt(paths, 1) == ended


@pytest.mark.parametrize("content", WRONG, ids=lambda text: text[:45])
def test_whatever_stands_in_a_status_is_a_sentence(folder, paths, capsys, content):
    paths.status.write_text(content)
    for arguments in (["status"], ["list"], ["show", "a-0"], ["cancel", "study"]):
        call(folder, *arguments)
        output = capsys.readouterr()
        assert "Traceback" not in output.err
    assert call(folder, "status") == 1
    shown = capsys.readouterr().out
    assert f"{paths.status} is damaged: " in shown
    assert "completed" in shown  # the other run
    assert begin_attempt(paths)  # it can be run, which mends it
    assert read_status(paths).attempt == 1


def test_a_sentence_names_the_field_and_what_it_holds(paths):
    paths.status.write_text('{"state": "running", "attempt": "three"}')
    with pytest.raises(
        ValueError, match=r"status\.json is damaged: attempt must be an integer >= 0, got 'three'"
    ):
        read_status(paths)


def test_a_status_is_mended_unless_somebody_works_on_the_run(paths):
    write_attempt(paths, 1, Attempt(started_at=START, ended_at=END, state=State.failed, reason=Reason.error))
    break_status(paths, "half")
    program = (
        "import sys, pathlib; from refsam.records.paths import RunPaths\n"
        "from refsam.records.status import run_lock\n"
        f"with run_lock(RunPaths(pathlib.Path({str(paths.root)!r}))): print('held', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as holder:
        holder.stdout.readline()
        mend(paths)
        assert look_up(paths).problem is not None
        holder.kill()
    mend(paths)
    assert look_up(paths).problem is None
    assert (read_status(paths).state, read_status(paths).reason) == (State.failed, Reason.error)


@pytest.mark.parametrize("name", ["status", "config", "metrics", "training", "savings", "environment"])
@pytest.mark.parametrize("command", ["status", "list", "collect", "show", "continue", "cancel"])
def test_a_file_that_cannot_be_read_is_the_matter_of_one_run(folder, paths, capsys, command, name):
    complete(paths)
    write_status(paths, Status(State.completed, attempt=1))
    complete(folder.run("b-0"))
    path = getattr(paths, name)
    path.unlink(missing_ok=True)
    path.symlink_to(path)  # in place of a file of another person, which root can read
    argument = {"list": [], "show": ["b-0"]}.get(command, ["study"])
    status = call(folder, command, *argument)
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    if command == "show":
        assert status == 0
        assert "completed" in output.out
        if name != "savings":  # which is not shown
            assert call(folder, "show", "a-0") == 1
            assert f"{path} cannot be read: Too many levels of symbolic links" in capsys.readouterr().err
    elif command == "collect":
        assert status == 1
        assert f"{path} cannot be read" in output.err
        frame = (folder.sweep("study").results).read_text()
        assert "unreadable" in frame
        assert "completed" in frame
    elif name in ("status", "config"):
        concerned = command != "list" or name == "status"
        if (command, name) == ("cancel", "config"):
            concerned = False  # it is completed
        assert status == int(concerned)
        if concerned and command != "list":
            assert f"{path} cannot be read" in output.out + output.err
        if command in ("status", "list") and concerned:
            assert "unreadable" in output.out
            assert "completed" in output.out
    assert not path.exists()
    assert path.is_symlink()  # nothing was written over it


# The interpreter's own files may be root's alone, so what the commands need is imported before.
AS_NOBODY = """
import contextlib, importlib, io, json, os, pkgutil, sys
import refsam.commands, refsam.orchestration.operating, refsam.results.sweeps, refsam.records
for package in (refsam.commands, refsam.orchestration.operating, refsam.records):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
import refsam
from refsam import cli
refsam.__version__ = refsam.__version__
os.setgroups([]); os.setegid(65534); os.seteuid(65534)
answers = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(arguments)
    answers.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""


@pytest.fixture
def open_to_all():
    """A folder that every user can look into; those of pytest are its user's alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("what", ["root", "status", "lock", "config", "attempts", "results"])
def test_a_run_that_another_user_keeps_closed_is_one_row(open_to_all, what):
    folder = RunsFolder(open_to_all)
    folder.sweeps.mkdir()
    write_status(add_run(folder, "b-0"), Status(State.completed, attempt=1))
    paths = add_run(folder, "a-0")
    complete(folder.run("b-0"))
    write_attempt(paths, 1, Attempt(started_at=START))
    write_status(paths, Status(State.running, attempt=1, host=os.uname().nodename, started_at=START))
    with run_lock(paths):
        pass  # so that there is a lock
    closed = getattr(paths, what)
    closed.chmod(0)

    asked = [
        ["status"],
        ["show", "b-0"],
        ["list"],
        ["cancel", "study"],
        ["show", "a-0"],
        ["continue", "study"],
    ]
    given = json.dumps([[*arguments, "--json", "--runs", str(folder.root)] for arguments in asked])
    command = [sys.executable, "-c", AS_NOBODY, given]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stderr == ""
    (status, output, _), shown, *_ = json.loads(done.stdout)
    rows = {run["run_id"]: run for run in json.loads(output)["runs"]}
    assert rows["b-0"]["state"] == "completed"
    assert status == int(what in ("root", "status", "config"))
    if status:
        assert rows["a-0"]["fault"] == "unreadable"
    elif what in ("lock", "attempts"):
        assert "cannot be seen" in rows["a-0"]["message"]
    assert (shown[0], shown[2]) == (0, "")


def test_a_run_whose_directory_was_removed_does_not_keep_the_others(folder, paths, capsys):
    for path in sorted(paths.root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    paths.root.rmdir()
    assert call(folder, "continue", "study") == 1
    output = capsys.readouterr()
    assert "run a-0 is left out" in output.err
    assert "the command that made the sweep makes it again" in output.err
    assert call(folder, "status") == 0
    assert "missing" in capsys.readouterr().out
    assert call(folder, "collect", "study") == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "list indices"),
        ({"format": 1, "runs": ["a"], "skipped": []}, "string indices"),
        ({"format": 1, "runs": 5, "skipped": []}, "not iterable"),
        ({"format": "one", "runs": [], "skipped": []}, "format must be an integer"),
        ({"format": 1, "runs": [{"run_id": "../../x", "overrides": {}}], "skipped": []}, "not the name of a"),
        ({"format": 1, "runs": [{"run_id": 7, "overrides": {}}], "skipped": []}, "not the name of a folder"),
        ({"format": 1, "runs": [], "skipped": [], "created": 5}, "created must be a text or null, got 5"),
    ],
)
def test_whatever_stands_in_a_manifest_is_a_sentence(folder, paths, capsys, content, words):
    write_json(folder.sweep("study").manifest, content)
    for command in ("status", "continue", "collect"):
        assert call(folder, command, "study") == 1
        error = capsys.readouterr().err
        assert error.startswith(f"refsam: {folder.sweep('study').manifest} is damaged")
        assert words in error
    assert call(folder, "show", "a-0") == 0


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("training", '{"best_epoch": [1]}', "best_epoch must be an integer >= 0 or null, got [1]"),
        ("savings", '{"object_chunk": "many"}', "object_chunk must be an integer >= 0 or null, got 'many'"),
        ("training", "null", "it must be a mapping, got null"),
        (
            "metrics",
            '{"format": 2, "rows": [{"mode": "box", "round": 0, "mask_input": 3}]}',
            "mask_input must",
        ),
    ],
)
def test_whatever_stands_in_a_result_is_a_sentence(folder, paths, capsys, name, content, field):
    complete(paths)
    getattr(paths, name).write_text(content)
    write_status(paths, Status(State.completed, attempt=1))
    assert call(folder, "collect", "study") == 1
    assert field in capsys.readouterr().err
    assert begin_attempt(paths) is False


def test_a_batch_that_is_no_number_is_no_traceback_in_the_next_attempt(paths):
    paths.attempt(1).mkdir(parents=True)
    values = {"used": {BATCH: "sixteen"}, "state": "failed", "reason": "out_of_memory", "started_at": START}
    write_json(paths.attempt_record(1), values)
    write_status(paths, Status(State.failed, Reason.out_of_memory, attempt=1))
    assert begin_attempt(paths)
    assert Path(paths.attempt_record(2)).exists()


def unsealed(text: str) -> str:
    """A configuration as it was before there were checksums."""
    return text.partition("\n")[2]


EDITED = {
    "another seed": lambda text: text.replace("seed: 0", "seed: 5"),
    "another learning rate": lambda text: text.replace("lr: 1.0e-05", "lr: 1.0e-03"),
    "garbage": lambda text: text + "}}} garbage\n",
    "a second seed": lambda text: text + "seed: 0\n",
    "another seed, as it was before there were checksums": lambda text: text.partition("\n")[2].replace(
        "seed: 0", "seed: 5"
    ),
    "garbage, as it was before there were checksums": lambda text: text.partition("\n")[2] + "}}} garbage\n",
    "a second seed, as it was before there were checksums": lambda text: (
        text.partition("\n")[2] + "seed: 5\n"
    ),
}


@pytest.fixture
def named(folder):
    """Two runs with ids as runs have them, one completed, and a sweep of them."""
    runs = []
    for seed in (0, 1):
        config = replace(CONFIG, seed=seed)
        paths = folder.run(run_id(config, {"seed": seed}))
        paths.results.mkdir(parents=True)
        freeze(paths.config, config)
        complete(paths)
        write_status(paths, Status(State.completed, attempt=1))
        runs.append({"run_id": paths.run_id, "overrides": {"seed": seed}})
    folder.sweep("study").root.mkdir()
    write_json(folder.sweep("study").manifest, {"format": 1, "name": "study", "runs": runs, "skipped": []})
    return [folder.run(run["run_id"]) for run in runs]


@pytest.mark.parametrize("how", EDITED)
def test_a_configuration_that_was_edited_is_named_everywhere(folder, named, capsys, how):
    first, second = named
    before = first.config.read_text()
    assert call(folder, "status") == call(folder, "collect", "study") == 0
    first.config.write_text(EDITED[how](before))
    assert first.config.read_text() != before
    capsys.readouterr()
    for arguments in (["status"], ["collect", "study"], ["show", first.run_id], ["compare", "study"]):
        if arguments[0] == "compare":
            arguments += ["--baseline", second.run_id]
        assert call(folder, *arguments) == 1, arguments
        output = capsys.readouterr()
        assert str(first.config) in output.out + output.err, arguments
        assert "Traceback" not in output.err
    table = folder.sweep("study").results.read_text().splitlines()
    assert sum("damaged" in line for line in table) == 1
    assert not any(line.startswith(first.run_id) and "0.5" in line for line in table)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load(first.config)
    write_status(first, Status(State.failed, Reason.error, attempt=1))
    assert call(folder, "continue", "study") == 1
    assert f"run {first.run_id} is left out: {first.config}" in capsys.readouterr().err
    assert call(folder, "evaluate", "study") == 0  # it is not completed
    write_status(first, Status(State.completed, attempt=1))
    assert call(folder, "evaluate", "study", "evaluate.modes=[box]") == 1
    assert str(first.config) in capsys.readouterr().err


def test_an_unedited_configuration_without_a_checksum_is_read(folder, named):
    for paths in named:
        paths.config.write_text(unsealed(paths.config.read_text()))
    assert call(folder, "status") == call(folder, "collect", "study") == 0
    assert load(named[1].config).seed == 1
