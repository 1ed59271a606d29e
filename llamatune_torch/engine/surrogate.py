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

from botorch.models import SingleTaskGP
from botorch.models.kernels import CategoricalKernel
from botorch.models.utils.gpytorch_modules import (
    get_covar_module_with_dim_scaled_prior,
    get_gaussian_likelihood_with_lognormal_prior,
)
from botorch.optim.closures import get_loss_closure_with_grads
from botorch.optim.core import OptimizationStatus, scipy_minimize
from botorch.optim.utils import get_parameters_and_bounds
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

from llamatune_torch.errors import SurrogateWarning

MAX_FIT_ITERATIONS = 200


def fit_gp(X: Tensor, Y: Tensor, categorical: Sequence[int] = ()) -> SingleTaskGP:
    """The GP whose hyperparameters maximise the marginal likelihood times their priors (MAP).

    The ascent (L-BFGS-B) starts at the priors' modes, so the same data always give the same fit. Should it
    fail, it is started once more at the priors' medians, and should that fail too the GP keeps the modes and
    says so.

    Args:
        X: shape ``n x d``, in the unit cube, float64.
        Y: shape ``n``, zero mean and unit variance, same dtype and device.
        categorical: columns whose coordinates are mere labels.

    Returns:
        A fitted BoTorch model in evaluation mode, on the device of ``X``.

    Warns:
        SurrogateWarning: the fit failed, and the priors' modes are used instead.

    Example:
        >>> X = torch.rand(10, 2, dtype=torch.float64)
        >>> gp = fit_gp(X, standardize(X.sum(dim=-1)))
        >>> gp.posterior(X[:1]).mean.shape
        torch.Size([1, 1])
    """
    for start in ("mode", "median"):
        gp = make_gp(X, Y, categorical)
        if start == "median":
            _move_to_prior_medians(gp)
        if _maximize_posterior(gp):
            return gp
    warnings.warn(
        f"fitting the surrogate to {len(Y)} observations failed twice; its priors' modes are used instead",
        SurrogateWarning,
        stacklevel=2,
    )
    gp = make_gp(X, Y, categorical)
    gp.eval()
    return gp


def make_gp(X: Tensor, Y: Tensor, categorical: Sequence[int] = ()) -> SingleTaskGP:
    """The GP before fitting, its hyperparameters at their priors' modes; arguments as :func:`fit_gp`."""
    return SingleTaskGP(
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


def _maximize_posterior(gp: SingleTaskGP) -> bool:
    """Fits the hyperparameters of ``gp`` in place and leaves it in evaluation mode; whether that worked."""
    mll = ExactMarginalLogLikelihood(gp.likelihood, gp)
    mll.train()
    parameters, bounds = get_parameters_and_bounds(mll)
    try:
        result = scipy_minimize(
            closure=get_loss_closure_with_grads(mll, parameters),
            parameters=parameters,
            bounds=bounds,
            options={"maxiter": MAX_FIT_ITERATIONS},
        )
    except (NanError, NotPSDError):
        return False
    mll.eval()
    finite = all(bool(p.isfinite().all()) for p in parameters.values()) and math.isfinite(result.fval)
    # STOPPED is the iteration limit: a fit that is good enough. FAILURE after progress is a line search
    # that could not improve any more at machine precision.
    return finite and (result.status is not OptimizationStatus.FAILURE or result.step > 0)


def _move_to_prior_medians(gp: SingleTaskGP) -> None:
    for _, module, prior, _, set_value in gp.named_priors():  # type: ignore[operator]  # gpytorch is untyped
        set_value(module, prior.loc.exp())
