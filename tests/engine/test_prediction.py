"""Predictions of a GP that is given: gradients, joint posteriors, a prior mean."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from botorch.exceptions import UnsupportedError
from botorch.models import SingleTaskGP
from gpytorch.means import Mean
from strategies import halton, plain_space
from torch import Tensor

from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.outcome import standardize
from llamatune_torch.engine.surrogate import Surrogate, fit_gp

X = halton(8, 2)
Y = standardize((4 * X[:, 0]).sin() - X[:, 1])
Z = halton(20, 2)[8:]
SQUARE = ProductKernel(Features(plain_space(2)))


def slope(points: Tensor) -> Tensor:
    """A prior mean that is far from what the kernel would say."""
    return 2 * points[:, 0] - (3 * points[:, 1]).cos()


@pytest.fixture(scope="module")
def informed() -> Surrogate:
    return fit_gp(SQUARE, X, Y, prior_mean=slope)


# --- Without a prior mean ----------------------------------------------------------------------------------------


def test_with_noise_the_posterior_is_wider_by_its_variance(gp: Surrogate) -> None:
    plain, noisy = gp.posterior(X[:3]), gp.posterior(X[:3], observation_noise=True)
    wider = noisy.variance - plain.variance
    assert torch.allclose(wider, gp.likelihood.noise.expand_as(wider), atol=1e-10)


def test_points_one_by_one_are_the_diagonal_of_their_joint_posterior(gp: Surrogate, informed: Surrogate) -> None:
    for surrogate in (gp, informed):
        joint = surrogate.posterior(Z.view(3, 4, 2))
        alone = surrogate.posterior(Z.unsqueeze(-2))
        assert torch.allclose(joint.mean.flatten(), alone.mean.flatten(), atol=1e-10)
        assert torch.allclose(joint.variance.flatten(), alone.variance.flatten(), atol=1e-10)


def test_options_that_the_surrogate_does_not_have_are_refused(gp: Surrogate) -> None:
    with pytest.raises(UnsupportedError):
        gp.posterior(Z, output_indices=[0])
    with pytest.raises(UnsupportedError):
        gp.posterior(Z, observation_noise=torch.ones(1))


@pytest.mark.parametrize("prior_mean", [None, slope])
def test_gradients_of_mean_and_variance_are_those_of_finite_differences(prior_mean: Any) -> None:
    predictor = fit_gp(SQUARE, X, Y, prior_mean=prior_mean).predictor()
    points = Z[:5].clone().requires_grad_(True)
    h = 1e-6
    for i in (0, 1):
        (gradient,) = torch.autograd.grad(predictor.moments(points)[i].sum(), points)
        for j in range(2):
            step = h * torch.eye(2, dtype=torch.float64)[j]
            with torch.no_grad():
                after, before = (predictor.moments(Z[:5] + sign * step)[i].flatten() for sign in (1, -1))
            assert gradient[:, j].tolist() == pytest.approx(((after - before) / (2 * h)).tolist(), abs=1e-6)


# --- A prior mean ------------------------------------------------------------------------------------------------


class Shifted(Mean):
    """The same mean as a module of GPyTorch."""

    def __init__(self, constant: Tensor) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        return self.constant + slope(x.reshape(-1, x.shape[-1])).view(x.shape[:-1])


def test_predictions_with_a_prior_mean_are_gpytorchs(informed: Surrogate) -> None:
    theirs = SingleTaskGP(
        X,
        Y.unsqueeze(-1),
        likelihood=deepcopy(informed.likelihood),
        covar_module=deepcopy(informed.covar_module),
        mean_module=Shifted(informed.constant),
        outcome_transform=None,
    ).eval()
    with torch.no_grad():
        expected = theirs.posterior(Z)
        found = informed.posterior(Z)
    assert found.mean.flatten().tolist() == pytest.approx(expected.mean.flatten().tolist(), abs=1e-7)
    assert torch.allclose(found.distribution.covariance_matrix, expected.distribution.covariance_matrix, atol=1e-6)


def test_a_gp_with_a_prior_mean_is_fitted_to_the_rest_and_predicts_the_sum(informed: Surrogate) -> None:
    rest = fit_gp(SQUARE, X, Y - slope(X))
    assert torch.equal(informed.theta, rest.theta)
    assert not torch.allclose(informed.theta, fit_gp(SQUARE, X, Y).theta, atol=0.1)
    for points in (Z, Z.unsqueeze(-2)):  # jointly, and one by one
        assert torch.allclose(
            informed.posterior(points).mean.flatten(), rest.posterior(points).mean.flatten() + slope(Z), atol=1e-12
        )
        assert torch.equal(informed.posterior(points).variance, rest.posterior(points).variance)


def test_a_prior_mean_that_is_right_is_believed_far_from_all_observations() -> None:
    near = 0.2 * halton(10, 2)
    Y = standardize(5 * near[:, 0])
    scale = (Y[1] - Y[0]) / (near[1, 0] - near[0, 0])

    def truth(points: Tensor) -> Tensor:
        return scale * (points[:, 0] - near[:, 0].mean())

    far = torch.tensor([[0.9, 0.9]], dtype=torch.float64)
    told, blind = fit_gp(SQUARE, near, Y, prior_mean=truth), fit_gp(SQUARE, near, Y)
    error, without = (abs(gp.posterior(far).mean.item() - truth(far).item()) for gp in (told, blind))
    assert error < 0.05
    assert without > 10 * error


def test_a_prior_mean_sees_points_and_the_kernel_sees_their_features() -> None:
    space = plain_space(1)
    widths = []

    def watched(points: Tensor) -> Tensor:
        widths.append(points.shape)
        return points[:, 0]

    class Doubled(Features):
        def __call__(self, X: Tensor) -> Tensor:
            return 2 * X

    gp = fit_gp(ProductKernel(Doubled(space)), X[:, :1], Y, prior_mean=watched)
    gp.posterior(Z[:4, :1])
    assert torch.equal(gp.inputs, 2 * X[:, :1])
    assert set(widths) == {(8, 1), (4, 1)}


def test_several_outcomes_of_the_same_trials_share_kernel_and_points() -> None:
    one, other = (fit_gp(SQUARE, X, outcome) for outcome in (Y, standardize(X[:, 1].square())))
    assert one.kernel is other.kernel
    assert torch.equal(one.inputs, other.inputs)
    assert not torch.equal(one.theta, other.theta)
