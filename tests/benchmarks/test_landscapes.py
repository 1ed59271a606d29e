"""The landscapes' optima are what they say, and each has the trait that it is there for."""

from __future__ import annotations

import landscapes
import numpy as np
import pytest
from numpy.typing import ArrayLike

from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.qmc import sobol
from llamatune_torch.problems import Problem
from llamatune_torch.space import Params

AT_OPTIMUM: dict[str, Params] = {
    "ackley10": {f"x{i}": float(centre) for i, centre in enumerate(landscapes.ACKLEY_CENTRE)},
    "levy50": {f"x{i}": landscapes.LEVY_CENTRE.get(f"x{i}", 9.0) for i in range(50)},
    "rosenbrock_log": {"a": 1e-3, "b": 0.1, "c": 10.0, "d": 1e-2, "e": 100.0},
    "branin_noisy": {"x": 9.42478, "y": 2.475},
    "hartmann6_noisy": dict(
        zip([f"x{i}" for i in range(6)], [0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573], strict=True)
    ),
    "mixed_large": {
        "learning_rate": 1e-2, "weight_decay": 0.05, "epsilon": 1e-7, "dropout": 0.1, "layers": 12,
        "warmup_steps": 300, "optimizer": "muon", "schedule": "cosine",
    },
    "fine_tuning_small": {"learning_rate": 1e-4, "batch_size": 32, "epochs": 6},
    "fine_tuning_large": {
        "learning_rate": 4e-5, "batch_size": 32, "epochs": 6, "warmup": 0.06, "weight_decay": 0.01, "dropout": 0.1,
        "attention_dropout": 0.05, "label_smoothing": 0.1, "layer_decay": 0.9, "max_grad_norm": 1.0,
        "scheduler": "linear", "optimizer": "adamw",
    },
    "lora_memory": {
        "learning_rate": 2e-4, "batch_size": 16, "sequence_length": 2048, "rank": 32, "checkpointing": True
    },
}  # fmt: skip

by_name = pytest.mark.parametrize("problem", landscapes.ALL, ids=lambda p: p.name)


def regrets(problem: Problem, U: ArrayLike) -> tuple[list[float], float]:
    """The regrets at points of the unit cube, and the share that failed."""
    rows, found = problem.space.decode_all(problem.space.snap(U)), []
    for params in rows:
        try:
            found.append(problem.regret(params))
        except MemoryError:
            continue
    return found, 1 - len(found) / len(rows)


@by_name
def test_optimum_is_reached_at_the_stated_point(problem: Problem) -> None:
    params = problem.space.validate(AT_OPTIMUM[problem.name])
    assert problem.regret(params) == pytest.approx(0.0, abs=1e-5)


@by_name
def test_nothing_is_better_than_the_optimum_neither_all_over_nor_close_to_it(problem: Problem) -> None:
    everywhere, _ = regrets(problem, sobol(Cube(problem.space), 1024, seed=0))
    assert min(everywhere) > -1e-9
    centre = problem.space.encode(problem.space.validate(AT_OPTIMUM[problem.name]))
    generator = np.random.default_rng(0)
    for width in (0.2, 0.02, 0.002):
        moves = generator.standard_normal((300, problem.space.dim))
        # One move in three is along a few coordinates only, so that high dimensions are searched as well.
        moves[::3] *= generator.random((100, problem.space.dim)) < 0.1
        around, _ = regrets(problem, (centre + width * moves).clip(0, 1))
        assert min(around) > -1e-6


@pytest.mark.parametrize(
    ("name", "bad"), [("fine_tuning_small", landscapes._GUESSING), ("fine_tuning_large", landscapes._CHANCE)]
)
def test_a_quarter_of_the_fine_tuning_spaces_diverges(name: str, bad: float) -> None:
    problem = getattr(landscapes, name)
    rows = problem.space.decode_all(sobol(Cube(problem.space), 1024, seed=0))
    assert 0.2 < np.mean([problem.true_value(params) == bad for params in rows]) < 0.35


def test_a_third_of_the_memory_limited_space_fails_and_the_optimum_keeps_off_the_wall() -> None:
    problem = landscapes.lora_memory
    _, failed = regrets(problem, sobol(Cube(problem.space), 1024, seed=0))
    assert 0.25 < failed < 0.45
    best = AT_OPTIMUM["lora_memory"]
    assert problem.regret({**best, "batch_size": 20}) > 0  # still fits
    for change in ({"batch_size": 32}, {"sequence_length": 4096}, {"checkpointing": False}):
        with pytest.raises(MemoryError, match="24 GB there"):
            problem.true_value({**best, **change})


def test_noise_is_about_a_tenth_of_the_spread_among_the_best_twentieth() -> None:
    for problem in (landscapes.branin_noisy, landscapes.hartmann6_noisy):
        found, _ = regrets(problem, sobol(Cube(problem.space), 4096, seed=0))
        assert 0.05 < problem.noise / np.quantile(found, 0.05) < 0.15


def test_only_the_named_parameters_of_levy_matter() -> None:
    at = AT_OPTIMUM["levy50"]
    moved = {name: value if name in landscapes.LEVY_CENTRE else -value for name, value in at.items()}
    assert landscapes.levy50.true_value(moved) == landscapes.levy50.true_value(at)
    assert all(landscapes.levy50.true_value({**at, name: 0.25}) > 0.01 for name in landscapes.LEVY_CENTRE)
