"""A run's best model, opened to segment images that it has not seen: `refsam.load` and `refsam predict`.

Images are normalized, embedded (large ones in tiles) and segmented by the functions of the evaluation, so
that a test image gets the segmentation that was measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bioimage_cpp.segmentation import relabel_sequential
from numpy.typing import ArrayLike, NDArray

from refsam.configuration.frozen import load
from refsam.configuration.schema import Kind, RefsamConfig
from refsam.datasets.decoding import HDF5_SUFFIXES
from refsam.datasets.pairs import number_objects
from refsam.datasets.reading import ReadImage, ReadLabels, open_image, to_8bit
from refsam.errors import ConfigError
from refsam.records.measurements import AUTOMATIC, NO_PROMPT, PARAMETERS, PROMPTED
from refsam.records.paths import RunPaths
from refsam.science.evaluation.grid_search import default_parameters
from refsam.science.evaluation.images import embed
from refsam.science.evaluation.prompts import ImagePrompts
from refsam.science.evaluation.record import present_metrics
from refsam.science.evaluation.segmenting import Model, automatic, from_labels, from_prompts, without_prompt
from refsam.science.strategies.opening import predictor_and_decoder
from refsam.science.training.checkpoints import damage

SETTINGS = "settings"  # beside the parameters of a mode in metrics.json: what they were searched with


@dataclass(frozen=True)
class TrainedModel:
    """The best model of a run. `refsam.load` opens one.

    Attributes:
        config: the run's configuration.
        parameters: of the automatic modes that the run's evaluation has measured: what it segmented with.
        model: with micro-sam's predictor (`model.predictor`) and decoder.
    """

    run_id: str
    config: RefsamConfig
    parameters: Mapping[str, Mapping[str, Any]]
    model: Model = field(repr=False)

    @property
    def mode(self) -> str:
        """How an image is segmented where nobody says: `ais` where the model has a decoder, else `amg`."""
        return "amg" if self.model.decoder is None else "ais"

    @property
    def weights(self) -> str:
        """The hash of the weights, as in the run's results."""
        return str(self.model.predictor._hash)

    def segment(
        self,
        image: NDArray[Any] | str | Path,
        *,
        boxes: ArrayLike | None = None,
        points: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        objects: NDArray[Any] | None = None,
        mode: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> NDArray[np.uint32]:
        """The objects of an image of any size.

        Without `boxes`, `points` and `objects` they are found automatically.

        Args:
            image: pixels (H, W), grey, or (H, W, 3), RGB, of any type of numbers; or the path of a file,
                which is read and turned as the run's own images were. Values are brought to 8 bit as the
                run's data set asks for (dataset.normalize).
            boxes: (objects, 4): x_min, y_min, x_max, y_max of each object. All coordinates are in pixels of
                the image, x (column, to the right) before y (row, downwards); (0, 0) is the upper left
                corner.
            points: (objects, 2), a point x, y inside of each object, or (objects, points, 2), several.
            point_labels: (objects, points): 1 inside of the object, 0 outside of it; None: all are inside.
            objects: (H, W) integers, 0 for background: each object gives a box (mode `box`) or a point (mode
                `point`), as in the evaluation.
            mode: `ais`, `apg` (both need a decoder), `amg`, or `no_prompt`, one mask for the union of all
                objects. None takes `ais` where there is a decoder, else `amg`.
            parameters: of the mode's generator, in place of those that the run was evaluated with, such as
                {"min_size": 100}.

        Returns:
            (H, W) uint32: 0 for background, and ids of the objects from 1. Ids are in no order, not in that
            of the prompts either; a mask in several pieces is several objects, as micro-sam has it.

        Raises:
            ConfigError: for an image, prompts, a mode or parameters that cannot be used.
        """
        return self.segment_pixels(
            self._pixels(image), _prompts(boxes, points, point_labels), objects, mode, parameters
        )

    def segment_pixels(
        self,
        image: NDArray[np.uint8],
        prompts: ImagePrompts | None = None,
        objects: NDArray[Any] | None = None,
        mode: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> NDArray[np.uint32]:
        """As `segment`, of an image, (H, W) or (H, W, 3), that is brought to 8 bit already."""
        mode = self.choose_mode(mode, given=prompts is not None, objects=objects is not None)
        used = self.parameters_of(mode, parameters)
        if objects is not None and objects.shape != image.shape[:2]:
            raise ConfigError(
                f"objects has shape {objects.shape} and the image {image.shape[:2]}, and both have to have "
                "the same height and width"
            )
        embedded = embed(self.model.predictor, image)
        if prompts is not None:
            segmentation = from_prompts(self.model, embedded, prompts)
        elif objects is not None:
            labels = relabel_sequential(number_objects(_ids(objects), self.config.dataset))[0]
            segmentation = from_labels(self.model, embedded, labels, mode)
        elif mode == NO_PROMPT:
            segmentation = without_prompt(self.model, embedded).segmentation
        else:
            segmentation = automatic(self.model, embedded, mode, used).segmentation
        return segmentation.astype(np.uint32, copy=False)

    def open(self, path: Path, labels: ReadLabels | None = None) -> ReadImage:
        """The image in a file, read as the run's own were. Raises ConfigError for one that cannot be used.

        Args:
            labels: of the image, see open_image.
        """
        dataset = self.config.dataset
        key = dataset.image_key if path.suffix.lower() in HDF5_SUFFIXES else None
        return open_image(path, key, dataset.channels, labels)

    def choose_mode(self, mode: str | None, *, given: bool, objects: bool) -> str:
        """The mode that is meant.

        Args:
            given: whether there are boxes or points.
            objects: whether there are labels that prompts are made of.

        Raises:
            ConfigError: when the mode is unknown, the model cannot do it, or it does not go with the prompts.
        """
        allowed = () if given else PROMPTED if objects else (*AUTOMATIC, NO_PROMPT)
        chosen = mode or ("box" if given or objects else self.mode)
        if mode is not None and mode not in allowed:
            what = "boxes or points" if given else "label images as prompts" if objects else "no prompts"
            raise ConfigError(
                f"mode: {mode!r} was given with {what}; expected {', '.join(allowed) or 'none'} then"
            )
        obstacle = self.model.obstacle(chosen)
        if obstacle is not None:
            raise ConfigError(f"mode={chosen!r}, but {obstacle}; amg needs none")
        return chosen

    def parameters_of(self, mode: str, changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The parameters of a mode: `changed`, else the run's, else micro-sam's defaults; {} for prompts.

        Raises:
            ConfigError: when the mode has no parameter of a name in `changed`.
        """
        allowed = PARAMETERS.get(mode, ())
        unknown = [name for name in changed or {} if name not in allowed]
        if unknown:
            raise ConfigError(
                f"parameters: mode {mode} has no {unknown[0]!r}; expected {', '.join(allowed) or 'none'}"
            )
        if mode not in AUTOMATIC:
            return {}
        return {**self.parameters.get(mode, default_parameters(mode)), **(changed or {})}

    def _pixels(self, image: NDArray[Any] | str | Path) -> NDArray[np.uint8]:
        """The image brought to 8 bit."""
        if isinstance(image, str | Path):
            return self.open(Path(image)).as_8bit(self.config.dataset.normalize)
        pixels = np.asarray(image)
        is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] == 3)
        if not is_image or pixels.size == 0 or pixels.dtype.kind not in "uif":
            raise ConfigError(
                f"image has shape {pixels.shape} and type {pixels.dtype}; expected numbers of shape "
                "(H, W), grey, or (H, W, 3), RGB"
            )
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise ConfigError("image holds NaN or infinite values, and only finite ones are allowed")
        return to_8bit(pixels, self.config.dataset.normalize)


def open_run(paths: RunPaths, device: str = "auto") -> TrainedModel:
    """The best model of a run; of a baseline the model that it measures.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, …; `auto` takes the GPU where there is one.

    Raises:
        ConfigError: when the run has no model yet, it is damaged, or the device is not here.
    """
    chosen = _device(device)
    try:
        config = load(paths.config)
    except FileNotFoundError as error:
        raise ConfigError(f"{paths.root} is not a run directory: it has no config.yaml") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.kind is Kind.finetuning:
        if not paths.best.exists():
            raise ConfigError(f"run {paths.run_id} has no best.pt yet: it has not finished an epoch")
        if (found := damage(paths.best)) is not None:
            raise ConfigError(f"best.pt of run {paths.run_id} is damaged ({found})")
    predictor, decoder = predictor_and_decoder(config, paths, chosen)
    rows = {row["mode"]: row["parameters"] for row in present_metrics(config, paths) if row.get("parameters")}
    searched = rows.get("amg", {}).get(SETTINGS, {})
    evaluate = replace(
        config.evaluate, points_per_side=searched.get("points_per_side", config.evaluate.points_per_side)
    )
    parameters = {
        mode: {name: value for name, value in found.items() if name != SETTINGS}
        for mode, found in rows.items()
        if mode in AUTOMATIC
    }
    return TrainedModel(paths.run_id, config, parameters, Model(predictor, decoder, evaluate))


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    usable = [
        "cpu",
        *(["cuda"] if available else []),
        *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
    ]
    if device is None or str(device) not in usable:
        raise ConfigError(f"device={name!r}, and allowed here are auto, {', '.join(usable)}")
    return device


def _prompts(
    boxes: ArrayLike | None, points: ArrayLike | None, point_labels: ArrayLike | None
) -> ImagePrompts | None:
    """Prompts as the evaluation takes them. Raises ConfigError for arrays of another shape."""
    if boxes is None and points is None:
        if point_labels is not None:
            raise ConfigError("point_labels were given without points")
        return None
    corners = None if boxes is None else _numbers("boxes", boxes, "(objects, 4)", lambda s: s[1:] == (4,))
    if corners is not None and not (corners[:, :2] < corners[:, 2:]).all():
        raise ConfigError("boxes: x_min < x_max and y_min < y_max are needed of each")
    if points is None:
        return ImagePrompts(None, None, corners)
    shapes = "(objects, 2) or (objects, points, 2)"
    coordinates = _numbers("points", points, shapes, lambda s: len(s) in (2, 3) and s[-1] == 2)
    coordinates = coordinates[:, None] if coordinates.ndim == 2 else coordinates
    if corners is not None and len(corners) != len(coordinates):
        raise ConfigError(f"boxes are for {len(corners)} objects and points for {len(coordinates)}")
    of_points = coordinates.shape[:2]
    if point_labels is None:
        return ImagePrompts(coordinates, np.ones(of_points, dtype=np.int64), corners)
    labels = _numbers("point_labels", point_labels, str(of_points), lambda s: s == of_points)
    if not np.isin(labels, (0, 1)).all():
        raise ConfigError("point_labels must be 1 (inside of the object) or 0 (outside)")
    return ImagePrompts(coordinates, labels.astype(np.int64), corners)


def _numbers(
    name: str, given: ArrayLike, allowed: str, fits: Callable[[tuple[int, ...]], bool]
) -> NDArray[np.float64]:
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} holds something else than numbers of shape {allowed}") from error
    if not fits(values.shape) or not np.isfinite(values).all():
        raise ConfigError(f"{name} has shape {values.shape}; expected finite numbers of shape {allowed}")
    return values


def _ids(objects: NDArray[Any]) -> NDArray[Any]:
    """Labels as the numbering takes them. Raises ConfigError for what is no label image."""
    if objects.dtype.kind not in "bui" or objects.min(initial=0) < 0:
        raise ConfigError(f"objects has type {objects.dtype}; expected object ids, integers from 0")
    return objects.astype(np.uint64 if objects.max(initial=0) > np.iinfo(np.uint32).max else np.uint32)
