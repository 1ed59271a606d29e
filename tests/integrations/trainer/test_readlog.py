"""A dict that knows which of its values were looked at."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import pytest

from llamatune_torch.integrations.trainer.readlog import ReadLog

PARAMS = {"a": 1, "b": None}


def takes_a(a: Any, **rest: Any) -> Any:
    return a


def matches_a(params: Any) -> Any:
    match params:
        case {"a": a}:
            return a


@pytest.mark.parametrize(
    "read",
    [
        lambda p: p["a"],
        lambda p: p.get("a"),
        lambda p: p.get("a", 3),
        lambda p: p.pop("a"),
        lambda p: p.pop("a", None),
        itemgetter("a"),
        matches_a,
    ],
    ids=["[]", "get", "get with default", "pop", "pop with default", "itemgetter", "match"],
)
def test_reading_one_value_marks_that_one(read: Callable[[ReadLog], Any]) -> None:
    params = ReadLog(PARAMS)
    assert read(params) == 1
    assert params.read == {"a"}


@pytest.mark.parametrize(
    "read",
    [
        lambda p: takes_a(**p),
        dict,
        lambda p: {**p},
        lambda p: dict(p.items()),
        lambda p: dict(zip(p, p.values(), strict=True)),
        lambda p: {name: p[name] for name in p},
        lambda p: p.copy(),
        copy.deepcopy,
        lambda p: p | {},
        lambda p: {} | p,
        lambda p: {}.update(p),
        json.dumps,
    ],
    ids=["**", "dict", "{**}", "items", "values", "loop", "copy", "deepcopy", "|", "| from right", "update", "json"],
)
def test_taking_everything_marks_everything(read: Callable[[ReadLog], Any]) -> None:
    params = ReadLog(PARAMS)
    read(params)
    assert params.unread() == []


@pytest.mark.parametrize("look", [len, repr, bool, lambda p: "a" in p, list, lambda p: p.keys(), lambda p: p == PARAMS])
def test_looking_at_names_alone_is_no_reading(look: Callable[[ReadLog], Any]) -> None:
    params = ReadLog(PARAMS)
    look(params)
    assert params.unread() == ["a", "b"]


def test_it_is_a_dict_with_the_same_values() -> None:
    params = ReadLog(PARAMS)
    assert isinstance(params, dict)
    assert dict(params) == params.copy() == params | {} == PARAMS


def test_changing_it_leaves_the_original_alone() -> None:
    original = {"a": 1}
    ReadLog(original).pop("a")
    assert original == {"a": 1}
