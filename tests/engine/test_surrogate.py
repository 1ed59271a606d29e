"""The Gaussian process against the textbook (Rasmussen & Williams, 2006, chapters 2 and 4) in numpy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from botorch.models import SingleTaskGP
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.utils.errors import NotPSDError
from numpy.typing import NDArray
from strategies import halton, plain_space
from torch import Tensor

from llamatune_torch import SurrogateWarning
from llamatune_torch.engine import surrogate
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.outcome import standardize
from llamatune_torch.engine.surrogate import Surrogate, fit_gp

Array = NDArray[np.float64]


# --- The textbook ------------------------------------------------------------------------------------------------


def matern52(A: Array, B: Array, lengthscales: Array) -> Array:
    r = np.sqrt((((A[:, None] - B[None]) / lengthscales) ** 2).sum(-1))
    matern: Array = (1 + math.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-math.sqrt(5) * r)
    return matern


def labels(A: Array, B: Array, lengthscales: Array) -> Array:
    overlap: Array = np.exp(-((A[:, None] != B[None]) / lengthscales).mean(-1))
    return overlap


def textbook_posterior(
    K: Array, k_star: Array, k_star_star: Array, y: Array, mean: float, noise: float
) -> tuple[Array, Array]:
    """Equations 2.23 to 2.26: mean and variance of ``f``; ``k_star`` is n x b, ``k_star_star`` has length b."""
    solved = np.linalg.solve(K + noise * np.eye(len(K)), np.column_stack([y - mean, k_star]))
    return mean + k_star.T @ solved[:, 0], k_star_star - (k_star * solved[:, 1:]).sum(0)


def hyperparameters(gp: SingleTaskGP, categorical: Sequence[int]) -> dict[str, Any]:
    """What the fitted model holds, as plain numbers."""
    numeric = [j for j in range(gp.train_inputs[0].shape[-1]) if j not in categorical]
    kernel: Any = gp.covar_module
    factors = list(kernel.kernels) if numeric and categorical else [kernel]
    scales = [factor.lengthscale.detach().cpu().numpy().ravel() for factor in factors]
    return {
        "numeric": (numeric, scales[0] if numeric else None),
        "categorical": (list(categorical), scales[-1] if categorical else None),
        "mean": gp.mean_module.constant.item(),
        "noise": gp.likelihood.noise.item(),
    }


def textbook_prediction(gp: SingleTaskGP, X: Tensor, Y: Tensor, Z: Tensor, categorical: Sequence[int]) -> Any:
    held = hyperparameters(gp, categorical)
    A, B, y = X.cpu().numpy(), Z.cpu().numpy(), Y.cpu().numpy()

    def k(P: Array, Q: Array) -> Array:
        product = np.ones((len(P), len(Q)))
        for (columns, scales), kernel in ((held["numeric"], matern52), (held["categorical"], labels)):
            if columns:
                product = product * kernel(P[:, columns], Q[:, columns], scales)
        return product

    return textbook_posterior(k(A, A), k(A, B), np.diag(k(B, B)), y, held["mean"], held["noise"])


def mixed_data(n: int, dim: int, categorical: Sequence[int]) -> tuple[Tensor, Tensor]:
    X = halton(n, dim)
    for j in categorical:
        X[:, j] = ((3 * X[:, j]).floor() + 0.5) / 3
    return X, standardize((3 * X[:, 0]).sin() + X.sum(dim=-1) ** 2)


def kernel_of(dim: int, categorical: Sequence[int] = ()) -> ProductKernel:
    return ProductKernel(Features(plain_space(dim, categorical)))


def unfitted(X: Tensor, Y: Tensor, categorical: Sequence[int] = ()) -> Surrogate:
    return Surrogate(kernel_of(X.shape[-1], categorical), X, Y)


def fitted(X: Tensor, Y: Tensor, categorical: Sequence[int] = ()) -> Surrogate:
    return fit_gp(kernel_of(X.shape[-1], categorical), X, Y)


COLUMNS = pytest.mark.parametrize(
    ("dim", "categorical"), [(1, []), (3, []), (1, [0]), (2, [0, 1]), (2, [1]), (4, [0, 2])]
)


@COLUMNS
def test_the_posterior_is_the_textbooks_for_hyperparameters_set_by_hand(
    dim: int, categorical: list[int], device: torch.device
) -> None:
    X, Y = mixed_data(9, dim, categorical)
    Z, _ = mixed_data(15, dim, categorical)
    X, Y, Z = X.to(device), Y.to(device), Z.to(device)
    gp = unfitted(X, Y, categorical)
    kernel: Any = gp.covar_module
    for i, factor in enumerate(kernel.kernels if 0 < len(categorical) < dim else [kernel]):
        size = factor.lengthscale.shape[-1]
        factor.lengthscale = torch.linspace(0.3, 0.9, size, dtype=torch.float64) + i
    gp.likelihood.noise = 0.01
    gp.mean_module.constant.data.fill_(0.25)
    gp.eval()
    posterior = gp.posterior(Z[9:])
    mean, variance = textbook_prediction(gp, X, Y, Z[9:], categorical)
    assert hyperparameters(gp, categorical)["noise"] == pytest.approx(0.01)
    assert posterior.mean.squeeze(-1).tolist() == pytest.approx(mean.tolist(), abs=1e-7)
    assert posterior.variance.squeeze(-1).tolist() == pytest.approx(variance.tolist(), abs=1e-7)


@COLUMNS
def test_the_posterior_is_the_textbooks_after_a_fit(dim: int, categorical: list[int]) -> None:
    X, Y = mixed_data(10, dim, categorical)
    Z, _ = mixed_data(16, dim, categorical)
    gp = fitted(X, Y, categorical)
    posterior = gp.posterior(Z[10:])
    mean, variance = textbook_prediction(gp, X, Y, Z[10:], categorical)
    assert posterior.mean.squeeze(-1).tolist() == pytest.approx(mean.tolist(), abs=1e-6)
    assert posterior.variance.squeeze(-1).tolist() == pytest.approx(variance.tolist(), abs=1e-6)


# --- The fit -----------------------------------------------------------------------------------------------------


def gpytorch_log_posterior(gp: SingleTaskGP) -> float:
    """Log marginal likelihood plus log priors, per observation: what the fit maximises, by gpytorch."""
    mll = ExactMarginalLogLikelihood(gp.likelihood, gp)
    mll.train()
    with torch.no_grad():
        value = mll(gp(*gp.train_inputs), gp.train_targets).item()
    mll.eval()
    return value


@COLUMNS
def test_the_log_posterior_is_gpytorchs(dim: int, categorical: list[int], device: torch.device) -> None:
    X, Y = mixed_data(9, dim, categorical)
    gp = unfitted(X.to(device), Y.to(device), categorical)
    gp.likelihood.noise = 0.05
    gp.mean_module.constant.data.fill_(-0.5)
    value, gradient = gp.log_posterior(gp.theta)
    assert value.item() == pytest.approx(gpytorch_log_posterior(gp), abs=1e-8)
    at, step = gp.theta, 1e-5
    for i in range(len(at)):
        shifted = []
        for sign in (1, -1):
            gp.set_theta(at + sign * step * torch.eye(len(at), dtype=at.dtype, device=device)[i])
            shifted.append(gpytorch_log_posterior(gp))
        assert gradient[i].item() == pytest.approx((shifted[0] - shifted[1]) / (2 * step), abs=1e-6)


def test_no_nearby_hyperparameters_are_more_probable_than_the_fit() -> None:
    X, Y = mixed_data(12, 3, [2])
    gp = fitted(X, Y, [2])
    best = gpytorch_log_posterior(gp)
    assert best > gpytorch_log_posterior(unfitted(X, Y, [2])) + 0.01
    state = deepcopy(gp.state_dict())
    kernel: Any = gp.covar_module
    for factor in (0.8, 0.95, 1.05, 1.25):
        for which in range(4):
            gp.load_state_dict(state)
            if which == 0:
                gp.likelihood.noise = gp.likelihood.noise.detach() * factor
            elif which == 1:
                gp.mean_module.constant.data += factor - 1
            else:
                part = kernel.kernels[which - 2]
                part.lengthscale = (part.lengthscale.detach() * factor).clamp_min(0.026)
            assert gpytorch_log_posterior(gp) <= best + 1e-5


def test_a_column_that_does_not_matter_gets_the_longer_length_scale() -> None:
    X = halton(25, 2)
    gp = fitted(X, standardize((5 * X[:, 0]).sin()))
    scales = hyperparameters(gp, [])["numeric"][1]
    assert scales[1] > 3 * scales[0]


def test_the_noise_level_is_learned() -> None:
    X = halton(40, 1)
    noise = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    clean = hyperparameters(fitted(X, standardize(X[:, 0])), [])
    noisy = hyperparameters(fitted(X, standardize(X[:, 0] + 0.5 * noise)), [])
    assert clean["noise"] < 1e-2
    assert 0.3 < noisy["noise"] < 1.2  # of a variance of 1, of which the noise has 0.75


def test_a_part_of_many_observations_chooses_the_hyperparameters_and_all_of_them_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, Y = mixed_data(60, 2, [])
    whole = fitted(X, Y)
    monkeypatch.setattr(surrogate, "FIT_AT_MOST", 30)
    part = fitted(X, Y)
    rows = torch.linspace(0, 59, 30).round().long()
    expected = fitted(X[rows], Y[rows])
    assert torch.equal(part.theta, expected.theta)
    assert not torch.equal(part.theta, whole.theta)
    mean, variance = textbook_prediction(part, X, Y, halton(70, 2)[60:], [])
    posterior = part.posterior(halton(70, 2)[60:])
    assert posterior.mean.squeeze(-1).tolist() == pytest.approx(mean.tolist(), abs=1e-6)
    assert posterior.variance.squeeze(-1).tolist() == pytest.approx(variance.tolist(), abs=1e-6)


def test_the_same_data_give_the_same_fit() -> None:
    X, Y = mixed_data(10, 3, [1])
    with torch.random.fork_rng(devices=[]):
        one = fitted(X, Y, [1]).posterior(X[:2])
        torch.manual_seed(12345)
        other = fitted(X, Y, [1]).posterior(X[:2])
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.variance, other.variance)


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_observations_are_enough_for_a_finite_posterior(n: int, device: torch.device) -> None:
    X = halton(n, 2).to(device)
    Y = standardize(X[:, 0])
    posterior = fitted(X, Y).posterior(halton(5, 2).to(device))
    assert posterior.mean.isfinite().all()
    assert (posterior.variance > 0).all()


def test_repeated_points_and_constant_outcomes_are_no_reason_to_fail() -> None:
    X = halton(3, 2).repeat(3, 1)
    for Y in (torch.zeros(9, dtype=torch.float64), standardize(torch.arange(9, dtype=torch.float64))):
        assert fitted(X, Y).posterior(X).mean.isfinite().all()


def test_the_fit_is_in_double_precision_on_the_device_of_the_data(device: torch.device) -> None:
    X, Y = mixed_data(6, 2, [1])
    gp = fitted(X.to(device), Y.to(device), [1])
    posterior = gp.posterior(X.to(device))
    assert posterior.mean.dtype == torch.float64
    assert posterior.mean.device.type == device.type
    assert {p.dtype for p in gp.parameters()} == {torch.float64}
    assert not gp.training


# --- When the fit fails ------------------------------------------------------------------------------------------


def break_down(monkeypatch: pytest.MonkeyPatch, num_times: int) -> None:
    """Lets the first ``num_times`` evaluations of the fit's objective fail."""
    real, calls = Surrogate.log_posterior, []

    def failing(gp: Surrogate, theta: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(1)
        if len(calls) <= num_times:
            raise NotPSDError("made to fail")
        return real(gp, theta)

    monkeypatch.setattr(Surrogate, "log_posterior", failing)


def test_a_fit_that_fails_from_one_start_is_made_from_the_other_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = mixed_data(8, 2, [])
    before = gpytorch_log_posterior(unfitted(X, Y))
    break_down(monkeypatch, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gp = fitted(X, Y)
    assert gpytorch_log_posterior(gp) > before + 0.01


def test_a_fit_that_fails_throughout_leaves_the_modes_of_the_priors_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, Y = mixed_data(8, 2, [])
    break_down(monkeypatch, 10_000)
    with pytest.warns(SurrogateWarning, match=r"fitting the surrogate to 8 observations failed"):
        gp = fitted(X, Y)
    assert torch.equal(gp.posterior(X).mean, unfitted(X, Y).posterior(X).mean)


def test_known_noise_adds_to_the_learned_one_in_likelihood_and_prediction() -> None:
    kernel = ProductKernel(Features(plain_space(2)))
    generator = torch.Generator().manual_seed(3)
    X = torch.rand(9, 2, dtype=torch.float64, generator=generator)
    Y = standardize(torch.randn(9, dtype=torch.float64, generator=generator))
    known = torch.rand(9, dtype=torch.float64, generator=generator)
    gp, plain = fit_gp(kernel, X, Y, known_noise=known), fit_gp(kernel, X, Y)
    K = gp.covariance()(gp.inputs, gp.inputs) + torch.diag(gp.noise + known)
    normal = torch.distributions.MultivariateNormal(gp.constant.expand(9), K)
    prior = torch.zeros(4, dtype=torch.float64)
    log_prior = kernel.log_prior(gp.theta[:2], prior[:2]) + gp.noise_prior.log_density(gp.noise, prior[2:3])
    assert 9 * gp.log_posterior(gp.theta)[0].item() == pytest.approx((normal.log_prob(Y) + log_prior).item())
    mean = gp.constant + gp.covariance()(kernel.features(X[:1]), gp.inputs) @ torch.linalg.solve(K, Y - gp.constant)
    assert gp.posterior(X[:1]).mean.item() == pytest.approx(mean.item())
    # The gradient is that of differences, and none is what zeros are.
    step = torch.tensor([0.0, 0.0, 1e-5, 0.0], dtype=torch.float64)
    up, down = gp.log_posterior(gp.theta + step)[0], gp.log_posterior(gp.theta - step)[0]
    assert gp.log_posterior(gp.theta)[1][2].item() == pytest.approx(((up - down) / 2e-5).item(), abs=1e-6)
    zeros = fit_gp(kernel, X, Y, known_noise=torch.zeros_like(Y))
    torch.testing.assert_close(zeros.theta, plain.theta)
