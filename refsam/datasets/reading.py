"""One image or label image from a file, and its pixel values as 8 bit. 2D only, grey or RGB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refsam.datasets.decoded import QUARTER_TURNS, RGB, DecodedImage, ReadRequest, turned
from refsam.datasets.decoding import decode
from refsam.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from refsam.configuration.schema import Normalization

Channels = Sequence[int | str | None]  # of dataset.channels
COLOURS = {"r": 0, "g": 1, "b": 2}
_ALL: tuple[int, ...] = (0, 1, 2)  # of the places of channels
STRETCH = (1.0, 99.0)  # percentiles between which micro-sam's normalize_percentile stretches


@dataclass(frozen=True)
class ImageRecord:
    """What was read of an image file.

    Attributes:
        shape: (H, W) in pixels, as the image is looked at.
        channels: how many the image that was made of it has: 1 (grey) or 3 (RGB).
        in_file: how many samples a pixel has in the file, an opacity among them.
        dtype: numpy's name of their type.
        lowest: value of the channels that were taken.
        highest: the same.
        source: the format, and which series and axes of it.
        orientation: EXIF's that the image was turned by; 1: not turned.
        ignored_orientation: whether one was left alone, since the labels have the size of the unturned image.
        used_alpha: whether the file has an opacity that is left out, and differs between pixels.
    """

    shape: tuple[int, int]
    channels: int
    in_file: int
    dtype: str
    lowest: float
    highest: float
    source: str
    orientation: int = 1
    ignored_orientation: bool = False
    used_alpha: bool = False


@dataclass(frozen=True)
class ReadLabels:
    """Labels as they were read.

    Attributes:
        ids: (H, W) uint32, or uint64 where an id is larger; 0 for background.
        orientation: EXIF's that they were turned by.
    """

    ids: NDArray[np.uint32 | np.uint64]
    orientation: int = 1


@dataclass(frozen=True)
class ReadImage:
    """An image as it was read.

    Attributes:
        channels: (H, W) for grey, or (H, W, n) with the n channels that were taken.
        places: which of red, green and blue the channels are, where they are not all three.
        together: whether the channels are stretched alike, as those of a colour image.
    """

    channels: NDArray[Any]
    record: ImageRecord
    places: tuple[int, ...] = _ALL
    together: bool = True

    def pixels(self) -> NDArray[Any]:
        """(H, W), or (H, W, 3) with zeros in the channels that were not taken."""
        return _placed(self.channels, self.places)

    def as_8bit(self, normalization: Normalization) -> NDArray[np.uint8]:
        """The same with values from 0 to 255, see to_8bit.

        Raises:
            ConfigError: as to_8bit does.
        """
        import numpy as np

        if self.together or self.channels.ndim == 2:
            return _placed(to_8bit(self.channels, normalization), self.places)
        each = [to_8bit(self.channels[..., i], normalization) for i in range(self.channels.shape[-1])]
        return _placed(np.stack(each, axis=-1), self.places)


def open_image(
    path: Path,
    key: str | None = None,
    channels: Channels | None = None,
    labels: ReadLabels | None = None,
) -> ReadImage:
    """The image in a file and what was read.

    Palettes, CMYK, YCbCr and CIE L*a*b* are converted to RGB; an opacity (where the file says that it has
    one) and axes of length 1 are dropped; the image is turned as its orientation says.

    Args:
        key: path inside an HDF5 file.
        channels: which to take, by number from 0 or as r, g or b, None for an empty one: of one a grey image
            is made, two or three are red, green and blue. None takes a grey or RGB image as it is.
        labels: of the image. One that has their height and width only while it is not turned is not turned.

    Raises:
        ConfigError: when the file cannot be read, or holds a stack, other channels than those that are asked
        for, values that are no numbers, or an orientation of TIFF from which its labels do not say whether it
        is meant.
    """
    request = ReadRequest(path, "dataset.images", channels is not None)
    decoded = decode(request, key)
    if channels is None:
        taken, places, together = _all_channels(request, decoded), _ALL, True
    else:
        taken, places, together = _chosen(request, decoded, channels)
    _check_values(request, taken)
    turns = _turns(request, decoded, taken.shape, labels)
    if turns:
        taken = turned(taken, decoded.orientation)
    record = ImageRecord(
        shape=(taken.shape[0], taken.shape[1]),
        channels=1 if taken.ndim == 2 else RGB,
        in_file=decoded.n_samples,
        dtype=str(decoded.samples.dtype),
        lowest=float(taken.min()),
        highest=float(taken.max()),
        source=decoded.source,
        orientation=decoded.orientation if turns else 1,
        ignored_orientation=not turns,
        used_alpha=channels is None and decoded.alpha_differs(),
    )
    return ReadImage(taken, record, places, together)


def open_labels(path: Path, key: str | None = None) -> ReadLabels:
    """The ids in a label image file, (H, W), turned as its orientation says.

    Axes of length 1 and an opacity are dropped; indices of palette images are the ids. `key` is the path
    inside an HDF5 file.

    Raises:
        ConfigError: when the file cannot be read, is not 2D, was compressed with loss, or holds values that
        are no object ids.
    """
    import numpy as np

    request = ReadRequest(path, "dataset.labels")
    decoded = decode(request, key)
    if decoded.lossy is not None:
        raise ConfigError(
            f"dataset.labels: {path} is compressed with loss ({decoded.lossy}), which changes ids; allowed "
            "are lossless formats such as PNG and TIFF, written from the original labels"
        )
    labels = _one_channel(request, decoded)
    if labels.size == 0:
        raise ConfigError(
            f"dataset.labels: {path} has shape {labels.shape}, and at least one pixel is needed"
        )
    if labels.dtype.kind not in "buif":
        raise ConfigError(
            f"dataset.labels: {path} holds {labels.dtype} values; expected object ids (integers)"
        )
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
        raise ConfigError(f"dataset.labels: {path} holds fractions; expected object ids (whole numbers)")
    lowest, highest = labels.min().item(), labels.max().item()
    if lowest < 0 or highest >= 2**64:
        raise ConfigError(
            f"dataset.labels: {path} holds values from {lowest} to {highest}; expected 0 (background) "
            f"to {2**64 - 1}"
        )
    ids = labels.astype(np.uint32 if highest <= np.iinfo(np.uint32).max else np.uint64)
    return ReadLabels(turned(ids, decoded.orientation), decoded.orientation)


def to_8bit(image: NDArray[Any], normalization: Normalization) -> NDArray[np.uint8]:
    """The image, (H, W) or (H, W, 3), with values from 0 to 255. All channels are stretched alike.

    `auto` keeps 8 bit images and stretches others between percentiles 1 and 99, `none` only changes the data
    type, `minmax` and `percentile` stretch in any case. An image of one value becomes black. `patch` is what
    micro-sam's inference does with any image (micro_sam.util._to_image): minimum to maximum of each channel,
    truncated.

    Raises:
        ConfigError: for `none` and values outside 0 to 255.
    """
    import numpy as np

    from refsam.configuration.schema import Normalization

    if normalization is Normalization.auto:
        if image.dtype == np.uint8:
            return image
        normalization = Normalization.percentile
    if normalization is Normalization.none:
        if image.min() < 0 or image.max() > 255:
            raise ConfigError(
                f"dataset.normalize none keeps pixel values as they are, but they go from {image.min()} to "
                f"{image.max()}; expected 0 to 255; take auto, minmax or percentile"
            )
        return np.round(image).astype(np.uint8)
    if normalization is Normalization.patch:
        values = image.astype(np.float32)
        values -= values.min(axis=(0, 1))
        values /= values.max(axis=(0, 1)) + np.float32(1e-7)
        return (values * 255).astype(np.uint8)
    if normalization is Normalization.minmax:
        low, high = float(image.min()), float(image.max())
    else:
        low, high = (float(value) for value in np.percentile(image, STRETCH))
    if high <= low:
        return np.zeros(image.shape, dtype=np.uint8)
    stretched = (image.astype(np.float64) - low) * (255.0 / (high - low))
    return np.round(np.clip(stretched, 0.0, 255.0)).astype(np.uint8)


def _placed(channels: NDArray[Any], places: tuple[int, ...]) -> NDArray[Any]:
    import numpy as np

    if channels.ndim == 2 or channels.shape[2] == RGB:
        return channels
    image = np.zeros((*channels.shape[:2], RGB), channels.dtype)
    image[..., list(places)] = channels
    return image


def _all_channels(request: ReadRequest, decoded: DecodedImage) -> NDArray[Any]:
    """Those of a grey or RGB image, less its opacity, (H, W) or (H, W, 3), not turned."""
    import numpy as np

    samples = decoded.samples
    if samples.ndim == 2:
        return samples
    colours = samples if decoded.alpha is None else np.delete(samples, decoded.alpha, axis=2)
    if colours.shape[2] == 1:
        return colours[..., 0]
    if colours.shape[2] != RGB:
        raise request.refused(samples.shape)
    return colours


def _chosen(
    request: ReadRequest, decoded: DecodedImage, channels: Channels
) -> tuple[NDArray[Any], tuple[int, ...], bool]:
    """Those that are asked for, (H, W) or (H, W, n), not turned; places and together as in ReadImage."""
    indices = [_index(request, decoded, name) for name in channels]
    chosen = [index for index in indices if index is not None]
    samples = decoded.samples if decoded.samples.ndim == 3 else decoded.samples[..., None]
    taken = samples[..., chosen]
    if len(channels) == 1:
        return taken[..., 0], _ALL, True
    places = tuple(place for place, index in enumerate(indices) if index is not None)
    return taken, places, decoded.colours and set(chosen) <= set(COLOURS.values())


def _turns(
    request: ReadRequest, decoded: DecodedImage, shape: tuple[int, ...], labels: ReadLabels | None
) -> bool:
    """Whether an image of this shape, which is not turned yet, is to be turned by its orientation."""
    stored = shape[:2]
    upright = stored[::-1] if decoded.orientation in QUARTER_TURNS else stored
    if labels is None or decoded.orientation == 1:
        return True
    if upright != stored == labels.ids.shape:
        return False
    if decoded.disputed and upright == stored and labels.orientation != decoded.orientation:
        raise ConfigError(
            f"{request.named} has the orientation {decoded.orientation} in its TIFF tag, "
            "which some programs follow and others ignore, and its labels have another; save it without one"
        )
    return True


def _index(request: ReadRequest, decoded: DecodedImage, name: int | str | None) -> int | None:
    """The sample that a channel of dataset.channels is; None for an empty one."""
    in_file = decoded.n_samples
    if name is None:
        return None
    if isinstance(name, str) and not decoded.colours:
        raise ConfigError(
            f"dataset.channels={name}, but {request.path} has no colours; expected the numbers "
            f"of its channels, 0 to {in_file - 1}"
        )
    index = COLOURS[name] if isinstance(name, str) else name
    if index >= in_file:
        raise ConfigError(
            f"dataset.channels={name}, but {request.path} has {in_file} "
            f"{'channel' if in_file == 1 else 'channels'}; expected 0 to {in_file - 1}"
        )
    return index


def _check_values(request: ReadRequest, image: NDArray[Any]) -> None:
    import numpy as np

    path = request.path
    if image.dtype.kind not in "uif":
        raise ConfigError(f"dataset.images: {path} holds {image.dtype} values; expected integers and floats")
    if image.size == 0:
        raise ConfigError(f"dataset.images: {path} has shape {image.shape}, and at least one pixel is needed")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ConfigError(
            f"dataset.images: {path} holds NaN or infinite values, and only finite ones are allowed"
        )


def _one_channel(request: ReadRequest, decoded: DecodedImage) -> NDArray[Any]:
    """(H, W) of a label image: its only channel, or any where all are equal."""
    labels = decoded.samples
    if labels.ndim == 2:
        return labels
    if decoded.alpha is not None:
        import numpy as np

        labels = np.delete(labels, decoded.alpha, axis=2)
    if labels.shape[2] > 1:
        raise request.refused(decoded.samples.shape)
    return labels[..., 0]
