"""Robust outcomes: laws by property, numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from llamatune_torch.engine.outcome import LOG_WARP_OFFSET, half_rank, log_warp, restore, robust, standardize, steepness

scores = st.one_of(st.floats(0, 1), st.floats(-1e6, 1e6), st.sampled_from([0.5, -1e4, -math.inf]))
histories = st.lists(scores, min_size=1, max_size=25)


def doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- Laws --------------------------------------------------------------------------------------------------------


@given(histories)
def test_robust_never_changes_which_of_two_runs_is_better(history: list[float]) -> None:
    Y = doubles(history)
    R = robust(Y)
    better = Y.unsqueeze(1) > Y.unsqueeze(0)
    assert ((R.unsqueeze(1) - R.unsqueeze(0))[better] >= -1e-12).all()


@given(histories)
def test_robust_gives_equal_runs_equal_outcomes(history: list[float]) -> None:
    R = robust(doubles([*history, history[0]]))
    assert R[0] == R[-1]


@given(histories)
def test_robust_is_standardised_and_finite(history: list[float]) -> None:
    R = robust(doubles(history))
    assert R.shape == (len(history),)
    assert R.isfinite().all()
    assert R.mean().item() == pytest.approx(0, abs=1e-9)
    if (R != 0).any():
        assert R.square().mean().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("history", [[-1e200, 0.8], [-1e200, -1e201, -1e202], [1e308, 0.0, -1e308]])
def test_robust_is_finite_for_everything_a_double_can_hold(history: list[float]) -> None:
    R = robust(doubles(history))
    assert R.isfinite().all()
    assert (R[doubles(history).argsort()].diff() > 0).all()


@given(st.integers(0, 2**31), st.integers(2, 12))
def test_robust_is_strictly_increasing_where_runs_differ(seed: int, n: int) -> None:
    Y = torch.randperm(3 * n, generator=torch.Generator().manual_seed(seed))[:n].double()
    R = robust(Y)
    assert (R[Y.argsort()].diff() > 1e-6).all()


@given(st.data())
def test_robust_does_not_care_how_bad_the_bad_half_is(data: st.DataObject) -> None:
    """An odd number of runs: the median is one of them, and all below it are known by their ranks."""
    good = data.draw(st.lists(st.floats(0.5, 1), min_size=2, max_size=8))
    assume(max(good) - min(good) > 1e-6)
    num_bad = len(good) - 1
    bad = st.lists(st.floats(-1e6, 0.4), min_size=num_bad, max_size=num_bad, unique=True)
    one, other = sorted(data.draw(bad)), sorted(data.draw(bad))
    assert torch.allclose(robust(doubles(good + one)), robust(doubles(good + other)), atol=1e-9)


@given(histories, st.sampled_from([1e-3, 0.5, 3.0, 1e3]), st.sampled_from([-100.0, 0.0, 1.0, 100.0]))
def test_robust_does_not_depend_on_unit_and_origin(history: list[float], scale: float, shift: float) -> None:
    grid = [value if math.isinf(value) else round(value, 2) for value in history]  # far coarser than rounding
    moved = robust(scale * doubles(grid) + shift)
    assert torch.allclose(moved, robust(doubles(grid)), atol=1e-5)


@given(histories, st.randoms(use_true_random=False))
def test_robust_does_not_depend_on_the_order_of_the_runs(history: list[float], random: object) -> None:
    order = list(range(len(history)))
    random.shuffle(order)  # type: ignore[attr-defined]
    Y = doubles(history)
    assert torch.allclose(robust(Y)[order], robust(Y[order]), atol=1e-9)


# --- What it is for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("diverged", [-1e4, -math.inf])
@pytest.mark.parametrize("num_diverged", [1, 3, 4])
def test_diverged_runs_do_not_flatten_the_differences_between_good_ones(diverged: float, num_diverged: int) -> None:
    good = [0.80, 0.82, 0.84, 0.86, 0.88]
    R = robust(doubles(good + [diverged * (1 + 0.1 * i) for i in range(num_diverged)]))
    # Without the cure the good runs would lie within 1e-5 standard deviations of each other.
    assert R[4] - R[3] > 0.1
    assert R[4] - R[0] > 0.5


@pytest.mark.parametrize("good", [[0.8, 0.9], [0.7, 0.8, 0.9], [0.7, 0.75, 0.8, 0.9]])
def test_exactly_half_of_the_runs_may_diverge(good: list[float]) -> None:
    mild = robust(doubles(good + [0.1 * (i + 1) for i in range(len(good))]))
    wild = robust(doubles(good + [1e4 * (i - 10) for i in range(len(good))]))
    assert torch.allclose(mild[: len(good)], wild[: len(good)], atol=1e-6)


# --- Numbers by hand ---------------------------------------------------------------------------------------------


def test_half_rank_keeps_the_better_half_and_ranks_the_rest() -> None:
    # Sorted: -1000, 1, 2, 4, 6; the median is 2, the better half 2, 4, 6 with root mean square distance
    # sqrt((0 + 4 + 16) / 3); two below it, and the median is a value: quantiles 0.5/5 and 1.5/5.
    spread = math.sqrt(20 / 3)
    expected = [4, 2 - 0.5244005127 * spread, 6, 2 - 1.2815515655 * spread, 2]
    assert half_rank(doubles([4, 1, 6, -1000, 2])).tolist() == pytest.approx(expected, abs=1e-8)


def test_half_rank_treats_ties_below_the_median_as_one_rank() -> None:
    # Median 3, one distinct value below it: quantile 0.5/3.
    ranked = half_rank(doubles([1, 1, 3, 4, 5]))
    spread = math.sqrt((0 + 1 + 4) / 3)
    assert ranked.tolist() == pytest.approx([3 - 0.9674215661 * spread] * 2 + [3, 4, 5], abs=1e-8)


def test_log_warp_of_five_even_steps() -> None:
    c = LOG_WARP_OFFSET
    expected = [0.5 - math.log(1 + (c - 1) * z) / math.log(c) for z in (0, 0.25, 0.5, 0.75, 1)]
    warped = log_warp(doubles([4, 3, 2, 1, 0])).tolist()
    assert warped == pytest.approx(expected)
    assert (warped[0], warped[-1]) == pytest.approx((0.5, -0.5))
    assert -warped[1] + warped[0] > -warped[4] + warped[3]  # stretched at the best


def test_standardize_divides_by_the_population_standard_deviation() -> None:
    assert standardize(doubles([1, 3])).tolist() == [-1, 1]
    assert standardize(doubles([1, 2, 3])).tolist() == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)])


@pytest.mark.parametrize("history", [[0.7], [0.7, 0.7, 0.7], [-math.inf], [-math.inf, -math.inf]])
def test_runs_without_any_difference_all_become_zero(history: list[float]) -> None:
    assert robust(doubles(history)).tolist() == [0.0] * len(history)


def test_runs_that_diverged_to_minus_infinity_rank_below_the_worst_finite_one() -> None:
    R = robust(doubles([0.9, 0.8, 0.7, -5.0, -math.inf]))
    assert (R.diff() < 0).all()


def test_device_and_dtype_are_those_of_the_input(device: torch.device) -> None:
    R = robust(torch.tensor([0.1, 0.9, -math.inf, 0.5], dtype=torch.float64, device=device))
    assert R.dtype == torch.float64
    assert R.device.type == device.type
    assert R.cpu().tolist() == pytest.approx(robust(doubles([0.1, 0.9, -math.inf, 0.5])).tolist(), abs=1e-12)


# --- The way back ------------------------------------------------------------------------------------------------


@given(histories)
def test_restore_undoes_robust(history: list[float]) -> None:
    Y = doubles(history)
    R = robust(Y)
    assume(Y.isfinite().any())
    assume(bool((R != R[0]).any()))
    finite = Y.isfinite()
    back = restore(R, Y, R, torch.arange(len(Y)))[finite]
    torch.testing.assert_close(back, Y[finite], rtol=1e-6, atol=1e-6 * float(Y[finite].abs().max()))


def test_restore_goes_on_beyond_the_best_and_ends_at_the_worst() -> None:
    Y = torch.linspace(0, 1, 11, dtype=torch.float64)
    R, rows = robust(Y), torch.arange(11)
    beyond = restore(R.max() + doubles([0.0, 0.5, 1.0]), Y, R, rows)
    assert beyond[0] == pytest.approx(1)
    assert bool((beyond.diff() > 0.05).all())
    assert restore(R.min() - 5, Y, R, rows) == 0


def test_restore_knows_outcomes_of_which_a_part_was_standardised_anew() -> None:
    Y = doubles([0.1, 0.9, 0.4, 0.7, 0.2, 0.65, 0.8])
    rows = torch.tensor([1, 3, 6, 2])
    R = standardize(robust(Y)[rows])
    torch.testing.assert_close(restore(R, Y, R, rows), Y[rows])


def test_the_slope_is_the_derivative_of_the_warp() -> None:
    """At the best of outcomes from 0 to 1 whose better half is from 0.5 on, by hand."""
    Y = torch.linspace(0, 1, 101, dtype=torch.float64)
    R = robust(Y)
    found = steepness(R[-1], Y, R, torch.arange(101)).item()
    assert found == pytest.approx(((Y[-1] - Y[-2]) / (R[-1] - R[-2])).item(), rel=0.01)
