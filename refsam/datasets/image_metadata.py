"""What a file says of its image beside the pixels: their size, and when and of what it was taken."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile
from PIL import Image, UnidentifiedImageError

from refsam.datasets.decoded import QUARTER_TURNS
from refsam.datasets.tiff import SIGNATURES

# Micrometres per unit, by the names that OME and ImageJ have for it.
MICROMETRES = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "\\u00B5m", "micrometer"), 1.0),
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "inch": 25400.0,
    "in": 25400.0,
    "pm": 1e-6,
    "Å": 1e-4,
}
TIFF_UNITS = {2: "inch", 3: "cm"}  # of the tag ResolutionUnit
RESOLUTION_TAGS = ("YResolution", "XResolution")
DTD = "<!"  # a document type may hold entities that grow without end (billion laughs); OME has none


@dataclass(frozen=True)
class ImageMetadata:
    """What is kept of an image file.

    pixel_size: height and width of a pixel in micrometres; None where the file does not say. acquired: when,
    as OME writes it (ISO 8601). description: of the image, in words.
    """

    pixel_size: tuple[float, float] | None = None
    acquired: str | None = None
    description: str | None = None

    def turned(self, orientation: int) -> ImageMetadata:
        """That of the image after it was turned as EXIF's orientation says."""
        if self.pixel_size is None or orientation not in QUARTER_TURNS:
            return self
        return replace(self, pixel_size=self.pixel_size[::-1])


def read_metadata(path: Path) -> ImageMetadata:
    """The metadata of a TIFF file (OME's, ImageJ's or the tags), or the resolution of a PNG or JPEG.

    What other files say is not read. Metadata that cannot be used are none: the pixels are what counts.
    """
    with path.open("rb") as file:
        is_tiff = file.read(4).startswith(SIGNATURES)
    if not is_tiff:
        return _of_picture(path)
    with tifffile.TiffFile(path) as tiff:
        if tiff.ome_metadata is not None:
            return _of_ome(tiff.ome_metadata)
        page = tiff.pages.first
        imagej = tiff.imagej_metadata
        unit = TIFF_UNITS.get(int(page.tags.valueof("ResolutionUnit", 2)))
        if imagej is not None:
            unit = imagej.get("unit", unit)
            description = imagej.get("Info")
        else:
            description = page.tags.valueof("ImageDescription")
        return ImageMetadata(
            _pixel_size(page, unit),
            _iso(page.tags.valueof("DateTime")),
            description.strip() if isinstance(description, str) and description.strip() else None,
        )


def _pixel_size(page: tifffile.TiffPage, unit: object) -> tuple[float, float] | None:
    """Height and width in micrometres, of the resolution in pixels per unit."""
    micrometres = MICROMETRES.get(str(unit))
    resolutions = [page.tags.valueof(name) for name in RESOLUTION_TAGS]
    if micrometres is None or not all(isinstance(each, tuple) and all(each) for each in resolutions):
        return None
    height, width = (micrometres * denominator / numerator for numerator, denominator in resolutions)
    return _usable(height, width)


def _usable(height: float, width: float) -> tuple[float, float] | None:
    return (height, width) if all(math.isfinite(side) and side > 0 for side in (height, width)) else None


def _of_ome(text: str) -> ImageMetadata:
    if DTD in text.replace("<!--", ""):
        return ImageMetadata()
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - without a document type
    except ElementTree.ParseError:
        return ImageMetadata()
    image, pixels = root.find("{*}Image"), root.find("{*}Image/{*}Pixels")
    if image is None or pixels is None:
        return ImageMetadata()
    sides: list[float] = []
    for axis in "YX":
        micrometres = MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            sides.append(float(pixels.get(f"PhysicalSize{axis}", "nan")) * (micrometres or math.nan))
        except ValueError:
            sides.append(math.nan)
    return ImageMetadata(
        _usable(*sides),
        _text(image, "AcquisitionDate"),
        _text(image, "Description"),
    )


def _text(image: ElementTree.Element, name: str) -> str | None:
    found = image.findtext(f"{{*}}{name}")
    return found.strip() or None if found is not None else None


def _iso(value: object) -> str | None:
    """The tag DateTime, `YYYY:MM:DD HH:MM:SS`, as OME writes it."""
    date, _, time = str(value).partition(" ")
    parts = date.split(":")
    if len(parts) != 3 or not all(part.isdigit() for part in [*parts, *time.split(":")]):
        return None
    return f"{'-'.join(parts)}T{time}"


def _of_picture(path: Path) -> ImageMetadata:
    """Of a file that Pillow knows; others have none."""
    try:
        with Image.open(path) as picture:
            resolution: Any = picture.info.get("dpi")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ImageMetadata()
    if not (isinstance(resolution, tuple) and len(resolution) == 2 and all(resolution)):
        return ImageMetadata()
    horizontal, vertical = (float(each) for each in resolution)
    return ImageMetadata(_usable(MICROMETRES["inch"] / vertical, MICROMETRES["inch"] / horizontal))
