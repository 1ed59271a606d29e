"""Each kind of parameter: its values, its map to the unit interval, its special values."""

from __future__ import annotations

import math
from dataclasses import replace
from enum import Enum, IntEnum
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from strategies import (
    categoricals,
    integers,
    parameters,
    reals,
    values_of,
)

from llamatune_torch import Categorical, Integer, ParamsError, Real, SearchSpace, SpaceError
from llamatune_torch.parameters import Parameter


def typed(params: dict[str, Any]) -> dict[str, tuple[type, Any]]:
    """Equality that tells 1, 1.0 and True apart."""
    return {name: (type(value), value) for name, value in params.items()}


# --- Laws ------------------------------------------------------------------------------------------------------


@given(st.one_of(reals(special=False), integers(special=False)))
def test_both_bounds_are_exactly_reachable(parameter: Real | Integer) -> None:
    ends = parameter.decode([0.0, 1.0])
    assert ends == [parameter.low, parameter.high]
    assert [parameter.validate(end) for end in ends] == ends
    assert parameter.decode(parameter.encode(ends)) == ends


@given(st.data())
def test_encode_keeps_the_order_of_numbers(data: st.DataObject) -> None:
    parameter = data.draw(st.one_of(reals(special=False), integers(special=False)))
    values = sorted(parameter.validate(data.draw(values_of(parameter))) for _ in range(4))
    U = parameter.encode(values)
    assert (np.diff(U) >= 0).all()
    if isinstance(parameter, Integer):
        assert len(np.unique(U)) == len(set(values))


@given(categoricals())
def test_choices_keep_their_order_evenly_spaced(parameter: Categorical) -> None:
    U = parameter.encode(parameter.choices)
    expected = (np.arange(parameter.size) + 0.5) / parameter.size
    assert np.array_equal(U, expected)


@given(parameters().filter(lambda p: p.size is not None and p.size <= 5000))
def test_numbers_and_coordinates_of_finite_parameters_translate_both_ways(parameter: Parameter) -> None:
    assert parameter.size is not None
    index = np.arange(parameter.size)
    assert np.array_equal(parameter.index_of(parameter.coordinate(index)), index)


# --- Fair shares of the unit interval --------------------------------------------------------------------------


@pytest.mark.parametrize("parameter", [Integer(8, 32), Integer(-3, 3), Categorical(["a", "b", "c"])])
def test_uniform_draws_give_every_value_the_same_share(parameter: Integer | Categorical) -> None:
    per_value = 100
    n = parameter.size * per_value
    U = (np.arange(n) + 0.5) / n
    assert np.bincount(parameter.index_of(U)).tolist() == [per_value] * parameter.size


@pytest.mark.parametrize(("low", "high"), [(1, 8), (8, 32), (1, 1000)])
def test_log_integers_have_the_share_of_their_cell_on_a_logarithmic_axis(low: int, high: int) -> None:
    parameter = Integer(low, high, prior="log-uniform")
    n = 1_000_000
    U = (np.arange(n) + 0.5) / n
    shares = np.bincount(parameter.index_of(U), minlength=parameter.size) / n
    v = np.arange(low, high + 1)
    expected = np.log((v + 0.5) / (v - 0.5)) / math.log((high + 0.5) / (low - 0.5))
    assert shares == pytest.approx(expected, abs=2 / n)


def test_log_uniform_reals_spend_as_much_on_each_decade() -> None:
    values = Real(1e-6, 1e-2, prior="log-uniform").decode(np.linspace(0.0005, 0.9995, 1000))
    decades = np.bincount(np.floor(np.log10(values) + 6).astype(int), minlength=4)
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
    assert parameter.decode([coordinate]) == [value]


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (Integer(8, 64, step=8), [8, 16, 24, 32, 40, 48, 56, 64]),
        (Integer(1, 64, powers_of=2), [1, 2, 4, 8, 16, 32, 64]),
        (Integer(10, 1000, powers_of=10), [10, 100, 1000]),
        (Integer(-5, 5, step=5), [-5, 0, 5]),
    ],
)
def test_steps_and_powers_are_all_the_values_in_cells_of_one_width(parameter: Integer, values: list[int]) -> None:
    n = len(values)
    assert parameter.size == n
    assert parameter.decode((np.arange(n) + 0.5) / n) == values == parameter.values_in_range()
    assert parameter.encode(values) == pytest.approx((np.arange(n) + 0.5) / n)
    for odd in (values[0] + 1 if values[0] + 1 not in values else 3, values[-1] + 1, values[0] - 1):
        with pytest.raises(ParamsError, match="must"):
            parameter.validate(odd)


def test_what_is_between_steps_or_powers_is_refused_with_the_rule() -> None:
    with pytest.raises(ParamsError, match="must be 8 plus a multiple of 8, but got 12"):
        Integer(8, 64, step=8).validate(12)
    with pytest.raises(ParamsError, match="must be a power of 2, but got 12"):
        Integer(1, 64, powers_of=2).validate(12)


def test_special_values_may_stand_between_steps() -> None:
    parameter = Integer(8, 32, step=8, special=[0, 12, 16])
    assert parameter.size == 6  # 16 counts once
    index = np.arange(6)
    assert parameter.decode(parameter.coordinate(index)) == [0, 12, 16, 8, 24, 32]
    assert parameter.index_of(parameter.coordinate(index)).tolist() == index.tolist()
    assert repr(parameter) == "Integer(low=8, high=32, prior='uniform', step=8, special=[0, 12, 16])"


def test_increasing_numbers_are_ordered_unless_one_says_otherwise() -> None:
    for choices in ([8, 16, 32, 64], [0, 0.1, 0.5], (-1, 0, 1)):
        assert Categorical(choices).ordered
        assert not Categorical(choices, ordered=False).ordered
    for choices in ([8, 64, 16], ["a", "b", "c"], [False, True, 2], [4, 8], [None, 1, 2], [1, 1.0, 2]):
        assert not Categorical(choices).ordered
        assert Categorical(choices, ordered=True).ordered
    assert SearchSpace({"rank": [8, 16, 32]}).numeric_columns == [0]


@pytest.mark.parametrize(
    "parameter",
    [Real(1e-5, 1e-3, prior="log-uniform"), Real(0.0, 0.1), Real(-0.3, 0.3), Real(1e-3, 1e3, prior="log-uniform")],
)
def test_a_value_outside_by_rounding_alone_is_the_bound(parameter: Real) -> None:
    for bound, away in ((parameter.low, -1.0), (parameter.high, 1.0)):
        for value in (math.nextafter(bound, away * math.inf), np.float64(bound + away * 1e-17)):
            assert parameter.validate(value) == bound
        with pytest.raises(ParamsError, match="must lie in"):
            parameter.validate(bound + away * 1e-6)


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


class Scheduler(str, Enum):  # noqa: UP042  # as transformers' own enums
    LINEAR = "linear"
    COSINE = "cosine"


class Rank(IntEnum):
    SMALL = 8
    LARGE = 64


class Share(float):
    pass


def test_members_of_enums_and_other_subclasses_are_the_plain_values_they_hold() -> None:
    plain = SearchSpace(
        {
            "linear": Categorical(["linear", "cosine", 8]),
            "rank": Integer(8, 64, special=[0], when={"linear": "linear"}),
            "share": Real(0.0, 0.5),
        }
    )
    space = SearchSpace(
        {
            Scheduler.LINEAR: Categorical([Scheduler.LINEAR, Scheduler.COSINE, Rank.SMALL]),
            "rank": Integer(Rank.SMALL, Rank.LARGE, special=[0], when={Scheduler.LINEAR: Scheduler.LINEAR}),
            "share": Real(Share(0.0), np.float64(0.5)),
        }
    )
    assert repr(space) == repr(plain)
    assert space == plain
    given = {Scheduler.LINEAR: Scheduler.LINEAR, "rank": Rank.LARGE, "share": Share(0.25)}
    expected = {"linear": "linear", "rank": 64, "share": 0.25}
    assert typed(space.validate(given)) == typed(expected)
    assert {type(name) for name in [*space.validate(given), *space.parameters, *space.conditions["rank"]]} == {str}
    assert space.decode(space.encode(given)) == expected


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


@pytest.mark.parametrize(
    ("low", "high", "prior"),
    [(1.0, math.nextafter(1.0, 2.0), "uniform"), (1e16, 1e16 + 2, "uniform"), (1.0, 1 + 1e-11, "log-uniform")],
)
def test_bounds_that_differ_by_rounding_alone_are_refused(low: float, high: float, prior: Any) -> None:
    with pytest.raises(SpaceError, match="low and high must differ by more than values are rounded by, but got"):
        Real(low, high, prior=prior)


# --- Special values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "value", "coordinate"),
    [
        (Real(0, 0.1, special=[0.0]), 0.0, 1 / 8),
        (Real(0, 0.1, special=[0.0]), 0.05, 1 / 4 + 3 / 4 * 0.5),
        (Real(0, 0.1, special=[0.0]), 0.1, 1.0),
        (Real(1e-4, 1, prior="log-uniform", special=[0, -1]), 0.0, 1 / 16),
        (Real(1e-4, 1, prior="log-uniform", special=[0, -1]), -1.0, 3 / 16),
        (Real(1e-4, 1, prior="log-uniform", special=[0, -1]), 1e-4, 1 / 4),
        (Real(1e-4, 1, prior="log-uniform", special=[0, -1]), 1e-2, 1 / 4 + 3 / 4 * 0.5),
        (Integer(10, 12, special=[0]), 0, 1 / 8),
        (Integer(10, 12, special=[0]), 10, 1 / 4 + 3 / 4 * 0.5 / 3),
        (Integer(1, 4, prior="log-uniform", special=[4, 0]), 4, 1 / 16),
        (
            Integer(1, 4, prior="log-uniform", special=[4, 0]),
            2,
            1 / 4 + 3 / 4 * math.log(2 / 0.5) / math.log(4.5 / 0.5),
        ),
    ],
)
def test_special_values_share_the_first_quarter_and_the_range_has_the_rest(
    parameter: Parameter, value: float, coordinate: float
) -> None:
    assert parameter.encode([parameter.validate(value)]).item() == pytest.approx(coordinate, abs=1e-12)
    decoded = parameter.decode([coordinate])
    assert typed({"value": decoded[0]}) == typed({"value": parameter.validate(value)})


def test_every_coordinate_of_a_cell_stands_for_its_special_value_and_snaps_to_the_centre() -> None:
    parameter = Real(1e-4, 1, prior="log-uniform", special=[0.0, -1.0])
    U = np.array([0.0, 0.124, 0.126, 0.249, 0.25, 0.5])
    assert parameter.decode(U) == [0.0, 0.0, -1.0, -1.0, 1e-4, parameter.decode(U)[-1]]
    assert parameter.special_of(U).tolist() == [0, 0, 1, 1, -1, -1]
    assert parameter.snap(U).tolist() == [1 / 16, 1 / 16, 3 / 16, 3 / 16, 0.25, 0.5]


@pytest.mark.parametrize("low", [0.0, -0.05, 1e-300])
def test_a_special_value_in_the_range_has_one_coordinate_only(low: float) -> None:
    parameter = Real(low, 0.1, prior="uniform", special=[low, 0.05, 0.1])
    inside = np.array([0.25, 0.25 + 0.75 * (0.05 - low) / (0.1 - low), 1.0])
    assert parameter.decode(inside) == [low, 0.05, 0.1]
    assert np.array_equal(parameter.snap(inside), parameter.special_coordinates())
    assert np.array_equal(parameter.encode([low, 0.05, 0.1]), parameter.special_coordinates())
    assert parameter.special_of(inside).tolist() == [0, 1, 2]


def test_numbers_of_integers_with_special_values_count_each_value_once() -> None:
    parameter = Integer(3, 8, special=[5, 0])
    assert parameter.size == 7
    listed = parameter.decode(parameter.coordinate(np.arange(7)))
    assert listed == [5, 0, 3, 4, 6, 7, 8]
    grid = np.linspace(0, 1, 5000)
    assert set(parameter.decode(grid)) == set(listed)
    assert np.array_equal(parameter.snap(grid), parameter.encode(parameter.decode(grid)))


# --- Beliefs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "centre", "sd"),
    [
        # Two decades: half a decade is a quarter.
        (Real(1e-5, 1e-3, prior="log-uniform", belief=1e-4), 0.5, 0.25),
        (Real(1e-5, 1e-3, prior="log-uniform", belief=(1e-5, 0.2)), 0.0, 0.1),
        (Real(0, 0.4, belief=0.1), 0.25, 0.25),
        (Real(0, 0.4, belief=(0.1, 0.5)), 0.25, 0.5),
        # The range has three quarters of the interval.
        (Real(1e-4, 1e-2, prior="log-uniform", special=[0.0], belief=1e-3), 0.25 + 0.75 * 0.5, 0.75 * 0.25),
        # Cells of a fifth, so that 1 .. 5 spans four of them.
        (Integer(1, 5, belief=3), 0.5, 0.25 * 4 / 5),
        (Integer(8, 64, step=8, belief=(32, 0.5)), 3.5 / 8, 0.5 * 7 / 8),
        # Four cells: half a decade is log2(10) / 2 of them.
        (Integer(1, 8, powers_of=2, belief=2), 1.5 / 4, 0.5 * math.log2(10) / 4),
        (
            Integer(1, 4, prior="log-uniform", belief=(2, 0.1)),
            math.log(2 / 0.5) / math.log(4.5 / 0.5),
            0.1 / math.log10(4.5 / 0.5),
        ),
    ],
)
def test_a_belief_has_the_place_and_the_width_worked_out_by_hand(
    parameter: Real | Integer, centre: float, sd: float
) -> None:
    assert parameter.belief_at() == (pytest.approx(centre), pytest.approx(sd))


@given(st.one_of(reals(), integers()), st.data())
def test_a_believed_value_has_the_place_of_that_value(parameter: Real | Integer, data: st.DataObject) -> None:
    value = data.draw(st.sampled_from([parameter.low, parameter.high]))
    believed = replace(parameter, special=(), belief=value).belief_at()
    assert believed is not None
    assert believed[0] == pytest.approx(replace(parameter, special=(), belief=None).encode([value]).item(), abs=1e-9)
    assert believed[1] > 0


def test_a_belief_is_part_of_a_parameter() -> None:
    short = Real(1e-5, 1e-3, prior="log-uniform", belief=2e-4)
    assert short == Real(1e-5, 1e-3, prior="log-uniform", belief=(2e-4, 0.5)) != replace(short, belief=None)
    assert len({short, replace(short, belief=None)}) == 2
    assert "belief=(0.0002, 0.5)" in repr(short)
    assert "belief" not in repr(Integer(1, 8))
    assert Integer(1, 8).belief_at() is Categorical(["a"]).belief_at() is None


@pytest.mark.parametrize(
    ("belief", "message"),
    [
        (1e-2, r"a believed value must lie in \[1e-05, 0.001\], but got 0.01 \(float\)"),
        (math.nan, "a believed value must lie in"),
        ("high", "a believed value must lie in"),
        ((1e-4, 0), "the spread of a belief must be a finite number of decades > 0, but got 0"),
        ((1e-4, math.inf), "the spread of a belief must be"),
        ((1e-4, True), "the spread of a belief must be"),
        ((1e-4, 0.5, 1), "belief must be a value, or a value and its spread, but got"),
    ],
)
def test_what_is_no_belief_is_refused_with_the_rule(belief: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        Real(1e-5, 1e-3, prior="log-uniform", belief=belief)
