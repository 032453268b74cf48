"""Sample segmentations: what evaluation drew of the best run of each method, made small enough to send."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, UnidentifiedImageError

from refsam.records.paths import RunPaths
from refsam.records.per_image import read_rows
from refsam.results.collect import BASELINE, first_prompt
from refsam.results.folds import runs_of
from refsam.results.report.sources import printable
from refsam.results.tables.table import ordered_modes, run_words, varying_axes

MOST = 16  # pictures in the report
WIDTH = 1400  # pixels at most
QUALITY = 80  # of WebP
METHOD = ["dataset", "model", "weights", "strategy"]  # whose best run is shown
_QUALITIES = ("SA50", "mIoU")  # by which a run is the best


@dataclass(frozen=True)
class Picture:
    """One picture: ground truth, prediction and errors of a test image, in one mode."""

    mode: str
    image: str
    what: str
    words: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Pictures:
    """The chosen pictures by their mode.

    Attributes:
        others: how many more the runs' directories hold.
        problems: sentences about files that cannot be read.
    """

    modes: dict[str, list[Picture]]
    others: int
    problems: list[str]


def pictures(frame: pd.DataFrame, runs: Mapping[str, RunPaths]) -> Pictures:
    """For each mode, the same test image as every method segments it: the best run of each, of joined folds
    the one that tests the image.

    Where methods and modes are more than MOST, the modes come first: the best methods are kept.
    """
    axes = varying_axes(frame)
    measured = first_prompt(frame[frame["mode"].notna() & frame["run_id"].notna()])
    files = {
        row: sorted(path for run in runs_of(row) for path in (runs[run].results / "pictures").glob("*.png"))
        for row in set(measured["run_id"])
    }
    total = sum(map(len, files.values()))
    modes = ordered_modes(measured)
    best = [row for row in _best_runs(measured) if files[row["run_id"]]]
    shown = best[-max(1, MOST // max(1, len(modes))) :]
    chosen: dict[str, list[Picture]] = {}
    problems: list[str] = []
    for mode in modes:
        shared = _shared_image(mode, [files[row["run_id"]] for row in shown])
        for row in shown:
            of_row = (each for each in files[row["run_id"]] if each.name == f"{mode}-{shared}.png")
            if (path := next(of_row, None)) is None:
                continue
            what = BASELINE if row["strategy"] == BASELINE else run_words(row, axes)
            image, words = shared, ""
            try:
                image, words = _measured(RunPaths(path.parents[2]), mode, shared)
            except ValueError as error:  # the picture tells enough
                problems.append(str(error))
            try:
                uri, width, height = _encoded(path)
            except (OSError, UnidentifiedImageError):
                problems.append(f"{path} is not an image")
                continue
            picture = Picture(mode, printable(image), what, words, uri, width, height)
            chosen.setdefault(mode, []).append(picture)
    return Pictures(chosen, total - sum(map(len, chosen.values())), list(dict.fromkeys(problems)))


def _best_runs(measured: pd.DataFrame) -> list[dict[str, Any]]:
    """The best run of each method over all modes, the best method last."""
    found: list[tuple[float, dict[str, Any]]] = []
    for _, rows in measured.groupby(METHOD, sort=False, dropna=False):
        metric = next((name for name in _QUALITIES if rows[name].notna().any()), None)
        if metric is None:
            continue
        means = rows.groupby("run_id", sort=False)[metric].mean()
        run = rows[rows["run_id"] == means.idxmax()].iloc[0]
        found.append((float(means.max()), {str(key): value for key, value in run.items()}))
    return [row for _, row in sorted(found, key=lambda item: item[0])]


def _shared_image(mode: str, files: Sequence[Sequence[Path]]) -> str:
    """The image that most runs have a picture of in a mode, as files are named after it."""
    stems = [path.stem for each in files for path in each if path.name.startswith(f"{mode}-")]
    names = [stem.removeprefix(f"{mode}-") for stem in stems]
    return max(sorted(set(names)), key=names.count, default="")


def _encoded(path: Path) -> tuple[str, int, int]:
    """A picture as a data URI of WebP, its width and height. Raises OSError and UnidentifiedImageError."""
    with Image.open(path) as opened:
        shown = opened.convert("RGB")
    shown.thumbnail((WIDTH, WIDTH))
    encoded = io.BytesIO()
    shown.save(encoded, format="WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}", *shown.size


def _measured(paths: RunPaths, mode: str, image: str) -> tuple[str, str]:
    """The image's name and its measures by per_image.csv; without a row there, what its file is named after.

    Raises ValueError when per_image.csv is damaged.
    """
    for row in read_rows(paths.per_image):
        if (row["image"].replace("/", "__"), row["mode"], row["round"]) == (image, mode, 0):
            counts = f"{row['n_objects']} objects, {row['n_predicted']} predicted"
            return row["image"], f"{counts}; SA50 {row['SA50']:.3f}, mIoU {row['mIoU']:.3f}"
    return image, ""
