"""Spaces and trials as JSON: nothing is lost on the way."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from strategies import JSON_SCALARS, make_trial, spaces, spaces_with_params

from llamatune_torch import Categorical, Curve, Integer, Real, SchemaError, SearchSpace, SpaceError, Trial, TrialState
from llamatune_torch.parameter_base import Floats, Parameter
from llamatune_torch.storage.serialization import compare_spaces, read_space, read_trial, write_space, write_trial

NUMBERS = st.floats(allow_nan=False)
TEXTS = st.one_of(st.none(), st.text(st.characters(), max_size=20))


@given(spaces())
def test_a_space_survives_the_way_to_text_and_back(space: SearchSpace) -> None:
    text = write_space(space)
    again = read_space(text)
    assert again == space
    assert repr(again) == repr(space)  # which tells 1, 1.0 and True apart
    assert write_space(again) == text
    assert text.isascii()


@st.composite
def trials(draw: st.DrawFn) -> tuple[SearchSpace, Trial]:
    space, params = draw(spaces_with_params())
    length = draw(st.integers(0, 3))
    points = st.lists(NUMBERS, min_size=length, max_size=length)
    steps = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=length, max_size=length)
    state = draw(st.sampled_from(TrialState))
    trial = Trial(
        number=draw(st.integers(0, 2**40)),
        params=space.validate(params),
        seed=draw(st.integers(0, 2**63 - 1)),
        origin=draw(st.sampled_from(["initial", "sobol", "surrogate", "added", "retry"])),
        state=state,
        value=draw(NUMBERS if state is TrialState.COMPLETE else st.one_of(st.none(), NUMBERS)),
        curve=Curve(sorted(draw(steps)), draw(points), [None] * length),
        outcomes=draw(st.dictionaries(st.text(max_size=5), NUMBERS, max_size=2)),
        cost=draw(st.one_of(st.none(), NUMBERS)),
        error=draw(TEXTS),
        reason=draw(TEXTS),
        notes=draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)),
        started=draw(st.one_of(st.none(), NUMBERS)),
        finished=draw(st.one_of(st.none(), NUMBERS)),
        worker=draw(st.one_of(st.none(), st.text(max_size=5))),
        retry_of=draw(st.one_of(st.none(), st.integers(0, 100))),
    )
    return space, trial


@given(trials())
def test_a_trial_survives_the_way_to_a_row_and_back(case: tuple[SearchSpace, Trial]) -> None:
    space, trial = case
    row = write_trial(trial)
    assert read_trial(row) == trial
    assert repr(read_trial(row).params) == repr(trial.params)
    assert read_trial(row, space) == trial  # it fits
    assert row["params"].isascii()
    assert row["details"].isascii()


@given(st.lists(JSON_SCALARS, max_size=3))
def test_nan_survives_in_curves_and_numbers_of_other_libraries_become_plain(more: list[Any]) -> None:
    trial = make_trial(0, {}, 1.0, curve=Curve((1.0,), (math.nan,), (None,)), outcomes={"a": np.float32(0.5)})
    trial.notes["odd"] = torch.tensor(2.0)  # type: ignore[index]  # a plain dict underneath
    trial.notes["odder"] = object  # type: ignore[index]
    again = read_trial(write_trial(trial))
    assert math.isnan(again.curve.values[0])
    assert again.outcomes == {"a": 0.5}
    assert again.notes == {"odd": 2.0, "odder": "<class 'object'>"}


def test_bounds_of_other_libraries_become_plain() -> None:
    space = SearchSpace({"x": Real(np.float64(0.5), np.float64(2)), "n": Integer(np.int64(1), np.int64(4))})
    assert json.loads(write_space(space))[1]["low"] == 1
    assert read_space(write_space(space)) == space


class Custom(Parameter):
    when: ClassVar[dict[str, Any]] = {}

    @property
    def size(self) -> int:
        return 1

    def validate(self, value: Any) -> Any:
        return value

    def encode(self, values: Sequence[Any]) -> Floats:
        return np.full(len(values), 0.5)

    def decode(self, U: ArrayLike) -> list[Any]:
        return [{1, 2}] * len(np.asarray(U))

    def __repr__(self) -> str:
        return "Custom()"


def test_a_parameter_of_the_users_own_class_cannot_be_stored_and_says_so() -> None:
    with pytest.raises(SpaceError, match=r"parameter 'c' cannot be stored: it must be one of .*, not Custom\(\)"):
        write_space(SearchSpace({"c": Custom()}))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[1]", '[{"name":"x","kind":"Float"}]', '[{"name":"x","kind":"Real"}]']
)
def test_text_that_is_no_space_is_a_named_error(text: str) -> None:
    with pytest.raises(SchemaError, match="the stored search space cannot be read"):
        read_space(text)


def test_a_row_that_is_no_trial_is_a_named_error() -> None:
    row = write_trial(make_trial(7, {"x": 1.0}, 0.5))
    for broken in ({"state": "asleep"}, {"details": "{"}, {"details": "{}"}, {"params": "x"}, {"params": "[" * 5000}):
        with pytest.raises(SchemaError, match="trial 7 cannot be read"):
            read_trial({**row, **broken})


BASE = {"lr": Real(1e-5, 1e-3, prior="log-uniform"), "c": ["a", "b"], "n": Integer(1, 8, special=[0])}


@pytest.mark.parametrize(
    ("change", "shown", "extensible"),
    [
        ({"lr": Real(1e-6, 1e-3, prior="log-uniform")}, ["lr: stored Real(low=1e-05, ", "given Real(low=1e-06"], True),
        ({"c": ["a", "b", "d"]}, ["c: stored Categorical(choices=('a', 'b')", "choices=('a', 'b', 'd')"], True),
        ({"lr": Real(1e-5, 1e-3, prior="log-uniform", belief=1e-4)}, ["belief=(0.0001, 0.5)"], True),
        ({"n": Integer(1, 8)}, ["n: stored Integer(low=1, high=8, prior='uniform', special=[0])"], True),
        ({"lr": Real(1e-5, 1e-3, prior="uniform")}, ["prior='log-uniform'", "prior='uniform'"], False),
        ({"c": Categorical(["a", "b"], ordered=True)}, ["ordered=False", "ordered=True"], False),
        ({"n": Real(1, 8, special=[0.0])}, ["given Real(low=1, high=8"], False),
        ({"n": Integer(1, 8, special=[0], when={"c": "a"})}, ["when={'c': 'a'}"], False),
        ({"more": (0.0, 1.0)}, ["parameters: stored ['lr', 'c', 'n'], given ['lr', 'c', 'n', 'more']"], True),
    ],
)
def test_differences_are_shown_and_only_ranges_and_choices_can_be_extended(
    change: dict[str, Any], shown: list[str], extensible: bool
) -> None:
    lines, can_extend = compare_spaces(SearchSpace(BASE), SearchSpace({**BASE, **change}))
    assert len(lines) == 1
    for part in shown:
        assert part in lines[0]
    assert can_extend is extensible


def test_a_belief_is_stored_and_a_space_of_an_earlier_version_has_none() -> None:
    believed = SearchSpace({"lr": Real(1e-5, 1e-3, prior="log-uniform", belief=(1e-4, 0.3))})
    assert '"belief":[0.0001,0.3]' in write_space(believed)
    assert read_space(write_space(believed)) == believed
    assert "belief" not in write_space(SearchSpace(BASE))
    assert compare_spaces(believed, SearchSpace({"lr": Real(1e-5, 1e-3, prior="log-uniform")}))[1]


def test_equal_spaces_do_not_differ_and_choices_of_other_types_do() -> None:
    assert compare_spaces(SearchSpace(BASE), SearchSpace(BASE)) == ([], True)
    assert compare_spaces(SearchSpace({"x": Real(0, 1)}), SearchSpace({"x": Real(0.0, 1.0)})) == ([], True)
    assert len(compare_spaces(SearchSpace({"c": [1]}), SearchSpace({"c": [True]}))[0]) == 1
