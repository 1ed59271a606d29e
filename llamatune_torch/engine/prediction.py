"""Predictions of a fitted GP at new points: mean and variance, quickly, with gradients.

With ``L L' = K = k(X, X) + noise I`` known once and for all, the posterior at ``Z`` is

    mean = m(Z) + k(Z, X) K^-1 (Y - m(X)),     cov = k(Z, Z) - V' V,     V = L^-1 k(X, Z)

(Rasmussen & Williams, 2006, algorithm 2.1). All points of a batch share the two products with ``k(Z, X)``, on which
the search for candidates spends its time. An analytic acquisition needs no more than the two numbers. So neither
GPyTorch's distributions nor thirty nodes of autograd stand between a point and them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.exceptions import UnsupportedError
from botorch.models.model import Model
from botorch.posteriors import GPyTorchPosterior
from gpytorch.distributions import MultivariateNormal
from linear_operator import to_linear_operator
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import Covariance

# Posterior variances below this are rounding errors; outcomes have unit variance.
MIN_VARIANCE = 1e-12
JITTER = 1e-8  # on the variances of joint samples, so that points that all but coincide can be sampled together

PriorMean = Callable[[Tensor], Tensor]  # n x d points of the unit cube -> n outcomes; differentiable


class Prior(NamedTuple):
    """A GP before anything is observed.

    features     from points of the unit cube to what the kernel sees
    covariance   of ``f``, between features
    constant     the constant part of the mean, a scalar
    mean         the rest of the mean, as a function of points; ``None`` for zero
    """

    features: Features
    covariance: Covariance
    constant: Tensor
    mean: PriorMean | None = None

    def add_mean(self, values: Tensor, X: Tensor) -> Tensor:
        """``values`` (``n`` or ``n x s``), which lack the mean at the rows of ``X`` (``n x d``), with it."""
        if self.mean is None:
            return values
        mean = self.mean(X)
        return values + (mean if values.dim() == 1 else mean.unsqueeze(-1))


class Predictor(NamedTuple):
    """A GP given what was observed, ready to predict at many points.

    prior         the GP before
    inputs        n x f   features of the observed points
    weights       n x s   K^-1 (Y - m) for ``s`` sets of outcomes; K includes the noise
    inverse_root  n x n   L^-1, where L L' = K
    """

    prior: Prior
    inputs: Tensor
    weights: Tensor
    inverse_root: Tensor

    def moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (``b x s``) and variance (``b``) of ``f`` at the rows of ``X`` (``b x d``); differentiable."""
        Z = self.prior.features(X)
        mean, variance = _Moments.apply(Z, self)  # type: ignore[no-untyped-call]  # torch's
        return self.prior.add_mean(mean, X), variance.clamp_min(MIN_VARIANCE)

    def joint(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (``... x q``) and covariance (``... x q x q``) of ``f``, given the first set of outcomes.

        ``X`` has shape ``... x q x d``; differentiable.
        """
        Z = self.prior.features(X)
        # Batches share the observations, so k(Z, X) is one matrix of all their points.
        cross = self.prior.covariance(Z.reshape(-1, Z.shape[-1]), self.inputs)
        mean = self.prior.add_mean(self.prior.constant + cross @ self.weights[:, 0], X.reshape(-1, X.shape[-1]))
        whitened = (cross @ self.inverse_root.mT).view(*X.shape[:-1], -1)
        return mean.view(X.shape[:-1]), self.prior.covariance(Z, Z) - whitened @ whitened.mT


def condition(prior: Prior, inputs: Tensor, K: Tensor, residuals: Tensor) -> Predictor:
    """The GP given ``s`` sets of outcomes at ``inputs`` (``n x f``).

    Args:
        prior: the GP before.
        inputs: features of the observed points.
        K: the covariance of the outcomes, noise included; ``n x n``.
        residuals: the outcomes less ``prior.mean``, ``n x s``; the constant is still in them.
    """
    root = psd_safe_cholesky(K)
    identity = torch.eye(len(root), dtype=root.dtype, device=root.device)
    inverse_root = torch.linalg.solve_triangular(root, identity, upper=False)
    return Predictor(prior, inputs, torch.cholesky_solve(residuals - prior.constant, root), inverse_root)


class _Moments(torch.autograd.Function):
    """A prediction at features, with its gradient in closed form: one node for autograd instead of thirty."""

    @staticmethod
    def forward(ctx: Any, Z: Tensor, given: Predictor) -> tuple[Tensor, Tensor]:
        cross, slope = given.prior.covariance.cross_and_slope(Z, given.inputs)
        whitened = cross @ given.inverse_root.mT
        ctx.given = given
        ctx.save_for_backward(Z, slope, whitened)
        return given.prior.constant + cross @ given.weights, 1 - whitened.square().sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, by_mean: Tensor, by_variance: Tensor) -> tuple[Tensor, None]:
        Z, slope, whitened = ctx.saved_tensors
        given: Predictor = ctx.given
        by_cross = by_mean @ given.weights.mT - 2 * by_variance.unsqueeze(-1) * (whitened @ given.inverse_root)
        return given.prior.covariance.pull_back(Z, given.inputs, slope, by_cross), None


class Prediction(Model):
    """A fitted GP as BoTorch's acquisitions want it: a model without parameters, that only predicts.

    They move their model to the device of the points at every call. For GPyTorch's tree of modules that takes as long
    as the prediction itself.

    Args:
        given: the GP given the observations.
        noise: the variance of the noise, shape 1.
    """

    num_outputs = 1
    batch_shape = torch.Size()

    def __init__(self, given: Predictor, noise: Tensor) -> None:
        super().__init__()
        self.given, self.noise = given, noise
        #: The best outcome of a running trial, shape 1: no trial runs, so any bar is higher.
        self.best = torch.full_like(noise, -torch.inf)

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> GaussianPosterior:
        """The joint posterior of the ``q`` points of each batch; ``X`` has shape ``... x q x d``.

        Raises:
            UnsupportedError: another option than ``observation_noise=True`` is asked for.
        """
        if output_indices is not None or posterior_transform is not None or isinstance(observation_noise, Tensor):
            raise UnsupportedError("the surrogate has one outcome, one noise level and no transform")
        q, d = X.shape[-2:]
        if q == 1:
            mean, covariance = self.given.moments(X.reshape(-1, d))
            mean, covariance = mean.view(X.shape[:-1]), covariance.view(*X.shape[:-1], 1)
        else:
            mean, covariance = self.given.joint(X)
        if observation_noise:
            covariance = covariance + self.noise * torch.eye(q, dtype=X.dtype, device=X.device)
        return GaussianPosterior(mean, covariance)


class GaussianPosterior(GPyTorchPosterior):
    """``q`` jointly normal outcomes. GPyTorch's distribution of them is made when somebody wants to draw.

    An analytic acquisition asks for mean and variance only, and making the distribution takes longer than both.

    Args:
        mean: shape ``... x q``.
        covariance: shape ``... x q x q``.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        # Not the parent's: it takes the finished distribution, and these follow from it.
        self._moments = mean, covariance
        self._is_mt, self._device, self._dtype = False, mean.device, mean.dtype

    @cached_property
    def distribution(self) -> MultivariateNormal:  # type: ignore[override]  # an attribute of the parent
        mean, covariance = self._moments
        jitter = JITTER * torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        return MultivariateNormal(mean, to_linear_operator(covariance + jitter))  # lazy: no Cholesky yet

    @property
    def mean(self) -> Tensor:
        return self._moments[0].unsqueeze(-1)

    @property
    def variance(self) -> Tensor:
        return self._moments[1].diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
