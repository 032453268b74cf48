"""New images segmented by a run's model, and written: labels, overlay, table of objects, record."""

import fcntl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray
from skimage.measure import regionprops_table

from refsam.datasets.image_metadata import ImageMetadata, read_metadata
from refsam.datasets.new_images import NewImage
from refsam.datasets.prompt_files import PromptFile, PromptRow
from refsam.datasets.reading import ReadImage, open_labels
from refsam.errors import ConfigError
from refsam.records.measurements import AUTOMATIC
from refsam.records.paths import RunPaths
from refsam.records.predictions import PredictionsFolder, read_record, source_of, write_record
from refsam.science.evaluation.pictures import draw_overlay
from refsam.science.evaluation.prompts import ImagePrompts
from refsam.science.prediction import TrainedModel, open_run
from refsam.science.randomness import be_deterministic
from refsam.system.files import write_encoded, write_text

PROPERTIES = {"label": "object", "area": "area", "centroid-0": "centroid_y", "centroid-1": "centroid_x"}
COLOURS = ("red", "green", "blue")
MICROMETRES_PER_CENTIMETRE = 1e4


@dataclass(frozen=True)
class Predicted:
    """What became of an image: the number of its objects and the seconds, or why it cannot be used."""

    image: NewImage
    n_objects: int = 0
    seconds: float = 0.0
    problem: str | None = None


@dataclass(frozen=True)
class Predictor:
    """A model, how it is asked, and the folder that its answers go to.

    prompts: rows of a CSV file, or a label image for each image; None for automatic modes.
    """

    model: TrainedModel
    mode: str
    prompts: PromptFile | Mapping[str, Path] | None
    folder: PredictionsFolder

    @property
    def made_with(self) -> dict[str, Any]:
        """What all images of a folder have in common."""
        return {
            "run_id": self.model.run_id,
            "weights": self.model.weights,
            "mode": self.mode,
            "parameters": self.model.parameters_of(self.mode),
            "prompts": self._prompts_are,
        }

    @property
    def _prompts_are(self) -> str | None:
        if self.prompts is None:
            return None
        return "csv" if isinstance(self.prompts, PromptFile) else "labels"

    def check_folder(self) -> None:
        """Raise ConfigError where the folder has images that were segmented in another way."""
        for name in self.folder.names():
            record = read_record(self.folder, name)
            other = [key for key, value in self.made_with.items() if record and record.get(key) != value]
            if record and other:
                raise ConfigError(
                    f"--output: {self.folder.root} holds predictions with another {other[0]} "
                    f"({record.get(other[0])!r}, now {self.made_with[other[0]]!r}); give another folder"
                )

    def is_complete(self, image: NewImage) -> bool:
        """Whether the folder has all of an image, made of the files as they are now.

        Raises ConfigError where it has another image of this name.
        """
        record = read_record(self.folder, image.name)
        if record is None or not all(path.is_file() for path in self.folder.files(image.name)):
            return False
        sources = self._sources(image)
        if record.get("image", {}).get("path") != sources["image"]["path"]:
            raise ConfigError(
                f"--output: {self.folder.labels(image.name)} was made of another image of the same name than "
                f"{image.path}; give another folder"
            )
        return all(record.get(name) == value for name, value in sources.items())

    def predict(self, image: NewImage) -> Predicted:
        """Segment an image and write all of it. Raises ConfigError when it cannot be used, and OSError."""
        start = time.perf_counter()
        sources = self._sources(image)  # before it is read: what changes meanwhile is read again next time
        read, labels = self._segment(image)
        metadata = read_metadata(image.path).turned(read.record.orientation)
        table = objects_table(labels, read.pixels(), metadata)
        _write_labels(self.folder.labels(image.name), labels, metadata)
        draw_overlay(
            read.as_8bit(self.model.config.dataset.normalize), labels, self.folder.overlay(image.name)
        )
        self.folder.objects(image.name).parent.mkdir(parents=True, exist_ok=True)
        table.insert(0, "image", image.name)
        write_text(self.folder.objects(image.name), table.to_csv(index=False))
        seconds = time.perf_counter() - start
        found = {"n_objects": len(table), "shape": list(labels.shape), "seconds": seconds}
        write_record(self.folder, image.name, {**sources, **self.made_with, **found})
        return Predicted(image, len(table), seconds)

    def _sources(self, image: NewImage) -> dict[str, Any]:
        """The files, and the rows of the CSV file, that an image's segmentation is made of."""
        sources: dict[str, Any] = {"image": source_of(image.path)}
        if isinstance(self.prompts, PromptFile):
            rows = self.prompts.rows.get(image.name, [])
            sources["prompted_by"] = [[*(row.box or ()), *(row.point or ())] for row in rows]
        elif self.prompts is not None:
            sources["prompted_by"] = source_of(self.prompts[image.name])
        return sources

    def _segment(self, image: NewImage) -> tuple[ReadImage, NDArray[np.uint32]]:
        normalize = self.model.config.dataset.normalize
        if isinstance(self.prompts, PromptFile):
            read = self.model.open(image.path)
            pixels = read.as_8bit(normalize)
            self.prompts.check(image.name, (pixels.shape[0], pixels.shape[1]))
            rows = self.prompts.rows.get(image.name)
            if not rows:
                return read, np.zeros(pixels.shape[:2], dtype=np.uint32)
            return read, self.model.segment_pixels(pixels, _prompts(rows))
        if self.prompts is not None:
            labels = open_labels(self.prompts[image.name], self.model.config.dataset.label_key)
            read = self.model.open(image.path, labels)
            pixels = read.as_8bit(normalize)
            return read, self.model.segment_pixels(pixels, objects=labels.ids, mode=self.mode)
        read = self.model.open(image.path)
        return read, self.model.segment_pixels(read.as_8bit(normalize), mode=self.mode)


def open_predictor(
    paths: RunPaths,
    folder: PredictionsFolder,
    mode: str | None,
    prompts: PromptFile | Mapping[str, Path] | None,
    device: str,
) -> Predictor:
    """The model of a run, for a folder of predictions.

    Raises:
        ConfigError: when there is no model, it cannot do the mode, or the folder holds other predictions.
    """
    be_deterministic()
    model = open_run(paths, device)
    given = isinstance(prompts, PromptFile)
    chosen = model.choose_mode(mode, given=given, objects=prompts is not None and not given)
    if isinstance(prompts, PromptFile):
        chosen = prompts.kind
    predictor = Predictor(model, chosen, prompts, folder)
    predictor.check_folder()
    return predictor


def predict_all(predictor: Predictor, images: Sequence[NewImage]) -> Iterator[Predicted]:
    """Segment images one after the other; one that cannot be used does not keep the others from theirs.

    Raises:
        OSError: when something cannot be written.
    """
    for image in images:
        try:
            yield predictor.predict(image)
        except ConfigError as error:
            yield Predicted(image, problem=str(error))


def is_default(predictor: Predictor) -> bool:
    """Whether an automatic mode has micro-sam's parameters, since the run did not search for others."""
    return predictor.mode in AUTOMATIC and predictor.mode not in predictor.model.parameters


def join_tables(folder: PredictionsFolder) -> None:
    """Write objects.csv: the rows of all images of the folder that are complete.

    One process at a time: of the tasks of an array the last one finds the images of all.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    with folder.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tables = [pd.read_csv(folder.objects(name), dtype={"image": str}) for name in folder.names()]
        if tables:
            write_text(folder.all_objects, pd.concat(tables, ignore_index=True).to_csv(index=False))


def objects_table(labels: NDArray[np.uint32], image: NDArray[Any], metadata: ImageMetadata) -> pd.DataFrame:
    """A row for each object.

    Columns: object (its id in the labels), area (pixels), centroid_y and centroid_x (row and column, pixels
    from the middle of the upper left one), mean_intensity (of the image's own values; with colours one for
    each), and area_um2 where the size of a pixel is known.

    Args:
        labels: (H, W).
        image: (H, W) or (H, W, 3).
    """
    found = regionprops_table(
        labels.astype(np.int64), image, properties=("label", "area", "centroid", "intensity_mean")
    )
    table = pd.DataFrame(found).rename(columns=PROPERTIES)
    if image.ndim == 2:
        table = table.rename(columns={"intensity_mean": "mean_intensity"})
    else:
        named = {f"intensity_mean-{place}": f"mean_intensity_{name}" for place, name in enumerate(COLOURS)}
        table = table.rename(columns=named)
    table["area"] = table["area"].astype(int)
    if metadata.pixel_size is not None:
        height, width = metadata.pixel_size
        table["area_um2"] = table["area"] * (height * width)
    return table


def _write_labels(path: Path, labels: NDArray[np.uint32], metadata: ImageMetadata) -> None:
    """An OME-TIFF of the smallest of uint16 and uint32 that holds the ids: many programs show only uint16."""
    described: dict[str, Any] = {"axes": "YX"}
    resolution: dict[str, Any] = {}
    if metadata.pixel_size is not None:
        height, width = metadata.pixel_size
        described |= {"PhysicalSizeY": height, "PhysicalSizeX": width}
        described |= {"PhysicalSizeYUnit": "µm", "PhysicalSizeXUnit": "µm"}
        per_centimetre = (MICROMETRES_PER_CENTIMETRE / width, MICROMETRES_PER_CENTIMETRE / height)
        resolution = {"resolution": per_centimetre, "resolutionunit": "CENTIMETER"}
    if metadata.acquired is not None:
        described["AcquisitionDate"] = metadata.acquired
    if metadata.description is not None:
        described["Description"] = metadata.description
    ids = labels.astype(np.uint16) if labels.max(initial=0) <= np.iinfo(np.uint16).max else labels
    options = {"ome": True, "compression": "zlib", "metadata": described, **resolution}
    write_encoded(path, lambda file: tifffile.imwrite(file, ids, **options))


def _prompts(rows: Sequence[PromptRow]) -> ImagePrompts:
    boxes = [row.box for row in rows if row.box is not None]
    points = [[row.point] for row in rows if row.point is not None]
    return ImagePrompts(
        np.array(points, dtype=np.float64) if points else None,
        np.ones((len(points), 1), dtype=np.int64) if points else None,
        np.array(boxes, dtype=np.float64) if boxes else None,
    )
