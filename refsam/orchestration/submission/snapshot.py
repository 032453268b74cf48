"""A copy of the code that jobs run, so that editing the checkout changes no pending job.

Others may be allowed to write into the runs folder, where it lies. So it is used, again or by a job, only if
everything in it belongs to this user, nobody else may write it, and its content is what its name says.
"""

import hashlib
import os
import shlex
import shutil
import tempfile
from pathlib import Path

import refsam
from refsam.configuration.resources import folder
from refsam.errors import ConfigError
from refsam.records.paths import RunsFolder
from refsam.system.commit import COMMIT, source_commit
from refsam.system.files import sync_directory, write_bytes, write_json

FOLDERS = ("conf", "sweeps", "slurm_templates")  # beside the package in a checkout, in it when installed
NAME_LENGTH = 32  # hexadecimal digits


def take_snapshot(runs: RunsFolder) -> Path:
    """The folder below `runs` that holds the code as it is now; the same code is copied once for each user.

    Raises ConfigError for a runs folder that Python could not be told of, or when something else lies where
    the copy belongs, and OSError when the disk is full.
    """
    if ":" in str(runs.root):
        raise ConfigError(
            f"runs={runs.root}, but with cluster.snapshot=true jobs find their code there, and "
            "Python's search path takes no colon"
        )
    files = {name: path.read_bytes() for name, path in _files().items()}
    name = _digest(files)[:NAME_LENGTH]
    target = runs.snapshot(name)
    if target.exists() and not _is_ours(target, name):  # another user's, perhaps
        target = runs.snapshot(f"{name}-{os.geteuid()}")
    if target.exists():
        if not _is_ours(target, name):
            raise ConfigError(
                f"cluster.snapshot: {target} is not what refsam has written there: its content, its owner or "
                "its permissions were changed; remove it, or set cluster.snapshot=false"
            )
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    copy = Path(tempfile.mkdtemp(dir=target.parent, prefix=".copy-"))
    try:
        for name, content in files.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(copy / name, content)  # on the disk: jobs start hours later, perhaps after a crash
        write_json(copy / COMMIT, source_commit())
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        copy.replace(target)
        sync_directory(target.parent)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    return target


def prologue_lines(snapshot: Path) -> list[str]:
    """Lines of bash by which a job's Python takes refsam from the snapshot, wherever the job starts.

    The job ends where the snapshot is not this user's any more, or has another content.
    """
    folder, name = shlex.quote(str(snapshot.absolute())), snapshot.name[:NAME_LENGTH]
    others = f'find {folder} \\( ! -uid "$EUID" -o -perm /022 \\) -print -quit'
    content = (
        f"cd {folder} && find . ! -type d ! -path ./{COMMIT} -print0 | LC_ALL=C sort -z | xargs -0 sha256sum"
    )
    return [
        f'if [ ! -d {folder} ] || [ -n "$({others} 2>&1)" ] ||'
        f' [[ "$({content} | sha256sum)" != {name}* ]]; then',
        f"    echo refsam: the code in {folder} was changed after the submission, so it is not run >&2",
        "    exit 1",
        "fi",
        f"export PYTHONPATH={folder}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1  # and not from the folder it starts in",
        "export PYTHONDONTWRITEBYTECODE=1  # which would be no part of what was submitted",
    ]


def _digest(files: dict[str, bytes]) -> str:
    """What `sha256sum` says of the list that `sha256sum` makes of the files, sorted by their names."""
    lines = (f"{hashlib.sha256(content).hexdigest()}  ./{name}\n".encode() for name, content in files.items())
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _is_ours(snapshot: Path, name: str) -> bool:
    """Whether everything in it is this user's alone to write, and its content, less COMMIT, has this name."""
    paths = [snapshot, *snapshot.rglob("*")]
    for path in paths:
        facts = path.lstat()
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o022 or path.is_symlink():
            return False
    files = {str(path.relative_to(snapshot)): path for path in paths if path.is_file()}
    files.pop(COMMIT, None)
    return _digest({name: files[name].read_bytes() for name in sorted(files)})[:NAME_LENGTH] == name


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
