"""Random spaces and parameters for property tests, and studies made from plain lists."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from llamatune_torch import Categorical, Integer, Real, SearchSpace, Study, Trial, TrialState
from llamatune_torch.parameters import MAX_INTEGER, Parameter
from llamatune_torch.study import Direction, Origin

JSON_SCALARS: SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([-1.0, 0.0, 1.0, 2.5, 1e-5]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
)


@st.composite
def reals(draw: DrawFn) -> Real:
    """Both priors, from everyday bounds to the ends of double precision, wide and narrow."""
    if draw(st.booleans()):
        low = draw(st.floats(1e-300, 1e300))
        factor = draw(st.sampled_from([1 + 1e-9, 1.001, 2.0, 100.0, 1e8, 1e200]))
        high = low * factor
        return Real(low, high if math.isfinite(high) else 1.7e308, prior="log-uniform")
    low = draw(st.one_of(st.floats(-10, 10), st.floats(-1e300, 1e300)))
    width = draw(st.one_of(st.floats(1e-6, 1e6), st.floats(1e-300, 1e300)))
    high = low + width
    return Real(low, high if high > low else math.nextafter(low, math.inf))


@st.composite
def integers(draw: DrawFn) -> Integer:
    """Both priors, up to the largest bounds allowed."""
    prior = draw(st.sampled_from(["uniform", "log-uniform"]))
    smallest = 1 if prior == "log-uniform" else -MAX_INTEGER
    low = draw(st.one_of(st.integers(1, 64), st.integers(smallest, MAX_INTEGER - 1)))
    high = draw(st.one_of(st.integers(low + 1, low + 64), st.integers(low + 1, MAX_INTEGER)))
    return Integer(low, min(high, MAX_INTEGER), prior=prior)


def categoricals() -> SearchStrategy[Categorical]:
    """Any mixture of JSON scalars; 1, 1.0 and True may stand side by side."""
    choices = st.lists(JSON_SCALARS, min_size=1, max_size=8, unique_by=lambda choice: (type(choice), choice))
    return st.builds(Categorical, choices, ordered=st.booleans())


def parameters() -> SearchStrategy[Parameter]:
    return st.one_of(reals(), integers(), categoricals())


def spaces(max_dim: int = 4) -> SearchStrategy[SearchSpace]:
    named = st.dictionaries(st.text(min_size=1, max_size=5), parameters(), min_size=1, max_size=max_dim)
    return named.map(SearchSpace)


def values_of(parameter: Parameter) -> SearchStrategy[Any]:
    """Values inside a parameter's bounds, the bounds often, not yet in canonical form."""
    if isinstance(parameter, Real):
        return st.one_of(st.sampled_from([parameter.low, parameter.high]), st.floats(parameter.low, parameter.high))
    if isinstance(parameter, Integer):
        return st.one_of(st.sampled_from([parameter.low, parameter.high]), st.integers(parameter.low, parameter.high))
    assert isinstance(parameter, Categorical)
    return st.sampled_from(parameter.choices)


def params_of(space: SearchSpace) -> SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: values_of(p) for name, p in space.parameters.items()})


@st.composite
def spaces_with_params(draw: DrawFn) -> tuple[SearchSpace, dict[str, Any]]:
    space = draw(spaces())
    return space, draw(params_of(space))


def unit_points(dim: int) -> SearchStrategy[list[float]]:
    coordinate = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.0, 1.0))
    return st.lists(coordinate, min_size=dim, max_size=dim)


def make_trial(
    number: int,
    params: Mapping[str, Any],
    value: float | None = None,
    state: TrialState | None = None,
    origin: Origin = "sobol",
    **fields: Any,
) -> Trial:
    """A trial that has completed with ``value``, or failed without one, or is in the state you say."""
    if state is None:
        state = TrialState.FAILED if value is None else TrialState.COMPLETE
    return Trial(number, dict(params), seed=number, origin=origin, state=state, value=value, **fields)


def make_study(
    space: Mapping[str, Any] | SearchSpace,
    tried: Sequence[tuple[Mapping[str, Any], float | None]] = (),
    running: Sequence[Mapping[str, Any]] = (),
    direction: Direction = "maximize",
    initial_points: Sequence[Mapping[str, Any]] = (),
) -> Study:
    """A study of finished trials (``None`` for a failed one), then running ones."""
    space = SearchSpace(space)
    trials = [make_trial(i, space.validate(params), value) for i, (params, value) in enumerate(tried)]
    for params in running:
        trials.append(make_trial(len(trials), space.validate(params), state=TrialState.RUNNING))
    points = tuple(space.validate(params) for params in initial_points)
    return Study(space, direction, initial_points=points, trials=tuple(trials))


def halton(n: int, dim: int) -> Tensor:
    """Well-spread points that do not come from the code under test; ``n x dim``, float64."""
    columns = []
    for base in (2, 3, 5, 7, 11, 13)[:dim]:
        column = []
        for i in range(1, n + 1):
            fraction, value, rest = 1.0, 0.0, i
            while rest:
                fraction /= base
                value += fraction * (rest % base)
                rest //= base
            column.append(value)
        columns.append(torch.tensor(column, dtype=torch.float64))
    return torch.stack(columns, dim=-1)
