"""Where the logs of a run's attempts are, and how they end."""

from pathlib import Path

from refsam.errors import ConfigError
from refsam.records.paths import RunPaths

SUFFIXES = (".out", ".err")  # the errors are in the first one unless it is old


def attempt_numbers(paths: RunPaths) -> list[int]:
    """The attempts that have a folder, in order."""
    if not paths.attempts.is_dir():
        return []
    return sorted(
        int(path.name) for path in paths.attempts.iterdir() if path.name.isdecimal() and path.is_dir()
    )


def find_log(paths: RunPaths, attempt: int | None = None) -> tuple[int, Path] | None:
    """An attempt and its log: of the last attempt that has one, where none is named. None: there is no log.

    Raises ConfigError for an attempt that the run does not have.
    """
    numbers = attempt_numbers(paths)
    if attempt is not None and attempt not in numbers:
        known = ", ".join(map(str, numbers)) or "none"
        raise ConfigError(f"--attempt must be one of those of run {paths.run_id} ({known}), got {attempt}")
    for number in [attempt] if attempt is not None else reversed(numbers):
        for suffix in SUFFIXES:
            logs = [path for path in paths.attempt(number).glob(f"*{suffix}") if path.exists()]
            if logs:  # a link of a job that waits leads nowhere yet
                return number, max(logs, key=lambda path: path.stat().st_mtime_ns)
    return None


def log_end(path: Path, lines: int, most_bytes: int) -> str:
    """The last lines of a log, and no more than so many bytes of it; what is no UTF-8 in it is replaced.

    Of a line that was written over and over, as progress bars are, the last state counts. Raises OSError when
    the log cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - most_bytes))
        text = file.read().decode("utf-8", errors="replace")
    if size > most_bytes:
        text = text.partition("\n")[2] or text  # the first line is cut
    whole = text.rstrip().split("\n")[-lines:]
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in whole)
