"""The problems' optima are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llamatune_torch import problems
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.qmc import sobol
from llamatune_torch.problems import Problem

AT_OPTIMUM = {
    "branin": {"x": math.pi, "y": 2.275},
    "hartmann6": dict(
        zip([f"x{i}" for i in range(6)], [0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573], strict=True)
    ),
    "mixed": {"learning_rate": 5e-5, "dropout": 0.1, "layers": 9, "optimizer": "lion"},
    "fine_tuning": {
        "learning_rate": 3e-5, "batch_size": 16, "epochs": 5, "weight_decay": 0.05, "warmup": 0.0, "dropout": 0.1
    },
    "memory_limited": {
        "learning_rate": 3e-5 * 2.5**0.31, "batch_size": 40, "epochs": 5, "weight_decay": 0.05, "warmup": 0.0,
        "dropout": 0.1,
    },
    "switched_off": {"learning_rate": 3e-4, "weight_decay": 0.0, "dropout": 0.1, "warmup_steps": 100},
    "adapters": {"method": "lora", "adapter_learning_rate": 2e-4, "rank": 32, "alpha": 64},
}  # fmt: skip


@pytest.mark.parametrize("problem", problems.ALL, ids=lambda p: p.name)
def test_optimum_is_reached_at_the_published_point(problem: Problem) -> None:
    assert problem.regret(AT_OPTIMUM[problem.name]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("problem", problems.ALL, ids=lambda p: p.name)
def test_nothing_is_better_than_the_optimum(problem: Problem) -> None:
    regrets = []
    cube = Cube(problem.space)
    for params in cube.decode_all(sobol(cube, 512, seed=0)):
        try:
            regrets.append(problem.regret(params))
        except MemoryError:
            continue
    assert min(regrets) > -1e-9
    assert len(regrets) > 100


def test_noise_has_the_stated_size_and_comes_from_the_given_generator() -> None:
    problem = problems.fine_tuning
    params = AT_OPTIMUM["fine_tuning"]
    generator = np.random.default_rng(0)
    values = [problem.evaluate(params, generator) for _ in range(400)]
    assert np.std(values) == pytest.approx(problem.noise, rel=0.1)
    assert problem.evaluate(params, np.random.default_rng(0)) == values[0]


def test_the_best_with_weight_decay_is_far_worse_than_the_best_without_it() -> None:
    best = AT_OPTIMUM["switched_off"]
    on = [problems.switched_off.regret({**best, "weight_decay": 10**exponent}) for exponent in np.linspace(-4, 0, 41)]
    assert min(on) == pytest.approx(0.4)
    assert on[0] > min(on)  # downhill leads away from zero


def test_each_method_of_the_conditional_problem_has_an_optimum_of_its_own() -> None:
    lora = AT_OPTIMUM["adapters"]
    assert problems.adapters.regret({"method": "full", "learning_rate": 2e-5}) == pytest.approx(0.2)
    assert problems.adapters.regret({**lora, "method": "qlora", "bits": 8}) == pytest.approx(0.1)
    assert problems.adapters.regret({**lora, "method": "qlora", "bits": 4}) == pytest.approx(0.15)


def test_a_quarter_of_the_fine_tuning_space_diverges() -> None:
    cube = Cube(problems.fine_tuning.space)
    rows = cube.decode_all(sobol(cube, 512, seed=0))
    diverged = np.mean([problems.fine_tuning.true_value(params) == 0.33 for params in rows])
    assert 0.15 < diverged < 0.4
