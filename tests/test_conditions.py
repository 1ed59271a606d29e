"""Conditions that compare a parent to a number: read, checked, counted, and looked up at points of the cube."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import grids, integers, reals, unit_points

from llamatune_torch import Categorical, Integer, ParamsError, Real, SearchSpace, SpaceError
from llamatune_torch.parameter_base import Comparison, Parameter, read_comparison

OPERATORS = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def compared(number: Any, comparison: Any) -> SearchSpace:
    return SearchSpace({"n": number, "c": Categorical(["a", "b"], when={"n": comparison})})


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("> 0", Comparison(">", 0)),
        (">=-1.5", Comparison(">=", -1.5)),
        (" < 1e-4 ", Comparison("<", 1e-4)),
        ("!= 8", Comparison("!=", 8)),
        ("== 8.0", Comparison("==", 8.0)),
        ("> inf", None),
        ("> nan", None),
        ("=> 1", None),
        ("> 1 or < 0", None),
        (">", None),
        ("lora", None),
        (3, None),
        (None, None),
    ],
)
def test_a_comparison_is_an_operator_and_a_finite_number(text: Any, read: Comparison | None) -> None:
    assert read_comparison(text) == read
    if read is not None:
        assert read_comparison(str(read)) == read


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[Parameter, str, float]:
    """A number, an operator, and a bound of which the number's own values are likely."""
    kind = st.lists(st.integers(-9, 9), min_size=2, max_size=6, unique=True).map(Categorical)
    number = draw(st.one_of(reals(), integers(), grids(), kind))
    if isinstance(number, Categorical):
        own = list(number.choices)
    else:
        assert isinstance(number, (Real, Integer))
        own = [number.low, number.high, *number.special, *number.decode([0.4, 0.7])]
    bound = draw(st.one_of(st.sampled_from(own), st.integers(-100, 100), st.floats(-100, 100)))
    return number, draw(st.sampled_from(list(OPERATORS))), bound


@given(comparisons(), st.data())
def test_a_parameter_is_there_exactly_where_its_comparison_holds(
    drawn: tuple[Parameter, str, float], data: st.DataObject
) -> None:
    number, operator, bound = drawn
    try:
        space = compared(number, f"{operator} {bound!r}")
    except SpaceError:
        return  # it holds always or never: see the next test
    X = np.array(data.draw(st.lists(unit_points(2), min_size=1, max_size=5)))
    for x, active, params in zip(X, space.active(X), space.decode_all(X), strict=True):
        assert active[1] == ("c" in params) == OPERATORS[operator](params["n"], bound)
        assert space.decode(space.snap(x)) == params
        assert space.validate(params) == params
        assert space.decode(space.encode(params)) == params
    again = SearchSpace({"n": number, "c": Categorical(["a", "b"], when={"n": f" {operator}{bound!r}"})})
    assert again == space  # the spelling does not matter


@given(comparisons())
def test_a_comparison_is_refused_exactly_if_it_holds_for_all_or_for_none(drawn: tuple[Parameter, str, float]) -> None:
    number, operator, bound = drawn
    if number.size is None or number.size > 1000:
        return
    assert number.size is not None
    values = number.decode(number.coordinate(np.arange(number.size)))
    holding = sum(OPERATORS[operator](value, bound) for value in values)
    if 0 < holding < number.size:
        space = compared(number, f"{operator} {bound!r}")
        assert space.size == len(space.grid()) == number.size + holding
        assert len({repr(params) for params in space.decode_all(space.grid())}) == space.size
    else:
        with pytest.raises(SpaceError, match=rf"holds for {'every' if holding else 'no'} value"):
            compared(number, f"{operator} {bound!r}")


def test_the_size_of_a_space_is_exact_however_many_values_are_compared() -> None:
    n = Integer(1, 10**12, special=[0, 5])
    space = SearchSpace(
        {
            "n": n,
            "a": Categorical(["x", "y", "z"], when={"n": ">= 1000"}),
            "b": Categorical(["x", "y"], when={"n": [5, 7]}),
            "c": Categorical(["x", "y"], when={"n": "!= 5", "a": "x"}),
        }
    )
    large = 10**12 - 999  # values from 1000 on: each has a, and c where a is "x"
    assert space.size == (10**12 + 1 - large - 2) + 2 * 2 + large * 4


def test_a_special_value_is_compared_as_the_number_that_it_is() -> None:
    space = compared(Real(0.1, 0.5, special=[0.0]), "> 0")
    assert space.decode([0.1, 0.9]) == {"n": 0.0}
    assert space.decode([0.25, 0.9]) == {"n": 0.1, "c": "b"}
    assert compared(Real(0.1, 0.5, special=[0.0]), "!= 0").decode([1.0, 0.1]) == {"n": 0.5, "c": "a"}


def test_texts_that_look_like_comparisons_stay_choices_where_they_are_some() -> None:
    space = compared(Categorical(["> 0", "<= 0"]), "> 0")
    assert space.conditions["c"] == {"n": ("> 0",)}
    assert space.validate({"n": "> 0", "c": "a"}) == {"n": "> 0", "c": "a"}
    with pytest.raises(ParamsError, match="parameter 'c' is inactive unless n == '> 0'"):
        space.validate({"n": "<= 0", "c": "a"})
    mixed = compared(Categorical([0, 1, "> 0"]), "> 0")  # not all of its choices are numbers
    assert "c" not in mixed.validate({"n": 1})
    labelled = compared(Categorical({"> 0": 1, "<= 0": 2}), "> 0")
    assert "c" not in labelled.validate({"n": "<= 0"})


def test_a_comparison_is_shown_and_stored_in_one_spelling() -> None:
    space = compared(Integer(0, 8), ">0")
    assert repr(space["c"]) == "Categorical(choices=('a', 'b'), ordered=False, when={'n': '> 0'})"
    with pytest.raises(ParamsError, match=r"parameter 'c' is inactive unless n > 0: leave it out, but got 'a'"):
        space.validate({"n": 0, "c": "a"})


def test_a_condition_on_lists_names_them_in_a_list_and_one_on_labels_names_labels() -> None:
    lists = compared(Categorical([["q"], ["q", "v"]]), [["q"]])
    assert repr(lists["c"]) == "Categorical(choices=('a', 'b'), ordered=False, when={'n': [['q']]})"
    assert lists.decode([0.1, 0.1]) == {"n": ["q"], "c": "a"}
    assert lists.decode([0.9, 0.1]) == {"n": ["q", "v"]}
    for named in ("qv", [("q", "v")]):  # the label, or the value in a list of values
        labelled = compared(Categorical({"qv": ["q", "v"], "all": math}), named)
        assert labelled.conditions["c"] == {"n": ("qv",)}
        assert labelled["c"].when == {"n": ("qv",)}
