"""Records as dataclasses: a value of another type is a sentence that names the file and the field."""

import contextlib
import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

Record = TypeVar("Record")

LARGEST = 2**53  # that a number of JSON tells exactly

# Kinds of fields beside Python's own.
Count = Annotated[int, "an integer >= 0"]
Seconds = Annotated[float, "a finite number"]
Time = Annotated[str, "a time in ISO 8601 with its offset from UTC"]


def from_record(kind: type[Record], values: Any, path: Path) -> Record:
    """A dataclass from the content of the JSON file `path`. Fields that it does not have are passed over.

    Raises ValueError, naming file and field, for a value of another type and for one that is missing.
    """
    fields: dict[str, Any] = _fields(kind)  # type: ignore[arg-type]
    return kind(**checked(values, fields, path))


def usable_record(kind: type[Record], values: Any, path: Path) -> Record:
    """As from_record, without the fields that are not as they should be. Each needs a default."""
    fields: dict[str, Any] = _fields(kind)  # type: ignore[arg-type]
    return kind(**usable(values, fields, path))


def usable(values: dict[str, Any], fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Those of some fields of a mapping that are as they should be, converted."""
    found: dict[str, Any] = {}
    for name in fields:
        with contextlib.suppress(ValueError):
            found |= checked(values, {name: fields[name]}, path)
    return found


def checked(values: Any, fields: Mapping[str, Any], path: Path, where: str = "") -> dict[str, Any]:
    """The given ones of some fields of a mapping, by name and type as annotations have them, converted.

    Raises ValueError, naming the file, the place in it, and the field.
    """
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} is damaged: {where.rstrip('.') or 'it'} must be a mapping, got {_shown(values)}"
        )
    found = {}
    for name, kind in fields.items():
        if name in values:
            convert, words = _converter(kind)
            try:
                found[name] = convert(values[name])
            except (OverflowError, TypeError, ValueError) as error:
                field = f"{where}{name}"
                raise ValueError(
                    f"{path} is damaged: {field} must be {words}, got {_shown(values[name])}"
                ) from error
    return found


@cache
def _fields(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


@cache
def _converter(kind: Any) -> tuple[Callable[[Any], Any], str]:
    """What makes a value of a kind of what JSON has, raising TypeError or ValueError, and the kind's name."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (inner,) = (choice for choice in typing.get_args(kind) if choice is not types.NoneType)
        convert, words = _converter(inner)
        return lambda value: None if value is None else convert(value), f"{words} or null"
    if typing.get_origin(kind) is Annotated:
        return _ANNOTATED[kind], str(typing.get_args(kind)[1])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind, f"one of {', '.join(str(each.value) for each in kind)}"
    return _PLAIN[typing.get_origin(kind) or kind]


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST:
        raise TypeError
    return value


def _count(value: Any) -> int:
    if _integer(value) < 0:
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _finite(value: Any) -> float:
    if not math.isfinite(_number(value)):
        raise ValueError
    return float(value)


def _time(value: Any) -> str:
    if not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is None:
        raise ValueError
    return value


def _exactly(kind: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return convert


_ANNOTATED: dict[Any, Callable[[Any], Any]] = {Count: _count, Seconds: _finite, Time: _time}
_PLAIN: dict[Any, tuple[Callable[[Any], Any], str]] = {
    int: (_integer, "an integer"),
    float: (_number, "a number"),
    bool: (_exactly(bool), "true or false"),
    str: (_exactly(str), "a text"),
    list: (_exactly(list), "a list"),
    dict: (_exactly(dict), "a mapping"),
}


def _shown(value: Any) -> str:
    return "null" if value is None else reprlib.repr(value)
