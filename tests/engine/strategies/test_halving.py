"""Successive halving and Hyperband against their papers, and by hand."""

from __future__ import annotations

import math

import pytest
from simulated import kinds, next_of, play, record, run, search

from llamatune_torch import TrialState
from llamatune_torch.engine.strategies.halving import hyperband, successive_halving

RUNNING, FAILED, COMPLETE, STOPPED = TrialState.RUNNING, TrialState.FAILED, TrialState.COMPLETE, TrialState.STOPPED
STAGES = {"rungs": [100, 500, 1000]}
R81 = (1 / 81, 1 / 27, 1 / 9, 1 / 3, 1.0)


def test_hyperband_has_the_brackets_of_the_paper() -> None:
    """Li et al. (2018), the table of ``n_i`` and ``r_i`` by Algorithm 1 for ``R = 81`` and ``eta = 3``."""
    table = [
        [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        [(34, 3), (11, 9), (3, 27), (1, 81)],
        [(15, 9), (5, 27), (1, 81)],
        [(8, 27), (2, 81)],
        [(5, 81)],
    ]
    ours = [
        [(n, round(81 * rung)) for n, rung in zip(bracket.num_runs, bracket.rungs, strict=True)]
        for bracket in hyperband(R81).brackets
    ]
    assert ours == table


def test_algorithm_one_gives_these_brackets() -> None:
    """``n = ceil((s_max + 1) / (s + 1) * eta ** s)``, then ``floor(n * eta ** -i)`` at each rung."""
    s_max, eta = 4, 3
    for s, bracket in zip(range(s_max, -1, -1), hyperband(R81).brackets, strict=True):
        n = math.ceil((s_max + 1) * eta**s / (s + 1))
        assert bracket.num_runs == tuple(max(1, n // eta**i) for i in range(s + 1))
        assert [round(1 / rung) for rung in bracket.rungs] == [eta ** (s - i) for i in range(s + 1)]


def test_each_bracket_of_hyperband_costs_about_the_same() -> None:
    costs = []
    for bracket in hyperband(R81).brackets:
        steps = [bracket.rungs[0], *(b - a for a, b in zip(bracket.rungs, bracket.rungs[1:], strict=False))]
        costs.append(sum(n * step for n, step in zip(bracket.num_runs, steps, strict=True)))
    assert max(costs) < 2 * min(costs)


@pytest.mark.parametrize(
    ("rungs", "num_runs"),
    [
        ((0.1, 0.5, 1.0), (10, 2, 1)),
        ((1 / 9, 1 / 3, 1.0), (9, 3, 1)),
        ((0.1, 0.2, 0.4, 1.0), (10, 5, 2, 1)),
        ((0.3, 1.0), (3, 1)),
        ((1.0,), (1,)),
    ],
)
def test_each_rung_keeps_as_many_runs_as_it_trains_further(rungs: tuple[float, ...], num_runs: tuple[int, ...]) -> None:
    (bracket,) = successive_halving(rungs).brackets
    assert (bracket.num_runs, bracket.rungs) == (num_runs, rungs)


# --- Staged optimisation, step by step -------------------------------------------------------------------------------


def test_ten_runs_two_and_one() -> None:
    tuner = search(3, "successive_halving", **STAGES)
    played = play(tuner)
    words = [word.split()[0] for word in kinds(played.decided)]
    assert words[:10] == ["start"] * 10
    assert sorted(words[10:19]) == ["discard"] * 8 + ["resume"]
    assert sorted(words[19:22]) == ["discard", "resume", "resume"]
    runs = tuner.study.trials[:10]
    best, second = sorted(runs, key=lambda t: -t.params["x"])[:2]  # the curve ranks by x
    assert [t.number for t in runs if t.state is COMPLETE] == [best.number]
    assert {t.number: t.reached for t in runs if t.state is STOPPED and t.reached > 0.1} == {second.number: 0.5}
    assert sum(t.share for t in runs) == pytest.approx(10 * 0.1 + 2 * 0.4 + 0.5)


def test_a_rung_ends_before_any_run_goes_on() -> None:
    runs = [run(i, [i / 10]) for i in range(9)]
    assert kinds(next_of(record(*runs, run(9, [], RUNNING, 0.1)), "successive_halving", **STAGES)) == ["wait"]
    assert kinds(next_of(record(*runs, run(9, [], FAILED)), "successive_halving", **STAGES, n=2)) == (
        [f"discard {i}" for i in (6, 5, 4, 3, 2, 1, 0)] + ["resume 8 0.5", "resume 7 0.5"]
    )


def test_the_second_of_a_rung_goes_on_while_the_first_does() -> None:
    runs = [run(i, [i / 10], STOPPED) for i in range(8)]
    runs += [run(8, [0.8]), run(9, [0.9], RUNNING, 0.5, pauses=1)]
    assert kinds(next_of(record(*runs), "successive_halving", **STAGES)) == ["resume 8 0.5"]
    runs[8] = run(8, [0.8], RUNNING, 0.5, pauses=1)
    assert kinds(next_of(record(*runs), "successive_halving", **STAGES)) == ["wait"]


def test_runs_are_compared_at_their_rung_not_by_their_newest_value() -> None:
    runs = [run(i, [0.0], STOPPED) for i in range(8)] + [run(8, [0.1, 0, 0, 0, 0.7]), run(9, [0.9, 0, 0, 0, 0.6])]
    assert kinds(next_of(record(*runs), "successive_halving", **STAGES)) == ["discard 9", "resume 8 1"][:2]
    lower = record(*runs, direction="minimize")
    assert kinds(next_of(lower, "successive_halving", **STAGES))[0] == "discard 8"


def test_a_run_without_a_value_is_the_last_and_stopped() -> None:
    runs = [run(i, [i / 10]) for i in range(10)]
    silent = run(4, [0.4])
    runs[4] = type(silent)(**{**vars(silent), "curve": run(4, []).curve})
    words = kinds(next_of(record(*runs), "successive_halving", **STAGES))
    assert "discard 4" in words
    assert words[-1] == "resume 9 0.5"
    assert words.index("discard 4") == len(words) - 2  # behind all others


def test_a_run_that_could_not_pause_takes_its_place_at_each_rung() -> None:
    runs = [run(i, [i / 10]) for i in range(9)] + [run(9, [0.95] * 10)]
    words = kinds(next_of(record(*runs), "successive_halving", **STAGES, n=1))
    assert words == [f"discard {i}" for i in (7, 6, 5, 4, 3, 2, 1, 0)] + ["resume 8 0.5"]


def test_brackets_begin_anew_with_new_runs() -> None:
    over = [run(i, [0.0], STOPPED) for i in range(9)] + [run(9, [0.5] * 10)]
    assert kinds(next_of(record(*over), "successive_halving", **STAGES)) == ["start 0.1"]


def test_hyperband_plays_its_brackets_in_turn() -> None:
    tuner = search(40, "hyperband")
    play(tuner, steps=9)
    reached = [t.share for t in tuner.study.trials]
    # Three brackets: 9, 5 and 3 runs, from a ninth, a third and the whole on.
    assert all(share >= 1 / 9 - 1e-9 for share in reached[:9])
    assert all(share >= 1 / 3 - 1e-9 for share in reached[9:14])
    assert all(share == 1.0 for share in reached[14:17])
    assert min(reached[17:26]) == pytest.approx(1 / 9)
