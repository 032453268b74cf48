"""Files that people give as model.weights, and that no run can start from: what each is, and what is said."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 375042383\n"


def torch_zip(pickled: object, **parts: bytes) -> bytes:
    """A zip file as torch.save writes it, of a plain object."""
    return zipped({"archive/data.pkl": pickle.dumps(pickled, 2), "archive/version": b"3\n", **parts})


def zipped(parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def safetensors(names: tuple[str, ...], n_values: int = 4) -> bytes:
    """A safetensors file of float32 tensors with n_values each."""
    size = 4 * n_values
    header = {
        name: {"dtype": "F32", "shape": [n_values], "data_offsets": [place * size, (place + 1) * size]}
        for place, name in enumerate(names)
    }
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(size * len(names))


def _written(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _tar(buffer: io.BytesIO) -> None:
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pt"))


CHECKPOINT = torch_zip({"image_encoder.pos_embed": 0}, **{"archive/data/0": bytes(1000)})
ENCODER = safetensors(("image_encoder.pos_embed", "image_encoder.neck.0.weight"))
PAGE = b"<!DOCTYPE html>\n<html><title>404 Not Found</title></html>"
# What is in the file, and what is said of it.
UNUSABLE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty"),
    "a page": (PAGE, "is an HTML or XML page"),
    "a page after blank lines": (b"\r\n\r\n" + PAGE, "is an HTML or XML page"),
    "a Git LFS pointer": (LFS, "is a pointer of Git LFS: git lfs pull"),
    "half a zip": (CHECKPOINT[: len(CHECKPOINT) // 2], "is a zip file that is cut off or damaged"),
    "a zip": (zipped({"word/document.xml": PAGE}), "is a zip file that torch.save has not written"),
    "a packed checkpoint": (zipped({"best.pt": CHECKPOINT}), "is an archive that holds best.pt"),
    "arrays": (
        _written(lambda buffer: np.savez(buffer, image_encoder=np.zeros(3))),
        "is an archive of NumPy arrays",
    ),
    "an array": (_written(lambda buffer: np.save(buffer, np.zeros(3))), "is a NumPy array"),
    "text": ("no checkpoint at all, größer".encode(), "is plain text"),
    "JSON": (b'{"message": "Not Found"}', "is JSON"),
    "a pickle": (pickle.dumps({"image_encoder.pos_embed": [1.0]}), "is a pickle that torch.save has not"),
    "an old pickle": (pickle.dumps([1, 2, 3], 2), "is a pickle that torch.save has not written"),
    "a list": (torch_zip([1, 2, 3]), "holds no image encoder of Segment Anything"),
    "another network": (torch_zip({"fc.weight": 0}), "holds no image encoder of Segment Anything"),
    "a TorchScript program": (
        torch_zip({}, **{"archive/constants.pkl": pickle.dumps(()), "archive/code/x.py": b""}),
        "is a TorchScript program",
    ),
    "half a safetensors file": (ENCODER[:-9], "is a safetensors file that is cut off"),
    "a safetensors header": (ENCODER[:40], "is a safetensors file that is cut off"),
    "a damaged safetensors header": (
        (5).to_bytes(8, "little") + b'{"a": 1',
        "is a safetensors file whose header is damaged",
    ),
    "safetensors of another network": (safetensors(("fc.weight",)), "holds no image encoder"),
    "an image": (_written(lambda buffer: Image.new("L", (9, 9)).save(buffer, "PNG")), "is a PNG image"),
    "a TIFF": (_written(lambda buffer: Image.new("L", (9, 9)).save(buffer, "TIFF")), "is a TIFF image"),
    "a gzip file": (gzip.compress(CHECKPOINT), "is compressed with gzip"),
    "a tar archive": (_written(_tar), "is a tar archive"),
    "zeros": (bytes(10_000), "begins with zeros only"),
    "noise": (np.random.default_rng(0).bytes(10_000), "is not a checkpoint (it begins with b"),
}


def write(kind: str, folder: Path) -> Path:
    """One of UNUSABLE as a file."""
    path = folder / "weights.pt"
    path.write_bytes(UNUSABLE[kind][0])
    return path
