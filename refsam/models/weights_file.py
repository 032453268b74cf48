"""What a file given as model.weights is, by its header: whether a run could load it.

Reads the beginning of a file and the table of contents of a zip file; unpickles nothing and needs no torch.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from refsam.configuration.schema import ModelConfig
from refsam.errors import os_reason
from refsam.models.families import HUGGING_FACE

SAFETENSORS = ".safetensors"
DEPTHS = {12: "vit_b", 24: "vit_l", 32: "vit_h"}  # blocks of Segment Anything's image encoders

_ALLOWED = "expected a checkpoint of Segment Anything, as torch.save or safetensors writes it"
_TRANSFORMERS = "a SamModel of transformers"
_SHAPE_OF_HUGGING_FACE = "sam_config"  # where a checkpoint of refsam says it
_INTERRUPTED = "the download or the copy was interrupted"
_SAMPLE = 4096  # bytes, of which a file's kind is seen
_MOST_NAMES = 1 << 24  # bytes in which the names of a checkpoint's tensors are looked for
_MOST_HEADER = 100_000_000  # bytes, safetensors' own limit
# The first bytes of torch.save's format before it was a zip file: a pickled number (torch.serialization).
_LEGACY = re.compile(
    rb"\x80[\x02-\x05](\x95.{8})?\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\.", re.DOTALL
)
_KINDS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"II+\0", "a TIFF image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "compressed with gzip and has to be unpacked first"),
    (b"BZh", "compressed with bzip2 and has to be unpacked first"),
    (b"\xfd7zXZ", "compressed with xz and has to be unpacked first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd and has to be unpacked first"),
    (b"7z\xbc\xaf", "a 7z archive and has to be unpacked first"),
    (b"Rar!", "a rar archive and has to be unpacked first"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program"),
    (b"\x80", "a pickle that torch.save has not written"),
)


@dataclass(frozen=True)
class WeightsFile:
    """What the header of a file says.

    Attributes:
        problem: why it is no checkpoint, the end of a sentence that begins with the file; None where it may
            be one.
        names: text in which the names of its tensors occur, between other characters.
    """

    problem: str | None
    names: str = ""


def weights_problem(path: Path) -> str | None:
    """Why no run can load a file, in one sentence; None where its header says nothing against it."""
    found = look_at(path)
    return None if found.problem is None else f"model.weights: {path} {found.problem}; {_ALLOWED}"


def architecture_problem(path: Path, model: ModelConfig) -> str | None:
    """Why a model cannot take the weights of a file, in one sentence; None where their names agree with it.

    A file that cannot be loaded is not this function's matter.
    """
    found = look_at(path)
    held = encoder_in(found.names)
    if found.problem is not None or held is None:
        return None
    if model.family == HUGGING_FACE:
        wanted, fits = _TRANSFORMERS, held.startswith(_TRANSFORMERS)
        if fits and _SHAPE_OF_HUGGING_FACE not in found.names:
            return (
                f"model.weights: {path} does not say the shape of its model; model={model.name} takes a "
                "folder of save_pretrained, or a checkpoint that refsam has written"
            )
    elif model.custom is not None:
        wanted = encoder_of(model.custom.depth)
        fits = held == wanted
    else:
        wanted, fits = model.architecture, held == model.architecture
    if fits:
        return None
    return f"model.weights: {path} looks like {held}, and model={model.name} needs {wanted}"


def encoder_in(names: str) -> str | None:
    """The image encoder that names of parameters belong to, vit_b for example; None where there is none."""
    if re.search(r"image_encoder\.layers\.\d+\.blocks\.", names):
        return "vit_t"
    if blocks := re.findall(r"image_encoder\.blocks\.(\d{1,4})\.", names):
        return encoder_of(1 + max(map(int, blocks)))
    if layers := re.findall(r"(?:image|vision)_encoder\.layers\.(\d{1,4})\.", names):
        return f"{_TRANSFORMERS} with {1 + max(map(int, layers))} layers"
    return None


def encoder_of(depth: int) -> str:
    """What an image encoder with so many blocks is called."""
    return DEPTHS.get(depth, f"a ViT with {depth} blocks")


def is_safetensors(path: Path, sample: bytes) -> bool:
    """Whether a file that begins with `sample` is of safetensors: eight bytes of length, and JSON."""
    length = int.from_bytes(sample[:8], "little")
    return path.suffix == SAFETENSORS or (sample[8:9] == b"{" and length <= _MOST_HEADER)


def look_at(path: Path) -> WeightsFile:
    """The header of a file, or why it is none of a checkpoint."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            sample = file.read(_SAMPLE)
        if problem := _kind(sample):
            return WeightsFile(problem)
        if sample.startswith(b"PK"):
            return _of_zip(path)
        if _LEGACY.match(sample):
            with path.open("rb") as file:
                return _with_encoder(file.read(_MOST_NAMES).decode("latin-1"))
        if is_safetensors(path, sample):
            return _of_safetensors(path, int.from_bytes(sample[:8], "little"), size)
    except OSError as error:
        return WeightsFile(f"cannot be read ({os_reason(error)})")
    return WeightsFile(f"is not a checkpoint (it begins with {sample[:8]!r})")


def _kind(sample: bytes) -> str | None:
    """What a file is that is certainly no checkpoint; None where it may be one."""
    if not sample.strip(b"\0"):
        return "is empty" if not sample else f"begins with zeros only: {_INTERRUPTED}"
    text = _text(sample)
    if text is not None:
        text = text.lstrip("\ufeff \t\r\n")
        if text.startswith("version https://"):
            return "is a pointer of Git LFS: git lfs pull fetches the file itself"
        if text.startswith("<"):
            return "is an HTML or XML page, which its download has saved instead"
        return "is JSON" if text.startswith(("{", "[")) else "is plain text"
    if _LEGACY.match(sample):
        return None
    if sample[257:262] == b"ustar":
        return "is a tar archive and has to be unpacked first"
    return next((f"is {kind}" for start, kind in _KINDS if sample.startswith(start)), None)


def _text(sample: bytes) -> str | None:
    try:
        text = sample.decode()
    except UnicodeDecodeError as error:
        if error.start < len(sample) - 3:  # the last character may be cut
            return None
        text = sample[: error.start].decode()
    return None if re.search(r"[\x00-\x08\x0e-\x1f]", text) else text


def _of_zip(path: Path) -> WeightsFile:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickled = next((name for name in names if name.endswith("data.pkl")), None)
            if pickled is None:
                return WeightsFile(_other_zip(names))
            if any(name.endswith("/constants.pkl") for name in names):
                return WeightsFile("is a TorchScript program; torch.save its state_dict() instead")
            with archive.open(pickled) as file:
                return _with_encoder(file.read(_MOST_NAMES).decode("latin-1"))
    except OSError:
        raise
    except Exception:  # whatever zipfile stumbles over in bytes that are not what was written
        return WeightsFile(f"is a zip file that is cut off or damaged: {_INTERRUPTED}")


def _other_zip(names: list[str]) -> str:
    if names and all(name.endswith(".npy") for name in names):
        return "is an archive of NumPy arrays"
    inside = next((name for name in names if name.endswith((".pt", ".pth", SAFETENSORS))), None)
    if inside is not None:
        return f"is an archive that holds {inside} and has to be unpacked first"
    return "is a zip file that torch.save has not written"


def _of_safetensors(path: Path, length: int, size: int) -> WeightsFile:
    if length > _MOST_HEADER:
        return WeightsFile("is a safetensors file whose header is damaged")
    if 8 + length > size:
        return WeightsFile(f"is a safetensors file that is cut off: {_INTERRUPTED}")
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(length))
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        end = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError):
        return WeightsFile("is a safetensors file whose header is damaged")
    if 8 + length + end > size:
        return WeightsFile(f"is a safetensors file that is cut off: {_INTERRUPTED}")
    return _with_encoder("\n".join(tensors))


def _with_encoder(names: str) -> WeightsFile:
    if "image_encoder." in names or "vision_encoder." in names:
        return WeightsFile(None, names)
    return WeightsFile("holds no image encoder of Segment Anything (no tensor named image_encoder.…)")
