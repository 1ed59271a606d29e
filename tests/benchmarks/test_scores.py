"""Scores against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scores
from scores import CAP, Scores


def run(method: str, seed: int, regrets: list[list[float]], problem: str = "p", **rest: Any) -> dict[str, Any]:
    return {
        "problem": problem, "method": method, "seed": seed, "q": 1, "evals": 20, "regrets": regrets,
        "recommended": [], "failures": 0, "cpu_seconds": 1.0, **rest
    }  # fmt: skip


def test_a_curve_holds_its_value_until_the_next_change_and_starts_with_nothing() -> None:
    assert scores.curve(run("a", 0, [[2, 5.0], [4, 3.0]]), 5) == [math.inf, 5.0, 5.0, 3.0, 3.0]


def test_ties_share_the_mean_of_their_ranks() -> None:
    assert scores.ranks([3.0, 1.0, 3.0, math.inf, math.inf]) == [2.5, 1.0, 2.5, 4.5, 4.5]


@pytest.mark.parametrize(
    ("regret", "of_random", "expected"),
    [(1.0, 4.0, 0.25), (0.0, 4.0, 0.0), (100.0, 4.0, CAP), (0.0, 0.0, 1.0), (0.1, 0.0, CAP), (math.inf, 0.0, CAP),
     (math.inf, math.inf, CAP), (1.0, math.inf, 0.0)],
)  # fmt: skip
def test_normalised_regret_and_its_rules(regret: float, of_random: float, expected: float) -> None:
    assert scores.normalised(regret, of_random) == expected


@pytest.fixture
def two_problems() -> Scores:
    """On p: a is at 1, 3 (median 2), random at 4, 8 (and 100 for a seed of its own; median 8). On r: level."""
    runs = [
        run("a", 0, [[1, 1.0]]),
        run("a", 1, [[1, 3.0]]),
        run("random", 0, [[1, 4.0]]),
        run("random", 1, [[1, 9.0], [15, 0.5]]),
        run("random", 2, [[1, 100.0]]),
        run("a", 0, [[1, 7.0]], "r"),
        run("random", 0, [[1, 7.0]], "r"),
    ]
    return Scores(runs, 1, noisy=())


def test_a_table_has_a_row_for_each_problem_and_a_column_for_each_peer(two_problems: Scores) -> None:
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in scores.by_problem(two_problems, [10, 20]).split("\n")
    ]
    assert lines[0] == ["problem, n=10 / 20", "a"]
    assert lines[2:] == [["p", "0.22 / 0.50"], ["r", "1.00 / 1.00"]]


def test_normalised_regret_is_the_ratio_of_the_medians(two_problems: Scores) -> None:
    assert two_problems.points == [10, 20]
    assert two_problems.normalised("p", "a", 10) == pytest.approx(2 / 9)
    assert two_problems.normalised("p", "a", 20) == pytest.approx(2 / 4)
    assert two_problems.aggregate("a", 10) == pytest.approx(((2 / 9 + 1) / 2, (2 / 9 + 1) / 2))


def test_mean_rank_is_that_of_the_medians_whoever_has_more_seeds(two_problems: Scores) -> None:
    # p: a is first by its median; r: both at 1.5. The third seed of random search earns and costs it nothing.
    assert two_problems.mean_ranks(10) == pytest.approx({"a": 2.5 / 2, "random": 3.5 / 2})
    # At 20 random search has overtaken a on one seed, not in the median (4 to 2).
    assert two_problems.mean_ranks(20) == pytest.approx({"a": 2.5 / 2, "random": 3.5 / 2})


def test_ranks_are_stretched_where_a_method_has_not_run() -> None:
    values = {"p": {"a": 1.0, "random": 2.0, "b": 3.0}, "r": {"a": 1.0, "random": 2.0}}
    runs = [run(method, 0, [[1, value]], p) for p, by_method in values.items() for method, value in by_method.items()]
    ranks = Scores(runs, 1, noisy=()).mean_ranks(10)
    # p: 1, 2, 3 for a, random, b. r: the last of two counts as the last of three.
    assert ranks == pytest.approx({"a": 1.0, "random": 2.5, "b": 3.0})


def test_noisy_problems_are_judged_by_what_is_recommended() -> None:
    runs = [run("random", 0, [[1, 4.0]], recommended=[[10, 2.0], [20, 1.0]])]
    assert Scores(runs, 1, noisy=["p"]).median("p", "random", 10) == 2.0
    assert Scores(runs, 1, noisy=[]).median("p", "random", 10) == 4.0


def test_a_method_that_broke_counts_as_the_worst() -> None:
    runs = [run("a", 0, [[1, 1.0]], error="ValueError: no"), run("random", 0, [[1, 4.0]])]
    found = Scores(runs, 1, noisy=())
    assert found.normalised("p", "a", 10) == CAP
    assert found.mean_ranks(10) == {"a": 2.0, "random": 1.0}
    assert found.error("p", "a") == "ValueError: no"
    assert "| a      | failed: ValueError: no |" in scores.tables(found, "sequential")


def test_a_method_that_has_not_run_everywhere_has_no_aggregate() -> None:
    runs = [run("random", 0, [[1, 1.0]], problem) for problem in ("p", "r")]
    found = Scores([*runs, run("a", 0, [[1, 1.0]])], 1, noisy=())
    assert found.aggregate("a", 10) is None
    assert found.normalised("r", "a", 10) is None


def test_a_short_run_counts_as_far_as_it_goes() -> None:
    found = Scores([run("random", 0, [[1, 4.0]]), run("a", 0, [[1, 1.0]], evals=10)], 1, noisy=())
    assert [found.normalised("p", "a", n) for n in found.points] == [0.25, None]
    assert found.aggregate("a", 20) is None
    assert "a" not in found.mean_ranks(20)


def test_batches_are_compared_by_the_evaluations_that_the_same_regret_takes() -> None:
    random = run("random", 0, [[1, 9.0]])
    one = Scores([random, run("a", 0, [[1, 9.0], [8, 2.0]])], 1, noisy=())
    four = Scores([random, run("a", 0, [[1, 9.0], [12, 1.5]], q=4)], 4, noisy=())
    never = Scores([random, run("a", 0, [[1, 9.0]], q=4)], 4, noisy=())
    # The sequential search has its regret of 10 evaluations after 8; the batched one after 12, or not in 20.
    assert scores.evaluations_ratio(one, four, "a", 10) == pytest.approx(12 / 8)
    assert scores.evaluations_ratio(one, never, "a", 10) == pytest.approx(21 / 8)


def test_a_table_reads_as_text_too() -> None:
    assert scores.markdown([["a", "bbb"], ["cc"]]).splitlines() == ["| a  | bbb |", "|----|-----|", "| cc |     |"]
