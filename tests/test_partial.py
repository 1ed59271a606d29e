"""Points of which only some parameters are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import spaces_with_params, unit_points

from llamatune_torch import Integer, ParamsError, Real, SearchSpace
from llamatune_torch.partial import completions, is_complete, validate_part

SPACE = SearchSpace(
    {
        "x": Real(0, 1),
        "method": ["full", "lora", "dora"],
        "rank": Integer(1, 64, when={"method": ["lora", "dora"]}),
        "split": Integer(1, 4, when={"method": "full"}),
    }
)


@given(spaces_with_params(), st.data())
def test_a_completed_point_has_what_was_given_and_is_in_the_space(
    drawn: tuple[SearchSpace, dict[str, Any]], data: st.DataObject
) -> None:
    space, params = drawn
    params = space.validate(params)
    names = data.draw(st.lists(st.sampled_from(list(params)), min_size=1, unique=True))
    part = {name: params[name] for name in params if name in names}
    U = np.array(data.draw(st.lists(unit_points(space.dim), min_size=1, max_size=4)))
    for full in space.decode_all(completions(space, part, U)):
        assert repr(space.validate(full)) == repr(full)
        assert repr({name: full[name] for name in part}) == repr(part)
    assert repr(space.decode_all(completions(space, params, U))) == repr([params] * len(U))
    assert is_complete(space, params)


def test_what_is_left_out_comes_from_the_point() -> None:
    U = np.array([[0.25, 0.5, 0.5, 0.5], [0.75, 0.1, 0.0, 0.0]])
    assert SPACE.decode_all(completions(SPACE, {"x": 0.5}, U)) == [
        {"x": 0.5, "method": "lora", "rank": 33},
        {"x": 0.5, "method": "full", "split": 1},
    ]
    # Only the first of the points has a method with a rank.
    assert SPACE.decode_all(completions(SPACE, {"rank": 8}, U)) == [{"x": 0.25, "method": "lora", "rank": 8}]


def test_names_and_values_are_canonical_and_in_order() -> None:
    part = validate_part(SPACE, {"rank": 8.0, "x": 1})
    assert repr(part) == "{'x': 1.0, 'rank': 8}"
    assert not is_complete(SPACE, part)
    assert not is_complete(SPACE, validate_part(SPACE, {"x": 0, "method": "lora"}))
    assert is_complete(SPACE, validate_part(SPACE, {"x": 0, "method": "lora", "rank": 1}))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, r"must be a dict that is not empty, but got \{\}"),
        ([0.5], r"must be a dict that is not empty, but got \[0.5\]"),
        ({"y": 0.5}, r"unknown parameters \['y'\]; the space has \['x', 'method', 'rank', 'split'\]"),
        ({"x": 2}, r"parameter 'x' must lie in \[0, 1\], but got 2"),
        ({"method": "full", "rank": 8}, r"parameter 'rank' is inactive unless method in .*: leave it out, but got 8"),
        ({"rank": 8, "split": 2}, r"parameter '(rank|split)' is inactive unless method"),
    ],
)
def test_a_mistake_is_named(params: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        validate_part(SPACE, params)
