"""Learning curves: values that never change, share their points, and stay quick at any length."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatune_torch import Curve, LlamaTune, OutcomeError, Real
from llamatune_torch.curve import Point

POINTS = st.lists(st.tuples(st.integers(0, 4), st.floats(-1, 1)), max_size=8)


def test_a_curve_grows_by_points_and_a_second_report_at_a_step_replaces_the_first() -> None:
    curve = Curve().reported(10, 0.5, 0.1).reported(20, 0.6, 0.2)
    assert (curve.steps, curve.values, curve.progress) == ((10, 20), (0.5, 0.6), (0.1, 0.2))
    again = curve.reported(20, 0.7)
    assert (again.steps, again.values, again.progress) == ((10, 20), (0.5, 0.7), (0.1, None))
    assert len(Curve()) == 0
    assert len(again) == 2


def test_a_curve_refuses_steps_backwards_and_shares_beyond_one() -> None:
    curve = Curve().reported(10, 0.5)
    with pytest.raises(OutcomeError, match=r"steps must not decrease, but got 9 after 10"):
        curve.reported(9, 0.5)
    for share in (-0.1, 1.5, math.nan):
        with pytest.raises(OutcomeError, match=rf"progress must lie in \[0, 1\], but got {share}"):
            curve.reported(11, 0.5, share)


def test_a_share_of_the_training_that_misses_its_bounds_by_rounding_is_the_bound() -> None:
    curve = Curve().reported(1, 0.5, -1e-17).reported(2, 0.5, 1.0000000000000002)
    assert curve.progress == (0.0, 1.0)
    for step, progress in ((3, 1.1), (3, math.nan), (3, "1"), (math.inf, 1.0), ("3", 1.0)):
        with pytest.raises(OutcomeError):
            curve.reported(step, 0.5, progress)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (((1,), (), (None,)), r"steps, values and progress of a curve must be tuples of one length"),
        ((1, 2, 3), r"steps, values and progress of a curve must be tuples of one length"),
        (((1,), ("a",), (None,)), r"a value must be a number, but got 'a' \(str\)"),
        (((math.nan,), (1,), (None,)), r"a step must be finite, but got nan"),
        (((2, 1), (1, 1), (None, None)), r"steps must not decrease, but got 1.0 after 2.0"),
        (((1,), (1,), (1.5,)), r"progress must lie in \[0, 1\], but got 1.5"),
    ],
)
def test_columns_that_are_no_curve_are_refused(columns: Any, message: str) -> None:
    with pytest.raises(OutcomeError, match=message):
        Curve(*columns)


@given(POINTS)
def test_a_curve_is_the_sequence_of_its_points_and_never_changes(points: list[tuple[int, float]]) -> None:
    grown = [Curve()]
    for step, value in sorted(points):
        grown.append(grown[-1].reported(step, value, step / 4))
    steps = sorted({step for step, _ in points})
    assert grown[-1].steps == tuple(steps)
    assert grown[-1].progress == tuple(step / 4 for step in steps)
    assert list(grown[-1]) == [
        Point(step, [value for at, value in sorted(points) if at == step][-1], step / 4) for step in steps
    ]
    assert grown[-1].last == (list(grown[-1])[-1] if steps else None)
    for curve in grown:
        again = Curve(curve.steps, curve.values, curve.progress)
        assert again == curve == pickle.loads(pickle.dumps(curve)) == copy.deepcopy(curve)
        assert hash(again) == hash(curve)
        assert again.shared_with(curve) == len(curve)
        for other in (*grown, again):
            same = curve.shared_with(other)
            assert list(curve)[:same] == list(other)[:same]
            assert other.up_to(same).followed_by(curve.beyond(same)) == curve


def test_a_hundred_thousand_reports_take_no_longer_each_than_the_first() -> None:
    tuner = LlamaTune({"x": Real(0, 1)})
    trial = tuner.ask()
    for step in range(100_000):  # a copy of the curve for each would take minutes
        running = tuner.report(trial, step, 0.5)
    assert len(running.curve) == len(tuner.tell(trial, 0.5).curve) == 100_000
    assert len(pickle.loads(pickle.dumps(running)).curve) == 100_000  # nor is the chain too deep for pickle
