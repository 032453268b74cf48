"""Names of images, compared as a person reads them."""

import unicodedata


def normalized(name: str) -> str:
    """`name` with composed characters (Unicode NFC): macOS writes ü in file names as u and a mark."""
    return unicodedata.normalize("NFC", name)
