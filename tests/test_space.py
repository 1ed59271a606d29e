"""The search space: laws by property, numbers by hand, and every message."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from strategies import (
    categoricals,
    is_active,
    spaces,
    spaces_with_params,
    unit_points,
)

from llamatune_torch import Categorical, Integer, Linear, ParamsError, Real, SearchSpace, SpaceError, SpaceWarning
from llamatune_torch.parameters import MAX_INTEGER


def typed(params: dict[str, Any]) -> dict[str, tuple[type, Any]]:
    """Equality that tells 1, 1.0 and True apart."""
    return {name: (type(value), value) for name, value in params.items()}


def compared(number: Any, comparison: Any) -> SearchSpace:
    """A space in which a parameter depends on another by a comparison."""
    return SearchSpace({"n": number, "c": Categorical(["a", "b"], when={"n": comparison})})


def _nested(depth: int) -> Any:
    return [_nested(depth - 1)] if depth else 1


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
    assert x.dtype == np.float64
    assert ((x >= 0) & (x <= 1)).all()


@given(spaces_with_params())
def test_validate_is_idempotent(drawn: tuple[SearchSpace, dict[str, Any]]) -> None:
    space, raw = drawn
    params = space.validate(raw)
    assert typed(space.validate(params)) == typed(params)


@given(st.data())
def test_every_point_of_the_unit_cube_decodes_to_canonical_parameters(data: st.DataObject) -> None:
    space = data.draw(spaces())
    x = np.array(data.draw(unit_points(space.dim)))
    params = space.decode(x)
    assert typed(space.validate(params)) == typed(params)


@given(st.data())
def test_snap_is_idempotent_and_changes_no_parameters(data: st.DataObject) -> None:
    space = data.draw(spaces())
    x = np.array(data.draw(unit_points(space.dim)))
    snapped = space.snap(x)
    assert np.array_equal(space.snap(snapped), snapped)
    assert typed(space.decode(snapped)) == typed(space.decode(x))


@given(st.data())
def test_snap_leaves_reals_where_they_are_and_puts_the_rest_where_encode_does(data: st.DataObject) -> None:
    space = data.draw(spaces())
    x = np.array(data.draw(unit_points(space.dim)))
    params = space.decode(x)
    snapped, encoded = space.snap(x), space.encode(params)
    for j, (name, parameter) in enumerate(space.parameters.items()):
        is_ordinary_real = name in params and parameter.size is None and params[name] not in parameter.special
        assert snapped[j] == (x[j] if is_ordinary_real else encoded[j])


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
    index = np.arange(parameter.size)
    assert np.array_equal(parameter.index_of(parameter.coordinate(index).astype(np.float32)), index)


# --- Conditions ---------------------------------------------------------------------------------------------------


LORA = SearchSpace(
    {
        "bits": Categorical([4, 8], when={"quantized": True}),
        "method": ["full", "lora", "dora"],
        "rank": Integer(1, 64, when={"method": ["lora", "dora"]}),
        "quantized": Categorical([True, False], when={"method": "lora"}),
        "dropout": Real(0, 0.5, special=[0.0], when={"method": "lora"}),
        "seed": Integer(1, 3, when={"dropout": 0.0, "quantized": False}),
    }
)


@pytest.mark.parametrize(
    "params",
    [
        {"method": "full"},
        {"method": "dora", "rank": 8},
        {"bits": 4, "method": "lora", "rank": 8, "quantized": True, "dropout": 0.0},
        {"method": "lora", "rank": 8, "quantized": False, "dropout": 0.1},
        {"method": "lora", "rank": 8, "quantized": False, "dropout": 0.0, "seed": 2},
    ],
)
def test_inactive_parameters_are_absent_to_any_depth(params: dict[str, Any]) -> None:
    assert LORA.validate(params) == params
    x = LORA.encode(params)
    assert typed(LORA.decode(x)) == typed(params)
    assert list(LORA.decode(x)) == list(params)
    assert LORA.active(x).tolist() == [name in params for name in LORA.names]


def test_the_coordinate_of_what_is_inactive_is_the_middle() -> None:
    x = LORA.encode({"method": "full"})
    assert x.tolist() == [0.75, 1 / 6, 32.5 / 64, 0.75, 0.5, 0.5]  # 1/2, or that of the middle value
    other = np.array([0.1, 1 / 6, 0.9, 0.2, 0.3, 0.4])
    assert np.array_equal(LORA.snap(other), x)
    assert np.array_equal(LORA.resolved(other), LORA.resolved(x))


def test_the_default_is_validated_and_stays_with_the_space() -> None:
    parameters = {"method": ["full", "lora"], "rank": Integer(1, 64, when={"method": "lora"}), "t": {"a": 1}}
    parameters["t"] = Categorical({"qv": ["q", "v"], "all": "all-linear"})
    space = SearchSpace(parameters, default={"rank": np.int64(8), "method": "lora", "t": ["q", "v"]})
    assert space.default == {"method": "lora", "rank": 8, "t": "qv"}
    assert list(space.default) == space.names
    assert SearchSpace(space).default == space.without_values().default == space.default
    assert SearchSpace(space, default={"method": "full", "t": "qv"}).default == {"method": "full", "t": "qv"}
    assert SearchSpace(parameters).default is None
    assert repr(space).endswith(", default={'method': 'lora', 'rank': 8, 't': 'qv'})")


@pytest.mark.parametrize(
    ("default", "message"),
    [
        ({"x": 2.0, "n": 1}, "default: parameter 'x' must lie in"),
        ({"x": 0.5}, r"default: missing parameters \['n'\]"),
        ({"x": 0.5, "n": 1, "m": 1}, r"default: unknown parameters \['m'\]"),
        ({"x": 0.5, "n": 8}, "default: parameters break the rule"),
        (3, "default: parameters must be a dict"),
    ],
)
def test_a_default_outside_of_the_space_is_refused(default: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        SearchSpace({"x": Real(0, 1), "n": Integer(1, 8)}, rule=Linear({"n": 1}, upper=4), default=default)


def brute_force(space: SearchSpace) -> list[dict[str, Any]]:
    """All different parameter sets: every combination of values, without what is inactive."""
    values = [p.decode(p.coordinate(np.arange(p.size or 0))) for p in space]
    found: dict[str, dict[str, Any]] = {}
    for row in itertools.product(*values):
        params: dict[str, Any] = dict(zip(space.names, row, strict=True))
        while True:  # children of what is taken out go too
            inactive = [name for name in params if not is_active(space, name, params)]
            if not inactive:
                break
            del params[inactive[0]]
        found[repr(params)] = params
    return list(found.values())


@given(spaces(max_dim=5, named=st.one_of(categoricals(3), st.builds(Integer, st.just(1), st.integers(2, 4)),
                                         st.just(Integer(2, 3, special=[0, 3])))))  # fmt: skip
def test_size_counts_and_grid_lists_every_point_once(space: SearchSpace) -> None:
    expected = brute_force(space)
    assert space.size == len(expected)
    grid = space.grid()
    assert np.array_equal(space.snap(grid), grid)
    assert sorted(map(repr, space.decode_all(grid))) == sorted(map(repr, expected))


def test_the_size_of_a_large_conditional_space_is_exact() -> None:
    deep: dict[str, Any] = {"p0": ["on", "off"]}
    for i in range(1, 40):
        deep[f"p{i}"] = Categorical(["on", "off"], when={f"p{i - 1}": "on"})
    assert SearchSpace(deep).size == 41
    assert len(SearchSpace(deep).grid()) == 41
    pairs = {f"n{i}": (1, 10) for i in range(30)} | {
        f"c{i}": Integer(1, 10**12, when={f"n{i}": [1, 2, 2]}) for i in range(30)
    }
    assert SearchSpace(pairs).size == (2 * 10**12 + 8) ** 30


@given(spaces_with_params())
def test_a_name_that_is_inactive_or_missing_is_refused(drawn: tuple[SearchSpace, dict[str, Any]]) -> None:
    space, params = drawn
    for name, parameter in space.parameters.items():
        if name in params:
            without = {other: value for other, value in params.items() if other != name}
            with pytest.raises(ParamsError, match="missing parameters"):
                space.validate(without)
        else:
            value = parameter.decode([0.5])[0]
            with pytest.raises(ParamsError, match="is inactive unless"):
                space.validate({**params, name: value})


def test_conditions_tell_one_and_true_apart() -> None:
    def space(value: Any) -> SearchSpace:
        return SearchSpace({"p": [1, True], "c": Integer(1, 2, when={"p": value})})

    assert space(1).decode([0.25, 0.0]) == {"p": 1, "c": 1}
    assert space(1).decode([0.75, 0.0]) == {"p": True}
    assert space(1) == space([1]) == space((1, 1)[:1])
    assert space(1) != space(True)
    assert space(1) != space([1, True])
    assert hash(space(1)) == hash(space([1]))


def test_special_values_and_conditions_are_shown_compared_and_hashed() -> None:
    shown = repr(Real(0, 0.1, special=[0], when={"method": "lora", "n": [1, 2]}))
    assert shown == "Real(low=0, high=0.1, prior='uniform', special=[0.0], when={'method': 'lora', 'n': [1, 2]})"
    assert repr(Integer(1, 4)) == "Integer(low=1, high=4, prior='uniform')"
    assert repr(Categorical(["a"], when={"n": 1})) == "Categorical(choices=('a',), ordered=False, when={'n': 1})"
    assert "special=[0.0]" in repr(LORA)
    one, same = Real(0, 0.1, special=[0], when={"n": 1}), Real(0, 0.1, special=(0.0,), when={"n": [1]})
    assert one == same
    assert hash(one) == hash(same)
    assert one != Real(0, 0.1, when={"n": 1})
    assert one != Real(0, 0.1, special=[0])
    assert Categorical(["a"], when={"n": 1}) != Categorical(["a"])
    assert eval(repr(one)) == one
    assert pickle.loads(pickle.dumps(LORA)) == LORA


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


def test_points_may_be_lists_tensors_and_of_single_precision() -> None:
    for x in ([0.5, 0.9], torch.tensor([0.5, 0.9]), np.array([0.5, 0.9], dtype=np.float32)):
        space = SearchSpace({"a": (0.0, 1.0), "b": (1, 4)})
        assert space.decode(x) == {"a": 0.5, "b": 4}
        assert space.decode_all([x]) == [{"a": 0.5, "b": 4}]
        assert space.snap(x).tolist() == [0.5, 0.875]
        assert space.active(x).tolist() == [True, True]


def test_no_parameter_sets_at_all_are_no_points() -> None:
    for space in (SPACE, LORA):
        assert space.encode_all([]).shape == (0, space.dim)
        assert space.decode_all(space.encode_all([])) == []


# --- Messages: the rule, the parameter and the value -----------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Real(1, 0), r"low < high must hold, but got Real\(low=1, high=0"),
        (lambda: Real(2, 2), r"low < high must hold.*a constant is written 2"),
        (lambda: Real(0, math.inf), r"bounds must be finite numbers, but got Real\(low=0, high=inf"),
        (lambda: Real(math.nan, 1), r"bounds must be finite numbers.*low=nan"),
        (lambda: Real("a", 1), r"bounds must be finite numbers.*low='a'"),
        (lambda: Real(True, 2), r"bounds must be finite numbers.*low=True"),
        (lambda: Real(0, 10**400), r"bounds must be finite numbers"),
        (lambda: Real(-1.7e308, 1.7e308), r"high - low must be finite, but got Real\(low=-1.7e\+308"),
        (lambda: Real(0, 1, prior="log-uniform"), r"log-uniform prior needs low > 0, but got Real\(low=0, high=1"),
        (lambda: Real(-1, 1, prior="log-uniform"), r"log-uniform prior needs low > 0.*low=-1"),
        (lambda: Real(0, 1, prior="log"), r"prior must be 'uniform' or 'log-uniform'.*prior='log'"),
        (lambda: Integer(5, 5), r"low < high must hold, but got Integer\(low=5, high=5.*a constant is written 5"),
        (lambda: Integer(0.5, 2), r"bounds must be integers, but got Integer\(low=0.5"),
        (lambda: Integer(0, math.inf), r"bounds must be integers.*high=inf"),
        (lambda: Integer(0, math.nan), r"bounds must be integers.*high=nan"),
        (lambda: Integer(False, 2), r"bounds must be integers.*low=False"),
        (lambda: Integer(0, MAX_INTEGER + 1), r"bounds must not exceed 1000000000000 in size"),
        (lambda: Integer(0, 10**400), r"bounds must not exceed 1000000000000 in size"),
        (lambda: Integer(0, 8, prior="log-uniform"), r"log-uniform prior needs low >= 1, but got Integer\(low=0"),
        (lambda: Categorical([]), r"choices must not be empty, but got \[\]"),
        (
            lambda: Categorical(["a", "b", "a"]),
            r"choices must differ from each other, also in the record, but got \['a', 'b', 'a'\]",
        ),
        (lambda: Categorical([np.int64(1), 1]), r"choices must differ"),
        (lambda: Categorical("abc"), r"choices must be a list, a tuple or a dict of labels, but got 'abc' \(str\)"),
        (lambda: Categorical({1, 2}), r"choices must be a list, a tuple or a dict of labels, but got \{1, 2\} \(set\)"),
        (lambda: Categorical([object]), r"a choice must be a JSON value, or have a label, but got <class 'object'>"),
        (
            lambda: Categorical([[1, {2}], [2]]),
            r"a choice must be a JSON value, or have a label, but got \{2\} \(set\)",
        ),
        (lambda: Categorical([{1: 2}]), r"a choice must be a dict whose keys are texts, but got \{1: 2\}"),
        (lambda: Categorical([1.0, math.nan]), r"a choice must be finite, but got nan"),
        (lambda: Categorical([[1.0, math.inf]]), r"a choice must be finite, but got inf"),
        (lambda: Categorical([[1, 2], (1, 2)]), r"choices must differ from each other, also in the record"),
        (lambda: Categorical([{"a": 1, "b": 2}, {"b": 2, "a": 1}]), r"choices must differ from each other"),
        (lambda: Categorical([["q", 1], '["q",1]']), r"choices must differ from each other, also in the record"),
        (lambda: Categorical([_nested(40)]), r"a choice must not hold lists and dicts more than 32 deep"),
        (lambda: Categorical({}), r"choices must not be empty"),
        (lambda: Categorical({1: object}), r"a label must be a text that is not empty, but got 1 \(int\)"),
        (lambda: Categorical({"": object}), r"a label must be a text that is not empty, but got ''"),
        (
            lambda: Categorical({"a": [1], "b": (1,)}),
            r"labels must have different values, but 'a' and 'b' have the same",
        ),
        (
            lambda: Categorical({"a": int, "b": int}),
            r"labels must have different values, but 'a' and 'b' have the same",
        ),
        (lambda: Categorical({"a": "b", "b": 1}), r"the value of the label 'a' must not be another label, but got 'b'"),
        (
            lambda: Categorical(["a"], values={"b": 1}),
            r"values must belong to one of the labels \['a'\], but got \['b'\]",
        ),
        (lambda: Categorical({"a": 1}, values={"a": 1}), r"values must be left out where choices are a dict"),
        (
            lambda: Integer(8, 60, step=8),
            r"high must be low plus a multiple of step=8; the nearest is 56, but got Integer",
        ),
        (lambda: Integer(8, 61, step=8), r"the nearest is 64, but got Integer\(low=8, high=61.*step=8"),
        (lambda: Integer(8, 9, step=8), r"the nearest is 16, but got"),
        (lambda: Integer(1, 9, step=0), r"step must be an integer >= 1, but got 0 \(int\)"),
        (lambda: Integer(1, 9, step=1.5), r"step must be an integer >= 1, but got 1.5"),
        (lambda: Integer(1, 48, powers_of=2), r"bounds must be powers of 2; the nearest to 48 is 32, but got Integer"),
        (lambda: Integer(0, 64, powers_of=2), r"bounds must be powers of 2; the nearest to 0 is 1, but got"),
        (lambda: Integer(1, 80, powers_of=3), r"bounds must be powers of 3; the nearest to 80 is 81, but got"),
        (lambda: Integer(1, 8, powers_of=1), r"powers_of must be an integer >= 2, but got 1"),
        (lambda: Integer(1, 8, powers_of=2, step=7), r"step, powers_of and a log-uniform prior exclude each other"),
        (lambda: Integer(1, 9, prior="log-uniform", step=2), r"step, powers_of and a log-uniform prior exclude"),
        (lambda: Integer(1, 8, prior="log-uniform", powers_of=2), r"step, powers_of and a log-uniform prior exclude"),
        (lambda: Real(0, 1, special=0.0), r"special must be a list of values, but got 0.0 \(float\)"),
        (lambda: Real(0, 1, special="off"), r"special must be a list of values, but got 'off' \(str\)"),
        (lambda: Real(0, 1, special=["off"]), r"special values must be finite numbers, but got 'off' \(str\)"),
        (lambda: Real(0, 1, special=[math.inf]), r"special values must be finite numbers, but got inf"),
        (lambda: Real(0, 1, special=[False]), r"special values must be finite numbers, but got False \(bool\)"),
        (lambda: Real(0, 1, special=[0, 0.0]), r"special values must differ from each other, but got \[0.0, 0.0\]"),
        (lambda: Integer(0, 1, special=[0.5]), r"special values must be integers within 1000000000000, but got 0.5"),
        (
            lambda: Integer(0, 1, special=[10**13]),
            r"special values must be integers within 1000000000000, but got 1000",
        ),
        (lambda: Real(0, 1, when="lora"), r"when must be a dict of parents and their values, but got 'lora' \(str\)"),
        (lambda: Categorical(["a"], when=["p"]), r"when must be a dict of parents and their values, but got \['p'\]"),
        (lambda: Integer(0, 1, when={"method": []}), r"when must name at least one value of 'method', but got \[\]"),
        (
            lambda: SearchSpace({"rank": Integer(1, 8, when={"methd": "lora"}), "method": ["full", "lora"]}),
            r"parameter 'rank' depends on 'methd', but the space has \['rank', 'method'\]",
        ),
        (
            lambda: SearchSpace({"rank": Integer(1, 8, when={"method": "Lora"}), "method": ["full", "lora"]}),
            r"parameter 'rank' depends on 'method', which must be one of \['full', 'lora'\], but got 'Lora' \(str\)",
        ),
        (
            lambda: SearchSpace({"n": Integer(1, 8), "c": Integer(1, 8, when={"n": [8, 9]})}),
            r"parameter 'c' depends on 'n', which must lie in \[1, 8\], but got 9",
        ),
        (
            lambda: SearchSpace({"p": Real(0, 1, special=[0.0]), "c": Integer(1, 8, when={"p": [0.0, 0.5]})}),
            r"'c' depends on 'p', a Real: that must be one of its special values \[0.0\] or a comparison such as '> 0'",
        ),
        (
            lambda: SearchSpace(
                {n: Categorical(["x"], when={w: "x"}) for n, w in [("a", "c"), ("b", "a"), ("c", "b")]}
            ),
            r"no parameter may depend on itself, but got 'a' -> 'c' -> 'b' -> 'a'",
        ),
        (
            lambda: SearchSpace({"a": Categorical(["x"], when={"a": "x"})}),
            r"no parameter may depend on itself, but got 'a' -> 'a'",
        ),
        (lambda: SearchSpace({}), r"at least one parameter, but got \{\}"),
        (lambda: SearchSpace([("x", (0, 1))]), r"a space is a dict of parameters, but got .*\(list\)"),
        (lambda: SearchSpace({3: (0, 1)}), r"name of a parameter must be a non-empty string, but got 3"),
        (lambda: SearchSpace({"": (0, 1)}), r"non-empty string, but got ''"),
        (
            lambda: SearchSpace({"lr": {"low": 1}}),
            r"'lr' must be Real.*labels are written Categorical\(\{...\}\), but got",
        ),
        (lambda: SearchSpace({"lr": math.nan}), r"parameter 'lr': a choice must be finite, but got nan"),
        (lambda: SearchSpace({"lr": object}), r"parameter 'lr' must be Real, Integer.*or a constant, but got <class"),
        (lambda: compared(Integer(1, 8), "> 8"), r"depends on 'n': '> 8' holds for no value of Integer\(low=1, high=8"),
        (lambda: compared(Integer(1, 8), ">= 1"), r"depends on 'n': '>= 1' holds for every value of Integer"),
        (lambda: compared(Integer(1, 8, step=7), "== 4"), r"'== 4' holds for no value of"),
        (lambda: compared(Integer(2, 8, special=[0]), "!= 1"), r"'!= 1' holds for every value of"),
        (lambda: compared(Real(0, 1), "> 1"), r"'> 1' holds for no value of Real\(low=0, high=1"),
        (lambda: compared(Real(0.5, 1, special=[0]), ">= 0"), r"'>= 0' holds for every value of Real"),
        (
            lambda: compared(Real(0, 1), "== 0.5"),
            r"a Real: == and != need one of its special values \[\], but got '== 0.5'",
        ),
        (lambda: compared(Categorical([1, 2, 4]), "< 1"), r"'< 1' holds for no value of Categorical"),
        (lambda: compared(3, "> 1"), r"'> 1' holds for every value of Categorical\(choices=\(3,\)"),
        (lambda: compared(Integer(1, 8), ["> 2", "< 5"]), r"a comparison must stand alone, but got \['> 2', '< 5'\]"),
        (lambda: compared(Integer(1, 8), ["> 2", 1]), r"a comparison must stand alone, but got \['> 2'\]"),
        (
            lambda: compared(Integer(1, 8), "> nan"),
            r"depends on 'n', which must be an integer, but got '> nan' \(str\)",
        ),
        (lambda: compared(Integer(1, 8), "=> 2"), r"depends on 'n', which must be an integer, but got '=> 2' \(str\)"),
        (lambda: compared(Categorical(["a", "b"]), "> 0"), r"must be one of \['a', 'b'\], but got '> 0' \(str\)"),
        (lambda: compared(Categorical([["q"], ["q", "v"]]), ["q"]), r"must be one of \[\['q'\], .*but got 'q'"),
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
        ({**GOOD, "wd": 0.2}, r"unknown parameters \['wd'\]"),
        ([1e-4, 16, "adamw"], r"parameters must be a dict, but got .*\(list\)"),
    ],
)
def test_parameters_outside_the_space_are_refused_with_rule_name_and_value(params: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        SPACE.validate(params)
    with pytest.raises(ParamsError, match=message):
        SPACE.encode(params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"method": "full", "rank": 8},
            r"'rank' is inactive unless method in \['lora', 'dora'\]: leave it out, but got 8",
        ),
        (
            {"method": "dora", "rank": 8, "bits": 4},
            r"'bits' is inactive unless quantized == True: leave it out, but got 4",
        ),
        (
            {"method": "lora", "rank": 8, "quantized": True, "bits": 8, "dropout": 0.0, "seed": 1},
            r"parameter 'seed' is inactive unless dropout == 0.0 and quantized == False: leave it out, but got 1",
        ),
        ({"method": "lora", "quantized": True, "dropout": 0.1}, r"missing parameters \['rank', 'bits'\]"),
        ({"rank": 8}, r"missing parameters \['method'\]"),
        ({"method": "dora", "rank": 0}, r"parameter 'rank' must lie in \[1, 64\], but got 0"),
        (
            {"method": "lora", "rank": 8, "quantized": False, "dropout": 0.6},
            r"parameter 'dropout' must lie in \[0, 0.5\] or be one of the special values \[0.0\], but got 0.6",
        ),
    ],
)
def test_parameters_against_their_conditions_are_refused(params: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        LORA.validate(params)


def test_continua_cannot_be_listed_or_numbered() -> None:
    with pytest.raises(SpaceError, match=r"only a finite space can be listed; \[0\] are real"):
        SPACE.grid()
    with pytest.raises(NotImplementedError, match="Real is a continuum"):
        SPACE["lr"].index_of(np.array([0.5]))
    with pytest.raises(NotImplementedError, match="Real is a continuum"):
        SPACE["lr"].coordinate(np.array([0]))


# --- Combined spaces ----------------------------------------------------------------------------------------------


LEFT = SearchSpace(
    {"lr": Real(1e-5, 1e-3, prior="log-uniform"), "method": ["full", "lora"], "rank": Integer(4, 128, powers_of=2)},
    rule=Linear({"rank": 1}, upper=100),
    default={"lr": 1e-4, "method": "full", "rank": 64},
)


@pytest.mark.parametrize(
    ("right", "default"),
    [
        ({}, {"lr": 1e-4, "method": "full", "rank": 64}),
        ({"rank": Integer(8, 80)}, {"lr": 1e-4, "method": "full", "rank": 64}),
        ({"rank": Integer(1, 32)}, {"lr": 1e-4, "method": "full", "rank": 32}),  # the nearest
        ({"rank": Integer(1, 32, belief=8)}, {"lr": 1e-4, "method": "full", "rank": 8}),
        ({"rank": Integer(1, 99, step=7)}, {"lr": 1e-4, "method": "full", "rank": 64}),
        ({"rank": Integer(1, 100, step=9)}, {"lr": 1e-4, "method": "full", "rank": 64}),
        ({"rank": Integer(2, 100, step=7)}, {"lr": 1e-4, "method": "full", "rank": 65}),
        ({"lr": Real(1e-7, 1e-5, prior="log-uniform")}, {"lr": 1e-5, "method": "full", "rank": 64}),
        ({"rank": Integer(4, 128, powers_of=2, when={"method": "lora"})}, {"lr": 1e-4, "method": "full"}),
        ({"method": "lora"}, {"lr": 1e-4, "method": "lora", "rank": 64}),
        ({"decay": Real(0, 1, belief=0.25)}, {"lr": 1e-4, "method": "full", "rank": 64, "decay": 0.25}),
        (
            SearchSpace({"decay": Real(0, 1)}, default={"decay": 0.5}),
            {"lr": 1e-4, "method": "full", "rank": 64, "decay": 0.5},
        ),
        (
            SearchSpace({"lr": Real(1e-5, 1e-2, prior="log-uniform")}, default={"lr": 1e-3}),
            {"lr": 1e-3, "method": "full", "rank": 64},
        ),
    ],
)
def test_the_right_space_counts_and_the_default_is_that_of_both(right: Any, default: dict[str, Any]) -> None:
    both = LEFT | right
    assert both.default == default
    assert both.names == list(dict.fromkeys([*LEFT.names, *_parameters(right)]))
    assert both == SearchSpace({**LEFT.parameters, **_parameters(right)})
    assert both.rules == LEFT.rules
    assert LEFT.default == {"lr": 1e-4, "method": "full", "rank": 64}  # as it was


def _parameters(space: Any) -> dict[str, Any]:
    return dict(space.parameters if isinstance(space, SearchSpace) else space)


def test_a_dict_may_stand_on_the_left_and_rules_of_both_hold() -> None:
    middle = SearchSpace({"lr": Real(0, 2)}, rule=Linear({"lr": 1}, upper=1.5), default={"lr": 0.5})
    right = SearchSpace({"n": (0, 4)}, rule=Linear({"n": 1}, upper=2), default={"n": 1})
    both = {"lr": Real(0, 1), "more": "constant"} | middle | right
    assert both.default == {"lr": 0.5, "more": "constant", "n": 1}
    assert both.names == ["lr", "more", "n"]
    assert both["lr"] == Real(0, 2)
    assert [str(rule) for rule in both.rules] == ["1 * lr <= 1.5", "1 * n <= 2"]
    assert len((both | both).rules) == 2


@pytest.mark.parametrize(
    ("right", "message"),
    [
        ({"decay": Real(0, 1)}, r"the default is left out: 'decay' has none; write SearchSpace\({'decay'"),
        ({"method": ["a", "b"]}, "the default is left out: 'method' has none"),
        ({"rank": Integer(101, 128)}, "the default is left out: default: parameters break the rule"),
    ],
)
def test_a_default_that_nobody_knows_is_left_out_with_a_warning(right: dict[str, Any], message: str) -> None:
    with pytest.warns(SpaceWarning, match=message):
        assert (LEFT | right).default is None


def test_parameters_are_left_out_with_their_defaults() -> None:
    left = LEFT.without("rank")
    assert left.names == ["lr", "method"]
    assert left.default == {"lr": 1e-4, "method": "full"}
    assert left.rules == LEFT.rules
    with pytest.raises(SpaceError, match=r"there are no parameters \['ranks'\]; the space has \['lr'"):
        LEFT.without("ranks")
    with pytest.raises(SpaceError, match="method"):
        (LEFT | {"rank": Integer(1, 8, when={"method": "lora"})}).without("method")
    with pytest.raises(TypeError):
        LEFT | 3
