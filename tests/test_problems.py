"""The problems' optima are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from llamatune_torch import problems
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.qmc import sobol
from llamatune_torch.problems import NUM_STEPS, CurveProblem, Problem
from llamatune_torch.space import Params

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


by_curve = pytest.mark.parametrize("problem", problems.CURVES, ids=lambda p: p.name)


def random_params(problem: CurveProblem, n: int) -> list[Params]:
    U = np.random.default_rng(0).random((n, problem.space.dim))
    return problem.space.decode_all(problem.space.snap(U))


def true_curves(problem: CurveProblem, n: int = 1500) -> np.ndarray:
    """The curves of random parameters, a row each; their ends are the last column."""
    return np.array([problem.true_curve(params) for params in random_params(problem, n)])


def correlations(problem: CurveProblem, step: int) -> tuple[float, float]:
    """Rank correlation of the values after a step with those at the end: of all, and of the quarter that ends best."""
    curves = true_curves(problem)
    ends = curves[:, -1]
    best = ends <= np.quantile(ends, 0.25)
    return (spearmanr(curves[:, step - 1], ends)[0], spearmanr(curves[best, step - 1], ends[best])[0])


@by_curve
def test_the_best_curve_ends_at_the_optimum_and_none_below(problem: CurveProblem) -> None:
    dim = problem.space.dim
    best = {f"x{j}": 0.5 + 0.25 * math.cos(1.7 * j + 1) for j in range(dim)}
    assert problem.regret(best) == pytest.approx(0.0, abs=1e-9)
    assert min(true_curves(problem)[:, -1]) > problem.optimum
    generator = np.random.default_rng(0)
    for width in (0.1, 0.01):
        for move in width * generator.standard_normal((200, dim)):
            near = {name: min(max(value + dx, 0), 1) for (name, value), dx in zip(best.items(), move, strict=True)}
            assert problem.regret(near) >= 0


@pytest.mark.parametrize("name", ["fine_tune_4", "fine_tune_7", "fine_tune_12"])
def test_the_first_tenth_of_a_fine_tune_tells_good_from_bad_not_the_best_from_the_good(name: str) -> None:
    (problem,) = (problem for problem in problems.CURVES if problem.name == name)
    over_all, among_the_best = correlations(problem, 1)
    assert over_all == pytest.approx(0.85, abs=0.02)
    assert among_the_best == pytest.approx(0.4, abs=0.05)
    later, among_the_best_later = correlations(problem, 4)
    assert later > 0.94
    assert 0.6 < among_the_best_later < 0.8


def test_what_the_begin_of_an_adversarial_curve_says_of_its_end() -> None:
    early = {problem.name: {step: correlations(problem, step)[0] for step in (2, 4, 9)} for problem in problems.CURVES}
    assert early["crossing"][4] < -0.4
    assert early["reversed"][4] == pytest.approx(-1)
    assert early["reversed"][9] == pytest.approx(1)
    assert abs(early["useless"][4]) < 0.1
    assert early["useless"][9] > 0.5
    assert early["cliffs"][4] < 0


def test_what_leads_late_divergence_diverges_and_does_so_late() -> None:
    (problem,) = (problem for problem in problems.CURVES if problem.name == "late_divergence")
    curves = true_curves(problem)
    diverged = curves[:, -1] == 3.0
    assert 0.2 < diverged.mean() < 0.4
    assert not (curves[:, 3] == 3.0).any()
    leading = curves[:, 3] <= np.quantile(curves[:, 3], 0.1)
    assert diverged[leading].all()


@pytest.mark.parametrize("problem", problems.NOISY_CURVES, ids=lambda p: p.name)
def test_noise_of_a_curve_is_that_of_its_parameters_and_seed_and_a_tenth_of_what_counts(problem: CurveProblem) -> None:
    one, other = random_params(problem, 2)
    curve = problem.curve(one, seed=0)
    assert len(curve) == NUM_STEPS
    assert curve == problem.curve(dict(reversed(one.items())), seed=0)
    assert curve != problem.curve(one, seed=1)

    def noise(params: Params, seed: int) -> np.ndarray:
        return np.array(problem.curve(params, seed)) - np.array(problem.true_curve(params))

    assert not np.allclose(noise(one, 0), noise(other, 0))
    drawn = np.array([noise(one, seed) for seed in range(100)])
    assert drawn.std() == pytest.approx(problem.noise, rel=0.1)
    ends = true_curves(problem)[:, -1]
    low, high = np.quantile(ends[ends <= np.quantile(ends, 0.25)], [0.25, 0.75])
    assert problem.noise / (high - low) == pytest.approx(0.1, abs=0.03)


def test_curves_are_of_four_to_twelve_parameters() -> None:
    dims = {problem.space.dim for problem in problems.CURVES}
    assert (min(dims), max(dims)) == (4, 12)
    assert [p.name for p in problems.NOISY_CURVES] == [f"{p.name}_noisy" for p in problems.CURVES]
