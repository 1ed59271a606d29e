"""The surrogate's kernel in closed form: its hyperparameters and their priors, its values, and the slopes of both.

    k(x, x') = Matern_5/2(r) * exp(-mean_j [x_j != x'_j] / l_j),     r^2 = sum_i (x_i - x'_i)^2 / l_i^2

``i`` runs over numeric and ``j`` over categorical features, each with a length scale of its own (ARD). The
hyperparameters ``theta`` are the logarithms of the length scales, numeric ones first.

Length scales of numeric features have the log-normal prior that grows with their number (Hvarfner et al., 2024,
arXiv:2402.02229). So the same model serves 2 and 20 parameters.

GPyTorch computes the same, a test compares both. Here no general machinery stands between the formula and its matrix
products, which take most of the time of a GP of fifty points.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from botorch.models.kernels import CategoricalKernel
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, MaternKernel
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from llamatune_torch.engine.features import Features

SQRT5 = math.sqrt(5)
HALF_LOG_2PI = math.log(2 * math.pi) / 2
MIN_LENGTH_SCALE = 2.5e-2  # of a column of the unit cube

Bounds = list[tuple[float | None, float | None]]


class LogNormal(NamedTuple):
    """The prior of a positive hyperparameter, which is kept as its logarithm.

    loc        mean of the logarithm
    scale      standard deviation of the logarithm
    at_least   the smallest value allowed
    """

    loc: float
    scale: float
    at_least: float

    @property
    def log_mode(self) -> float:
        """The logarithm of the most probable value."""
        return self.loc - self.scale**2

    @property
    def log_median(self) -> float:
        """The logarithm of the median."""
        return self.loc

    @property
    def log_bounds(self) -> tuple[float, None]:
        """The range of the logarithm."""
        return math.log(self.at_least), None

    def log_density(self, values: Tensor, gradient: Tensor) -> Tensor:
        """The log density, summed over ``values``; adds its slopes in their logarithms to ``gradient``, same shape."""
        logs = values.log()
        z = (logs - self.loc) / self.scale
        gradient.sub_(1).sub_((logs - self.loc) / self.scale**2)
        return -(z.square() / 2 + logs).sum() - len(logs) * (math.log(self.scale) + HALF_LOG_2PI)

    def to_gpytorch(self) -> tuple[LogNormalPrior, GreaterThan]:
        """The same as GPyTorch's prior and constraint, which starts at the mode."""
        # Of floats GPyTorch would make tensors of the default dtype.
        prior = LogNormalPrior(*(torch.tensor(x, dtype=torch.float64) for x in (self.loc, self.scale)))
        return prior, GreaterThan(self.at_least, transform=None, initial_value=prior.mode)


class ProductKernel:
    """Matern-5/2 over numeric features times the overlap of categorical ones, for any length scales.

    A fit asks a kernel for what is below and for no more, so that it knows nothing of length scales.

    Args:
        features: what the kernel sees of a point of the unit cube.
        shortest: the least length scale of a numeric feature.

    Attributes:
        size: the number of hyperparameters ``theta``; one a feature.

    Example:
        >>> kernel = ProductKernel(Features(SearchSpace({"x": (0.0, 1.0), "c": ["a", "b"]})))
        >>> X = torch.tensor([[0.25, 0.25], [0.75, 0.75]])
        >>> kernel.at(torch.zeros(kernel.size))(X, X)  # both length scales are 1
        tensor([[1.0000, 0.3048],
                [0.3048, 1.0000]])
    """

    def __init__(self, features: Features, shortest: float = MIN_LENGTH_SCALE) -> None:
        self.features = features
        self.size = len(features.numeric) + len(features.categorical)
        # For each factor the prior of its length scales, and how many it has.
        self._priors: list[tuple[LogNormal, int]] = []
        if n := len(features.numeric):
            self._priors.append((LogNormal(math.sqrt(2) + math.log(n) / 2, math.sqrt(3), shortest), n))
        if n := len(features.categorical):
            # The kernel takes the mean over its features, which already scales with their number. Choices are taken
            # for alike until the data say otherwise: what one optimizer teaches then carries over to the others.
            self._priors.append((LogNormal(1.5, 1.0, MIN_LENGTH_SCALE), n))

    def at(self, theta: Tensor) -> Covariance:
        """The kernel for the hyperparameters ``theta``, shape ``size``."""
        numeric, categorical = self.features.numeric, self.features.categorical
        logs = theta.split([len(numeric), len(categorical)])
        return Covariance(numeric, categorical, *(log.exp().clamp_min(MIN_LENGTH_SCALE) for log in logs))

    def log_prior(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """The log prior density of the length scales, a scalar; adds its slope in ``theta`` to ``gradient``."""
        sizes = [n for _, n in self._priors]
        parts = zip(self._priors, theta.split(sizes), gradient.split(sizes), strict=True)
        return torch.stack([prior.log_density(logs.exp(), slopes) for (prior, _), logs, slopes in parts]).sum()

    @property
    def modes(self) -> list[float]:
        """``theta`` at the modes of the priors."""
        return [prior.log_mode for prior, n in self._priors for _ in range(n)]

    @property
    def medians(self) -> list[float]:
        """``theta`` at the medians of the priors."""
        return [prior.log_median for prior, n in self._priors for _ in range(n)]

    @property
    def bounds(self) -> Bounds:
        """The range of each of ``theta``."""
        return [prior.log_bounds for prior, n in self._priors for _ in range(n)]

    def to_gpytorch(self) -> Kernel:
        """The same kernel as a GPyTorch module over features, with the same priors and bounds."""
        factors: list[Kernel] = []
        priors = iter(self._priors)
        for module, columns in (
            (MaternKernel, self.features.numeric), (CategoricalKernel, self.features.categorical)
        ):  # fmt: skip
            if columns:
                prior, constraint = next(priors)[0].to_gpytorch()
                factors.append(
                    module(
                        ard_num_dims=len(columns),
                        active_dims=columns,
                        lengthscale_prior=prior,
                        lengthscale_constraint=constraint,
                    )
                )
        return math.prod(factors[1:], start=factors[0])

    def scales_in(self, module: Any) -> list[torch.nn.Parameter]:
        """The length scales that a module of :meth:`to_gpytorch` holds, in the order of ``theta``."""
        factors = module.kernels if len(self._priors) > 1 else [module]
        return [factor.raw_lengthscale for factor in factors]


class Covariance(NamedTuple):
    """The kernel for given length scales: a function of two sets of points, in features.

    numeric              features of the Matern factor
    categorical          features that are mere labels
    numeric_scales       length scales ``l_i``, one for each numeric feature
    categorical_scales   length scales ``l_j``, one for each categorical feature
    """

    numeric: list[int]
    categorical: list[int]
    numeric_scales: Tensor
    categorical_scales: Tensor

    def __call__(self, A: Tensor, B: Tensor) -> Tensor:
        """``k`` between the rows of ``A`` (``... x m x f``) and ``B`` (``... x n x f``); ``... x m x n``.

        Differentiable in the numeric features, also where points coincide.
        """
        value: Tensor | float = 1.0
        if self.numeric:
            value = matern(self._squared_distance(A, B))
        if self.categorical:
            value = value * (-self._differs(A, B).mean(dim=-1)).exp()
        assert isinstance(value, Tensor)
        return value

    def matrix_and_slope(self, X: Tensor) -> tuple[Tensor, Tensor | None]:
        """``K = k(X, X)`` and, if there are numeric features, ``dK / d(r^2)``; both ``n x n``."""
        overlap = (-self._differs(X, X).mean(dim=-1)).exp() if self.categorical else None
        if not self.numeric:
            assert overlap is not None
            return overlap, None
        r2 = self._squared_distance(X, X)
        r2.fill_diagonal_(0.0)  # rounding leaves 1e-16
        value, slope = matern_and_slope(r2)
        return (value, slope) if overlap is None else (value * overlap, slope * overlap)

    def cross_and_slope(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """``k`` between the rows of ``A`` (``m x f``) and ``B`` (``n x f``), and ``dk / d(r^2)``; both ``m x n``."""
        value = slope = torch.ones_like(A[:1, :1])
        if self.numeric:
            value, slope = matern_and_slope(self._squared_distance(A, B))
        if self.categorical:
            overlap = (-self._differs(A, B).mean(dim=-1)).exp()
            value, slope = value * overlap, slope * overlap
        return value, slope

    def pull_back(self, A: Tensor, B: Tensor, slope: Tensor, weights: Tensor) -> Tensor:
        """``sum_b weights_ab dk(a, b) / da`` for each row ``a`` of ``A``; ``slope`` from :meth:`cross_and_slope`."""
        gradient = torch.zeros_like(A)
        if self.numeric:  # d r^2 / d a_i = 2 (a_i - b_i) / l_i^2
            W = weights * slope
            pulled = W.sum(dim=-1, keepdim=True) * A[:, self.numeric] - W @ B[:, self.numeric]
            gradient[:, self.numeric] = 2 * pulled / self.numeric_scales.square()
        return gradient

    def slopes(self, X: Tensor, K: Tensor, dK: Tensor | None, weights: Tensor) -> Tensor:
        """``sum_ab weights_ab dK_ab / d theta``, shape ``size``.

        Args:
            X: shape ``n x f``.
            K: from :meth:`matrix_and_slope`.
            dK: likewise.
            weights: symmetric, ``n x n``.
        """
        slopes: list[Tensor] = []
        if dK is not None:
            # d r^2 / d log l_i = -2 (x_i - x'_i)^2 / l_i^2, and the sum over pairs of W (z - z')^2 is
            # 2 sum_a z_a^2 (W 1)_a - 2 z' W z: matrix products, no n x n matrix for each feature.
            Z = X[:, self.numeric] / self.numeric_scales
            W = weights * dK
            squares = W.sum(dim=-1) @ Z.square() - (Z * (W @ Z)).sum(dim=0)
            slopes.append(-4 * squares)
        if self.categorical:
            differs = self._differs(X, X)  # 1 / l_j where labels differ
            slopes.append(((weights * K).unsqueeze(-1) * differs).sum(dim=(0, 1)) / len(self.categorical))
        return torch.cat(slopes)

    def _squared_distance(self, A: Tensor, B: Tensor) -> Tensor:
        A, B = A[..., self.numeric] / self.numeric_scales, B[..., self.numeric] / self.numeric_scales
        # Centred, so that rounding is relative to the distances and not to the distance from a corner of the cube.
        centre = B.mean(dim=-2, keepdim=True).detach()
        A, B = A - centre, B - centre
        squares = A.square().sum(dim=-1).unsqueeze(-1) + B.square().sum(dim=-1).unsqueeze(-2)
        if A.dim() == B.dim() == 2:
            return torch.addmm(squares, A, B.mT, alpha=-2).clamp_min_(0.0)
        return (squares - 2 * A @ B.mT).clamp_min(0.0)

    def _differs(self, A: Tensor, B: Tensor) -> Tensor:
        """``[x_j != x'_j] / l_j``; ``... x m x n x`` (number of categorical features)."""
        A, B = A[..., self.categorical], B[..., self.categorical]
        return (A.unsqueeze(-2) != B.unsqueeze(-3)) / self.categorical_scales


def matern(r2: Tensor) -> Tensor:
    """``(1 + s + s^2 / 3) exp(-s)`` with ``s = sqrt(5 r^2)`` (Rasmussen & Williams, 2006, eq. 4.17)."""
    value: Tensor = _Matern.apply(r2)  # type: ignore[no-untyped-call]  # torch's
    return value


def matern_and_slope(r2: Tensor) -> tuple[Tensor, Tensor]:
    """The Matern-5/2 function of ``r^2``, and its derivative ``-5/6 (1 + s) exp(-s)``, finite everywhere."""
    # In place where it can be: of large matrices, making room takes longer than the arithmetic.
    s = r2.mul(5).sqrt_()
    decay = s.neg().exp_()
    slope = s.add_(1).mul_(decay)
    value = torch.addcmul(slope, r2, decay, value=5 / 3)
    return value, slope.mul_(-5 / 6)


class _Matern(torch.autograd.Function):
    """Autograd would divide zero by zero in the square root of a distance of zero."""

    @staticmethod
    def forward(ctx: Any, r2: Tensor) -> Tensor:
        value, slope = matern_and_slope(r2)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        chained: Tensor = gradient * slope
        return chained
