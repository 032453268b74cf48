"""One image or label image from a file, and its pixel values as 8 bit. 2D only, grey or RGB."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from refsam.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from refsam.configuration.schema import Normalization

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")
TIFF_SUFFIXES = (".tif", ".tiff", ".btf")
RGB, RGBA = 3, 4  # channels
STRETCH = (1.0, 99.0)  # percentiles between which micro-sam's normalize_percentile stretches


def read_image(path: Path, key: str | None = None) -> NDArray[Any]:
    """The image in a file: (H, W) for grey, (H, W, 3) for RGB, with the data type of the file.

    An alpha channel and axes of length 1 are dropped. `key` is the path inside an HDF5 file.

    Raises:
        BadInput: when the file cannot be read, or holds a stack, other channels, or values that are no
        numbers.
    """
    import numpy as np

    image = _read(path, key, "dataset.image_key")
    if image.ndim == 3 and image.shape[-1] not in (RGB, RGBA) and 1 in image.shape:
        image = image.squeeze()
    if image.ndim == 3 and image.shape[-1] == RGBA:
        image = image[..., :RGB]
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[-1] == RGB):
        raise BadInput(
            f"dataset.images: {path} has shape {image.shape}, and allowed are 2D images, grey (H, W) or RGB "
            "(H, W, 3)"
        )
    if image.dtype.kind not in "uif":
        raise BadInput(
            f"dataset.images: {path} holds {image.dtype} values, and allowed are integers and floats"
        )
    if image.size == 0:
        raise BadInput(f"dataset.images: {path} has shape {image.shape}, and at least one pixel is needed")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise BadInput(
            f"dataset.images: {path} holds NaN or infinite values, and only finite ones are allowed"
        )
    return image


def read_labels(path: Path, key: str | None = None) -> NDArray[np.uint32]:
    """The label image in a file: (H, W) uint32, 0 for background and one id per object.

    Axes of length 1 are dropped; indices of palette images are the ids. `key` is the path inside an HDF5
    file.

    Raises:
        BadInput: when the file cannot be read, is not 2D, or holds values that are no object ids.
    """
    import numpy as np

    labels = _read(path, key, "dataset.label_key", indices=True)
    if labels.ndim > 2 and 1 in labels.shape:
        labels = labels.squeeze()
    if labels.ndim != 2:
        raise BadInput(
            f"dataset.labels: {path} has shape {labels.shape}, and allowed are 2D label images (H, W) that "
            "hold the id of an object at each pixel"
        )
    if labels.size == 0:
        raise BadInput(f"dataset.labels: {path} has shape {labels.shape}, and at least one pixel is needed")
    if labels.dtype.kind not in "buif":
        raise BadInput(
            f"dataset.labels: {path} holds {labels.dtype} values, and allowed are object ids (integers)"
        )
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
        raise BadInput(f"dataset.labels: {path} holds fractions, and allowed are object ids (whole numbers)")
    if labels.min() < 0 or labels.max() > np.iinfo(np.uint32).max:
        raise BadInput(
            f"dataset.labels: {path} holds values from {labels.min()} to {labels.max()}, and allowed are 0 "
            f"(background) to {np.iinfo(np.uint32).max}"
        )
    return labels.astype(np.uint32)


def to_8bit(image: NDArray[Any], normalization: Normalization) -> NDArray[np.uint8]:
    """The image, (H, W) or (H, W, 3), with values from 0 to 255. All channels are stretched alike.

    `auto` keeps 8 bit images and stretches others between percentiles 1 and 99, `none` only changes the data
    type, `minmax` and `percentile` stretch in any case. An image of one value becomes black.

    Raises:
        BadInput: for `none` and values outside 0 to 255.
    """
    import numpy as np

    from refsam.configuration.schema import Normalization

    if normalization is Normalization.auto:
        if image.dtype == np.uint8:
            return image
        normalization = Normalization.percentile
    if normalization is Normalization.none:
        if image.min() < 0 or image.max() > 255:
            raise BadInput(
                f"dataset.normalize none keeps pixel values as they are, but they go from {image.min()} to "
                f"{image.max()}, and allowed are 0 to 255; take auto, minmax or percentile"
            )
        return np.round(image).astype(np.uint8)
    if normalization is Normalization.minmax:
        low, high = float(image.min()), float(image.max())
    else:
        low, high = (float(value) for value in np.percentile(image, STRETCH))
    if high <= low:
        return np.zeros(image.shape, dtype=np.uint8)
    stretched = (image.astype(np.float64) - low) * (255.0 / (high - low))
    return np.round(np.clip(stretched, 0.0, 255.0)).astype(np.uint8)


def _read(path: Path, key: str | None, field: str, indices: bool = False) -> NDArray[Any]:
    """The array in a file as it stands there. `indices`: a palette's indices instead of its colours."""
    if path.suffix.lower() in HDF5_SUFFIXES or key is not None:
        return _read_hdf5(path, key, field)
    # The libraries raise whatever their decoders raise (struct.error, zlib.error, IndexError, …) for damaged
    # files.
    try:
        return _read_picture(path, indices)
    except Exception as error:
        raise BadInput(
            f"{path} cannot be read as an image ({type(error).__name__}: {error}); allowed is what imageio "
            "or tifffile reads, and HDF5"
        ) from error


def _read_picture(path: Path, indices: bool) -> NDArray[Any]:
    import numpy as np

    if path.suffix.lower() in TIFF_SUFFIXES:
        import tifffile

        return np.asarray(tifffile.imread(path))
    if indices:
        from PIL import Image

        if path.suffix.lower() in (".png", ".gif", ".bmp"):
            with Image.open(path) as picture:
                if picture.mode == "P":
                    return np.asarray(picture)
    import imageio.v3

    return np.asarray(imageio.v3.imread(path))


def _read_hdf5(path: Path, key: str | None, field: str) -> NDArray[Any]:
    import h5py
    import numpy as np

    if key is None:
        raise BadInput(
            f"{field} is null, but {path} is an HDF5 file, and the path of the array inside it is needed"
        )
    try:
        with h5py.File(path, "r") as file:
            item = file.get(key)
            if isinstance(item, h5py.Dataset):
                return np.asarray(item[()])
            names: list[str] = []
            file.visititems(
                lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None
            )
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read as HDF5 ({error}), which {field} {key!r} asks for; set it to null for "
            "other files"
        ) from error
    raise BadInput(f"{field} {key!r} is no array in {path}; there are: {', '.join(names) or 'none'}")
