"""Checks of what was read from a file or a database: each raises a ``SchemaError`` that has the place and the value."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from llamatune_torch.errors import SchemaError

T = TypeVar("T")
Check = Callable[[Any, str], T]

#: What Python raises where it meets something else than it was made for.
ODD = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)


def shorten(value: Any) -> str:
    """Shows a value of any size in a few words."""
    try:
        return reprlib.repr(value)
    except ODD:  # a number of more digits than Python writes
        return f"a {type(value).__name__}"


def clip(error: object) -> str:
    """Shows the message of an exception of any length."""
    return str(error)[:300]


def refuse(place: str, rule: str, value: Any) -> SchemaError:
    """Makes the error for a value that breaks a rule."""
    return SchemaError(f"{place} must be {rule}, but got {shorten(value)}")


def take(record: Mapping[str, Any], name: str, place: str, check: Check[T]) -> T:
    """Returns a field of a record, checked."""
    if name not in record:
        raise SchemaError(f"{place} has no {name!r}")
    return check(record[name], f"{place}: {name}")


def optional(check: Check[T]) -> Check[T | None]:
    """Makes a check that ``None`` passes too."""
    return lambda value, place: None if value is None else check(value, place)


def parsed(text: Any, place: str) -> Any:
    """Parses JSON."""
    try:
        return json.loads(text)
    except ODD as error:
        raise SchemaError(f"{place} must be JSON, but got {shorten(text)} ({clip(error)})") from None


def mapping(value: Any, place: str) -> dict[str, Any]:
    """Checks a mapping whose keys are text."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise refuse(place, "a record", value)
    return dict(value)


def scalars(value: Any, place: str) -> dict[str, Any]:
    """Checks a mapping from text to values that hold no others."""
    for name, inner in mapping(value, place).items():
        if isinstance(inner, (Mapping, list, tuple)):
            raise refuse(f"{place}: {shorten(name)}", "a plain value", inner)
    return dict(value)


def sequence(value: Any, place: str) -> list[Any]:
    """Checks a list."""
    if not isinstance(value, (list, tuple)):
        raise refuse(place, "a list", value)
    return list(value)


def text(value: Any, place: str) -> str:
    """Checks text that a database takes."""
    try:
        if isinstance(value, str):
            value.encode()
            return value
    except UnicodeEncodeError:  # half of a character
        pass
    raise refuse(place, "text", value)


def words(value: Any, place: str) -> str:
    """Checks text for people, which may have any characters in it."""
    if not isinstance(value, str):
        raise refuse(place, "text", value)
    return value


def number(value: Any, place: str) -> float:
    """Checks a number that a float can hold, and returns it as one; infinity and nan are some."""
    if type(value) is float or (type(value) is int and abs(value) <= 2**1023):
        return float(value)  # SQLite takes no integer of more than 64 bits
    raise refuse(place, "a number", value)


def whole(value: Any, place: str) -> int:
    """Checks an integer of 64 bits."""
    if type(value) is not int or not -(2**63) <= value < 2**64:
        raise refuse(place, "an integer of 64 bits", value)
    return value
