"""Files that are cut off, changed or renamed, before the readers of images, annotations, records, weights.

    python tests/fuzzed_files.py SEED CASES [GROUP …]

Every case has to end in a sentence (what the reader is documented to raise), or in a value; what was only cut
off or renamed, in a sentence or in the value of the whole file. The process may take BOUND bytes of memory
besides what it has after its imports. Prints the failures and a summary as JSON.
"""

import csv
import io
import json
import pickle
import random
import resource
import struct
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import imageio.v3
import numpy as np
import tifffile
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from weights_files import safetensors, torch_zip

from refsam.configuration import frozen
from refsam.configuration.compose import compose
from refsam.configuration.schema import DatasetConfig, ModelConfig
from refsam.datasets.coco_writing import labels_to_coco
from refsam.datasets.listing import list_pairs
from refsam.datasets.pairs import read_pair_labels
from refsam.datasets.reading import open_image, open_labels
from refsam.errors import ConfigError
from refsam.models.families import MICRO_SAM
from refsam.models.weights_file import architecture_problem, weights_problem
from refsam.records.history import read_history
from refsam.records.metrics import read_metrics
from refsam.records.paths import RunPaths, SweepPaths
from refsam.records.per_image import COLUMNS, read_rows, read_values
from refsam.records.status import read_status
from refsam.results.sweeps import read_manifest
from refsam.system.files import read_json, read_yaml

BOUND = 2**30
ORIENTATION = 274  # EXIF's tag


@dataclass(frozen=True)
class Case:
    """A file, and whether its content is that of the whole one as far as it goes (cut off, renamed)."""

    kind: str
    name: str
    content: bytes
    is_part: bool


@dataclass(frozen=True)
class Group:
    """Whole files by their names, the function that reads one, and what it may raise."""

    files: dict[str, bytes]
    read: Callable[[Path], Any]
    raises: tuple[type[Exception], ...] = (ConfigError,)
    suffixes: tuple[str, ...] = ()
    extra: tuple[tuple[str, bytes], ...] = ()  # names and contents of further cases
    compared: bool = True  # whether what was read of a part has to be what is read of the whole


def cases(group: Group, generator: random.Random, count: int) -> Iterator[Case]:
    for name, content in group.files.items():
        yield Case("whole", name, content, True)
        yield Case("empty", name, b"", False)
        for suffix in group.suffixes:
            yield Case(f"as {suffix}", Path(name).stem + suffix, content, True)
    for name, content in group.extra:
        yield Case("extra", name, content, False)
    names = sorted(group.files)
    for number in range(count):
        name = names[number % len(names)]
        content = group.files[name]
        kind = generator.choice(("cut", "flipped", "flipped in the header", "removed", "repeated", "zeros"))
        place = generator.randrange(len(content))
        header = min(len(content), 160)
        if kind == "cut":
            yield Case(kind, name, content[:place], True)
            continue
        changed = bytearray(content)
        if kind.startswith("flipped"):
            reach = header if "header" in kind else len(content)
            for _ in range(generator.choice((1, 2, 8))):
                changed[generator.randrange(reach)] ^= 1 << generator.randrange(8)
        elif kind == "removed":
            del changed[place : place + generator.choice((1, 7, 64))]
        elif kind == "repeated":
            changed[place:place] = content[place : place + 64]
        else:
            length = min(generator.choice((1, 4, 512)), len(content) - place)
            changed[place : place + length] = bytes(length)
        yield Case(kind, name, bytes(changed), False)


def pixels() -> tuple[np.ndarray, np.ndarray]:
    """(40, 60) uint8 labels, and (40, 60, 3) uint8 colours."""
    generator = np.random.default_rng(0)
    labels = np.zeros((40, 60), np.uint8)
    for number in range(1, 9):
        row, column = generator.integers(0, 30), generator.integers(0, 50)
        labels[row : row + 8, column : column + 8] = number
    return labels, generator.integers(0, 255, (40, 60, 3), np.uint8)


def written(write: Callable[[Any], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def saved(array: np.ndarray, kind: str, **options: Any) -> bytes:
    return written(lambda buffer: Image.fromarray(array).save(buffer, kind, **options))


def tiff(array: np.ndarray, **options: Any) -> bytes:
    return written(lambda buffer: tifffile.imwrite(buffer, array, **options))


def hdf5(array: np.ndarray, **options: Any) -> bytes:
    def write(buffer: Any) -> None:
        with h5py.File(buffer, "w") as file:
            file.create_dataset("raw", data=array, **options)

    return written(write)


def lossless() -> dict[str, bytes]:
    labels, colours = pixels()
    wide = labels.astype(np.uint16) * 999
    palette = Image.fromarray(labels).convert("P")
    return {
        "grey.png": saved(labels, "PNG"),
        "wide.png": written(lambda buffer: imageio.v3.imwrite(buffer, wide, extension=".png")),
        "palette.png": written(lambda buffer: palette.save(buffer, "PNG")),
        "grey.tif": tiff(labels),
        "wide.tif": tiff(wide, compression="zlib", predictor=True),
        "tiles.tif": tiff(np.tile(labels, (2, 2)), tile=(32, 32), compression="lzw"),
        "ome.ome.tif": tiff(wide, metadata={"axes": "YX"}),
        "imagej.tif": tiff(wide, imagej=True),
        "big.tif": tiff(wide, bigtiff=True, byteorder=">"),
        "floats.tif": tiff(labels.astype(np.float32), rowsperstrip=7),
        "grey.bmp": saved(labels, "BMP"),
        "palette.gif": written(lambda buffer: palette.save(buffer, "GIF")),
        "grey.pgm": saved(labels, "PPM"),
        "colours.png": saved(colours, "PNG"),
        "colours.tif": tiff(colours, photometric="rgb", compression="zlib"),
    }


def with_loss() -> dict[str, bytes]:
    _, colours = pixels()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return {
        "colours.jpg": saved(colours, "JPEG"),
        "colours.webp": saved(colours, "WEBP"),
        "colours.ppm": saved(colours, "PPM"),
        "colours.jp2": imagecodecs.jpeg2k_encode(colours),
        "colours.jxl": imagecodecs.jpegxl_encode(colours),
        "colours.jxr": imagecodecs.jpegxr_encode(colours),
        "jpeg.tif": tiff(colours, photometric="rgb", compression="jpeg", tile=(32, 32)),
        "planes.tif": tiff(np.moveaxis(colours, -1, 0).copy(), photometric="rgb", planarconfig="separate"),
        "rotated.jpg": saved(colours, "JPEG", exif=exif),
    }


def claims() -> tuple[tuple[str, bytes], ...]:
    """Small files that say they hold images of terabytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 900_000, 900_000, 8, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")

    def tags(*values: tuple[int, int, int]) -> bytes:
        entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in values)
        return b"II*\0\x08\0\0\0" + struct.pack("<H", len(values)) + entries + bytes(4)

    huge = ((256, 4, 900_000), (257, 4, 900_000), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 200))
    strips = tags(*huge, (277, 3, 1), (278, 4, 900_000), (279, 4, 100)) + bytes(300)
    packed = tags(*huge[:3], (259, 3, 8), *huge[4:], (277, 3, 1), (278, 4, 900_000), (279, 4, 100))
    bmp = bytearray(saved(pixels()[0], "BMP"))
    bmp[18:26] = struct.pack("<ii", 2**30, 2**30)
    gif = bytearray(saved(pixels()[0], "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)

    def empty(buffer: Any) -> None:
        with h5py.File(buffer, "w") as file:
            file.create_dataset("raw", (10**6, 10**6), "u2", chunks=(1000, 1000), compression="gzip")

    jpeg = bytearray(saved(pixels()[1], "JPEG"))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 65500, 65500)
    return (
        ("claims.png", png),
        ("claims.tif", strips),
        ("claims.deflate.tif", packed + zlib.compress(bytes(1000)) + bytes(300)),
        ("claims.bmp", bytes(bmp)),
        ("claims.gif", bytes(gif)),
        ("claims.jpg", bytes(jpeg)),
        ("claims.pgm", b"P5 900000 900000 255\n" + bytes(100)),
        ("claims.h5", written(empty)),
        ("noise.png", random.Random(0).randbytes(3000)),
        ("noise.tif", b"II*\0" + random.Random(1).randbytes(3000)),
        ("text.png", b"<html>404</html>"),
        ("weights.tif", torch_zip({})),
    )


def key_of(path: Path) -> str | None:
    return "raw" if path.suffix == ".h5" else None


def images() -> Group:
    arrays = {"grey.h5": hdf5(pixels()[0]), "packed.h5": hdf5(pixels()[1], compression="gzip")}
    return Group(
        {**lossless(), **with_loss(), **arrays},
        lambda path: open_image(path, key_of(path)).pixels(),
        suffixes=(".png", ".tif", ".jpg", ".txt", ".TIFF"),
        extra=claims(),
    )


def labels() -> Group:
    return Group(
        {**lossless(), **with_loss(), "grey.h5": hdf5(pixels()[0], compression="gzip")},
        lambda path: open_labels(path, key_of(path)).ids,
        suffixes=(".png", ".tif", ".bmp", ".csv"),
        extra=claims(),
    )


def annotations() -> Group:
    shapes = pixels()[0]
    described = labels_to_coco([("1.png", shapes), ("2.png", shapes.T.copy())])
    common = {"category_id": "1", "iscrowd": 0, "bbox": [0, 0, 14.0, 14]}
    polygons = {
        **described,
        "annotations": [
            {**common, "id": 1, "image_id": 1, "segmentation": [[5, 5, 14, 5, 14, 14]]},
            {**common, "id": 2, "image_id": 2, "segmentation": {"size": [60, 40], "counts": [9, 2391]}},
        ],
    }

    def read(path: Path) -> list[np.ndarray]:
        for number, array in enumerate((shapes, shapes.T.copy()), 1):
            if not (path.parent / f"{number}.png").exists():
                Image.fromarray(array).save(path.parent / f"{number}.png")
        dataset = DatasetConfig(
            name="coco", root=str(path.parent), images=".", labels=path.name, format="coco", on_problem="skip"
        )
        return [read_pair_labels(pair, dataset) for pair in list_pairs(dataset)]

    huge = {**polygons, "images": [{**item, "height": 40000, "width": 50000} for item in described["images"]]}
    counts = {"size": [40, 60], "counts": "o" * 100_000}
    odd = {**polygons, "annotations": [{**polygons["annotations"][0], "segmentation": counts}]}
    return Group(
        {"lengths.json": json.dumps(described).encode(), "polygons.json": json.dumps(polygons).encode()},
        read,
        suffixes=(".txt",),
        extra=(
            ("huge.json", json.dumps(huge).encode()),
            ("odd.json", json.dumps(odd).encode()),
            ("deep.json", b"[" * 1_000_000),
            ("NaN.json", json.dumps(polygons).replace("14", "NaN").encode()),
            ("Infinity.json", json.dumps(polygons).replace("14", "1e999").encode()),
            ("numbers.json", json.dumps(polygons).replace("14", "9" * 5000).encode()),
        ),
    )


def tables() -> Group:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for number in range(4):
        measured = {"image": f"a{number}", "mode": "box", "mask_input": False}
        writer.writerow({**dict.fromkeys(COLUMNS, number), **measured})
    content = text.getvalue().encode()

    def read(path: Path) -> object:
        values = read_values(path, "mSA")
        rows = read_rows(path)
        return repr((rows, values))

    return Group({"per_image.csv": content}, read, (ValueError,), (".txt",), compared=False)


def records() -> Group:
    values = {"a": [1, 2.5, None, True, "é"], "b": {"c": "2020-01-01", "d": "x\ny"}}
    status = {"state": "running", "reason": None, "attempt": 2, "epoch": 3, "loss": 0.5, "host": "node1"}
    metrics = {"format": 2, "rows": [{"mode": "box", "round": 0, "mask_input": False, "SA50": 0.5}]}
    manifest = {
        "format": 1,
        "commands": [["refsam"]],
        "runs": [{"run_id": "a", "overrides": {"seed": "1"}}],
        "skipped": [{"overrides": {}, "reason": "none"}],
        "created": "2026-01-01T00:00:00+00:00",
    }
    config = frozen.to_values(compose(["peft=lora", "n_objects=5"]))
    laughs = [b"a: &a [x, x, x, x, x, x, x, x, x]"]
    laughs += [b"%c: &%c [%s]" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefghij"]

    def read(path: Path) -> object:
        if path.name.startswith("status"):
            return read_status(RunPaths(path.parent)) if path.name == "status.json" else read_json(path)
        if path.name.startswith("metrics"):
            return read_metrics(path)
        if path.name.startswith("manifest"):
            return read_manifest(SweepPaths(path.parent))
        if path.name.startswith("history"):
            return read_history(path)
        if path.name.startswith("config"):
            return frozen.load(path)
        return read_json(path) if path.suffix == ".json" else read_yaml(path)

    return Group(
        {
            "values.json": json.dumps(values).encode(),
            "values.yaml": json.dumps(values, indent=1).encode(),
            "plain.yaml": b"a: 1\nb: [x, 2020-01-01, 1.5e3]\nc: &anchor {d: ~}\ne: *anchor\nf: |\n  text\n",
            "status.json": json.dumps(status).encode(),
            "metrics.json": json.dumps(metrics).encode(),
            "manifest.json": json.dumps(manifest).encode(),
            "history.csv": b"epoch,iteration,loss,best\n0,50,0.75,0\n1,100,0.5,1\n2,150,,1\n",
            "config.yaml": yaml.safe_dump(config).encode(),
        },
        read,
        (ValueError, ConfigError),
        compared=False,
        extra=(
            ("deep.json", b"[" * 1_000_000),
            ("deep.yaml", b"[" * 20_000),
            ("date.yaml", b"a: 2020-99-99\n"),
            ("digits.json", b"9" * 10_000),
            ("digits.yaml", b"a: " + b"9" * 10_000),
            ("laughs.yaml", b"\n".join(laughs)),
        ),
    )


def weights() -> Group:
    names = tuple(f"image_encoder.blocks.{number}.attn.qkv.weight" for number in range(12))
    parts = (0x1950A86A20F9469CFC6C, 1001, {"type_sizes": 4}, dict.fromkeys(names, 0))
    old = b"".join(pickle.dumps(part, 2) for part in parts)

    def read(path: Path) -> object:
        model = ModelConfig("vit_b", "vit_b", str(path), 1.0, family=MICRO_SAM)
        for sentence in (weights_problem(path), architecture_problem(path, model)):
            if sentence is not None:
                raise ConfigError(sentence)
        return "may be a checkpoint"

    return Group(
        {
            "weights.pt": torch_zip(dict.fromkeys(names, 0), **{"archive/data/0": bytes(999)}),
            "weights.safetensors": safetensors(names),
            "old.pth": old,
        },
        read,
        suffixes=(".pt", ".zip", ".bin"),
        compared=False,
        extra=(
            ("length.safetensors", (2**63).to_bytes(8, "little") + b"{}"),
            ("deep.safetensors", (10**6).to_bytes(8, "little") + b"[" * 10**6),
        ),
    )


GROUPS = {
    "images": images,
    "labels": labels,
    "annotations": annotations,
    "tables": tables,
    "records": records,
    "weights": weights,
}


def outcome(group: Group, path: Path) -> tuple[str, Any]:
    """`read` and the value, `sentence` and the text, or `failure` and the traceback."""
    try:
        return "read", group.read(path)
    except group.raises as error:
        sentence = str(error)
        # An allocation that failed is no sentence about the file.
        if "MemoryError" in sentence or "allocate" in sentence or "\n" in sentence.strip() or not sentence:
            return "failure", traceback.format_exc()
        return "sentence", sentence
    except BaseException:
        return "failure", traceback.format_exc()


def same(value: Any, other: Any) -> bool:
    if isinstance(value, list):
        return len(value) == len(other) and all(map(np.array_equal, value, other))
    return bool(np.array_equal(value, other))


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BOUND
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def run(name: str, group: Group, seed: int, count: int, folder: Path) -> dict[str, Any]:
    """How the cases of a group end: how many in what, and which of them in a failure."""
    whole = {
        content: outcome(group, written_to(folder / file, content)) for file, content in group.files.items()
    }
    ends: Counter[str] = Counter()
    failures = []
    for number, case in enumerate(cases(group, random.Random(seed), count)):
        label = f"{name} {number} {case.kind} {case.name}"
        print(label, file=sys.stderr, flush=True)  # where a process that dies, or never ends, has come to
        end, value = outcome(group, written_to(folder / case.name, case.content))
        if end == "read" and case.is_part and group.compared:
            expected = next(found for content, found in whole.items() if content.startswith(case.content))
            if expected[0] != "read" or not same(value, expected[1]):
                end, value = "failure", "read as another value than the whole file"
        ends[end] += 1
        if end == "failure":
            failures.append(f"{label}: {str(value)[-1500:]}")
    return {"ends": ends, "failures": failures}


def written_to(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def main(seed: int, count: int, names: list[str]) -> None:
    groups = {name: GROUPS[name]() for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for group in groups.values():  # so that what reading imports is there before memory is limited
            for file, content in group.files.items():
                outcome(group, written_to(Path(folder) / file, content))
        limit_memory()
        print(json.dumps({name: run(name, groups[name], seed, count, Path(folder)) for name in names}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(GROUPS))
