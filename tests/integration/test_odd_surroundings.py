"""The commands where a terminal, an encoding, a home or a folder is not what one is used to."""

import os
import shlex
import shutil
import subprocess
import sys

import pexpect
import pytest

PLAN = [
    "-m",
    "refsam.sweep",
    "-m",
    "resource=gtx1080,v100",
    "model=vit_b,vit_b_lm",
    "n_images=1,2",
    "dry_run=true",
]
OLD_ENCODING = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
WITHOUT_PRIVILEGES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
NOBODY = 65534


@pytest.fixture(autouse=True)
def no_given_width(empty_machine, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def run(*command, **environment):
    """A command that is typed; a variable that is None is not there."""
    given = {**os.environ, **environment}
    given = {name: value for name, value in given.items() if value is not None}
    return subprocess.run(list(command), capture_output=True, env=given, check=False)


def shell(text):
    """A line of the shell, `{python}` in it the interpreter."""
    return run("bash", "-c", f"set -o pipefail; {text}".replace("{python}", shlex.quote(sys.executable)))


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_cuts_nothing_of_the_plan(width):
    plan = ["-m", "refsam.sweep", "-m", "resource=v100", "model=vit_t,vit_b", "n_images=1,2", "dry_run=true"]
    terminal = pexpect.spawn(sys.executable, plan, dimensions=(24, width), timeout=60, encoding="utf-8")
    text = terminal.read()
    assert "…" not in text
    assert text.count("vit_") >= 6
    assert text.count("ful") == 4
    assert text.count("bas") == 3  # two rows, and the number of baselines
    assert text.count("plan") == 7


@pytest.mark.parametrize("columns", ["0", "1", "40", "many"])
def test_a_pipe_has_no_width(columns):
    expected = run(sys.executable, *PLAN).stdout
    assert run(sys.executable, *PLAN, COLUMNS=columns).stdout == expected
    assert b"freeze_encoder" in expected
    assert "…".encode() not in expected


@pytest.mark.parametrize(
    "command", ["refsam.sweep --help", "refsam.sweep --cfg job", f"{shlex.join(PLAN[1:])}"]
)
def test_who_reads_a_few_lines_gets_no_traceback(command):
    done = shell(f"{{python}} -m {command} | head -n 1")
    assert done.stdout
    assert done.stderr == b""


@pytest.mark.parametrize(
    "command", ["refsam.sweep --help", f"{shlex.join(PLAN[1:])}", "refsam.cli list --runs ."]
)
def test_a_full_disk_behind_standard_output_is_one_sentence(command):
    done = shell(f"{{python}} -m {command} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == b"refsam: No space left on device\n"


def test_a_closed_standard_output_is_no_error():
    done = shell(f"{{python}} {shlex.join(PLAN)} >&-")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", [{"LC_ALL": "C"}, OLD_ENCODING, {"PYTHONIOENCODING": "latin-1"}])
def test_an_encoding_that_lacks_characters_prints_what_it_can(encoding):
    done = run(sys.executable, *PLAN, **encoding)
    assert done.returncode == 0, done.stderr
    assert b"GTX1080, 8 cores, 32 GiB" in done.stdout
    refused = run(sys.executable, "-m", "refsam.sweep", "dataset=folder", "dataset.root=/ü/ß", **encoding)
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"refsam: ")
    assert refused.stderr.count(b"\n") == 1


@pytest.mark.parametrize("home", [None, "", "/nowhere"])
def test_a_home_is_not_needed(home, synthetic):
    plan = [sys.executable, "-m", "refsam.sweep", "-m", "cluster=local", "model=vit_nano", "dry_run=true"]
    own = ["dataset=folder", f"dataset.root={synthetic.root}"]
    for data in (None, synthetic.root):
        done = run(*plan, *own, HOME=home, REFSAM_DATA=data, XDG_CACHE_HOME=None)
        assert done.returncode == 0, done.stderr


def test_data_is_prepared_where_runs_look_for_it(tmp_path):
    home = {"HOME": str(tmp_path / "home"), "REFSAM_DATA": None}
    done = run(sys.executable, "-m", "refsam.cli", "prepare", "dataset=synthetic", **home)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "home" / ".cache" / "refsam" / "synthetic" / "images").is_dir()
    plan = [
        "-m",
        "refsam.sweep",
        "-m",
        "cluster=local",
        "model=vit_nano",
        "dataset=synthetic",
        "dry_run=true",
    ]
    assert b"Missing" not in run(sys.executable, *plan, **home).stdout


def closed_folder(tmp_path):
    """A folder that this user may not look into, and the words that run a command as this user."""
    folder = tmp_path / "closed"
    (folder / "inside").mkdir(parents=True)
    (folder / "weights.pt").touch()
    if os.geteuid() != 0:
        folder.chmod(0o000)
        return folder, []
    os.chown(folder, NOBODY, NOBODY)
    folder.chmod(0o700)
    return folder, WITHOUT_PRIVILEGES


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("runs={closed}/runs", "runs={closed}/runs, but it cannot be looked at"),
        ("runs={closed}", "runs={closed}, but {closed} cannot be read"),
        ("data={closed}/data", "data={closed}/data, but it cannot be looked at"),
        (
            "model.weights={closed}/weights.pt",
            "model.weights={closed}/weights.pt, but it cannot be",
        ),
        (
            "dataset.root={closed}/inside",
            "dataset.root={closed}/inside, but it cannot be looked at",
        ),
        ("dataset.labels=closed/*", "dataset.labels 'closed/*' matches no file in"),
    ],
)
def test_what_may_not_be_looked_at_is_one_sentence(override, words, synthetic, tmp_path):
    closed, user = closed_folder(tmp_path)
    shutil.copytree(synthetic.root, tmp_path / "images", dirs_exist_ok=True)
    plan = [
        "-m",
        "refsam.sweep",
        "-m",
        "cluster=local",
        "model=vit_nano",
        "dataset=folder",
        f"dataset.root={tmp_path}",
    ]
    patterns = ["dataset.images=images/images/*", "dataset.labels=images/labels/*"]
    done = run(*user, sys.executable, *plan, *patterns, override.format(closed=closed))
    closed.chmod(0o700)
    assert done.returncode == 2, done.stderr
    assert words.format(closed=closed) in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert not (tmp_path / "runs").exists()
