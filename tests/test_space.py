"""The search space: laws by property, numbers by hand, and every message."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from strategies import categoricals, integers, parameters, reals, spaces, spaces_with_params, unit_points, values_of

from llamatune_torch import Categorical, Integer, ParamsError, Real, SearchSpace, SpaceError
from llamatune_torch.parameters import MAX_INTEGER, Parameter


def typed(params: dict[str, Any]) -> dict[str, tuple[type, Any]]:
    """Equality that tells 1, 1.0 and True apart."""
    return {name: (type(value), value) for name, value in params.items()}


# --- Laws ------------------------------------------------------------------------------------------------------


@given(spaces_with_params())
def test_decode_after_encode_is_the_identity(drawn: tuple[SearchSpace, dict[str, Any]]) -> None:
    space, raw = drawn
    params = space.validate(raw)
    assert typed(space.decode(space.encode(params))) == typed(params)


@given(spaces_with_params())
def test_encode_gives_a_point_of_the_unit_cube_in_double_precision(drawn: tuple[SearchSpace, dict[str, Any]]) -> None:
    space, params = drawn
    x = space.encode(params)
    assert x.shape == (space.dim,)
    assert x.dtype == torch.float64
    assert ((x >= 0) & (x <= 1)).all()


@given(spaces_with_params())
def test_validate_is_idempotent(drawn: tuple[SearchSpace, dict[str, Any]]) -> None:
    space, raw = drawn
    params = space.validate(raw)
    assert typed(space.validate(params)) == typed(params)


@given(st.data())
def test_every_point_of_the_unit_cube_decodes_to_canonical_parameters(data: st.DataObject) -> None:
    space = data.draw(spaces())
    x = torch.tensor(data.draw(unit_points(space.dim)), dtype=torch.float64)
    params = space.decode(x)
    assert typed(space.validate(params)) == typed(params)


@given(st.data())
def test_snap_is_idempotent_and_changes_no_parameters(data: st.DataObject) -> None:
    space = data.draw(spaces())
    x = torch.tensor(data.draw(unit_points(space.dim)), dtype=torch.float64)
    snapped = space.snap(x)
    assert torch.equal(space.snap(snapped), snapped)
    assert typed(space.decode(snapped)) == typed(space.decode(x))


@given(st.data())
def test_snap_leaves_reals_where_they_are_and_puts_the_rest_where_encode_does(data: st.DataObject) -> None:
    space = data.draw(spaces())
    x = torch.tensor(data.draw(unit_points(space.dim)), dtype=torch.float64)
    params = space.decode(x)
    snapped, encoded = space.snap(x), space.encode(params)
    for j, (name, parameter) in enumerate(space.parameters.items()):
        is_ordinary_real = name in params and parameter.size is None and params[name] not in parameter.special
        assert snapped[j] == (x[j] if is_ordinary_real else encoded[j])


@given(st.one_of(reals(special=False), integers(special=False)))
def test_both_bounds_are_exactly_reachable(parameter: Real | Integer) -> None:
    ends = parameter.decode(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends == [parameter.low, parameter.high]
    assert [parameter.validate(end) for end in ends] == ends
    assert parameter.decode(parameter.encode(ends)) == ends


@given(st.data())
def test_encode_keeps_the_order_of_numbers(data: st.DataObject) -> None:
    parameter = data.draw(st.one_of(reals(special=False), integers(special=False)))
    values = sorted(parameter.validate(data.draw(values_of(parameter))) for _ in range(4))
    U = parameter.encode(values)
    assert (U.diff() >= 0).all()
    if isinstance(parameter, Integer):
        assert len(U.unique()) == len(set(values))


@given(categoricals())
def test_choices_keep_their_order_evenly_spaced(parameter: Categorical) -> None:
    U = parameter.encode(parameter.choices)
    expected = (torch.arange(parameter.size, dtype=torch.float64) + 0.5) / parameter.size
    assert torch.equal(U, expected)


@given(parameters().filter(lambda p: p.size is not None and p.size <= 5000))
def test_numbers_and_coordinates_of_finite_parameters_translate_both_ways(parameter: Parameter) -> None:
    assert parameter.size is not None
    index = torch.arange(parameter.size)
    assert torch.equal(parameter.index_of(parameter.coordinate(index)), index)


@given(spaces_with_params())
def test_numpy_and_torch_scalars_mean_their_python_values(drawn: tuple[SearchSpace, dict[str, Any]]) -> None:
    space, raw = drawn
    params = space.validate(raw)
    wide = (int, float)
    as_numpy = {n: np.array(v)[()] if isinstance(v, wide) and abs(v) < 2**62 else v for n, v in params.items()}
    as_torch = {n: torch.tensor(v, dtype=torch.float64) if type(v) is float else v for n, v in params.items()}
    assert typed(space.validate(as_numpy)) == typed(params)
    assert typed(space.validate(as_torch)) == typed(params)


@given(st.data())
def test_half_precision_coordinates_still_name_choices_and_small_integers(data: st.DataObject) -> None:
    parameter = data.draw(st.one_of(categoricals(), st.builds(Integer, st.just(0), st.integers(1, 100))))
    assert parameter.size is not None
    index = torch.arange(parameter.size)
    assert torch.equal(parameter.index_of(parameter.coordinate(index).float()), index)


# --- Fair shares of the unit interval --------------------------------------------------------------------------


@pytest.mark.parametrize("parameter", [Integer(8, 32), Integer(-3, 3), Categorical(["a", "b", "c"])])
def test_uniform_draws_give_every_value_the_same_share(parameter: Integer | Categorical) -> None:
    per_value = 100
    n = parameter.size * per_value
    U = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert torch.bincount(parameter.index_of(U)).tolist() == [per_value] * parameter.size


@pytest.mark.parametrize(("low", "high"), [(1, 8), (8, 32), (1, 1000)])
def test_log_integers_have_the_share_of_their_cell_on_a_logarithmic_axis(low: int, high: int) -> None:
    parameter = Integer(low, high, prior="log-uniform")
    n = 1_000_000
    U = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    shares = torch.bincount(parameter.index_of(U), minlength=parameter.size) / n
    v = torch.arange(low, high + 1, dtype=torch.float64)
    expected = ((v + 0.5) / (v - 0.5)).log() / math.log((high + 0.5) / (low - 0.5))
    assert torch.allclose(shares.double(), expected, atol=2 / n)


def test_log_uniform_reals_spend_as_much_on_each_decade() -> None:
    values = torch.tensor(Real(1e-6, 1e-2, prior="log-uniform").decode(torch.linspace(0.0005, 0.9995, 1000)))
    decades = torch.bincount((values.log10() + 6).floor().long(), minlength=4)
    assert decades.tolist() == [250, 250, 250, 250]


# --- Numbers worked out by hand --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "value", "coordinate"),
    [
        (Real(0, 0.1), 0.025, 0.25),
        (Real(-2, 2), -2, 0.0),
        (Real(1e-5, 1e-1, prior="log-uniform"), 1e-4, 0.25),
        (Integer(8, 32), 16, 8.5 / 25),
        (Integer(1, 4, prior="log-uniform"), 2, math.log(2 / 0.5) / math.log(4.5 / 0.5)),
        (Categorical(["a", "b", "c"]), "b", 0.5),
        (Categorical(["small", "base", "large", "xl"], ordered=True), "xl", 0.875),
    ],
)
def test_encode_gives_the_coordinate_worked_out_by_hand(parameter: Parameter, value: Any, coordinate: float) -> None:
    assert parameter.encode([parameter.validate(value)]).item() == pytest.approx(coordinate, abs=1e-12)
    assert parameter.decode(torch.tensor([coordinate], dtype=torch.float64)) == [value]


def test_one_one_point_zero_and_true_are_three_choices() -> None:
    space = SearchSpace({"c": [True, 1, 1.0, None, "1", 0, False, "None"]})
    assert space.size == 8
    for i, choice in enumerate([True, 1, 1.0, None, "1", 0, False, "None"]):
        assert space.encode({"c": choice}).item() == (i + 0.5) / 8
        decoded = space.decode(space.encode({"c": choice}))["c"]
        assert (type(decoded), decoded) == (type(choice), choice)


def test_categoricals_that_differ_in_the_type_of_a_choice_differ() -> None:
    assert Categorical([1, 2]) == Categorical((1, 2))
    assert Categorical([1, 2]) != Categorical([True, 2])
    assert Categorical([1, 2]) != Categorical([1, 2], ordered=True)


def test_single_precision_bounds_of_numpy_do_not_leave_the_interval() -> None:
    parameter = Real(0.0, 0.1)
    assert parameter.validate(np.float32(0.1)) == 0.1  # 0.1 in float32 is above 0.1
    assert type(parameter.validate(np.float32(0.05))) is float


def test_reals_written_by_people_come_back_as_written() -> None:
    space = SearchSpace({"lr": Real(1e-6, 1e-2, prior="log-uniform"), "wd": Real(0.0, 0.3)})
    for lr, wd in [(3e-5, 0.1), (1.7e-4, 0.0), (1e-2, 0.05), (2.5e-6, 0.299)]:
        assert space.validate({"lr": lr, "wd": wd}) == {"lr": lr, "wd": wd}
        assert space.decode(space.encode({"lr": lr, "wd": wd})) == {"lr": lr, "wd": wd}


def test_a_logarithmic_interval_too_narrow_for_its_logarithms_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"the logarithms of low and high must differ, but got Real\(low=1e-05"):
        Real(1e-5, math.nextafter(1e-5, 1.0), prior="log-uniform")


# --- Spaces ----------------------------------------------------------------------------------------------------


def test_shorthands_stand_for_parameters() -> None:
    space = SearchSpace({"i": (1, 8), "r": (0, 1.0), "n": (np.int64(1), np.int64(3)), "c": ["a", None]})
    assert list(space.parameters.values()) == [Integer(1, 8), Real(0, 1.0), Integer(1, 3), Categorical(["a", None])]
    assert space["r"] == Real(0.0, 1.0)
    assert space.names == ["i", "r", "n", "c"]
    assert len(space) == space.dim == 4


def test_columns_by_kind() -> None:
    space = SearchSpace({"r": (0.0, 1.0), "c": ["a", "b"], "o": Categorical([1, 2, 4], ordered=True), "i": (1, 5)})
    assert space.real_columns == [0]
    assert space.categorical_columns == [1]
    assert space.numeric_columns == [0, 2, 3]
    assert space.size is None


def test_grid_lists_every_point_once() -> None:
    space = SearchSpace({"i": (1, 3), "c": ["a", "b"]})
    assert space.size == 6
    listed = space.decode_all(space.grid())
    assert listed == [{"i": i, "c": c} for i in (1, 2, 3) for c in ("a", "b")]
    assert SearchSpace({"only": ["x", "y"]}).grid().shape == (2, 1)


def test_validate_orders_names_as_the_space_does() -> None:
    space = SearchSpace({"a": (0.0, 1.0), "b": (1, 4)})
    assert list(space.validate({"b": 2, "a": 0.5})) == ["a", "b"]


def test_spaces_are_equal_by_parameters_in_order_and_copies_are_equal() -> None:
    space = SearchSpace({"a": (0.0, 1.0), "b": (1, 4)})
    assert SearchSpace(space) == space
    assert hash(SearchSpace(space)) == hash(space)
    assert SearchSpace({"b": (1, 4), "a": (0.0, 1.0)}) != space
    assert "Integer(low=1, high=4" in repr(space)


def test_decoding_accepts_single_precision_and_gradients() -> None:
    space = SearchSpace({"a": (0.0, 1.0), "b": (1, 4)})
    x = torch.tensor([0.5, 0.9], dtype=torch.float32, requires_grad=True)
    assert space.decode(x) == {"a": 0.5, "b": 4}


# --- Messages: the rule, the parameter and the value -----------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Real(1, 0), r"low < high must hold, but got Real\(low=1, high=0"),
        (lambda: Real(2, 2), r"low < high must hold.*a constant is written Categorical\(\[2\]\)"),
        (lambda: Real(0, math.inf), r"bounds must be finite numbers, but got Real\(low=0, high=inf"),
        (lambda: Real(math.nan, 1), r"bounds must be finite numbers.*low=nan"),
        (lambda: Real("a", 1), r"bounds must be finite numbers.*low='a'"),
        (lambda: Real(True, 2), r"bounds must be finite numbers.*low=True"),
        (lambda: Real(0, 10**400), r"bounds must be finite numbers"),
        (lambda: Real(-1.7e308, 1.7e308), r"high - low must be finite, but got Real\(low=-1.7e\+308"),
        (lambda: Real(0, 1, prior="log-uniform"), r"log-uniform prior needs low > 0, but got Real\(low=0, high=1"),
        (lambda: Real(-1, 1, prior="log-uniform"), r"log-uniform prior needs low > 0.*low=-1"),
        (lambda: Real(0, 1, prior="log"), r"prior must be 'uniform' or 'log-uniform'.*prior='log'"),
        (lambda: Integer(5, 5), r"low < high must hold, but got Integer\(low=5, high=5.*Categorical\(\[5\]\)"),
        (lambda: Integer(0.5, 2), r"bounds must be integers, but got Integer\(low=0.5"),
        (lambda: Integer(0, math.inf), r"bounds must be integers.*high=inf"),
        (lambda: Integer(0, math.nan), r"bounds must be integers.*high=nan"),
        (lambda: Integer(False, 2), r"bounds must be integers.*low=False"),
        (lambda: Integer(0, MAX_INTEGER + 1), r"bounds must not exceed 1000000000000 in size"),
        (lambda: Integer(0, 10**400), r"bounds must not exceed 1000000000000 in size"),
        (lambda: Integer(0, 8, prior="log-uniform"), r"log-uniform prior needs low >= 1, but got Integer\(low=0"),
        (lambda: Categorical([]), r"choices must not be empty, but got \[\]"),
        (lambda: Categorical(["a", "b", "a"]), r"choices must differ from each other, but got \['a', 'b', 'a'\]"),
        (lambda: Categorical([np.int64(1), 1]), r"choices must differ"),
        (lambda: Categorical("abc"), r"choices must be a list or tuple, but got 'abc' \(str\)"),
        (lambda: Categorical({1, 2}), r"choices must be a list or tuple, but got \{1, 2\} \(set\)"),
        (lambda: Categorical([[1], [2]]), r"choices must be JSON scalars, but got \[1\] \(list\)"),
        (lambda: Categorical([1.0, math.nan]), r"choices must be finite, but got nan"),
        (lambda: SearchSpace({}), r"at least one parameter, but got \{\}"),
        (lambda: SearchSpace([("x", (0, 1))]), r"a space is a dict of parameters, but got .*\(list\)"),
        (lambda: SearchSpace({3: (0, 1)}), r"name of a parameter must be a non-empty string, but got 3"),
        (lambda: SearchSpace({"": (0, 1)}), r"non-empty string, but got ''"),
        (lambda: SearchSpace({"lr": 0.1}), r"parameter 'lr' must be Real, Integer.*but got 0.1 \(float\)"),
        (lambda: SearchSpace({"lr": (0, 1, 2)}), r"parameter 'lr' must be .*\(tuple\)"),
        (lambda: SearchSpace({"lr": (1.0, 0.0)}), r"parameter 'lr': low < high must hold.*low=1.0, high=0.0"),
        (lambda: SearchSpace({"opt": []}), r"parameter 'opt': choices must not be empty"),
    ],
)
def test_spaces_that_cannot_be_are_refused_with_rule_and_value(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        make()


SPACE = SearchSpace(
    {"lr": Real(1e-5, 1e-3, prior="log-uniform"), "batch": Integer(8, 32), "opt": ["adamw", None, True]}
)
GOOD = {"lr": 1e-4, "batch": 16, "opt": "adamw"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({**GOOD, "lr": 0.1}, r"parameter 'lr' must lie in \[1e-05, 0.001\], but got 0.1"),
        ({**GOOD, "lr": math.nan}, r"parameter 'lr' must lie in .*but got nan"),
        ({**GOOD, "lr": "1e-4"}, r"parameter 'lr' must be a number, but got '1e-4' \(str\)"),
        ({**GOOD, "lr": None}, r"parameter 'lr' must be a number, but got None"),
        ({**GOOD, "batch": 16.5}, r"parameter 'batch' must be an integer, but got 16.5 \(float\)"),
        ({**GOOD, "batch": True}, r"parameter 'batch' must be an integer, but got True \(bool\)"),
        ({**GOOD, "batch": math.inf}, r"parameter 'batch' must be an integer, but got inf"),
        ({**GOOD, "batch": math.nan}, r"parameter 'batch' must be an integer, but got nan"),
        ({**GOOD, "batch": 64}, r"parameter 'batch' must lie in \[8, 32\], but got 64"),
        ({**GOOD, "batch": 10**400}, r"parameter 'batch' must lie in \[8, 32\], but got 10000"),
        ({**GOOD, "opt": "sgd"}, r"parameter 'opt' must be one of \['adamw', None, True\], but got 'sgd' \(str\)"),
        ({**GOOD, "opt": 1}, r"parameter 'opt' must be one of .*but got 1 \(int\)"),
        ({**GOOD, "opt": ["adamw"]}, r"parameter 'opt' must be one of .*\(list\)"),
        ({**GOOD, "warmup": 3}, r"unknown parameters \['warmup'\]; the space has \['lr', 'batch', 'opt'\]"),
        ({"lr": 1e-4}, r"missing parameters \['batch', 'opt'\]; the space has"),
        ([1e-4, 16, "adamw"], r"parameters must be a dict, but got .*\(list\)"),
    ],
)
def test_parameters_outside_the_space_are_refused_with_rule_name_and_value(params: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        SPACE.validate(params)
    with pytest.raises(ParamsError, match=message):
        SPACE.encode(params)


def test_continua_cannot_be_listed_or_numbered() -> None:
    with pytest.raises(SpaceError, match=r"only a finite space can be listed; \[0\] are real"):
        SPACE.grid()
    with pytest.raises(NotImplementedError, match="Real is a continuum"):
        SPACE["lr"].index_of(torch.tensor([0.5]))
    with pytest.raises(NotImplementedError, match="Real is a continuum"):
        SPACE["lr"].coordinate(torch.tensor([0]))
