"""Names of images, compared as a person reads them."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath


def normalized(name: str) -> str:
    """`name` with composed characters (Unicode NFC): macOS writes ü in file names as u and a mark."""
    return unicodedata.normalize("NFC", name)


def find_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The files below `folder` by their names, which are relative paths; names without a file are left out.

    A file whose name is written in just that way comes before one whose name only prints alike.
    """
    found: dict[str, Path] = {}
    listings: dict[Path, dict[str, Path]] = {}
    for name in names:
        path: Path | None = folder / name
        if path is not None and not path.is_file():
            path = _alike(folder, PurePosixPath(name).parts, listings)
        if path is not None and path.is_file():
            found[name] = path
    return found


def _alike(folder: Path, parts: tuple[str, ...], listings: dict[Path, dict[str, Path]]) -> Path | None:
    """What the parts of a name lead to when each is compared normalized. Lists each folder once."""
    path = folder
    for part in parts:
        if part == "..":
            path = path / part
            continue
        if path not in listings:
            children = sorted(path.iterdir()) if path.is_dir() else []
            listings[path] = {normalized(child.name): child for child in children}
        child = listings[path].get(normalized(part))
        if child is None:
            return None
        path = child
    return path
