"""Starts a job of submitit: python -m refsam.orchestration.in_job.own_pickles … FOLDER

submitit loads a pickle from the folder, which can execute anything. Where others may write into a folder
above, they can put another one in its place; so the job is refused unless folder and pickles are this user's.
"""

import os
import shlex
import stat
import sys
from pathlib import Path

# What submitit takes for the interpreter. Its own arguments come after it, the folder last.
PYTHON = shlex.join([sys.executable, "-u", "-m", "refsam.orchestration.in_job.own_pickles"])


def require_own(folder: Path) -> None:
    """Raise PermissionError for a folder, or a pickle in it, that somebody else has made or may write."""
    facts = folder.lstat()
    others = [path for path in folder.glob("*.pkl") if path.lstat().st_uid != os.geteuid()]
    is_own = facts.st_uid == os.geteuid() and stat.S_ISDIR(facts.st_mode) and not facts.st_mode & 0o022
    if others or not is_own:
        raise PermissionError(
            f"{folder} contains pickles that another user made or can write, so they are not loaded"
        )


def main() -> None:
    """Execute the job that the environment names, if its pickle is this user's."""
    folder = Path(sys.argv[-1])
    require_own(folder)
    from submitit.core.submission import process_job  # which imports numpy

    process_job(folder)


if __name__ == "__main__":
    main()
