"""Names and numbers as a person reads them."""

import unicodedata


def normalized(name: str) -> str:
    """`name` with composed characters (Unicode NFC): macOS writes ü in file names as u and a mark."""
    return unicodedata.normalize("NFC", name)


def counted(number: int, word: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
