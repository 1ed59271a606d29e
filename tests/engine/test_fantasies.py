"""Fantasies of running trials: against the textbook's conditioning, and against joint samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategies import halton
from torch import Tensor

from llamatune_torch import Real, SearchSpace, Settings
from llamatune_torch.engine.acquisition import make_acquisition
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.fantasies import Fantasies
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.outcome import standardize
from llamatune_torch.engine.qmc import normal_samples
from llamatune_torch.engine.surrogate import Surrogate, fit_gp

X = halton(8, 2)
P = halton(10, 2)[8:]
Z = halton(30, 2)[10:]


def slope(points: Tensor) -> Tensor:
    return 2 * points[:, 0] - (3 * points[:, 1]).cos()


@pytest.fixture(scope="module", params=[None, slope], ids=["no prior mean", "a prior mean"])
def surrogate(request: pytest.FixtureRequest, gp: Surrogate) -> Surrogate:
    """The hyperparameters of ``gp``, with and without a prior mean."""
    Y = standardize((4 * X[:, 0]).sin() - X[:, 1])
    made = Surrogate(gp.kernel, X, Y, prior_mean=request.param)
    made.set_theta(gp.theta)
    made.eval()
    return made


def test_a_fantasy_is_the_posterior_given_the_imagined_values_too(surrogate: Surrogate) -> None:
    """Conditioning of the joint posterior of (Z, P) on f(P): Rasmussen & Williams, 2006, equation A.6."""
    gp = surrogate
    base_samples = torch.tensor([[0.0, 0.0], [1.5, -0.7]], dtype=torch.float64)
    fantasies = Fantasies(gp, P, base_samples)
    found = fantasies.posterior(Z.unsqueeze(-2))
    with torch.no_grad():
        joint = gp.posterior(torch.cat([Z, P]))
        mean, cov = joint.mean.squeeze(-1).numpy(), joint.distribution.covariance_matrix.numpy()
    n = len(Z)
    solved = np.linalg.solve(cov[n:, n:], cov[n:, :n]).T
    imagined = fantasies.samples.numpy()
    assert imagined[0] == pytest.approx(mean[n:], abs=1e-7)
    assert imagined[1] == pytest.approx(mean[n:] + np.linalg.cholesky(cov[n:, n:]) @ base_samples[1].numpy(), abs=1e-5)
    expected = mean[:n, None] + solved @ (imagined - mean[n:]).T
    assert found.mean.squeeze((-1, -2)).numpy() == pytest.approx(expected, abs=1e-5)
    variance = np.diag(cov[:n, :n] - solved @ cov[n:, :n])
    assert found.variance.squeeze((-1, -2)).numpy() == pytest.approx(np.column_stack([variance] * 2), abs=1e-5)


def test_logei_is_what_a_point_adds_to_the_running_ones(surrogate: Surrogate) -> None:
    """E[max(f(x), f(P)) - best]+ less E[max f(P) - best]+, by many joint samples."""
    gp = surrogate
    made = make_acquisition(Settings(xi=0.0, mc_samples=4096), gp, X, P, [], seed=1)
    with torch.no_grad():
        found = made(Z.unsqueeze(-2)).exp().numpy()
        best = gp.posterior(X).mean.max().item()
        for i in range(0, len(Z), 4):
            joint = gp.posterior(torch.cat([Z[i : i + 1], P]))
            generator = np.random.default_rng(i)
            cov = joint.distribution.covariance_matrix.numpy()
            samples = generator.multivariate_normal(joint.mean.squeeze(-1).numpy(), cov, size=400_000)
            running = np.maximum(samples[:, 1:].max(axis=1), best)
            gains = np.maximum(samples[:, 0] - running, 0)
            error = gains.std() / np.sqrt(len(gains))
            assert found[i] == pytest.approx(gains.mean(), abs=5 * error + 0.03 * gains.mean() + 1e-9)


def test_ucb_keeps_the_mean_and_shrinks_the_deviation(gp: Surrogate) -> None:
    with torch.no_grad():
        mean_only = make_acquisition(Settings(acquisition="ucb", kappa=0.0), gp, X, P, [], 0)(Z.unsqueeze(-2))
        pending = make_acquisition(Settings(acquisition="ucb"), gp, X, P, [], 0)(Z.unsqueeze(-2))
        alone = make_acquisition(Settings(acquisition="ucb"), gp, X, P[:0], [], 0)(Z.unsqueeze(-2))
    assert mean_only.numpy() == pytest.approx(gp.posterior(Z).mean.squeeze(-1).detach().numpy(), abs=1e-6)
    assert (pending < alone + 1e-9).all()
    assert (alone - pending).max() > 0.05


def test_special_values_are_features_to_fantasies_as_well() -> None:
    space = SearchSpace({"wd": Real(0, 1, special=[0.0])})
    points = Cube(space).snap(halton(9, 1))
    gp = fit_gp(ProductKernel(Features(space)), points, standardize(points[:, 0].square()))
    fantasies = Fantasies(gp, Cube(space).snap(halton(12, 1)[9:]), torch.zeros(1, 3, dtype=torch.float64))
    at = Cube(space).snap(halton(20, 1)[12:])
    found = fantasies.posterior(at.unsqueeze(-2)).mean.flatten()
    assert found.tolist() == pytest.approx(gp.posterior(at).mean.flatten().tolist(), abs=1e-5)


def test_gradients_of_fantasies_are_those_of_finite_differences(surrogate: Surrogate) -> None:
    fantasies = Fantasies(surrogate, P, normal_samples(5, 2, seed=3))
    points = Z[:4].clone().requires_grad_(True)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(
        (fantasies.posterior(points.unsqueeze(-2)).mean.squeeze() @ weights).sum(), points
    )
    h = 1e-6
    for j in range(2):
        step = h * torch.eye(2, dtype=torch.float64)[j]
        after, before = (
            fantasies.posterior((Z[:4] + sign * step).unsqueeze(-2)).mean.squeeze() @ weights for sign in (1, -1)
        )
        assert gradient[:, j].tolist() == pytest.approx(((after - before) / (2 * h)).tolist(), abs=1e-6)
