"""Writing files so that a reader sees the old content or the new one, never half of it."""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from refsam.errors import Unreadable, WrittenByNewer, os_reason

# Those in C are ten times faster, and not in every build of PyYAML.
_SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SAFE_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_SEAL = re.compile(r"# sha256 ([0-9a-f]{64}) of the lines below\n")
_LAYOUT = re.compile(r"(?:(?:\w+:(?: [^\n]*)?|[ -][^\n]*|#[^\n]*)?\n)*")
_KEY = re.compile(r"^(\w+):", re.MULTILINE)
_MASK = re.compile(r"^Umask:\s*([0-7]+)$", re.MULTILINE)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a temporary file beside `path`, flush it to the disk and rename it into place.

    On any error, a full disk included, the old `path` stays as it was and the temporary file is removed; an
    OSError names the file.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    sync_directory(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`."""
    write_atomically(path, lambda file: file.write(content))


def write_encoded(path: Path, encode: Callable[[BinaryIO], object]) -> None:
    """Replace `path`, whose folder is made, by what `encode` writes into a file in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = io.BytesIO()
    encode(encoded)
    write_bytes(path, encoded.getvalue())


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, reserve: Path | None = None) -> None:
    """Replace `path` by `value` as indented JSON; on a full disk in a file of the folder `reserve`."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    try:
        write_text(path, text)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or reserve is None:
            raise
        if not _write_into_reserve(reserve, path, text.encode("utf-8")):
            raise


def hold_reserve(folder: Path, count: int, size: int) -> None:
    """Fill up a folder to `count` files of `size` bytes, which hold room on the disk. Raises OSError."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        file = folder / str(number)
        if not file.exists() or file.stat().st_size < size:
            write_bytes(file, os.urandom(size))  # zeros may be stored as nothing


def _write_into_reserve(reserve: Path, path: Path, content: bytes) -> bool:
    """Replace `path` by a file of the reserve, whose blocks are written over: nobody can take them meanwhile.

    False when none is left, or the content is larger than one.
    """
    for spare in sorted(reserve.glob("[0-9]*")):
        if spare.stat().st_size >= len(content):
            with spare.open("r+b") as file:
                file.write(content)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            spare.replace(path)
            sync_directory(path.parent)
            return True
    return False


def write_yaml(path: Path, value: Any, sealed: bool = False) -> None:
    """Replace `path` by `value` as YAML, keys in their own order.

    Args:
        sealed: with a checksum in the first line, so that whoever reads it sees a later change.
    """
    text = yaml.dump(value, Dumper=_SAFE_DUMPER, sort_keys=False, allow_unicode=True)
    seal = f"# sha256 {_digest(text)} of the lines below\n" if sealed else ""
    write_text(path, seal + text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _read_sealed(path: Path) -> str:
    """The text of a YAML file. Raises as `read_text` does, and ValueError where it does not fit its seal."""
    text = read_text(path)
    seal = _SEAL.match(text)
    if seal is not None and seal[1] != _digest(text[seal.end() :]):
        raise ValueError(f"{path} is damaged, or was changed after it was frozen: its checksum does not fit")
    return text


def is_sealed(path: Path) -> bool:
    """Whether a YAML file has a checksum. Raises as `read_text` does."""
    return _SEAL.match(read_text(path)) is not None


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises FileNotFoundError, Unreadable when it cannot be read now, and ValueError for what is no UTF-8; each
    with the path.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {os_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    """The one sentence about a file; YAML's reader says in several lines where it stopped."""
    return ValueError(f"{path} is damaged: {' '.join(str(error).split())}")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises as `read_text` does, and ValueError for what is no JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as error:  # too deep, no JSON, or too long a number
        raise _damaged(path, error) from error


def read_yaml(path: Path) -> Any:
    """The value in a YAML file.

    Raises as `read_text` does, and ValueError for what is no YAML, or was changed in spite of its checksum.
    """
    text = _read_sealed(path)
    try:
        return yaml.load(text, Loader=_SAFE_LOADER)  # noqa: S506
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _damaged(path, error) from error


def read_yaml_sections(path: Path, *keys: str) -> list[Any]:
    """The values of some top-level keys of a YAML file, None where one is not there; only to be read.

    A file as `write_yaml` writes it has a section as lines of its own, which many runs have in common: they
    are parsed once, and the rest of the file not at all. That makes a thousand files a matter of a moment.
    Raises as `read_yaml` does.
    """
    text = _read_sealed(path)
    try:
        if not _is_plain(text):
            values = yaml.load(text, Loader=_SAFE_LOADER)  # noqa: S506
            return [values.get(key) for key in keys]
        sections = [
            re.search(rf"^{re.escape(key)}:[^\n]*\n(?:(?:[ -][^\n]*)?\n)*", text, re.MULTILINE)
            for key in keys
        ]
        if None in sections:
            values = yaml.load(text, Loader=_SAFE_LOADER)  # noqa: S506
            return [values.get(key) for key in keys]
        return [
            _parsed(section[0])[key]
            for key, section in zip(keys, sections, strict=True)
            if section is not None
        ]
    except (yaml.YAMLError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _is_plain(text: str) -> bool:
    """Whether a text is laid out as by `write_yaml`, so that a part can be read without the rest."""
    if _SEAL.match(text):
        return True
    keys = _KEY.findall(text)
    return _LAYOUT.fullmatch(text) is not None and len(keys) == len(set(keys))


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return yaml.load(text, Loader=_SAFE_LOADER)  # noqa: S506


def check_format(written: Any, known: int, path: Path) -> None:
    """Raise WrittenByNewer for a number of a format above `known`, and ValueError for what is no format."""
    if isinstance(written, bool) or not isinstance(written, int):
        raise ValueError(f"{path} is damaged: format must be an integer, got {written!r}")
    if written > known:
        raise WrittenByNewer(path, f"format {written}, this one reads up to {known}")


def _umask() -> int:
    # Asked of Linux without changing it: other threads make files meanwhile.
    with contextlib.suppress(OSError):
        known = _MASK.search(Path("/proc/self/status").read_text(encoding="utf-8"))
        if known is not None:
            return int(known[1], 8)
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_directory(folder: Path) -> None:
    """Bring the names in a folder to the disk: of files that were made, renamed or removed there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
