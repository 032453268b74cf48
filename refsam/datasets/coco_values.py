"""Values of annotation files as programs write them: read where the meaning is plain, else None."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

Key = int | str
T = TypeVar("T")

_DECIMAL = re.compile(r"-?[1-9][0-9]{0,17}|0")  # not 007, which is a name, and no number of a million digits
_LARGEST = 2**63
_FLAGS: dict[int | None, bool] = {0: False, 1: True}


def key(value: Any) -> Key | None:
    """An id: a whole number, also as 7.0 or "7", or any other text."""
    if isinstance(value, str) and not _DECIMAL.fullmatch(value.strip()):
        return value or None
    return whole(value)


def whole(value: Any) -> int | None:
    """A whole number, also as 7.0, "7" or "7.0"."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < _LARGEST else None
    found = number(value)
    return int(found) if found is not None and found.is_integer() and abs(found) < _LARGEST else None


def number(value: Any) -> float | None:
    """A finite number, also as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def numbers(values: Any) -> list[float] | None:
    """A list of finite numbers."""
    if isinstance(values, list) and set(map(type, values)) == {float}:  # which most files have millions of
        return values if all(map(math.isfinite, values)) else None
    return _all(values, number)


def wholes(values: Any) -> list[int] | None:
    """A list of whole numbers."""
    return _all(values, whole)


def flag(value: Any) -> bool | None:
    """False or true, also as 0 or "0", 1 or "1", or "true"; nothing is false."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("false", "true"):
        return value.strip().lower() == "true"
    return _FLAGS.get(whole(value))


def _all(values: Any, read: Callable[[Any], T | None]) -> list[T] | None:
    if not isinstance(values, list):
        return None
    found = [item for item in map(read, values) if item is not None]
    return found if len(found) == len(values) else None
