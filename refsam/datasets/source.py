"""What a data set was made of by `refsam prepare`: the file that was fetched, and its hash. Written into its
folder, and from there into the record of each run.
"""

from pathlib import Path
from typing import Any

from refsam.system.files import read_json, write_json

SOURCE = "source.json"


def write_source(root: Path, file: str, file_hash: str | None) -> None:
    """Say in the folder of a data set what it was made of; None where nobody knows a hash."""
    write_json(root / SOURCE, {"file": file, "hash": file_hash})


def read_source(root: Path) -> dict[str, Any] | None:
    """What `write_source` wrote; None where a data set was not fetched, or before that was said."""
    try:
        found: dict[str, Any] = read_json(root / SOURCE)
    except FileNotFoundError:
        return None
    return found
