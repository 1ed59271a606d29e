"""Log expected improvement, plain and of the future posterior mean, with the gradient in closed form.

With ``u = (mean - best_f) / sigma``, ``h(u) = phi(u) + u Phi(u)`` and ``EI = sigma h(u)`` (Jones et al., 1998, eq. 15),

    d log EI / d mean = g / sigma,     d log EI / d sigma = (1 - u g) / sigma,     g = Phi(u) / h(u).

Far below the bar both ``phi`` and ``Phi`` are zero in floating point, while their ratio is not. So ``h`` is taken in
the logarithm, by the scaled complementary error function (Ament et al., 2023, arXiv:2310.20708, section 4.1). BoTorch's
``LogExpectedImprovement`` computes the same, a test compares both. The search for candidates calls it dozens of times
on a handful of points. There the number of operations takes the time: so autograd has one node instead of forty.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from botorch.acquisition import LogExpectedImprovement
from torch import Tensor

from llamatune_torch.engine.fantasies import Fantasies
from llamatune_torch.engine.prediction import Prediction

HALF_LOG_2PI = math.log(2 * math.pi) / 2
# Below this, 1 - |u| Phi(u) / phi(u) loses its digits, and 1 / u^2 - 3 / u^4 is exact to rounding.
FAR_BELOW = -1e3


class LogEI(LogExpectedImprovement):
    """BoTorch's acquisition, averaged over the model's ensemble where it is one; ``b x 1 x d`` to ``b``.

    Args:
        model: its posterior has one outcome.
        best_f: the outcome to improve on; a scalar, or one a member of the ensemble.
        noise: the variance of an evaluation's noise, for the expected quantile improvement of the median (Picheny et
            al., 2013). It improves the posterior mean after one more evaluation, which has the variance
            ``v^2 / (v + noise)``, instead of ``f`` with its variance ``v``. ``None`` for plain EI.
    """

    def __init__(self, model: Prediction | Fantasies, best_f: Tensor, noise: Tensor | None = None) -> None:
        super().__init__(model, best_f)
        self.predicting, self.bar, self.noise = model, best_f.flatten(), noise

    def forward(self, X: Tensor) -> Tensor:
        posterior = self.predicting.posterior(X)
        mean, variance = posterior.mean.flatten(1), posterior.variance.flatten(1)  # b x s
        if self.noise is not None:
            variance = variance.square() / (variance + self.noise)
        value: Tensor = _LogEI.apply(mean, variance, self.bar)  # type: ignore[no-untyped-call]  # torch's
        return value


class _LogEI(torch.autograd.Function):
    """``log mean_s EI_s`` from mean and variance (``b x s``) and the bars (``s`` or 1)."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor, best_f: Tensor) -> Tensor:
        sigma = variance.sqrt()
        u = (mean - best_f) / sigma
        log_h, slope = log_h_and_slope(u)
        each = log_h + sigma.log()
        value = each.logsumexp(dim=-1, keepdim=True)
        ctx.save_for_backward(u, sigma, slope, each, value)
        return (value - math.log(each.shape[-1])).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        u, sigma, slope, each, value = ctx.saved_tensors
        weight = gradient.unsqueeze(-1) * (each - value).exp() / sigma
        by_mean = weight * slope
        by_sigma = weight - by_mean * u
        return by_mean, by_sigma / (2 * sigma), None  # d sigma / d variance = 1 / (2 sigma)


def log_h_and_slope(u: Tensor) -> tuple[Tensor, Tensor]:
    """``log h(u)`` and its derivative ``Phi(u) / h(u)``, exact to rounding for any ``u``."""
    log_phi = u.square() * -0.5 - HALF_LOG_2PI
    # Phi(u) / phi(u), by erfcx on the side where both vanish, and h / phi.
    ratio = torch.special.erfcx(u * -math.sqrt(0.5)) * math.sqrt(math.pi / 2)
    relative = 1 + u * ratio
    if bool((u < FAR_BELOW).any()):
        u2 = u.clamp_max(FAR_BELOW).square()
        relative = torch.where(u < FAR_BELOW, (1 - 3 / u2) / u2, relative)
    slope = ratio / relative
    log_h = log_phi + relative.log()
    above = u > 5  # where erfcx overflows in the end: there h is u itself, up to phi(5) / 25
    if bool(above.any()):
        phi, Phi = log_phi.exp(), torch.special.ndtr(u)
        h = phi + u * Phi
        log_h, slope = torch.where(above, h.log(), log_h), torch.where(above, Phi / h, slope)
    return log_h, slope
