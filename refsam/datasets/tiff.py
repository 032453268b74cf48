"""What a TIFF file holds, as tifffile reads it: by series, axes and photometric interpretation."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from refsam.datasets.decoded import (
    UNKNOWN_AXES,
    DecodedImage,
    ReadRequest,
    layout,
    orientation_of,
    palette_colours,
)
from refsam.datasets.lossy import (
    JPEG2000_COMPRESSIONS,
    LOSSY_COMPRESSIONS,
    loses_in_jpeg2000,
    loses_in_webp,
)
from refsam.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIGNATURES = tuple(
    order + version
    for order, versions in ((b"II", (b"*\0", b"+\0")), (b"MM", (b"\0*", b"\0+")))
    for version in versions
)
ORIENTATION = 274
INKS = 4  # of CMYK
ALPHAS = ("ASSOCALPHA", "UNASSALPHA")


def read_tiff(request: ReadRequest) -> DecodedImage:
    """The one picture in a TIFF file. Levels of a pyramid, thumbnails and masks are no pictures.

    Raises:
        ConfigError: for several pictures, a stack, or colours that are not converted here.
        Exception: whatever tifffile and its decoders raise for damaged files.
    """
    import tifffile

    # It would say of damaged files in several lines what the sentence says that refuses them.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with tifffile.TiffFile(request.path) as file:
        picture, shape, axes = _picture(file, request)
        page = picture[0].keyframe if isinstance(picture, list) else picture.keyframe
        if page.dtype is None:
            raise ConfigError(f"{request.named} has samples of a type that numpy does not have")
        request.check_size(shape, page.dtype.itemsize)
        request.check_size(page.chunks, page.dtype.itemsize)  # tiles and strips may be larger than the image
        _check_segments(request, picture)
        found = layout(request, shape, axes)
        samples = found.arranged(_array(picture).reshape(shape))
        source = f"TIFF, axes {axes}, {_name(page.photometric)}"
        orientation = orientation_of(page.tags.valueof(ORIENTATION, 1))
        # Viewers of photographs turn them, ImageJ and tifffile do not.
        decoded = DecodedImage(
            samples, source, orientation=orientation, disputed=orientation != 1, lossy=_lossy(file, page)
        )
        return _interpreted(request, decoded, page)


def _picture(file: Any, request: ReadRequest) -> tuple[Any, tuple[int, ...], str]:
    """What to read: a page, a series, or a list of pages that are a stack; with its shape and axes."""
    # Asked first: pages that follow one another in a circle are found by counting them, and by nothing else.
    if len(file.pages) == 1 and file.is_ome:
        # The metadata may name planes of other files, and those are other images.
        page = file.pages[0]
        return page, page.shape, page.axes
    series = [each for each in file.series if any(_is_in(page, file) for page in each.pages)]
    full = [each for each in series if not (each.keyframe.is_reduced or each.keyframe.is_mask)] or series
    if len(full) != 1:
        shapes = ", ".join(" × ".join(map(str, each.shape)) for each in full[:3])
        raise ConfigError(
            f"{request.named} holds {len(full)} pictures (series of {shapes}"
            f"{', …' if len(full) > 3 else ''}); expected one; save the one that is meant as a file"
        )
    own = [page for page in full[0].pages if _is_in(page, file)]
    if len(own) == len(full[0].pages):
        return full[0], full[0].shape, full[0].axes
    if len({page.shape for page in own}) > 1:
        raise request.refused((len(own),))
    return own, (len(own), *own[0].shape), UNKNOWN_AXES[0] + own[0].axes


def _check_segments(request: ReadRequest, picture: Any) -> None:
    """Refuse tiles and strips that end behind the file, before memory is taken for them.

    Of a JPEG that is cut off, decoders make up the rest.
    """
    import tifffile

    size = request.path.stat().st_size
    pages = [picture] if isinstance(picture, tifffile.TiffPage) else list(picture)
    for page in pages:
        counts = [] if page is None else page.databytecounts
        # Writers have given other lengths to samples that are not compressed, and nobody uses them.
        starts = [0] * len(counts) if page is None or page.keyframe.compression == 1 else page.dataoffsets
        last = max((start + count for start, count in zip(starts, counts, strict=False)), default=0)
        if last > size:
            raise ConfigError(f"{request.named} is cut off or damaged: it has {size} of {last} bytes")


def _is_in(page: Any, file: Any) -> bool:
    return page is not None and page.parent is file


def _array(picture: Any) -> NDArray[Any]:
    import numpy as np

    if isinstance(picture, list):
        return np.stack([page.asarray() for page in picture])
    return np.asarray(picture.asarray())


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))


def _lossy(file: Any, page: Any) -> str | None:
    compression = _name(page.compression)
    if compression in LOSSY_COMPRESSIONS:
        return LOSSY_COMPRESSIONS[compression]
    if compression not in (*JPEG2000_COMPRESSIONS, "WEBP", "WEBP_DEPRECATED"):
        return None
    file.filehandle.seek(page.dataoffsets[0])
    segment = file.filehandle.read(page.databytecounts[0])
    if compression in JPEG2000_COMPRESSIONS:
        return "JPEG 2000" if loses_in_jpeg2000(segment) else None
    return "WebP" if loses_in_webp(segment) else None


def _interpreted(request: ReadRequest, decoded: DecodedImage, page: Any) -> DecodedImage:
    """The samples as what the photometric interpretation says that they are; of labels the numbers stay."""
    import numpy as np

    samples, photometric, bits = decoded.samples, _name(page.photometric), page.bitspersample
    of_pixel = page.samplesperpixel if samples.ndim == 3 and samples.shape[-1] == page.samplesperpixel else 1
    first_extra = of_pixel - len(page.extrasamples)
    alphas = [first_extra + i for i, extra in enumerate(page.extrasamples) if _name(extra) in ALPHAS]
    decoded = replace(decoded, alpha=alphas[0] if alphas and of_pixel > 1 else None)
    if request.is_labels:
        return decoded
    if photometric in ("MINISBLACK", "MINISWHITE", "MASK", "LINEAR_RAW"):
        if samples.dtype == np.bool_:
            samples = samples.astype(np.uint8)
        if photometric == "MINISWHITE":
            samples = (2**bits - 1 if samples.dtype.kind == "u" else samples.max()) - samples
        if bits < 8:
            samples = samples * np.uint8(255 // (2**bits - 1))
        return replace(decoded, samples=samples)
    if photometric == "RGB" and of_pixel >= 3:
        return replace(decoded, colours=True)
    if photometric == "PALETTE" and samples.ndim == 2 and page.colormap is not None:
        colours = palette_colours(samples, page.colormap.T, bits)
        return replace(decoded, samples=colours, colours=colours.ndim == 3)
    if photometric == "SEPARATED" and of_pixel >= INKS and samples.dtype.kind == "u":
        return replace(decoded, samples=_from_cmyk(samples[..., :INKS]), colours=True, alpha=None)
    if photometric == "YCBCR" and of_pixel == 3 and samples.dtype == np.uint8:
        # Of JPEG, tifffile has converted them.
        rgb = samples if decoded.lossy == "JPEG" else _from_ycbcr(samples)
        return replace(decoded, samples=rgb, colours=True)
    if photometric in ("CIELAB", "ICCLAB") and of_pixel == 3 and samples.dtype in (np.uint8, np.uint16):
        return replace(decoded, samples=_from_lab(samples, photometric == "ICCLAB"), colours=True)
    raise ConfigError(
        f"{request.named} has {of_pixel} samples of {samples.dtype} per pixel with "
        f"photometric interpretation {photometric}, which cannot be read; save it as grey or RGB"
    )


def _from_cmyk(inks: NDArray[Any]) -> NDArray[Any]:
    """(H, W, 3) of cyan, magenta, yellow and black, (H, W, 4), in the same unsigned integers."""
    import numpy as np

    most = np.iinfo(inks.dtype).max
    paper = (most - inks).astype(np.float64)
    rgb: NDArray[Any] = np.round(paper[..., :3] * paper[..., 3:] / most).astype(inks.dtype)
    return rgb


def _from_ycbcr(samples: NDArray[Any]) -> NDArray[Any]:
    import numpy as np
    from PIL import Image

    height, width = samples.shape[:2]
    picture = Image.frombytes("YCbCr", (width, height), np.ascontiguousarray(samples).tobytes())
    return np.asarray(picture.convert("RGB"))


def _from_lab(samples: NDArray[Any], icc: bool) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of CIE L*a*b*, (H, W, 3) uint8 or uint16 (TIFF 6.0, section 23; ICC: Tech Note 4)."""
    import numpy as np
    from skimage.color import lab2rgb

    deep = samples.dtype == np.uint16
    unit = 256.0 if deep else 1.0
    lightness = samples[..., :1] * (100.0 / ((65280.0 if icc else 65535.0) if deep else 255.0))
    colour = np.ascontiguousarray(samples[..., 1:])
    if not icc:
        colour = colour.view(np.int16 if deep else np.int8)
    colour = colour.astype(np.float64) / unit - (128.0 if icc else 0.0)
    rgb: NDArray[Any] = lab2rgb(np.concatenate([lightness, colour], axis=-1))
    eight: NDArray[np.uint8] = np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
    return eight
