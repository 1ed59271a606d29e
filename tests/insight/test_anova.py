"""The surrogate that is a sum: its kernels, its slopes, its draws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import halton
from torch import Tensor
from torch.autograd.functional import jacobian

from llamatune_torch import Categorical, Integer, Real, SearchSpace
from llamatune_torch.engine.cube import Cube
from llamatune_torch.insight.anova import (
    JITTER,
    SCALE,
    Likelihood,
    Prior,
    Terms,
    covariance,
    draw_functions,
    hamiltonian,
    rest_between,
)
from llamatune_torch.insight.region import Axes, Region, axes_of

SPACE = SearchSpace(
    {
        "rate": Real(1e-5, 1e-2, prior="log-uniform"),
        "dropout": Real(0, 0.4, special=[0.0]),
        "batch": Integer(1, 64, powers_of=2),
        "kind": Categorical(["a", "b", "c"]),
    }
)
COLUMNS = [0, 1, 2, 3]


def trials(n: int) -> tuple[Tensor, Axes]:
    X = Cube(SPACE).snap(halton(n, 4))
    return X, axes_of(SPACE, COLUMNS, X.T, X.T, torch.ones_like(X.T))


@given(st.lists(st.floats(0.05, 4.0), min_size=4, max_size=4))
@settings(max_examples=20, deadline=None)
def test_each_kernel_has_mean_zero_and_variance_one(scales: list[float]) -> None:
    axes = Region(SPACE).axes(COLUMNS)
    K = Terms(axes, torch.tensor(scales, dtype=torch.float64)).between(axes)
    mean = torch.einsum("dmn,dn->dm", K, axes.weights)
    variance = (K.diagonal(dim1=-2, dim2=-1) * axes.weights).sum(dim=-1)
    assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-9)
    assert torch.allclose(variance, torch.ones_like(variance))


def test_waves_are_orthonormal_and_make_up_the_kernel() -> None:
    axes = Region(SPACE).axes(COLUMNS)
    terms = Terms(axes, torch.full((4,), 0.8, dtype=torch.float64))
    waves, shares = terms.waves(axes)
    for j in COLUMNS:
        known = shares[j] > 1e-6
        gram = waves[j].mT @ (axes.weights[j].unsqueeze(-1) * waves[j])
        assert torch.allclose(gram[known][:, known], torch.eye(int(known.sum()), dtype=torch.float64), atol=1e-6)
        rebuilt = (waves[j] * shares[j]) @ waves[j].mT
        there = axes.weights[j] > 0
        assert torch.allclose(rebuilt[there][:, there], terms.between(axes)[j][there][:, there], atol=2e-2)


def test_the_slope_of_the_likelihood_is_that_of_autograd() -> None:
    X, axes = trials(20)
    Y = (5 * X[:, 0]).sin() + X[:, 1] * X[:, 3]
    Y, prior = (Y - Y.mean()) / Y.std(), Prior(4)
    likelihood = Likelihood(Region(SPACE).axes(COLUMNS), axes, Y, prior)
    z = 0.3 * torch.randn(15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def at(z: Tensor) -> Tensor:
        """The same density, with kernels mixed as the tables are."""
        theta = prior.theta(z)
        place = (theta.scales.log() - likelihood._logs[0]) / (likelihood._logs[1] - likelihood._logs[0])
        below = place.detach().floor().long()
        every, share = torch.arange(4), (place - below)[:, None, None]
        K = (1 - share) * likelihood._tables[below, every] + share * likelihood._tables[below + 1, every]
        total = covariance(K, theta) + theta.rest * rest_between(axes)
        total = total + (theta.noise + JITTER) * torch.eye(20, dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(theta.constant.expand(20), total)
        return normal.log_prob(Y) - z.square().sum() / 2

    value, slope = likelihood(z)
    constant = 10 * torch.log(torch.tensor(2 * torch.pi))
    assert value - float(constant) == pytest.approx(float(at(z)), abs=1e-4)
    assert torch.allclose(slope, jacobian(at, z), atol=1e-6)


def test_a_length_scale_of_the_table_has_its_own_kernel() -> None:
    _, axes = trials(10)
    likelihood = Likelihood(Region(SPACE).axes(COLUMNS), axes, torch.zeros(10, dtype=torch.float64), Prior(4))
    middle = likelihood._tables[4]
    scale = torch.full((4,), SCALE[0], dtype=torch.float64).exp()
    assert torch.allclose(middle, Terms(Region(SPACE).axes(COLUMNS), scale).between(axes))


def test_hamiltonian_draws_have_the_moments_of_their_density() -> None:
    mean, sd = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)

    def log_density(z: Tensor) -> tuple[float, Tensor]:
        return float(-((z - mean) / sd).square().sum() / 2), -(z - mean) / sd.square()

    start = torch.zeros(2, dtype=torch.float64)
    drawn = torch.stack(hamiltonian(log_density, start, 1500, torch.Generator().manual_seed(1)))
    assert torch.allclose(drawn.mean(dim=0), mean, atol=0.25)
    assert torch.allclose(drawn.std(dim=0), sd, rtol=0.2)


def test_functions_run_through_the_trials_where_there_is_no_noise() -> None:
    X, axes = trials(60)
    Y = 3 * X[:, 0] + (X[:, 3] > 0.5)
    Y = (Y - Y.mean()) / Y.std()
    found = draw_functions(Region(SPACE).axes(COLUMNS), axes, Y, seed=0)
    predicted = []
    for functions in found:
        waves, _ = functions.terms.waves(axes)
        few = waves[..., : functions.paired.shape[1]]
        value = functions.constant + torch.einsum("dnk,dks->ns", waves, functions.alone)
        pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
        for p, (i, j) in enumerate(pairs):
            value = value + torch.einsum("nk,kls,nl->ns", few[i], functions.paired[p], few[j])
        predicted.append(value)
    mean = torch.cat(predicted, dim=-1).mean(dim=-1)
    assert float((mean - Y).square().mean().sqrt()) < 0.1


def test_the_same_seed_draws_the_same_functions() -> None:
    X, axes = trials(12)
    quadrature = Region(SPACE).axes(COLUMNS)
    first, again, other = (draw_functions(quadrature, axes, X[:, 0], seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a.alone, b.alone) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a.alone, b.alone) for a, b in zip(first, other, strict=True))
