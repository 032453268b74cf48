"""Whether a compressed image is what was saved, which the ids of a label image have to be."""

from __future__ import annotations

# By Pillow's names of formats. JPEG 2000 and WebP can be either.
LOSSY_FORMATS = {"JPEG": "JPEG", "MPO": "JPEG", "AVIF": "AVIF", "JXR": "JPEG XR", "JXL": "JPEG XL"}
# By tifffile's names of compressions.
LOSSY_COMPRESSIONS = {
    **dict.fromkeys(("OJPEG", "JPEG", "ALT_JPEG", "JPEG_LOSSY"), "JPEG"),
    **dict.fromkeys(("JPEGXR", "JPEGXR_NDPI"), "JPEG XR"),
    **dict.fromkeys(("JPEGXL", "JPEGXL_DNG"), "JPEG XL"),
}
JPEG2000_COMPRESSIONS = ("JPEG2000", "JPEG_2000_LOSSY", "APERIO_JP2000_YCBC", "APERIO_JP2000_RGB")


def loses_in_jpeg2000(data: bytes) -> bool:
    """Whether a file or codestream of JPEG 2000 has the wavelets that round (ISO 15444-1, A.6.1)."""
    position = data.find(b"\xff\x4f\xff\x51") + 2  # behind the start of the codestream
    while 2 <= position < len(data) - 14:
        if data[position : position + 2] == b"\xff\x52":
            return data[position + 13] == 0
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return True


def loses_in_webp(data: bytes) -> bool:
    """Whether a WebP file has an image that is compressed with loss (chunk `VP8 ` instead of `VP8L`)."""
    position = 12
    while position < len(data) - 8:
        if data[position : position + 4] == b"VP8L":
            return False
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + size + size % 2
    return True
