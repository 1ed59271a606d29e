"""The surrogate: an exact GP from points of the unit cube to standardised outcomes.

Notation, as everywhere in the engine: ``n`` observations, ``d`` parameters, ``f`` features, ``b`` points predicted at
once.

    X   n x d   points of the unit cube
    Y   n       outcomes: robust, zero mean, unit variance, larger is better

The model is ``y = m(x) + c + f(x) + e``: a prior mean ``m``, zero unless one is given; a constant ``c``; a zero-mean GP
``f`` with the kernel of ``kernel.py``, which sees points through their features; Gaussian noise ``e`` of a learned
variance, plus the one that is known of an outcome. Several outcomes of the same trials are several such models with the
same kernel.
"""

from __future__ import annotations

import math
import warnings
from typing import Self

import numpy as np
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models import SingleTaskGP
from gpytorch.likelihoods import GaussianLikelihood
from linear_operator.utils.cholesky import psd_safe_cholesky
from linear_operator.utils.errors import NanError, NotPSDError
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from llamatune_torch.engine.kernel import Bounds, Covariance, LogNormal, ProductKernel
from llamatune_torch.engine.prediction import GaussianPosterior, Prediction, Predictor, Prior, PriorMean, condition
from llamatune_torch.errors import SurrogateWarning

MAX_FIT_ITERATIONS = 200
MIN_NOISE = 1e-4  # of the outcomes' variance
NOISE_PRIOR = LogNormal(-4.0, 1.0, MIN_NOISE)  # prefers little noise (outcomes have unit variance), and allows much
TWO_STARTS_BELOW = 50  # with more observations both starts lead to the same maximum
FIT_AT_MOST = 500  # observations; d + 2 hyperparameters do not get better with more, and the time grows as n^3
FIT_TOLERANCE = 1e-6  # of the log posterior per observation


def fit_gp(
    kernel: ProductKernel,
    X: Tensor,
    Y: Tensor,
    noise_prior: LogNormal = NOISE_PRIOR,
    constant: float | None = None,
    prior_mean: PriorMean | None = None,
    known_noise: Tensor | None = None,
) -> Surrogate:
    """The GP whose hyperparameters maximise the marginal likelihood times their priors (MAP).

    One ascent (L-BFGS-B) starts from the priors' modes. With few observations, or if that failed, another one starts
    from their medians, and the better one wins. The same data always give the same fit. Should both fail, the GP keeps
    the modes and says so.

    Of more than ``FIT_AT_MOST`` observations so many, evenly spread over the record, choose the hyperparameters. The
    GP is conditioned on all of them.

    Args:
        kernel: the covariance of ``f``, with its hyperparameters' priors.
        X: shape ``n x d``, in the unit cube, float64.
        Y: shape ``n``, zero mean and unit variance, same dtype and device.
        noise_prior: the prior of the noise's variance.
        constant: the constant ``c``; ``None`` to learn it.
        prior_mean: ``m``, from points (``n x d``) to outcomes (``n``), differentiable; ``None`` for zero. The GP is
            fitted to ``Y - m(X)``, and predictions add ``m`` again.
        known_noise: variances of ``Y`` besides the learned noise, shape ``n``; ``None`` for zero.

    Returns:
        A fitted model in evaluation mode, on the device of ``X``.

    Warns:
        SurrogateWarning: the fit failed, and the priors' modes are used instead.

    Example:
        >>> kernel = ProductKernel(Features(SearchSpace({"x": (0.0, 1.0), "y": (0.0, 1.0)})))
        >>> X = torch.rand(10, 2, dtype=torch.float64)
        >>> gp = fit_gp(kernel, X, standardize(X.sum(dim=-1)))
        >>> gp.posterior(X[:1]).mean.shape
        torch.Size([1, 1])
    """
    rows = torch.linspace(0, len(Y) - 1, min(len(Y), FIT_AT_MOST), dtype=torch.float64, device=X.device)
    chosen = rows.round().long()
    gp = Surrogate(kernel, X, Y, noise_prior, constant, prior_mean, known_noise)
    everything = len(chosen) == len(Y)
    some = None if known_noise is None else known_noise[chosen]
    part = gp if everything else Surrogate(kernel, X[chosen], Y[chosen], noise_prior, constant, prior_mean, some)
    gp.set_theta(_find_most_probable(part))
    gp.eval()
    return gp


class Surrogate(SingleTaskGP):
    """A ``SingleTaskGP`` whose GPyTorch modules carry numbers and priors only: no ``forward`` of theirs is called.

    Fit and prediction are computed in closed form, by ``kernel.py`` and ``prediction.py``, because that takes a
    fraction of the time: the general machinery costs more than the arithmetic of fifty points. The modules are there
    because users of BoTorch know them, with their priors and their ``state_dict``, and because GPyTorch can compute the
    same: ``tests/engine/test_surrogate.py`` compares likelihoods and predictions.

    The hyperparameters are one vector ``theta`` of shape ``size + 2``: those of the kernel, the logarithm of the
    noise's variance, the constant. In logarithms an ascent takes a quarter of the steps, since length scales differ by
    orders of magnitude. Before a fit, ``theta`` is at the modes of the priors.

    ``train_inputs`` holds features of ``X``, and ``train_targets`` holds ``Y`` less the prior mean.
    Arguments as :func:`fit_gp`.
    """

    # Solved once it is needed; forgotten as soon as the hyperparameters may change.
    _solved: Predictor | None = None

    def __init__(
        self,
        kernel: ProductKernel,
        X: Tensor,
        Y: Tensor,
        noise_prior: LogNormal = NOISE_PRIOR,
        constant: float | None = None,
        prior_mean: PriorMean | None = None,
        known_noise: Tensor | None = None,
    ) -> None:
        if prior_mean is not None:
            with torch.no_grad():
                Y = Y - prior_mean(X)
        with torch.device(X.device):  # where GPyTorch makes its parameters: else on the default device
            prior, constraint = noise_prior.to_gpytorch()
            super().__init__(
                kernel.features(X),
                Y.unsqueeze(-1),
                likelihood=GaussianLikelihood(prior, noise_constraint=constraint),
                covar_module=kernel.to_gpytorch(),
                outcome_transform=None,
            )
        self.kernel, self.noise_prior, self.fixed_constant = kernel, noise_prior, constant
        self.prior_mean, self.known_noise = prior_mean, known_noise
        self.set_theta(self.prior_modes())  # GPyTorch's own initial values have the default dtype

    # --- Hyperparameters ---------------------------------------------------------------------------------------------

    @property
    def theta(self) -> Tensor:
        """The hyperparameters that the modules hold; shape ``size + 2``."""
        return torch.cat([*(scale.detach().flatten().log() for scale in self._scales()), self.constant.reshape(1)])

    @torch.no_grad()
    def set_theta(self, theta: Tensor) -> None:
        """Stores hyperparameters in the modules, within their bounds; the inverse of :attr:`theta`."""
        self._solved = None
        lowest = theta.new_tensor([-math.inf if low is None else low for low, _ in self.bounds()])
        scales = self._scales()
        *logs, constant = theta.maximum(lowest).split([scale.numel() for scale in scales] + [1])
        for scale, log in zip(scales, logs, strict=True):
            scale.copy_(log.exp().view_as(scale))
        self.mean_module.constant.copy_(constant.squeeze())

    def prior_modes(self) -> Tensor:
        """``theta`` at the modes of the priors, the constant at zero or where it is fixed."""
        return self._theta_of([*self.kernel.modes, self.noise_prior.log_mode])

    def prior_medians(self) -> Tensor:
        """``theta`` at the medians of the priors, the constant at zero or where it is fixed."""
        return self._theta_of([*self.kernel.medians, self.noise_prior.log_median])

    def bounds(self) -> Bounds:
        """The range of each of ``theta``."""
        return [*self.kernel.bounds, self.noise_prior.log_bounds, (self.fixed_constant, self.fixed_constant)]

    @torch.no_grad()
    def log_posterior(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Log marginal likelihood plus log priors of ``theta``, divided by ``n``, and its gradient.

        ``-1/2 r' K^-1 r - 1/2 log|K| - n/2 log(2 pi)`` with ``r = Y - m(X) - c`` (Rasmussen & Williams, 2006,
        eq. 2.30), as GPyTorch's ``ExactMarginalLogLikelihood``. The gradient follows from the one with respect to
        ``K``, which is ``1/2 (a a' - K^-1)`` with ``a = K^-1 r`` (eq. 5.9).

        Returns:
            A scalar, and its gradient, shape ``size + 2``.
        """
        of_kernel, log_noise, constant = theta.split([self.kernel.size, 1, 1])
        X, r = self.inputs, self.train_targets - constant
        n, noise = len(r), log_noise.exp()
        k = self.kernel.at(of_kernel)
        K, dK = k.matrix_and_slope(X)
        K.diagonal().add_(noise if self.known_noise is None else noise + self.known_noise)
        root = psd_safe_cholesky(K)
        a = torch.cholesky_solve(r.unsqueeze(-1), root)
        value = -0.5 * r @ a.squeeze(-1) - root.diagonal().log().sum() - 0.5 * n * math.log(2 * math.pi)
        slope = torch.addr(torch.cholesky_inverse(root), a.squeeze(-1), a.squeeze(-1), beta=-0.5, alpha=0.5)
        gradient = torch.cat([k.slopes(X, K, dK, slope), slope.trace() * noise, a.sum().reshape(1)])
        value = value + self.kernel.log_prior(of_kernel, gradient[:-2])
        value = value + self.noise_prior.log_density(noise, gradient[-2:-1])
        return value / n, gradient / n

    # --- Predictions -------------------------------------------------------------------------------------------------

    def posterior(  # type: ignore[override]  # narrower: one outcome, nothing transformed
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> GaussianPosterior:
        """:meth:`Prediction.posterior`."""
        return self.prediction().posterior(X, output_indices, observation_noise, posterior_transform)

    def prediction(self) -> Prediction:
        """The GP given all observations, as a model of its own that acquisitions call quickly."""
        return Prediction(self.predictor(), self.noise)

    @torch.no_grad()
    def predictor(self) -> Predictor:
        """The GP given all observations."""
        if self.training:
            self.eval()
        if self._solved is None:
            prior = Prior(self.kernel.features, self.covariance(), self.constant, self.prior_mean)
            self._solved = condition(prior, self.inputs, self.outcome_covariance(), self.train_targets.unsqueeze(-1))
        return self._solved

    def covariance(self) -> Covariance:
        """The covariance of ``f``, with the length scales of now."""
        return self.kernel.at(self.theta[: self.kernel.size])

    @torch.no_grad()
    def outcome_covariance(self) -> Tensor:
        """The covariance of the observed outcomes, noise included; ``n x n``."""
        K = self.covariance().matrix_and_slope(self.inputs)[0]
        K.diagonal().add_(self.noise if self.known_noise is None else self.noise + self.known_noise)
        return K

    @property
    def inputs(self) -> Tensor:
        """Features of the observed points, ``n x f``."""
        (inputs,) = self.train_inputs
        return inputs

    @property
    def noise(self) -> Tensor:
        """The variance of the noise, shape 1; outcomes have unit variance."""
        noise: Tensor = self.likelihood.noise_covar.noise
        return noise.detach()

    @property
    def constant(self) -> Tensor:
        """The constant ``c``, a scalar."""
        constant: Tensor = self.mean_module.constant
        return constant.detach()

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._solved = None
        model: Self = super().train(mode)
        return model

    def _scales(self) -> list[torch.nn.Parameter]:
        """The modules' positive hyperparameters, in the order of ``theta``."""
        return [*self.kernel.scales_in(self.covar_module), self.likelihood.noise_covar.raw_noise]

    def _theta_of(self, logs: list[float]) -> Tensor:
        return torch.tensor([*logs, self.fixed_constant or 0.0], dtype=self.inputs.dtype, device=self.inputs.device)


def _find_most_probable(gp: Surrogate) -> Tensor:
    """The ``theta`` of the best fit to the observations of ``gp``."""
    fits: list[tuple[float, Tensor]] = []
    n = len(gp.inputs)
    for start in (gp.prior_modes(), gp.prior_medians()):
        if fits and n >= TWO_STARTS_BELOW:
            break
        value, reached = _maximize_posterior(gp, start)
        if math.isfinite(value):
            fits.append((value, reached))
    if fits:
        return max(fits, key=lambda fit: fit[0])[1]
    warnings.warn(
        f"fitting the surrogate to {n} observations failed; its priors' modes are used instead",
        SurrogateWarning,
        stacklevel=3,
    )
    return gp.prior_modes()


def _maximize_posterior(gp: Surrogate, start: Tensor) -> tuple[float, Tensor]:
    """The maximum of the log posterior reached from ``start``, and its ``theta``; nan and ``start`` if that failed."""

    def negate(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient = gp.log_posterior(torch.from_numpy(x).to(start))
        return -value.item(), -gradient.numpy(force=True)

    try:
        result = minimize(
            negate,
            start.numpy(force=True),
            jac=True,
            method="L-BFGS-B",
            bounds=gp.bounds(),
            options={"maxiter": MAX_FIT_ITERATIONS, "ftol": FIT_TOLERANCE},
        )
    except (NanError, NotPSDError):
        return math.nan, start
    return -float(result.fun), torch.from_numpy(result.x).to(start)
