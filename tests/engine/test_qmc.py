"""Quasi-random points: even, snapped to the space, and a sequence that can be continued."""

from __future__ import annotations

import pytest
import torch

from llamatune_torch import Categorical, Integer, Real, SearchSpace
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.qmc import normal_samples, quasi_random, sobol

MIXED = Cube(
    SearchSpace(
        {
            "lr": Real(1e-5, 1e-3, prior="log-uniform"),
            "batch": Integer(1, 512, prior="log-uniform"),
            "opt": ["adamw", "sgd", "lion"],
            "size": Categorical(["small", "base", "large"], ordered=True),
        }
    )
)


def test_the_sobol_sequence_goes_on_where_it_stopped() -> None:
    whole = sobol(MIXED, 12, seed=5)
    assert torch.equal(torch.cat([sobol(MIXED, 5, seed=5), sobol(MIXED, 7, seed=5, start=5)]), whole)
    assert not torch.equal(sobol(MIXED, 12, seed=6), whole)
    assert torch.equal(MIXED.snap(whole), whole)


def test_sobol_points_cover_the_cube_more_evenly_than_chance() -> None:
    space = Cube(SearchSpace({"x": Real(0, 1), "y": Real(0, 1)}))
    cells = (sobol(space, 64, seed=0) * 8).floor()
    assert len(cells.unique(dim=0)) > 50  # 64 random points fill about 41 of the 64 cells


@pytest.mark.parametrize("n", [4, 16, 64])
def test_each_of_n_intervals_of_a_column_holds_one_of_the_first_n_points(n: int) -> None:
    X = quasi_random(3, n, seed=1)
    assert X.dtype == torch.float64
    assert torch.equal((X * n).floor().sort(dim=0).values, torch.arange(n).double().unsqueeze(-1).expand(n, 3))


def test_samples_are_standard_normal_and_follow_from_the_seed() -> None:
    samples = normal_samples(4096, 3, seed=5)
    assert samples.dtype == torch.float64
    assert samples.mean(dim=0).abs().max() < 0.01
    assert torch.allclose(samples.mT.cov(), torch.eye(3, dtype=torch.float64), atol=0.03)
    assert torch.equal(samples, normal_samples(4096, 3, seed=5))
    assert not torch.equal(samples, normal_samples(4096, 3, seed=6))


def test_more_dimensions_than_sobol_has_are_drawn_from_a_generator() -> None:
    m = torch.quasirandom.SobolEngine.MAXDIM + 1
    samples = normal_samples(2, m, seed=3)
    assert samples.shape == (2, m)
    assert samples.dtype == torch.float64
    assert abs(samples.mean().item()) < 0.05
    assert torch.equal(samples, normal_samples(2, m, seed=3))
