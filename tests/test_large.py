"""The large fine-tunes' optima are what they say, and few of their parameters matter."""

from __future__ import annotations

import numpy as np
import pytest

from llamatune_torch import large
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.qmc import sobol
from llamatune_torch.parameters import Categorical
from llamatune_torch.problems import Problem
from llamatune_torch.space import Params

KNOBS = {**large.MATTERING, **large.RECIPE, **large.LAYERS}

each = pytest.mark.parametrize("problem", large.ALL, ids=lambda p: p.name)


def at_optimum(problem: Problem) -> Params:
    best = {name: knob.best for name, knob in KNOBS.items() if name in problem.space.names}
    return problem.space.validate({"learning_rate": 4e-5, **best})


@each
def test_the_optimum_is_where_each_parameter_is_best_and_nothing_is_better(problem: Problem) -> None:
    best = at_optimum(problem)
    assert problem.regret(best) == pytest.approx(0.0, abs=1e-12)
    generator, centre = np.random.default_rng(0), problem.space.encode(best)
    moves = generator.standard_normal((300, problem.space.dim)) * (generator.random((300, problem.space.dim)) < 0.1)
    around = problem.space.decode_all(problem.space.snap((centre + 0.1 * moves).clip(0, 1)))
    assert min(problem.regret(params) for params in around) > -1e-12


@each
def test_a_quarter_of_the_space_diverges(problem: Problem) -> None:
    rows = problem.space.decode_all(sobol(Cube(problem.space), 512, seed=0))
    assert 0.15 < np.mean([problem.true_value(params) == large.CHANCE for params in rows]) < 0.35


def test_the_sizes_and_the_kinds_are_those_of_the_names() -> None:
    assert [problem.space.dim for problem in large.ALL] == [30, 60]
    for problem in large.ALL:
        kinds = {type(parameter).__name__ for parameter in problem.space}
        assert kinds == {"Real", "Integer", "Categorical"}


@each
def test_six_parameters_matter_and_the_others_cost_four_standard_deviations_together(problem: Problem) -> None:
    best, space = at_optimum(problem), problem.space
    rows = [p for p in space.decode_all(sobol(Cube(space), 512, seed=0)) if problem.true_value(p) > large.CHANCE]
    mattering = {"learning_rate", *large.MATTERING}

    def mean_regret(moved: set[str]) -> float:
        return float(np.mean([problem.regret({**best, **{k: v for k, v in p.items() if k in moved}}) for p in rows]))

    assert mean_regret(mattering) > 8 * mean_regret(set(space.names) - mattering)
    assert 3 < mean_regret(set(space.names) - mattering) / problem.noise < 5
    costs = {name: mean_regret({name}) for name in space.names}
    assert set(sorted(costs, key=lambda name: costs[name])[-6:]) >= mattering - {"batch_size", "optimizer"}


def test_a_choice_costs_all_or_nothing_and_a_number_the_square_of_its_distance() -> None:
    choice = large.Knob(Categorical(["a", "b"]), "a", 0.5)
    assert (choice.lost("a"), choice.lost("b")) == (0.0, 0.5)
    number = large.Knob(large.log_real(1e-4, 1.0), 1e-2, 0.4)
    assert number.lost(1.0) == pytest.approx(0.1)  # half of the range, in its logarithm
    assert number.lost(1e-2) == 0.0


def test_the_rate_is_best_at_that_of_its_optimizer_and_falls_off_a_cliff() -> None:
    problem = large.fine_tuning_30
    best = at_optimum(problem)
    lion = {**best, "optimizer": "lion"}
    assert problem.regret({**lion, "learning_rate": 8e-6}) == pytest.approx(0.008)
    assert problem.regret(lion) > 0.03
    assert problem.true_value({**best, "learning_rate": 3e-4}) > large.CHANCE
    assert problem.true_value({**best, "learning_rate": 4e-4}) == large.CHANCE
    assert problem.true_value({**best, "learning_rate": 4e-4, "warmup": 0.2}) > large.CHANCE
