"""New images that a person names: files, folders, patterns; and a name for what is made of each."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from refsam.datasets.decoding import HDF5_SUFFIXES
from refsam.errors import ConfigError

# Of the files in a folder; a file that is named itself may have any suffix.
SUFFIXES = (
    *(".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".j2k", ".jxr", ".jxl", ".webp", ".avif", ".gif"),
    *(".bmp", ".ppm", ".pgm", ".pnm", ".tga", ".dcm", *HDF5_SUFFIXES),
)
ALLOWED = "give files, folders or patterns such as 'day1/*.tif'"
MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class NewImage:
    """An image file, and the name (without suffix) of what is written for it."""

    path: Path
    name: str


def list_images(given: Sequence[str], without: Path, field: str = "IMAGES") -> list[NewImage]:
    """The images that files, folders (with all below them) and patterns such as `day1/*.tif` name.

    A name is the path below the named folder, or below the part of the pattern that has no wildcard, with
    `__` for `/` and without the suffix.

    Args:
        without: a folder whose files are left out, such as that of the predictions.
        field: of the command line, for sentences.

    Raises:
        ConfigError: when one of them names no image, or two images would have the same name.
    """
    found: dict[Path, NewImage] = {}
    excluded = without.resolve()
    for one in given:
        images = [each for each in _named(one, field) if excluded not in each.path.resolve().parents]
        if not images:
            raise ConfigError(f"{field}: {one!r} names no image; {ALLOWED}")
        found |= {each.path.resolve(): each for each in images}
    by_name: dict[str, Path] = {}
    for each in found.values():
        other = by_name.setdefault(each.name, each.path)
        if other != each.path:
            raise ConfigError(
                f"{field}: {other} and {each.path} would both be written as {each.name!r}; predict them into "
                "different folders"
            )
    return list(found.values())


def _named(given: str, field: str) -> Iterator[NewImage]:
    path = Path(given).expanduser()
    if path.is_dir():
        yield from _below(path, "**/*", SUFFIXES)
    elif path.is_file():
        yield NewImage(path, _name(path, path.parent))
    elif MAGIC.search(given):
        fixed = Path(path.anchor)
        parts = path.parts[len(fixed.parts) :]
        first = next(number for number, part in enumerate(parts) if MAGIC.search(part))
        yield from _below(fixed.joinpath(*parts[:first]), "/".join(parts[first:]), None)
    else:
        raise ConfigError(f"{field}: {given!r} is not there; {ALLOWED}")


def _below(root: Path, pattern: str, suffixes: tuple[str, ...] | None) -> Iterator[NewImage]:
    for path in sorted(root.glob(pattern)):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and not hidden and (suffixes is None or path.suffix.lower() in suffixes):
            yield NewImage(path, _name(path, root))


def _name(path: Path, root: Path) -> str:
    below = path.relative_to(root)
    stem = re.sub(r"\.ome$", "", below.stem, flags=re.IGNORECASE)
    return "__".join([*below.parts[:-1], stem])
