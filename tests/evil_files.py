"""Files that execute something when they are unpickled: they make a marker file."""

import os
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch


class Evil:
    """Makes the marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def save_zip(content: object, path: Path, protocol: int = 2) -> None:
    torch.save(content, path, pickle_protocol=protocol)


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


FORMATS = {"zip": save_zip, "legacy": save_legacy}


def programs(marker: Path) -> dict[str, bytes]:
    """Pickles that make the marker in other ways than by `__reduce__`."""
    command = f"touch {marker}".encode()
    text = b"X" + len(command).to_bytes(4, "little") + command
    found = {
        "GLOBAL": b"\x80\x02cos\nsystem\n" + text + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R.",
        "INST": b"(S'" + command + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + text + b"o.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(]" + text + b"aI-1\nNNNNNI00\nI01\nt\x81.",
        "eval": b"\x80\x02cbuiltins\neval\nX"
        + (script := f"__import__('os').system('touch {marker}')".encode()).__len__().to_bytes(4, "little")
        + script
        + b"\x85R.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\ncos\n__dict__\n" + text + b"\x86R.",
        "module": b"\x80\x02cos\nsystem\n" + text + b"\x85R\x85Q.",
    }
    for program in found.values():
        list(pickletools.genops(program))  # each is a whole pickle
    return found


def zip_of(program: bytes, path: Path) -> None:
    """A file as torch.save writes it with this program as its pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")


def legacy_of(program: bytes, path: Path) -> None:
    """The same in the old format, in which several pickles follow one another."""
    magic, protocol = torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION
    head = b"".join(pickle.dumps(value, protocol=2) for value in (magic, protocol, {}))
    path.write_bytes(head + program + pickle.dumps([], protocol=2))
