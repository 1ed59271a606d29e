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
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.exceptions import UnsupportedError
from botorch.models import SingleTaskGP
from botorch.models.kernels import CategoricalKernel
from botorch.models.utils.gpytorch_modules import (
    get_covar_module_with_dim_scaled_prior,
    get_gaussian_likelihood_with_lognormal_prior,
)
from botorch.posteriors import GPyTorchPosterior
from gpytorch.constraints import GreaterThan
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.priors import LogNormalPrior
from linear_operator import to_linear_operator
from linear_operator.utils.cholesky import psd_safe_cholesky
from linear_operator.utils.errors import NanError, NotPSDError
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from llamatune_torch.engine.features import Features
from llamatune_torch.errors import SurrogateWarning

MAX_FIT_ITERATIONS = 200
TWO_STARTS_BELOW = 50  # with more observations both starts lead to the same maximum
FIT_TOLERANCE = 1e-6  # of the log posterior per observation
# Posterior variances below this are rounding errors; outcomes have unit variance.
MIN_VARIANCE = 1e-12


def fit_gp(X: Tensor, Y: Tensor, categorical: Sequence[int] = (), features: Features | None = None) -> Surrogate:
    """The GP whose hyperparameters maximise the marginal likelihood times their priors (MAP).

    One ascent (L-BFGS-B) from the priors' modes; with few observations, or if that failed, another one from their
    medians, and the better one wins. The same data always give the same fit. Should both fail, the GP keeps the
    modes and says so.

    Args:
        X: shape ``n x d``, in the unit cube, float64.
        Y: shape ``n``, zero mean and unit variance, same dtype and device.
        categorical: columns whose coordinates are mere labels.
        features: what the kernels see instead of the columns; ``None`` for the columns themselves.

    Returns:
        A fitted model in evaluation mode, on the device of ``X``.

    Warns:
        SurrogateWarning: the fit failed, and the priors' modes are used instead.

    Example:
        >>> X = torch.rand(10, 2, dtype=torch.float64)
        >>> gp = fit_gp(X, standardize(X.sum(dim=-1)))
        >>> gp.posterior(X[:1]).mean.shape
        torch.Size([1, 1])
    """
    if features is not None:
        X, categorical = features(X), features.categorical
    fits: list[tuple[float, Surrogate]] = []
    for start_at_medians in (False, True):
        if fits and len(Y) >= TWO_STARTS_BELOW:
            break
        gp = make_gp(X, Y, categorical)
        if start_at_medians:
            _move_to_prior_medians(gp)
        reached = _maximize_posterior(gp)
        if math.isfinite(reached):
            fits.append((reached, gp))
    if fits:
        _, gp = max(fits, key=lambda fit: fit[0])
    else:
        warnings.warn(
            f"fitting the surrogate to {len(Y)} observations failed; its priors' modes are used instead",
            SurrogateWarning,
            stacklevel=2,
        )
        gp = make_gp(X, Y, categorical)
    gp.features = features
    gp.eval()
    return gp


def make_gp(X: Tensor, Y: Tensor, categorical: Sequence[int] = ()) -> Surrogate:
    """The GP before fitting, its hyperparameters at their priors' modes; arguments as :func:`fit_gp`."""
    return Surrogate(
        X,
        Y.unsqueeze(-1),
        likelihood=get_gaussian_likelihood_with_lognormal_prior(),
        covar_module=make_kernel(X.shape[-1], categorical),
        outcome_transform=None,
    )


def make_kernel(dim: int, categorical: Sequence[int] = ()) -> Kernel:
    """The product kernel over ``dim`` columns, of which ``categorical`` are mere labels."""
    numeric = [j for j in range(dim) if j not in categorical]
    factors: list[Kernel] = []
    if numeric:
        factors.append(
            get_covar_module_with_dim_scaled_prior(ard_num_dims=len(numeric), use_rbf_kernel=False, active_dims=numeric)
        )
    if categorical:
        # The kernel takes the mean over its columns, which already scales with their number.
        prior = LogNormalPrior(loc=0.0, scale=1.0)
        factors.append(
            CategoricalKernel(
                ard_num_dims=len(categorical),
                active_dims=list(categorical),
                lengthscale_prior=prior,
                lengthscale_constraint=GreaterThan(2.5e-2, transform=None, initial_value=prior.mode),
            )
        )
    return math.prod(factors[1:], start=factors[0])


class Surrogate(SingleTaskGP):
    """BoTorch's exact GP with the textbook's prediction instead of its general one.

    With ``L L' = K = k(X, X) + noise I`` known once and for all, the posterior at ``Z`` is

        mean = m + k(Z, X) K^-1 (Y - m),     cov = k(Z, Z) - V' V,   V = L^-1 k(X, Z)

    (Rasmussen & Williams, 2006, algorithm 2.1). All points of a batch share the two products with ``k(Z, X)``, which
    is what the search for candidates spends its time on.
    """

    # L and K^-1 (Y - m), once they are needed; forgotten as soon as the hyperparameters may change.
    _solved: tuple[Tensor, Tensor] | None = None

    # From points of the unit cube to what the kernels see; ``train_inputs`` holds the latter.
    features: Features | None = None

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
    ) -> GPyTorchPosterior:
        """The joint posterior of the ``q`` points of each batch; ``X`` has shape ``... x q x d``."""
        if output_indices is not None or posterior_transform is not None or isinstance(observation_noise, Tensor):
            raise UnsupportedError("the surrogate has one outcome, one noise level and no transform")
        if self.features is not None:
            X = self.features(X)
        self.eval()
        if self._solved is None:
            self._solved = self._solve()
        root, weights = self._solved
        q, d = X.shape[-2:]
        # Batches share the training data, so k(Z, X) is one matrix of all their points.
        cross = self.covar_module(X.reshape(-1, d), self._inputs).to_dense()
        mean = self.mean_module.constant + (cross @ weights).view(X.shape[:-1])
        whitened = torch.linalg.solve_triangular(root, cross.mT, upper=False).mT.view(*X.shape[:-1], -1)
        if q == 1:  # the diagonal alone: a stationary kernel's gradient there is zero, not 0/0
            prior, explained = self.covar_module(X, diag=True), whitened.square().sum(dim=-1)
            covariance = (prior - explained).clamp_min(MIN_VARIANCE).unsqueeze(-1)
        else:
            covariance = self.covar_module(X).to_dense() - whitened @ whitened.mT
        if observation_noise:
            covariance = covariance + self._noise * torch.eye(q, dtype=X.dtype, device=X.device)
        return GPyTorchPosterior(MultivariateNormal(mean, to_linear_operator(covariance)))  # lazy: no Cholesky yet

    def log_posterior(self) -> Tensor:
        """Log marginal likelihood plus log priors of the hyperparameters, divided by ``n``; a scalar.

        ``-1/2 r' K^-1 r - 1/2 log|K| - n/2 log(2 pi)`` with ``r = Y - m`` (Rasmussen & Williams, 2006, eq. 2.30), as
        gpytorch's ``ExactMarginalLogLikelihood``. Its gradient with respect to ``K`` is known in closed form,
        ``1/2 (a a' - K^-1)`` with ``a = K^-1 r`` (eq. 5.9), so that autograd goes through the kernel only.
        """
        Y = self.train_targets
        n = len(Y)
        K = self._noisy_kernel_matrix()
        m = self.mean_module.constant
        with torch.no_grad():
            root = psd_safe_cholesky(K)
            a = torch.cholesky_solve((Y - m).unsqueeze(-1), root).squeeze(-1)
            slope = 0.5 * (torch.outer(a, a) - torch.cholesky_inverse(root))
            log_likelihood = -0.5 * (Y - m) @ a - root.diagonal().log().sum() - 0.5 * n * math.log(2 * math.pi)
        # The terms in brackets are zero; they only carry the gradients.
        log_likelihood = log_likelihood + (slope * (K - K.detach())).sum() + a.sum() * (m - m.detach())
        priors = self.named_priors()  # type: ignore[operator]  # gpytorch is untyped
        log_prior = sum(prior.log_prob(value_of(module)).sum() for _, module, prior, value_of, _ in priors)
        per_observation: Tensor = (log_likelihood + log_prior) / n
        return per_observation

    @property
    def _inputs(self) -> Tensor:
        (X,) = self.train_inputs
        return X

    @property
    def _noise(self) -> Tensor:
        noise: Tensor = self.likelihood.noise_covar.noise
        return noise

    def _noisy_kernel_matrix(self) -> Tensor:
        covariance: Tensor = self.covar_module(self._inputs).to_dense()
        return covariance + torch.diag_embed(self._noise.expand(len(covariance)))

    @torch.no_grad()
    def _solve(self) -> tuple[Tensor, Tensor]:
        """``L`` and ``K^-1 (Y - m)``."""
        root = psd_safe_cholesky(self._noisy_kernel_matrix())
        residual = (self.train_targets - self.mean_module.constant).unsqueeze(-1)
        return root, torch.cholesky_solve(residual, root).squeeze(-1)


def _maximize_posterior(gp: Surrogate) -> float:
    """Moves the hyperparameters of ``gp`` to a maximum of ``log_posterior``; its value, nan if that failed.

    The ascent moves their logarithms: length scales and noise differ by orders of magnitude, and in that scale
    the problem takes a quarter of the steps.
    """
    constrained = list(gp.named_parameters_and_constraints())  # type: ignore[operator]
    parameters = [parameter for _, parameter, _ in constrained]
    positive = [constraint is not None for _, _, constraint in constrained]
    bounds = [
        (None if constraint is None else math.log(float(constraint.lower_bound)), None)
        for _, parameter, constraint in constrained
        for _ in range(parameter.numel())
    ]

    def set_to(x: NDArray[np.float64]) -> None:
        pieces = torch.from_numpy(x).split([parameter.numel() for parameter in parameters])
        with torch.no_grad():
            for parameter, is_positive, piece in zip(parameters, positive, pieces, strict=True):
                parameter.copy_((piece.exp() if is_positive else piece).view_as(parameter))

    def flat(tensors: Iterable[Tensor]) -> NDArray[np.float64]:
        return torch.cat([tensor.detach().reshape(-1).cpu() for tensor in tensors]).numpy()

    def negated(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        set_to(x)
        value = -gp.log_posterior()
        gradients = torch.autograd.grad(value, parameters)
        chained = zip(gradients, parameters, positive, strict=True)
        return value.item(), flat(g * p if is_positive else g for g, p, is_positive in chained)

    start = flat(p.log() if is_positive else p for p, is_positive in zip(parameters, positive, strict=True))
    try:
        result = minimize(
            negated,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": MAX_FIT_ITERATIONS, "ftol": FIT_TOLERANCE},
        )
    except (NanError, NotPSDError):
        return math.nan
    set_to(result.x)
    return -float(result.fun)


def _move_to_prior_medians(gp: Surrogate) -> None:
    for _, module, prior, _, set_value in gp.named_priors():  # type: ignore[operator]  # gpytorch is untyped
        set_value(module, prior.loc.exp())
