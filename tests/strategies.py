"""Random spaces and parameters for property tests, and studies made from plain lists."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from llamatune_torch import Categorical, Integer, Real, SearchSpace, Study, Trial, TrialState
from llamatune_torch.parameter_base import as_json, compact
from llamatune_torch.parameters import MAX_INTEGER, Parameter
from llamatune_torch.study import Goal
from llamatune_torch.trial import Direction, Origin

if TYPE_CHECKING:
    from torch import Tensor

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
def reals(draw: DrawFn, special: bool = True) -> Real:
    """Both priors, from everyday bounds to the ends of double precision, wide and narrow; some with special values."""
    if draw(st.booleans()):
        low = draw(st.floats(1e-300, 1e300))
        factor = draw(st.sampled_from([1 + 1e-9, 1.001, 2.0, 100.0, 1e8, 1e200]))
        high = low * factor if math.isfinite(low * factor) else 1.7e308
        parameter = Real(low, high, prior="log-uniform")
    else:
        low = draw(st.one_of(st.floats(-10, 10), st.floats(-1e300, 1e300)))
        width = draw(st.one_of(st.floats(1e-6, 1e6), st.floats(1e-300, 1e300)))
        high = low + max(width, 2e-12 * abs(low))  # as narrow as a range may be
        parameter = Real(low, high, prior="uniform")
    values = st.one_of(
        st.sampled_from([0.0, parameter.low, parameter.high, -1.0]), st.floats(parameter.low, parameter.high)
    )
    parameter = replace(parameter, belief=draw(beliefs(parameter)))
    return replace(parameter, special=draw(specials(values))) if special else parameter


def beliefs(parameter: Real | Integer) -> SearchStrategy[Any]:
    """Mostly none, else a value of the range, with a spread or without."""
    value = st.sampled_from([parameter.low, parameter.high])
    return st.one_of(st.none(), st.none(), value, st.tuples(value, st.floats(1e-3, 10)))


def specials(values: SearchStrategy[Any]) -> SearchStrategy[list[Any]]:
    """Mostly none, up to three."""
    return st.one_of(st.just([]), st.lists(values, max_size=3, unique=True))


@st.composite
def integers(draw: DrawFn, special: bool = True) -> Integer:
    """Both priors, steps and powers, up to the largest bounds; some with special values, inside the range or not."""
    if draw(st.booleans()):
        return draw(grids(special))
    prior = draw(st.sampled_from(["uniform", "log-uniform"]))
    smallest = 1 if prior == "log-uniform" else -MAX_INTEGER
    low = draw(st.one_of(st.integers(1, 64), st.integers(smallest, MAX_INTEGER - 1)))
    high = draw(st.one_of(st.integers(low + 1, low + 64), st.integers(low + 1, MAX_INTEGER)))
    high = min(high, MAX_INTEGER)
    values = st.one_of(st.sampled_from([0, -1, low, high, MAX_INTEGER]), st.integers(low, high))
    parameter = Integer(low, high, prior=prior, special=draw(specials(values)) if special else [])
    return replace(parameter, belief=draw(beliefs(parameter)))


@st.composite
def grids(draw: DrawFn, special: bool = True) -> Integer:
    """Integers with a step, and powers."""
    if draw(st.booleans()):
        base = draw(st.sampled_from([2, 3, 10, 1000]))
        largest = int(math.log(MAX_INTEGER, base))
        first = draw(st.integers(0, largest - 1))
        last = draw(st.integers(first + 1, largest))
        low, high, grid = base**first, base**last, {"powers_of": base}
    else:
        step = draw(st.one_of(st.integers(1, 8), st.integers(1, 10**6)))
        low = draw(st.integers(-(10**6), 10**6))
        high, grid = low + step * draw(st.integers(1, 100)), {"step": step}
    values = st.one_of(st.sampled_from([0, -1, low, high]), st.integers(low, high))
    return Integer(low, high, special=draw(specials(values)) if special else [], **grid)


#: Scalars, and lists and dicts of them.
JSON_VALUES: SearchStrategy[Any] = st.one_of(
    JSON_SCALARS,
    st.lists(JSON_SCALARS, max_size=3),
    st.dictionaries(st.text(max_size=3), st.one_of(JSON_SCALARS, st.lists(JSON_SCALARS, max_size=2)), max_size=2),
)


def categoricals(max_size: int = 8) -> SearchStrategy[Categorical]:
    """Any mixture of JSON, 1, 1.0 and True side by side too; scalars alone, lists and dicts among them, or labels."""
    plain = st.lists(JSON_SCALARS, min_size=1, max_size=max_size, unique_by=lambda choice: (type(choice), choice))
    nested = st.lists(JSON_VALUES, min_size=1, max_size=max_size, unique_by=_text_of)
    labels = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=max_size, unique=True)
    labelled = labels.flatmap(
        lambda names: st.lists(JSON_VALUES, min_size=len(names), max_size=len(names), unique_by=_text_of).map(
            lambda values: {name: [name, as_json(value)] for name, value in zip(names, values, strict=True)}
        )
    )
    return st.builds(Categorical, st.one_of(plain, nested, labelled), ordered=st.booleans())


def _text_of(value: Any) -> str:
    """What a value looks like in the record; a text may be the JSON of a list."""
    return value if isinstance(value, str) else compact(as_json(value))


def parameters() -> SearchStrategy[Parameter]:
    return st.one_of(reals(), integers(), categoricals())


@st.composite
def spaces(draw: DrawFn, max_dim: int = 4, named: SearchStrategy[Parameter] | None = None) -> SearchSpace:
    """Any parameters; some have conditions on others, on several and in chains too."""
    names = draw(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=max_dim, unique=True))
    drawn = {name: draw(parameters() if named is None else named) for name in names}
    order = draw(st.permutations(names))  # parents may stand behind their children
    for i, name in enumerate(order):
        possible = order[:i]
        if possible and draw(st.booleans()):
            parents = draw(st.lists(st.sampled_from(possible), max_size=2, unique=True))
            when = {parent: draw(some_values_of(drawn[parent])) for parent in parents}
            drawn[name] = with_condition(drawn[name], when)
    return SearchSpace(drawn)


def with_condition(parameter: Parameter, when: Mapping[str, Any]) -> Parameter:
    if isinstance(parameter, Categorical):
        return Categorical(parameter.choices, parameter.ordered, when=when, values=parameter.values)
    assert isinstance(parameter, (Real, Integer))
    return replace(parameter, when=when)


def some_values_of(parameter: Parameter) -> SearchStrategy[Any]:
    """What a condition may name: a value, or a list of them; of a real, special ones."""
    kinds = []
    if not isinstance(parameter, Real) or parameter.special:
        values = st.sampled_from(parameter.special) if isinstance(parameter, Real) else values_of(parameter)
        # A list as a value stands in a list of values.
        kinds = [values.map(lambda value: [value]), st.lists(values, min_size=1, max_size=3)]
    return st.one_of(*kinds, *comparisons_with(parameter))


def comparisons_with(parameter: Parameter) -> list[SearchStrategy[str]]:
    """Comparisons that hold for some values of a number, and not for all; none for what is no number."""
    if isinstance(parameter, Categorical):
        numbers = [] if parameter.values is not None else list(parameter.choices)
        if len(set(numbers_in(numbers))) < 2 or len(numbers_in(numbers)) < len(numbers):
            return []
    else:
        assert isinstance(parameter, (Real, Integer))
        numbers = [parameter.low, parameter.high, *parameter.special]
    smallest, largest = min(numbers), max(numbers)
    return [st.sampled_from([f"> {smallest!r}", f"<={smallest!r}", f" >= {largest!r} ", f"< {largest!r}"])]


def numbers_in(choices: Sequence[Any]) -> list[Any]:
    return [choice for choice in choices if type(choice) in (int, float)]


def values_of(parameter: Parameter) -> SearchStrategy[Any]:
    """Values of a parameter, the bounds and the special ones often, not yet in canonical form."""
    if isinstance(parameter, Categorical):
        return st.sampled_from(parameter.choices)
    assert isinstance(parameter, (Real, Integer))
    if isinstance(parameter, Integer) and (parameter.step > 1 or parameter.powers_of is not None):
        return st.sampled_from([*parameter.values_in_range(), *map(int, parameter.special)])
    between = st.floats if isinstance(parameter, Real) else st.integers
    inside: SearchStrategy[Any] = between(parameter.low, parameter.high)
    return st.one_of(st.sampled_from([parameter.low, parameter.high, *parameter.special]), inside)


@st.composite
def params_of(draw: DrawFn, space: SearchSpace) -> dict[str, Any]:
    """Values for the active parameters of a space, found by following the conditions as they are written."""
    params: dict[str, Any] = {}
    waiting = dict(space.parameters)
    while waiting:
        for name, parameter in list(waiting.items()):
            if not any(parent in waiting for parent in parameter.when):
                del waiting[name]
                if is_active(space, name, params):
                    params[name] = draw(values_of(parameter))
    return params


def is_active(space: SearchSpace, name: str, params: Mapping[str, Any]) -> bool:
    """Whether a parameter matters, its parents being decided: an absent one is inactive."""
    for parent, values in space[name].when.items():
        if parent not in params:
            return False
        value = space[parent].validate(params[parent])
        if isinstance(values[0], str) and values[0][:1] in "<>" and type(value) in (int, float):
            if not eval(f"{value!r} {values[0]}"):  # Python's own comparison
                return False
            continue
        same = [v for v in map(space[parent].validate, values) if repr(v) == repr(value)]
        if not same:
            return False
    return True


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
    return Study(space, Goal(direction), initial_points=points, trials=tuple(trials))


def plain_space(dim: int, categorical: Sequence[int] = ()) -> SearchSpace:
    """A space of ``dim`` plain columns: reals, and unordered choices of three where ``categorical`` says so."""
    return SearchSpace({f"x{j}": ["a", "b", "c"] if j in categorical else (0.0, 1.0) for j in range(dim)})


def halton(n: int, dim: int) -> Tensor:
    """Well-spread points that do not come from the code under test; ``n x dim``, float64."""
    import torch  # processes of tests import this module, and need no more of it

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


#: A value of each knob of the engine that is not its default.
OTHERS: dict[str, Any] = {
    "acquisition": "logei",
    "xi": 0.2,
    "kappa": 1.5,
    "n_initial": 3,
    "seed": 7,
    "device": "cpu",
    "num_restarts": 4,
    "num_screened": 64,
    "mc_samples": 16,
    "strategy": "asha",
    "rungs": [0.25, 1.0],
    "stopping": "auto",
    "min_evals": 30,
    "confirm": 2,
    "confirm_evals": 4,
    "confidence": 0.8,
    "transfer": "rgpe",
}
