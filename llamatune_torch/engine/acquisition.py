"""The acquisition: what evaluating a point is worth. A weighted sum of the logarithms of named factors:

    log a(x) = log improvement(x) + 10 log P(works | x) + ...

One rule keeps features from multiplying into classes:

- Running trials change the model: fantasies take its place (``fantasies.py``).
- Objectives change the first factor: improvement on one, hypervolume of several.
- Crashes, constraints, cost and the user's belief are further factors.
- Fidelity and past studies change the surrogate.

The first factor has the name of ``Settings.acquisition``:

    logeqi       expected quantile improvement (Picheny et al., 2013): of what will be known, not of what is. Without
                 noise it is logei. On a flat top the differences are a seed's luck. There expected improvement goes on
                 for ever, since luck is all that is left to learn about such a run. This one goes elsewhere.
    logei, ei    LogExpectedImprovement, with its gradient in closed form (``improvement.py``)
    logpi, pi    LogProbabilityOfImprovement
    ucb          UpperConfidenceBound, in units of the outcome; it takes the place of a logarithm
    qlogei       qLogExpectedImprovement: the q-batch sibling, by Monte Carlo with ``X_pending``
    qlognei      qLogNoisyExpectedImprovement: the same, and the true outcomes at observed points are sampled too

"ei" and "pi" are other names of "logei" and "logpi". The maximiser is the same, and in log space the gradient does not
vanish (Ament et al., 2023, arXiv:2310.20708).

While trials run, the analytic ones are averaged over fantasies of their outcomes. EI and EQI then improve on the best
outcome of each fantasy. PI counts the fantasies in which no running trial has passed the bar. UCB needs the mean
fantasy only: it keeps the mean and shrinks the standard deviation (Desautels et al., 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from botorch.acquisition import (
    AcquisitionFunction,
    UpperConfidenceBound,
    qLogExpectedImprovement,
    qLogNoisyExpectedImprovement,
)
from botorch.acquisition.analytic import LogProbabilityOfImprovement
from botorch.sampling import SobolQMCNormalSampler
from torch import Tensor

from llamatune_torch.engine.fantasies import Fantasies
from llamatune_torch.engine.improvement import LogEI
from llamatune_torch.engine.prediction import Prediction
from llamatune_torch.engine.qmc import normal_samples
from llamatune_torch.engine.surrogate import Surrogate
from llamatune_torch.settings import Settings

Model = Prediction | Fantasies

OUT_OF_REACH = 100.0  # standard deviations of the outcomes


class Factor(NamedTuple):
    """One reason to evaluate a point, or not to.

    name        as in :meth:`Acquisition.parts`
    log_value   ``b x 1 x d`` to ``b``, differentiable
    weight      the factor's power in the product
    """

    name: str
    log_value: Callable[[Tensor], Tensor]
    weight: float = 1.0

    def weighted(self, X: Tensor) -> Tensor:
        """The term that the factor adds to the sum; ``X`` has shape ``b x 1 x d``, the result ``b``."""
        value = self.log_value(X)
        return value if self.weight == 1 else self.weight * value


class Acquisition:
    """The weighted sum of the factors' logarithms; call it with ``X`` of shape ``b x 1 x d`` to get ``b`` values.

    Example:
        >>> acquisition = Acquisition([Factor("near one", lambda X: X.log().sum(dim=(-1, -2)), weight=2.0)])
        >>> acquisition(torch.tensor([[[1.0]], [[0.5]]]))
        tensor([ 0.0000, -1.3863])
    """

    def __init__(self, factors: Sequence[Factor]) -> None:
        self.factors = tuple(factors)

    def __call__(self, X: Tensor) -> Tensor:
        first, *others = (factor.weighted(X) for factor in self.factors)
        return sum(others, start=first)

    @torch.no_grad()
    def parts(self, X: Tensor) -> dict[str, Tensor]:
        """Each factor's logarithm by name, before its weight; ``b`` values each for ``b x 1 x d`` points."""
        return {factor.name: factor.log_value(X) for factor in self.factors}


def make_acquisition(
    settings: Settings,
    surrogate: Surrogate,
    X: Tensor,
    X_pending: Tensor,
    further: Sequence[Factor],
    seed: int,
) -> Acquisition:
    """The acquisition that ``settings`` name, times ``further`` factors.

    Args:
        settings: the name, ``xi``, ``kappa`` and ``mc_samples``.
        surrogate: fitted to robust outcomes, larger is better.
        X: observed points, ``n x d``.
        X_pending: points being evaluated, ``m x d``; ``m`` may be 0.
        further: what else counts, such as the probability that a point works.
        seed: seeds the fantasies and the base samples of the Monte Carlo acquisitions.
    """
    return Acquisition([Factor("improvement", _make_improvement(settings, surrogate, X, X_pending, seed)), *further])


def posterior_mean(surrogate: Surrogate, X: Tensor) -> Tensor:
    """The surrogate's mean at the rows of ``X`` (``n x d``); shape ``n``."""
    with torch.no_grad():
        mean: Tensor = surrogate.posterior(X).mean
    return mean.squeeze(-1)


# --- The first factor, by name -----------------------------------------------------------------------------------


def _make_improvement(
    settings: Settings, surrogate: Surrogate, X: Tensor, X_pending: Tensor, seed: int
) -> AcquisitionFunction:
    name, m = settings.acquisition, len(X_pending)
    # The bar is the largest posterior mean at an observed point, not the largest observation: of two noisy runs the
    # luckier one would set a bar that nothing can be expected to pass. A tensor, since BoTorch would make one of the
    # default dtype of a float.
    best_f = posterior_mean(surrogate, X).max() + settings.xi
    if name in MONTE_CARLO:
        sampler = SobolQMCNormalSampler(torch.Size([settings.mc_samples]), seed=seed)
        return MONTE_CARLO[name](surrogate.prediction(), X, best_f, sampler, X_pending if m else None)
    model: Model = surrogate.prediction()
    if m:
        mean_only = name == "ucb"
        base_samples = X.new_zeros(1, m) if mean_only else normal_samples(settings.mc_samples, m, seed).to(X)
        model = Fantasies(surrogate, X_pending, base_samples)
    return ANALYTIC[name](model, best_f, settings)


def _eqi(model: Model, best_f: Tensor, settings: Settings) -> AcquisitionFunction:
    return LogEI(model, model.best.clamp_min(best_f), model.noise)


def _ei(model: Model, best_f: Tensor, settings: Settings) -> AcquisitionFunction:
    return LogEI(model, model.best.clamp_min(best_f))


def _pi(model: Model, best_f: Tensor, settings: Settings) -> AcquisitionFunction:
    # Where a running trial passes the bar, nothing is left to be done.
    return LogProbabilityOfImprovement(model, best_f + OUT_OF_REACH * (model.best > best_f))


def _ucb(model: Model, best_f: Tensor, settings: Settings) -> AcquisitionFunction:
    # BoTorch's beta is the square of the factor on the standard deviation.
    return UpperConfidenceBound(model, beta=settings.kappa**2)


def _qei(
    model: Model, X: Tensor, best_f: Tensor, sampler: SobolQMCNormalSampler, X_pending: Tensor | None
) -> AcquisitionFunction:
    return qLogExpectedImprovement(model, best_f, sampler, X_pending=X_pending)


def _qnei(
    model: Model, X: Tensor, best_f: Tensor, sampler: SobolQMCNormalSampler, X_pending: Tensor | None
) -> AcquisitionFunction:
    # BoTorch's pruning of the baseline draws from the global random generator.
    return qLogNoisyExpectedImprovement(model, X, sampler, X_pending=X_pending, prune_baseline=False)


ANALYTIC: dict[str, Callable[[Model, Tensor, Settings], AcquisitionFunction]] = {
    "logeqi": _eqi,
    "logei": _ei,
    "ei": _ei,
    "logpi": _pi,
    "pi": _pi,
    "ucb": _ucb,
}
MONTE_CARLO: dict[str, Callable[[Model, Tensor, Tensor, SobolQMCNormalSampler, Tensor | None], AcquisitionFunction]] = {
    "qlogei": _qei,
    "qlognei": _qnei,
}
