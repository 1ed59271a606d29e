"""What a fitted GP says about new points: mean and variance, quickly, with gradients.

The search for candidates spends its time here. An analytic acquisition needs no more than the two numbers, so that
neither gpytorch's distributions nor thirty nodes of autograd stand between a point and them.
"""

from __future__ import annotations

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
from llamatune_torch.engine.kernel import ProductKernel

# Posterior variances below this are rounding errors; outcomes have unit variance.
MIN_VARIANCE = 1e-12
JITTER = 1e-8  # on the variances of joint samples, so that points that all but coincide can be sampled together


class Predictor(NamedTuple):
    """A GP given its hyperparameters and what was seen, ready to predict at many points.

    kernel        the covariance of ``f``
    inputs        n x d
    mean          the constant mean ``m``
    weights       n x s   K^-1 (Y - m) for ``s`` sets of outcomes; K includes the noise
    inverse_root  n x n   L^-1, where L L' = K
    """

    kernel: ProductKernel
    inputs: Tensor
    mean: Tensor
    weights: Tensor
    inverse_root: Tensor

    def moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (``b x s``) and variance (``b``) of ``f`` at the rows of ``X`` (``b x d``); differentiable."""
        mean, variance = _Moments.apply(X, self)  # type: ignore[no-untyped-call]  # torch's
        return mean, variance.clamp_min(MIN_VARIANCE)


def condition(kernel: ProductKernel, inputs: Tensor, mean: Tensor, K: Tensor, Y: Tensor) -> Predictor:
    """The GP given ``s`` sets of outcomes ``Y`` (``n x s``) at ``inputs``, whose covariance with noise is ``K``."""
    root = psd_safe_cholesky(K)
    identity = torch.eye(len(root), dtype=root.dtype, device=root.device)
    inverse_root = torch.linalg.solve_triangular(root, identity, upper=False)
    return Predictor(kernel, inputs, mean, torch.cholesky_solve(Y - mean, root), inverse_root)


class _Moments(torch.autograd.Function):
    """A prediction with its gradient in closed form: one node for autograd instead of thirty."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, given: Predictor) -> tuple[Tensor, Tensor]:
        cross, slope = given.kernel.cross_and_slope(X, given.inputs)
        whitened = cross @ given.inverse_root.mT
        ctx.given = given
        ctx.save_for_backward(X, slope, whitened)
        return given.mean + cross @ given.weights, 1 - whitened.square().sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, by_mean: Tensor, by_variance: Tensor) -> tuple[Tensor, None]:
        X, slope, whitened = ctx.saved_tensors
        given: Predictor = ctx.given
        by_cross = by_mean @ given.weights.mT - 2 * by_variance.unsqueeze(-1) * (whitened @ given.inverse_root)
        return given.kernel.pull_back(X, given.inputs, slope, by_cross), None


class Prediction(Model):
    """A fitted GP as BoTorch's acquisitions want it: a model without parameters, that only predicts.

    They move their model to the device of the points at every call, which for gpytorch's tree of modules takes as long
    as the prediction itself.

    Args:
        given: the GP and what was seen.
        noise: the variance of the noise, shape 1.
        features: from points of the unit cube to what the kernel sees.
    """

    num_outputs = 1
    batch_shape = torch.Size()

    def __init__(self, given: Predictor, noise: Tensor, features: Features) -> None:
        super().__init__()
        self.given, self.noise, self.features = given, noise, features
        #: The best outcome of a running trial, shape 1: there is none, so that any bar is higher.
        self.best = torch.full_like(noise, -torch.inf)

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> GaussianPosterior:
        """The joint posterior of the ``q`` points of each batch; ``X`` has shape ``... x q x d``."""
        if output_indices is not None or posterior_transform is not None or isinstance(observation_noise, Tensor):
            raise UnsupportedError("the surrogate has one outcome, one noise level and no transform")
        X = self.features(X)
        q, d = X.shape[-2:]
        given = self.given
        if q == 1:
            mean, covariance = given.moments(X.reshape(-1, d))
        else:
            # Batches share the training data, so k(Z, X) is one matrix of all their points.
            cross = given.kernel(X.reshape(-1, d), given.inputs)
            mean = given.mean + cross @ given.weights[:, 0]
            whitened = (cross @ given.inverse_root.mT).view(*X.shape[:-1], -1)
            covariance = given.kernel(X, X) - whitened @ whitened.mT
        mean, covariance = mean.view(X.shape[:-1]), covariance.view(*X.shape[:-1], q)
        if observation_noise:
            covariance = covariance + self.noise * torch.eye(q, dtype=X.dtype, device=X.device)
        return GaussianPosterior(mean, covariance)


class GaussianPosterior(GPyTorchPosterior):
    """``q`` jointly normal outcomes; gpytorch's distribution of them is made when somebody wants to draw.

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
