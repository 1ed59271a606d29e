"""The surrogate: an exact GP from points of the unit cube to standardised outcomes.

Notation, as everywhere in the engine: ``n`` observations, ``d`` parameters, ``b`` points predicted at once.

    X   n x d   points of the unit cube
    Y   n       outcomes: robust, zero mean, unit variance, larger is better

The model is ``y = m + f(x) + e`` with a constant mean ``m``, Gaussian noise ``e`` of a learned variance, and a
zero-mean GP ``f`` whose kernel is one product over all columns,

    k(x, x') = Matern_5/2(r) * exp(-mean_j [x_j != x'_j] / l_j),     r^2 = sum_i (x_i - x'_i)^2 / l_i^2,

``i`` over numeric and ``j`` over categorical columns, each with its own length scale (ARD). Length scales have
the log-normal prior that grows with the number of dimensions (Hvarfner et al., 2024, arXiv:2402.02229), so
that the same model serves 2 and 20 parameters.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models import SingleTaskGP
from botorch.models.kernels import CategoricalKernel
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, MaternKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.priors import LogNormalPrior
from linear_operator.utils.cholesky import psd_safe_cholesky
from linear_operator.utils.errors import NanError, NotPSDError
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.prediction import GaussianPosterior, Prediction, Predictor, condition
from llamatune_torch.errors import SurrogateWarning

MAX_FIT_ITERATIONS = 200
MIN_LENGTH_SCALE = 2.5e-2  # of a column of the unit cube
MIN_NOISE = 1e-4  # of the outcomes' variance
NOISE_PRIOR = (-4.0, 1.0)  # log-normal: prefers little noise (of a variance of outcomes of one), and allows much
TWO_STARTS_BELOW = 50  # with more observations both starts lead to the same maximum
FIT_AT_MOST = 500  # observations; d + 2 hyperparameters do not get better with more, and the time grows as n^3
FIT_TOLERANCE = 1e-6  # of the log posterior per observation


def fit_gp(
    features: Features,
    X: Tensor,
    Y: Tensor,
    noise_prior: tuple[float, float] = NOISE_PRIOR,
    mean: float | None = None,
) -> Surrogate:
    """The GP whose hyperparameters maximise the marginal likelihood times their priors (MAP).

    One ascent (L-BFGS-B) from the priors' modes; with few observations, or if that failed, another one from their
    medians, and the better one wins. The same data always give the same fit. Should both fail, the GP keeps the
    modes and says so.

    Of more than ``FIT_AT_MOST`` observations so many, evenly spread over the record, choose the hyperparameters; the
    GP is conditioned on all of them.

    Args:
        features: what the kernel sees of a point.
        X: shape ``n x d``, in the unit cube, float64.
        Y: shape ``n``, zero mean and unit variance, same dtype and device.
        noise_prior: mean and standard deviation of the logarithm of the noise's variance.
        mean: the constant mean; ``None`` to fit it.

    Returns:
        A fitted model in evaluation mode, on the device of ``X``.

    Warns:
        SurrogateWarning: the fit failed, and the priors' modes are used instead.

    Example:
        >>> X = torch.rand(10, 2, dtype=torch.float64)
        >>> gp = fit_gp(Features(SearchSpace({"x": (0.0, 1.0), "y": (0.0, 1.0)})), X, standardize(X.sum(dim=-1)))
        >>> gp.posterior(X[:1]).mean.shape
        torch.Size([1, 1])
    """
    rows = torch.linspace(0, len(Y) - 1, min(len(Y), FIT_AT_MOST), dtype=torch.float64, device=X.device)
    chosen = rows.round().long()
    gp = Surrogate(features, X, Y, noise_prior, mean)
    part = gp if len(chosen) == len(Y) else Surrogate(features, X[chosen], Y[chosen], noise_prior, mean)
    gp.set_hyperparameters(_most_probable(part))
    gp.eval()
    return gp


def _most_probable(gp: Surrogate) -> Tensor:
    """The hyperparameters of the best fit to the observations of ``gp``, whose own are moved about."""
    fits: list[tuple[float, Tensor]] = []
    n = len(gp.inputs)
    for start in (gp.prior_modes(), gp.prior_medians()):
        if fits and n >= TWO_STARTS_BELOW:
            break
        gp.set_hyperparameters(start)
        reached = _maximize_posterior(gp)
        if math.isfinite(reached):
            fits.append((reached, gp.hyperparameters()))
    if fits:
        return max(fits, key=lambda fit: fit[0])[1]
    warnings.warn(
        f"fitting the surrogate to {n} observations failed; its priors' modes are used instead",
        SurrogateWarning,
        stacklevel=3,
    )
    return gp.prior_modes()


def make_kernel(numeric: Sequence[int], categorical: Sequence[int] = ()) -> Kernel:
    """The product kernel over ``numeric`` features and ``categorical`` ones, which are mere labels."""
    factors: list[Kernel] = []
    if numeric:
        prior = _log_normal(math.sqrt(2) + math.log(len(numeric)) / 2, math.sqrt(3))
        constraint = GreaterThan(MIN_LENGTH_SCALE, transform=None, initial_value=prior.mode)
        factors.append(
            MaternKernel(
                ard_num_dims=len(numeric),
                active_dims=list(numeric),
                lengthscale_prior=prior,
                lengthscale_constraint=constraint,
            )
        )
    if categorical:
        # The kernel takes the mean over its columns, which already scales with their number. Choices are taken for
        # alike until the data say otherwise: what is learnt with one optimizer then carries over to the others.
        prior = _log_normal(1.5, 1.0)
        constraint = GreaterThan(MIN_LENGTH_SCALE, transform=None, initial_value=prior.mode)
        factors.append(
            CategoricalKernel(
                ard_num_dims=len(categorical),
                active_dims=list(categorical),
                lengthscale_prior=prior,
                lengthscale_constraint=constraint,
            )
        )
    return math.prod(factors[1:], start=factors[0])


def make_likelihood(noise_prior: tuple[float, float] = NOISE_PRIOR) -> GaussianLikelihood:
    """Gaussian noise whose variance has a log-normal prior."""
    prior = _log_normal(*noise_prior)
    return GaussianLikelihood(prior, noise_constraint=GreaterThan(MIN_NOISE, transform=None, initial_value=prior.mode))


def _log_normal(loc: float, scale: float) -> LogNormalPrior:
    # Of floats gpytorch would make tensors of the default dtype.
    return LogNormalPrior(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))


class Scales(NamedTuple):
    """Hyperparameters that are positive: length scales or the noise variance."""

    values: torch.nn.Parameter
    prior: LogNormalPrior
    at_least: float


class Surrogate(SingleTaskGP):
    """BoTorch's exact GP, held in gpytorch's modules, computed by the textbook's formulas.

    With ``L L' = K = k(X, X) + noise I`` known once and for all, the posterior at ``Z`` is

        mean = m + k(Z, X) K^-1 (Y - m),     cov = k(Z, Z) - V' V,   V = L^-1 k(X, Z)

    (Rasmussen & Williams, 2006, algorithm 2.1). All points of a batch share the two products with ``k(Z, X)``, which
    is what the search for candidates spends its time on.

    Before a fit the hyperparameters are at the modes of their priors. ``train_inputs`` holds features of ``X``.
    Arguments as :func:`fit_gp`.
    """

    # Solved once it is needed; forgotten as soon as the hyperparameters may change.
    _solved: Predictor | None = None

    def __init__(
        self,
        features: Features,
        X: Tensor,
        Y: Tensor,
        noise_prior: tuple[float, float] = NOISE_PRIOR,
        mean: float | None = None,
    ) -> None:
        with torch.device(X.device):  # where gpytorch makes its parameters: else on the default device
            super().__init__(
                features(X),
                Y.unsqueeze(-1),
                likelihood=make_likelihood(noise_prior),
                covar_module=make_kernel(features.numeric, features.categorical),
                outcome_transform=None,
            )
        self.fixed_mean = mean
        self.features = features
        self.set_hyperparameters(self.prior_modes())  # gpytorch's own initial values have the default dtype

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._solved = None
        model: Self = super().train(mode)
        return model

    def posterior(  # type: ignore[override]  # narrower: one outcome, nothing transformed
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> GaussianPosterior:
        """:meth:`Prediction.posterior`."""
        return self.prediction().posterior(X, output_indices, observation_noise, posterior_transform)

    @torch.no_grad()
    def log_posterior(self) -> tuple[Tensor, Tensor]:
        """Log marginal likelihood plus log priors, divided by ``n``, and its gradient.

        ``-1/2 r' K^-1 r - 1/2 log|K| - n/2 log(2 pi)`` with ``r = Y - m`` (Rasmussen & Williams, 2006, eq. 2.30), as
        gpytorch's ``ExactMarginalLogLikelihood``. The gradient follows from the one with respect to ``K``, which is
        ``1/2 (a a' - K^-1)`` with ``a = K^-1 r`` (eq. 5.9).

        Returns:
            A scalar, and its gradient with respect to :meth:`hyperparameters`, shape ``d + 2``.
        """
        X, r = self.inputs, self.train_targets - self.mean
        n = len(r)
        kernel = self.kernel()
        K, dK = kernel.matrix_and_slope(X)
        root = psd_safe_cholesky(self.with_noise(K))
        a = torch.cholesky_solve(r.unsqueeze(-1), root)
        value = -0.5 * r @ a.squeeze(-1) - root.diagonal().log().sum() - 0.5 * n * math.log(2 * math.pi)
        slope = torch.addr(torch.cholesky_inverse(root), a.squeeze(-1), a.squeeze(-1), beta=-0.5, alpha=0.5)
        gradient = [*kernel.slopes(X, K, dK, slope), slope.trace() * self.noise]
        for i, (scales, prior, _) in enumerate(self._scales()):
            value = value + prior.log_prob(scales).sum()
            gradient[i] = gradient[i] - 1 - (scales.flatten().log() - prior.loc) / prior.scale**2
        return value / n, torch.cat([*gradient, a.sum().reshape(1)]) / n

    def hyperparameters(self) -> Tensor:
        """What a fit moves: logarithms of the length scales (numeric first) and of the noise, then the mean.

        Shape ``d + 2``. In logarithms, an ascent takes a quarter of the steps: they differ by orders of magnitude.
        """
        return torch.cat([*(scales.values.detach().flatten().log() for scales in self._scales()), self.mean.reshape(1)])

    @torch.no_grad()
    def set_hyperparameters(self, hyperparameters: Tensor) -> None:
        """The inverse of :meth:`hyperparameters`."""
        self._solved = None
        *logs, mean = hyperparameters.split([scales.values.numel() for scales in self._scales()] + [1])
        for scales, log in zip(self._scales(), logs, strict=True):
            scales.values.copy_(log.exp().view_as(scales.values).clamp_min(scales.at_least))
        self.mean_module.constant.copy_(mean.squeeze())

    def prior_medians(self) -> Tensor:
        """The hyperparameters at the medians of their priors, the mean at zero or where it is fixed."""
        medians = [scales.prior.loc.expand(scales.values.numel()) for scales in self._scales()]
        return torch.cat([*medians, torch.full_like(self.mean, self.fixed_mean or 0.0).reshape(1)])

    def prior_modes(self) -> Tensor:
        """The hyperparameters at the modes of their priors, the mean at zero or where it is fixed."""
        modes = [scales.prior.mode.log().expand(scales.values.numel()) for scales in self._scales()]
        return torch.cat([*modes, torch.full_like(self.mean, self.fixed_mean or 0.0).reshape(1)])

    def hyperparameter_bounds(self) -> list[tuple[float | None, float | None]]:
        """The range of each of :meth:`hyperparameters`."""
        limits = [(math.log(s.at_least), None) for s in self._scales() for _ in range(s.values.numel())]
        return [*limits, (self.fixed_mean, self.fixed_mean)]

    def kernel(self) -> ProductKernel:
        """The covariance of ``f``, with the length scales of now."""
        *scales, _ = (scales.values.detach().flatten() for scales in self._scales())
        none = self.inputs.new_empty(0)
        return ProductKernel(
            self.features.numeric,
            self.features.categorical,
            scales[0] if self.features.numeric else none,
            scales[-1] if self.features.categorical else none,
        )

    @property
    def inputs(self) -> Tensor:
        """Features of ``X``, on which the GP is conditioned."""
        (X,) = self.train_inputs
        return X

    @property
    def noise(self) -> Tensor:
        """The variance of the noise, shape 1; outcomes have unit variance."""
        noise: Tensor = self.likelihood.noise_covar.noise
        return noise.detach()

    @property
    def mean(self) -> Tensor:
        """The constant mean ``m``, a scalar."""
        mean: Tensor = self.mean_module.constant
        return mean.detach()

    def _scales(self) -> list[Scales]:
        """Length scales of the numeric and of the categorical columns, if any; the noise."""
        kernel: Any = self.covar_module
        factors = kernel.kernels if self.features.numeric and self.features.categorical else [kernel]
        noise = self.likelihood.noise_covar
        # gpytorch's constraints hold the same bounds, rounded to the default dtype.
        return [
            *(Scales(factor.raw_lengthscale, factor.lengthscale_prior, MIN_LENGTH_SCALE) for factor in factors),
            Scales(noise.raw_noise, noise.noise_prior, MIN_NOISE),
        ]

    def with_noise(self, K: Tensor) -> Tensor:
        """``K`` itself, the noise added to its diagonal."""
        K.diagonal().add_(self.noise)
        return K

    @torch.no_grad()
    def predictor(self) -> Predictor:
        """The GP given all observations."""
        if self.training:
            self.eval()
        if self._solved is None:
            kernel = self.kernel()
            K = self.with_noise(kernel.matrix_and_slope(self.inputs)[0])
            self._solved = condition(kernel, self.inputs, self.mean, K, self.train_targets.unsqueeze(-1))
        return self._solved

    def prediction(self) -> Prediction:
        """The GP given all observations, as a model of its own that acquisitions call quickly."""
        return Prediction(self.predictor(), self.noise, self.features)


def _maximize_posterior(gp: Surrogate) -> float:
    """Moves the hyperparameters of ``gp`` to a maximum of ``log_posterior``; its value, nan if that failed."""

    def negated(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        gp.set_hyperparameters(torch.from_numpy(x).to(gp.inputs))
        value, gradient = gp.log_posterior()
        return -value.item(), -gradient.numpy(force=True)

    try:
        result = minimize(
            negated,
            gp.hyperparameters().numpy(force=True),
            jac=True,
            method="L-BFGS-B",
            bounds=gp.hyperparameter_bounds(),
            options={"maxiter": MAX_FIT_ITERATIONS, "ftol": FIT_TOLERANCE},
        )
    except (NanError, NotPSDError):
        return math.nan
    gp.set_hyperparameters(torch.from_numpy(result.x).to(gp.inputs))
    return -float(result.fun)
