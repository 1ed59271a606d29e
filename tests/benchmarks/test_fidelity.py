"""A short run of the strategies by cost: what it pays for, what it keeps, and its scores worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import fidelity
import numpy as np
import pytest
import recorded
from fidelity import CAP, Scores, Training

from llamatune_torch import problems


def run(method: str, seed: int, regrets: list[list[float]], problem: str = "crossing", budget: int = 30) -> Any:
    return {"problem": problem, "method": method, "seed": seed, "budget": budget, "regrets": regrets}


def benchmark(output: Path, options: str) -> list[Any]:
    fidelity.main([*options.split(), "--output", str(output)])
    return fidelity.read_runs(output)


def test_a_search_pays_for_each_step_once_and_counts_finished_runs_alone() -> None:
    problem = problems.CURVES[0]
    training = Training(problem, seed=0)
    good = dict.fromkeys(problem.space.names, 0.5)
    bad = dict.fromkeys(problem.space.names, 0.1)
    assert training.train(good, 0, 4) == problem.curve(good, 0)[:4]
    assert (training.cost, training.regrets) == (0.4, [])
    training.train(bad, 0, 10)
    assert training.train(good, 4, 10) == problem.curve(good, 0)[4:]
    assert [cost for cost, _ in training.regrets] == [1.4, 2.0]
    assert [regret for _, regret in training.regrets] == pytest.approx(
        [problem.regret(bad), problem.regret(good)], rel=1e-4
    )


def test_what_is_seen_decides_which_run_looks_best_and_what_is_true_how_good_it_is() -> None:
    problem = problems.NOISY_CURVES[0]
    one, other = (dict.fromkeys(problem.space.names, 0.5 + away) for away in (0.0, 1e-4))
    for seed in range(4):
        training = Training(problem, seed)
        ends = [training.train(params, 0, 10)[-1] for params in (one, other)]
        looks_best = (one, other)[int(np.argmin(ends))]
        assert training.regrets[-1][1] == pytest.approx(problem.regret(looks_best), rel=1e-4)


@pytest.mark.parametrize("method", [m for m in fidelity.METHODS if m != "optuna-tpe-sh"])
def test_each_method_spends_its_budget_and_finishes_runs(method: str) -> None:
    found = fidelity.run_one("fine_tune_4", method, seed=0, budget=5)
    assert 4 < found["spent"] <= 5 + 1e-9
    costs = [cost for cost, _ in found["regrets"]]
    assert costs == sorted(costs)
    assert 0.9 < costs[0] <= 5
    assert {**fidelity.run_one("fine_tune_4", method, 0, 5), "cpu_seconds": 0} == {**found, "cpu_seconds": 0}


def test_optuna_prunes_and_goes_on_until_the_budget_is_spent() -> None:
    pytest.importorskip("optuna", reason="the extra `bench` is not installed")
    found = fidelity.run_one("fine_tune_4", "optuna-tpe-sh", seed=0, budget=5)
    assert 5 <= found["spent"] < 6
    assert found["regrets"]


def test_score_is_the_regret_next_to_random_searchs() -> None:
    of_random = fidelity.random_regrets("crossing")
    assert of_random[4] > of_random[8] > of_random[30] > 0
    found = run("full", 0, [[6.0, of_random[8] / 2], [8.1, 0.0]])
    assert fidelity.score(found, 4) == CAP
    assert fidelity.score(found, 8) == pytest.approx(0.5)
    assert fidelity.score(found, 12) == 0.0
    assert fidelity.score(run("full", 0, [[1.0, 1e9]]), 4) == CAP


def test_random_search_scores_about_one() -> None:
    runs = [fidelity.run_one("crossing", "random", seed, 30) for seed in range(40)]
    for cost in (4, 30):
        assert np.median([fidelity.score(found, cost) for found in runs]) == pytest.approx(1.0, abs=0.3)


def test_summaries_are_medians_and_means_over_problems_and_errors_over_seeds() -> None:
    unit = {name: fidelity.random_regrets(name)[4] for name in ("crossing", "useless")}
    values = {
        ("crossing", 0): 0.2,
        ("crossing", 1): 0.4,
        ("crossing", 2): 1.2,
        ("useless", 0): 1.0,
        ("useless", 1): 1.0,
    }
    values["useless", 2] = 2.0
    runs = [run("full", seed, [[1.0, value * unit[name]]], name) for (name, seed), value in values.items()]
    runs += [run("asha", seed, [[1.0, (value + 0.1) * unit[name]]], name) for (name, seed), value in values.items()]
    runs.append(run("full", 3, [[1.0, 0.0]]))  # a seed that has not run everywhere
    scores = Scores(runs)
    names, methods = ["crossing", "useless"], ["full", "asha"]
    assert scores.seeds(names, methods) == [0, 1, 2]
    median, mean, error = scores.summary(names, "full", 4, [0, 1, 2])
    assert median == pytest.approx((0.4 + 1.0) / 2)
    by_seed = [0.6, 0.7, 1.6]
    assert mean == pytest.approx(np.mean(by_seed))
    assert error == pytest.approx(np.std(by_seed, ddof=1) / math.sqrt(3))
    assert scores.difference(names, ("full", "asha"), 4, [0, 1, 2]) == "-0.10 (0.00)"


def test_top_k_is_scored_by_its_run_of_that_budget() -> None:
    runs = [run("top_k", 0, [[1.0, float(budget)]], budget=budget) for budget in fidelity.COSTS]
    scores = Scores(runs)
    assert scores.seeds(["crossing"], ["top_k"]) == [0]
    expected = {c: min(CAP, c / fidelity.random_regrets("crossing")[c]) for c in fidelity.COSTS}
    assert {c: scores.found["crossing", "top_k", c][0] for c in fidelity.COSTS} == pytest.approx(expected)


def test_script_writes_each_run_once_and_prints_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "fidelity.jsonl"
    options = "--seeds 2 --problems crossing --methods top_k random --against random"
    runs = benchmark(output, options)
    assert [(r["method"], r["seed"]) for r in runs] == [
        *[("top_k", 0)] * 6,
        ("random", 0),
        *[("top_k", 1)] * 6,
        ("random", 1),
    ]
    assert [r["budget"] for r in runs[:7]] == [*fidelity.COSTS, 30]
    out = capsys.readouterr().out
    assert "**adversarial** (crossing), 2 seeds" in out
    assert out.splitlines()[-1].startswith("| crossing")
    before = output.read_text()
    assert benchmark(output, f"{options} --report") == runs
    assert benchmark(output, options) == runs
    assert output.read_text() == before
    figures = json.loads(output.with_suffix(".json").read_text())
    assert figures["median_mean_and_standard_error"]["adversarial"]["seeds"] == [0, 1]
    assert set(figures["medians"]["crossing"]) == {"top_k", "random"}


def test_every_problem_is_in_one_group() -> None:
    grouped = [name for group in fidelity.GROUPS.values() for name in group]
    assert sorted(grouped) == sorted([*fidelity.PROBLEMS, *recorded.CURVE_MAKERS])


@pytest.mark.skipif(not recorded.DATA.is_dir(), reason="the recorded runs are not next to this checkout")
def test_recorded_curves_are_looked_up_and_kept_out_of_the_committed_file(tmp_path: Path) -> None:
    problem = recorded.deberta_curves()
    space = problem.space
    rows = space.decode_all(space.snap(np.random.default_rng(0).random((40, space.dim))))
    curves = np.array([problem.curve(params, 0) for params in rows])
    assert curves.shape == (40, problems.NUM_STEPS)
    assert [problem.curve(params, 1) for params in rows] == curves.tolist()  # going on is the same run
    assert len({tuple(curve) for curve in curves}) == 40  # and each is used once
    assert 0.3 < curves.min() < curves.max() <= problem.optimum < 1
    output = tmp_path / "fidelity.jsonl"
    assert benchmark(output, "--seeds 1 --problems deberta_curves --methods random") == []
    (found,) = fidelity.read_runs(fidelity.beside(output))
    assert 0 <= found["regrets"][-1][1] < 0.1
