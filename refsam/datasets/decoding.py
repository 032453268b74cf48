"""Opens an image file with the library that keeps all of it: tifffile, Pillow, imagecodecs, h5py, imageio.

The format is what the first bytes say, whatever the suffix. Formats that Pillow would hand to another program
(EPS) are not read.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refsam.datasets.decoded import RGB, DecodedImage, ReadRequest, layout, orientation_of, palette_colours
from refsam.datasets.lossy import LOSSY_FORMATS, loses_in_jpeg2000, loses_in_webp
from refsam.datasets.tiff import ORIENTATION, SIGNATURES, read_tiff
from refsam.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")
PILLOW_FORMATS = frozenset((
    "PNG", "JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "GIF", "BMP", "DIB", "PPM", "TGA", "PCX", "PSD",
    "SUN", "QOI",
))  # fmt: skip
# What comes after the first frame belongs to it: previews, maps of brightness, layers.
FIRST_FRAME = ("MPO", "PSD")
CODECS = {b"II\xbc": "JXR", b"\x00\x00\x00\x0cJXL ": "JXL", b"\xff\x0a": "JXL"}
LFS = b"version https://git-lfs"
DICOM = b"DICM"  # from the 128th byte on
FORMATS = "TIFF, PNG, JPEG, JPEG 2000, JPEG XR, JPEG XL, WebP, AVIF, GIF, BMP, PNM, DICOM and HDF5"
COLOURED = ("RGB", "RGBA", "RGBX", "RGBa")
WITH_ALPHA = {"LA": 1, "RGBA": 3}


def decode(request: ReadRequest, key: str | None) -> DecodedImage:
    """What a file holds.

    Args:
        key: path of the array inside an HDF5 file.

    Raises:
        ConfigError: when the file cannot be read, or holds another thing than one image.
    """
    if request.path.suffix.lower() in HDF5_SUFFIXES or key is not None:
        return _read_hdf5(request, key)
    # The libraries raise whatever their decoders raise (struct.error, zlib.error, IndexError, …) for damaged
    # files.
    try:
        return _decode(request)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{request.named} cannot be read as an image ({_one_line(error)}); expected {FORMATS}"
        ) from error


def _decode(request: ReadRequest) -> DecodedImage:
    with request.path.open("rb") as file:
        head = file.read(132)
    if head.startswith(LFS):
        raise ConfigError(
            f"{request.named} is a Git LFS pointer instead of an image; fetch it with git lfs pull"
        )
    if head.startswith(SIGNATURES):
        return read_tiff(request)
    for signature, name in CODECS.items():
        if head.startswith(signature):
            return _with_codec(request, name)
    if head[128:] == DICOM:
        import imageio.v3

        found = imageio.v3.imread(request.path, plugin="DICOM")
        return DecodedImage(layout(request, found.shape, None).arranged(found), "DICOM")
    return _with_pillow(request, head)


def _with_codec(request: ReadRequest, name: str) -> DecodedImage:
    """JPEG XR and JPEG XL, which are grey or RGB and may have an opacity besides."""
    import imagecodecs

    data = request.path.read_bytes()
    if name == "JXR":
        _check_jpegxr(request, data)
    samples = imagecodecs.jpegxr_decode(data) if name == "JXR" else imagecodecs.jpegxl_decode(data)
    colours = samples.ndim == 3 and samples.shape[-1] in (3, 4)
    has_alpha = samples.ndim == 3 and samples.shape[-1] in (2, 4)
    alpha = samples.shape[-1] - 1 if has_alpha else None
    return DecodedImage(samples, LOSSY_FORMATS[name], colours, alpha, lossy=LOSSY_FORMATS[name])


def _check_jpegxr(request: ReadRequest, data: bytes) -> None:
    """Refuse a JPEG XR file without its end, which its decoder would make up, or of an impossible size.

    Its directory is one of TIFF's (ISO 29199-2, annex A).
    """
    start = int.from_bytes(data[4:8], "little") + 2
    stop = start + 12 * int.from_bytes(data[start - 2 : start], "little")
    entries = (data[place : place + 12] for place in range(start, min(stop, len(data)), 12))
    tags = {int.from_bytes(entry[:2], "little"): int.from_bytes(entry[8:], "little") for entry in entries}
    request.check_size((tags.get(0xBC80, 0), tags.get(0xBC81, 0)), 1)
    end = tags.get(0xBCC0, 0) + tags.get(0xBCC1, 0)
    if stop > len(data) or end > len(data):
        raise ConfigError(f"{request.named} is cut off: it has {len(data)} of at least {end} bytes")


@lru_cache(maxsize=1)
def _pillow_formats() -> tuple[str, ...]:
    """Those of PILLOW_FORMATS that this Pillow has."""
    from PIL import Image

    # Of damaged or very large pictures it would say several lines beside the sentence that refuses them.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    Image.init()
    return tuple(name for name in Image.ID if name in PILLOW_FORMATS)


def _with_pillow(request: ReadRequest, head: bytes) -> DecodedImage:
    from PIL import Image

    with Image.open(request.path, formats=_pillow_formats()) as picture:
        name = str(picture.format)
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and name not in FIRST_FRAME:
            raise ConfigError(
                f"{request.named} holds {frames} frames; expected one; save the one that is meant as a file"
            )
        request.check_size((picture.height, picture.width, len(picture.getbands())), 1)
        lossy = _lossy(request.path, name)
        orientation = orientation_of(picture.getexif().get(ORIENTATION))
        if name == "PNG" and head[24] == 16 and picture.mode != "I;16":
            import imagecodecs

            samples = imagecodecs.png_decode(request.path.read_bytes())
            alpha = samples.shape[-1] - 1 if head[25] in (4, 6) else None  # types with an opacity
            samples = samples[..., :3] if head[25] == 2 else samples  # without the one of a single colour
            return DecodedImage(samples, "PNG, 16 bit", samples.shape[-1] >= 3, alpha, orientation)
        if name == "JPEG2000":
            return _jpeg2000(request.path.read_bytes(), orientation, lossy)
        if name == "PPM" and picture.mode == "RGB" and _depth_of_ppm(picture) > 255:
            return DecodedImage(_deep_ppm(request.path, picture), "PPM, 16 bit", colours=True)
        samples, mode = _samples(picture, request.is_labels)
        source = f"{LOSSY_FORMATS.get(name, name)}, {picture.mode}"
        colours = mode in COLOURED and samples.ndim == 3
        return DecodedImage(samples, source, colours, WITH_ALPHA.get(mode), orientation, lossy=lossy)


def _samples(picture: Image, indices: bool) -> tuple[NDArray[Any], str]:
    """(H, W) or (H, W, samples) of a picture, and the mode they have now."""
    import numpy as np

    mode = picture.mode
    if mode == "P" and not indices:
        values = picture.getpalette("RGB")
        palette = np.array(values, np.uint8).reshape(-1, 3)
        return palette_colours(np.asarray(picture), palette, 8), "RGB"
    if mode == "1" and not indices:
        mode = "L"
    elif mode in ("CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa", "PA"):
        mode = "RGB"
    elif mode == "La":
        mode = "L"
    if mode != picture.mode:
        picture = picture.convert(mode)
    samples = np.asarray(picture)
    return samples.astype(samples.dtype.newbyteorder("="), copy=False), mode


def _jpeg2000(data: bytes, orientation: int, lossy: str | None) -> DecodedImage:
    """With all bits. The last of four components is the opacity only where a channel definition says it."""
    import imagecodecs

    samples = imagecodecs.jpeg2k_decode(data)
    components = samples.shape[-1] if samples.ndim == 3 else 1
    defined = b"cdef" in data[: data.find(b"\xff\x4f\xff\x51")]
    alpha = components - 1 if components == 2 or (components == 4 and defined) else None
    return DecodedImage(samples, "JPEG 2000", components >= 3, alpha, orientation, lossy=lossy)


def _depth_of_ppm(picture: Any) -> int:
    """The largest value that a PPM may have; 255 where Pillow need not scale."""
    arguments = picture.tile[0][3]
    return int(arguments[-1]) if isinstance(arguments, tuple) and isinstance(arguments[-1], int) else 255


def _deep_ppm(path: Path, picture: Any) -> NDArray[Any]:
    """(H, W, 3) uint16 of a binary PPM with two bytes per sample, which Pillow reduces to 8 bit."""
    import numpy as np

    with path.open("rb") as file:
        if file.read(2) != b"P6":
            raise ConfigError(f"{path} is a PPM in letters with more than 8 bit; expected binary ones")
        file.seek(picture.tile[0][2])
        data = file.read(picture.height * picture.width * 6)
    samples = np.frombuffer(data, ">u2").reshape(picture.height, picture.width, 3)
    return samples.astype(np.uint16)


def _lossy(path: Path, name: str) -> str | None:
    if name == "JPEG2000":
        return "JPEG 2000" if loses_in_jpeg2000(path.read_bytes()) else None
    if name == "WEBP":
        return "WebP" if loses_in_webp(path.read_bytes()) else None
    return LOSSY_FORMATS.get(name)


def _read_hdf5(request: ReadRequest, key: str | None) -> DecodedImage:
    import h5py
    import numpy as np

    field = "dataset.label_key" if request.is_labels else "dataset.image_key"
    if key is None:
        raise ConfigError(
            f"{field} is null, but {request.path} is an HDF5 file, and the path of the array inside it is "
            "needed"
        )
    try:
        with h5py.File(request.path, "r") as file:
            item = file.get(key)
            if isinstance(item, h5py.Dataset):
                found = layout(request, item.shape, None)
                request.check_size(item.shape, item.dtype.itemsize)
                samples = found.arranged(np.asarray(item[()]))
                return DecodedImage(samples, f"HDF5, {key}", samples.shape[2:] == (RGB,) == item.shape[-1:])
            names: list[str] = []
            file.visititems(
                lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None
            )
    except ConfigError:
        raise
    except Exception as error:  # h5py raises whatever the library stumbles over in a damaged file
        raise ConfigError(
            f"{request.named} cannot be read as HDF5 ({_one_line(error)}), which {field} {key!r} asks for; "
            "set it to null for other files"
        ) from error
    raise ConfigError(
        f"{field} {key!r} is not an array in {request.path}; there are: {', '.join(names) or 'none'}"
    )


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
