"""A copy of the code that jobs run, so that editing the checkout changes no pending job."""

import hashlib
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import refsam
from refsam.configuration.resources import folder
from refsam.errors import BadInput
from refsam.records.files import sync_directory, write_bytes, write_json
from refsam.records.paths import RunsFolder

FOLDERS = ("conf", "sweeps", "slurm_templates")  # beside the package in a checkout, in it when installed
NAME_LENGTH = 16  # hexadecimal digits


def take_snapshot(runs: RunsFolder) -> Path:
    """The folder below `runs` that holds the code as it is now; the same code is copied once.

    Raises BadInput for a runs folder that Python could not be told of, and OSError when the disk is full.
    """
    if ":" in str(runs.root):
        raise BadInput(
            f"runs: {runs.root} was given, but with cluster.snapshot=true jobs find their code there, and "
            "Python's search path takes no colon"
        )
    files = {name: path.read_bytes() for name, path in _files().items()}
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    target = runs.snapshot(digest.hexdigest()[:NAME_LENGTH])
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    copy = Path(tempfile.mkdtemp(dir=target.parent, prefix=".copy-"))
    try:
        for name, content in files.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(copy / name, content)  # on the disk: jobs start hours later, perhaps after a crash
        write_json(copy / "commit.json", _commit())
        copy.chmod(0o755)
        copy.replace(target)
        sync_directory(target.parent)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    return target


def prologue_lines(snapshot: Path) -> list[str]:
    """Lines of bash by which a job's Python takes refsam from the snapshot, wherever the job starts."""
    return [
        f"export PYTHONPATH={shlex.quote(str(snapshot.absolute()))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1  # and not from the folder it starts in",
    ]


def _files() -> dict[str, Path]:
    """The files of the code by their names in the snapshot, sorted."""
    package = Path(refsam.__file__).resolve().parent
    found = {f"refsam/{path.relative_to(package)}": path for path in package.rglob("*")}
    plugin = package.parent / "hydra_plugins" / "refsam_hydra.py"
    found[f"hydra_plugins/{plugin.name}"] = plugin
    for name in FOLDERS:
        if (root := folder(name)).parent != package:
            found |= {f"{name}/{path.relative_to(root)}": path for path in root.rglob("*")}
    return {
        name: path
        for name, path in sorted(found.items())
        if path.is_file() and "__pycache__" not in path.parts
    }


def _commit() -> dict[str, str | bool | None]:
    """The commit of the checkout, and whether it was changed; None where it is no checkout or has no git."""
    tree = Path(refsam.__file__).resolve().parents[1]
    git = shutil.which("git")
    if git is None or not (tree / ".git").exists():
        return {"commit": None, "dirty": None}

    def ask(*arguments: str) -> str:
        command = (git or "git", "-C", str(tree), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return {"commit": ask("rev-parse", "HEAD") or None, "dirty": bool(ask("status", "--porcelain"))}
