"""Overrides of text fields as they were typed: Hydra would read 2026_11_28, 1e5 and true as other values."""

import dataclasses
import functools
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from antlr4 import CommonTokenStream, InputStream  # Hydra's own
from hydra.grammar.gen.OverrideLexer import OverrideLexer

from refsam.configuration.frozen import required
from refsam.configuration.schema import RefsamConfig

_NUMBERED_GROUP = "n_train_images"  # its choices are numbers, and Hydra takes no bare number for a choice
_NO_TEXT = {OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL}
_COLLECTIONS = {list: "[", dict: "{"}
_OPENING = {OverrideLexer.BRACKET_OPEN, OverrideLexer.BRACE_OPEN, OverrideLexer.POPEN}
_CLOSING = {OverrideLexer.BRACKET_CLOSE, OverrideLexer.BRACE_CLOSE, OverrideLexer.PCLOSE}
_BETWEEN = {OverrideLexer.COMMA, OverrideLexer.EQUAL, *_OPENING, *_CLOSING}


def split_override(override: str) -> tuple[str, str]:
    """Key and value as they were typed, without + and ~ before the key; no = is an empty value."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def quote_text(overrides: Sequence[str]) -> list[str]:
    """The overrides, with quotes around what the schema has as text and Hydra would read as something else.

    `name=2026_11_28` becomes `name='2026_11_28'`, `dataset.categories=[2_0,a]` becomes
    `dataset.categories=['2_0',a]`, and `runs=~/study` becomes `runs='~/study'`. A null stays null, and so do
    arguments of functions other than choice.
    """
    return [_quoted(text, text_shape(split_override(text)[0])) for text in overrides]


@functools.cache
def text_shape(key: str) -> str | None:
    """How a field of the schema, a dotted name, holds text: "" as it is, "[" in a list, "{" in a mapping.

    A group holds the name of its choice. None for fields of other types.
    """
    kind: Any = RefsamConfig
    for name in key.split("."):
        arguments = typing.get_args(kind)
        if dataclasses.is_dataclass(kind):
            kind = required(typing.get_type_hints(kind).get(name))
        else:
            kind = arguments[-1] if arguments else None
    is_group = "." not in key and (dataclasses.is_dataclass(kind) or key == _NUMBERED_GROUP)
    if kind is str or is_group:
        return ""
    return _COLLECTIONS.get(typing.get_origin(kind)) if typing.get_args(kind)[-1:] == (str,) else None


def _quoted(override: str, shape: str | None) -> str:
    if shape == "":  # a home folder; Hydra's grammar has ~ for deletions only
        override = re.sub(r"(?<=[=,])~[^,'\"]*", lambda path: f"'{path[0]}'", override)
    places = [] if shape is None else list(_bare_values(override, shape))
    for start, stop in reversed(places):
        override = f"{override[:start]}'{override[start:stop]}'{override[stop:]}"
    return override


def _bare_values(override: str, shape: str) -> Iterator[tuple[int, int]]:
    """Where numbers and truth values stand alone inside the brackets `shape`: first character, last + 1."""
    around: list[str] = []  # brackets and functions; choice(…) is as if it were not there
    group: list[Any] = []
    is_key = False  # what comes before the first colon in a mapping, and after a comma
    for token in (*_value_tokens(override), None):
        kind = None if token is None else token.type
        if kind == OverrideLexer.COLON and is_key and shape == "{":
            group, is_key = [], False
            continue
        if token is not None and kind not in _BETWEEN:
            group.append(token)
            continue
        if len(group) == 1 and group[0].type in _NO_TEXT and "".join(around) == shape:
            yield group[0].start, group[0].stop + 1
        if token is not None and kind in _OPENING:
            name = "".join(part.text for part in group) + token.text.strip()
            around.append("" if name == "choice(" else name)
        elif kind in _CLOSING:
            around = around[:-1]
        group, is_key = [], kind in (OverrideLexer.BRACE_OPEN, OverrideLexer.COMMA)


def _value_tokens(override: str) -> list[Any]:
    """The tokens of Hydra's grammar to the right of the first =, without white space."""
    lexer = OverrideLexer(InputStream(override))
    lexer.removeErrorListeners()  # what is no override is named by Hydra's parser
    stream = CommonTokenStream(lexer)
    stream.fill()
    types_of = [token.type for token in stream.tokens]
    if OverrideLexer.EQUAL not in types_of:
        return []
    values = stream.tokens[types_of.index(OverrideLexer.EQUAL) + 1 : -1]  # the last one is the end
    return [token for token in values if token.type != OverrideLexer.WS]
