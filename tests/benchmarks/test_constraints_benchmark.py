"""A short run of the benchmark of limits, and its problems by their known best points."""

from __future__ import annotations

import json
import math

import pytest
from constraints import PROBLEMS, best_feasible, main


@pytest.mark.filterwarnings("ignore")
def test_a_short_run_compares_this_with_botorchs_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--problems", "gramacy", "--evals", "8", "--seeds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:5]] == ["this", "botorch", "random"]
    for run in json.loads(lines[5])["runs"]:
        assert 0 <= run["broken"][0] <= 8
        assert run["best"][0] > 0.5998 or math.isinf(run["best"][0])


@pytest.mark.parametrize(
    ("name", "params", "best"),
    [
        ("gardner", {"x": 4.712388980, "y": 0.0}, -2.0),
        ("gramacy", {"x": 0.1954, "y": 0.4044}, 0.5998),
        ("pressure_vessel", {"shell": 0.778169, "head": 0.384649, "radius": 40.31962, "length": 200.0}, 5885.33),
    ],
)
def test_the_best_of_a_problem_keeps_its_limits(name: str, params: dict[str, float], best: float) -> None:
    value, outcomes = PROBLEMS[name].evaluate(params)
    assert value == pytest.approx(best, rel=1e-3)
    assert max(outcomes.values()) < 1e-3


def test_the_best_feasible_value_is_that_of_the_feasible_ones() -> None:
    assert best_feasible([(1.0, False), (2.0, True), (3.0, True)]) == 2.0
    assert best_feasible([(1.0, False)]) == math.inf
