"""The built wheel, installed in an empty environment, works from any folder."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(SOURCE),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Python of a new environment with the wheel, and the dependencies of this environment without refsam
    itself.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    # A .pth file adds the folder, but reads no other .pth file in it, so an editable refsam stays unseen.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_carries_configurations_sweeps_and_templates(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "-C", str(SOURCE), "ls-files", "conf", "sweeps", "slurm_templates", "fits"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert tracked
    assert {f"refsam/{path}" for path in tracked} <= names
    assert "refsam/orchestration/planning/published_times.yaml" in names
    parts = ("page.html.jinja", "report.css", "report.js", "dark.mplstyle", "power.yaml")
    assert {f"refsam/results/report/{part}" for part in parts} <= names


def test_the_wheel_leaves_the_slurm_of_the_tests_in_the_checkout(wheel):
    assert [name for name in zipfile.ZipFile(wheel).namelist() if "test_cluster" in name] == []


def test_an_installed_refsam_plans_a_named_sweep_in_an_empty_folder(installed, tmp_path):
    command = [installed, "-m", "refsam.sweep", "--config-name", "demo", "dry_run=true"]
    environment = {**os.environ, "REFSAM_DATA": str(tmp_path / "data"), "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Sweep demo: 5 runs" in done.stdout
    where = [installed, "-c", "import refsam; print(refsam.__file__)"]
    location = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert str(installed.parent.parent) in location


def test_the_console_script_answers(installed, tmp_path):
    script = installed.parent / "refsam"
    (tmp_path / "runs").mkdir()
    done = subprocess.run([script, "list"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no sweeps" in done.stdout
