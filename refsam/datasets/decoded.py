"""What a file of an image holds: its samples, and what the file itself says that they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refsam.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A file that claims to hold more bytes than this, and so many times more than it has, is damaged: deflate
# packs at most 1032 to 1.
PLAUSIBLE_BYTES, PLAUSIBLE_RATIO = 2**28, 2000
CHANNEL_AXES, UNKNOWN_AXES = "SC", "QI"  # tifffile's letters
RGB = 3  # channels
QUARTER_TURNS = (5, 6, 7, 8)  # orientations that exchange height and width


@dataclass(frozen=True)
class DecodedImage:
    """The samples of an image file.

    Attributes:
        samples: (H, W), or (H, W, samples), not turned.
        source: format and what was taken out of it, in words.
        colours: whether the first three samples are red, green and blue.
        alpha: the sample that is the opacity; None where the file has none.
        orientation: EXIF's, from 1 (upright) to 8.
        disputed: whether some programs turn the image by its orientation and others do not.
        lossy: the name of a compression that changes values; None for one that does not.
    """

    samples: NDArray[Any]
    source: str
    colours: bool = False
    alpha: int | None = None
    orientation: int = 1
    disputed: bool = False
    lossy: str | None = None

    @property
    def n_samples(self) -> int:
        return self.samples.shape[2] if self.samples.ndim == 3 else 1

    def alpha_differs(self) -> bool:
        """Whether there is an opacity that is not the same in all pixels."""
        if self.alpha is None or self.samples.ndim == 2:
            return False
        alpha = self.samples[..., self.alpha]
        return bool(alpha.min() != alpha.max())


@dataclass(frozen=True)
class ReadRequest:
    """What is read, for sentences and decisions.

    Attributes:
        field: dataset.images or dataset.labels.
        choosing: whether channels are chosen, so that any number of them is fine.
    """

    path: Path
    field: str
    choosing: bool = False

    @property
    def named(self) -> str:
        """The field and the file, with which a sentence begins."""
        return f"{self.field}: {self.path}"

    @property
    def is_labels(self) -> bool:
        """Whether the numbers themselves are meant: a palette's indices, and nothing inverted."""
        return self.field == "dataset.labels"

    def refused(self, shape: Sequence[int], axes: str | None = None) -> ConfigError:
        """The sentence for an array that is no 2D image.

        Args:
            axes: of a stack, by tifffile's letters; None for channels, or what may be channels.
        """
        has = f"{self.named} has shape {tuple(shape)}" + (f" (axes {axes})" if axes else "")
        if self.is_labels:
            return ConfigError(
                f"{has}; expected 2D label images (H, W) that hold the id of an object at each pixel, "
                "not colours"
            )
        choose = "" if axes else "; of other channels choose one to three, such as dataset.channels=[0,1]"
        return ConfigError(f"{has}; expected 2D images, grey (H, W) or RGB (H, W, 3){choose}")

    def check_size(self, shape: Sequence[int], itemsize: int) -> None:
        """Refuse a file that claims far more than it can hold, before memory is taken for it."""
        claimed = math.prod(shape) * itemsize
        if claimed > max(PLAUSIBLE_BYTES, PLAUSIBLE_RATIO * self.path.stat().st_size):
            raise ConfigError(
                f"{self.named} is damaged: it claims to hold an array of shape {tuple(shape)} "
                f"in {self.path.stat().st_size} bytes"
            )


@dataclass(frozen=True)
class Layout:
    """How an array lies in its file: the axes that are dropped, and the one of the channels (None: grey)."""

    dropped: tuple[int, ...]
    channels: int | None

    def arranged(self, array: NDArray[Any]) -> NDArray[Any]:
        """(H, W), or (H, W, channels)."""
        import numpy as np

        array = array.squeeze(self.dropped)
        return array if self.channels is None else np.moveaxis(array, self.channels, -1)


def layout(request: ReadRequest, shape: Sequence[int], axes: str | None) -> Layout:
    """Where the channels of an array are. Axes of length 1 are dropped.

    Args:
        axes: one letter of tifffile's for each axis; None where the file does not say.

    Raises:
        ConfigError: for a stack, and for channels that nobody has named while nobody chooses from them.
    """
    named = axes is not None and {"Y", "X"} <= set(axes) and not set(axes) & set(UNKNOWN_AXES)
    letters = axes if axes is not None and named else " " * len(shape)
    kept = [i for i, size in enumerate(shape) if size != 1 or letters[i] in "YX"]
    if not named and shape[-1] == RGB and len(shape) > 2:
        kept = sorted({*kept, *range(len(shape) - 3, len(shape))})  # also of one row or column
    elif not named and len(kept) < 2:
        kept = list(range(len(shape)))[-2:]
    dropped = tuple(set(range(len(shape))) - set(kept))
    if len(kept) == 2:
        return Layout(dropped, None)
    if len(kept) != 3:
        raise request.refused(shape, axes if named else None)
    if named:
        (extra,) = (place for place, i in enumerate(kept) if letters[i] not in "YX")
        if letters[kept[extra]] not in CHANNEL_AXES:
            raise request.refused(shape, axes)
        return Layout(dropped, extra)
    if shape[kept[-1]] == RGB:
        return Layout(dropped, 2)
    if not request.choosing:
        raise request.refused(shape)
    # Nobody has named the axes: the channels are the shorter one of the outer two.
    return Layout(dropped, 0 if shape[kept[0]] < shape[kept[-1]] else 2)


def palette_colours(indices: NDArray[Any], palette: NDArray[Any], bits: int) -> NDArray[Any]:
    """(H, W, 3) uint8 of the colours that are used, or (H, W) where all of them are grey.

    Args:
        indices: (H, W) unsigned integers.
        palette: (colours, 3), of 8 or of 16 bit.
        bits: of an index. Greys of more than 8 bit are the indices themselves.
    """
    import numpy as np

    used = palette[np.unique(indices)]
    if palette.max() > 255:
        palette = palette >> 8
    if (used != used[:, :1]).any():
        colours: NDArray[Any] = palette.astype(np.uint8)[indices]
        return colours
    greys: NDArray[Any] = indices if bits > 8 else palette[:, 0].astype(np.uint8)[indices]
    return greys


def orientation_of(value: object) -> int:
    """EXIF's orientation, 1 where a file has something else in its place."""
    return value if isinstance(value, int) and value in range(1, 9) else 1


def turned(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An image, (H, W, …), turned as its orientation in EXIF (1 to 8) says."""
    import numpy as np

    if orientation in QUARTER_TURNS:
        image = np.swapaxes(image, 0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
