"""The acquisition: what evaluating a point is worth, given the surrogate.

One sum of logs, composed of factors instead of a class for each combination:

    log a(x) = log improvement(x) + RISK_AVERSION * log P(works | x)

Expected improvement alone would weigh P once. But improvement runs out as the search converges, while a wall of
failures keeps its one chance in twenty: with a weight of one, many runs next to a memory limit failed (a few
seeds: benchmarks/README.md), and a failed run costs time and teaches little.

``improvement`` is BoTorch's, or close to it:

    logeqi      the expected quantile improvement (Picheny et al., 2013): of what will be known, not of what is. Where
                there is no noise it is logei. On a flat top whose differences are a seed's luck, expected improvement
                goes on for ever, since the one thing left to be learnt about such a run is its luck; this one goes
                elsewhere
    logei, ei   LogExpectedImprovement, with its gradient in closed form (``improvement.py``)
    logpi, pi   LogProbabilityOfImprovement
    ucb         UpperConfidenceBound
    qlogei      qLogExpectedImprovement: the q-batch sibling, by Monte Carlo with ``X_pending``
    qlognei     qLogNoisyExpectedImprovement: the same, and what the observed points are truly worth is sampled, too

With points pending, the analytic ones are averaged over fantasies of what may come out of those (``fantasies.py``).
The bar of EI and EQI is then what the best of them reaches; PI counts the fantasies in which none of them has passed
it. UCB needs the mean fantasy only, which leaves the mean as it is and shrinks the standard deviation (Desautels et
al., 2014).

The improved EI (Ament et al., 2023, arXiv:2310.20708) is computed in log space, where its gradient does not
vanish. "ei" and "pi" are the exponentials of "logei" and "logpi": the same maximiser, the classic landscape.
"""

from __future__ import annotations

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

from llamatune_torch.engine.crash import CrashModel
from llamatune_torch.engine.fantasies import Fantasies
from llamatune_torch.engine.improvement import LogEI
from llamatune_torch.engine.prediction import Prediction
from llamatune_torch.engine.qmc import normal_samples
from llamatune_torch.engine.surrogate import Surrogate
from llamatune_torch.settings import Settings

# The power of P(works | x).
RISK_AVERSION = 10.0
OUT_OF_REACH = 100.0  # standard deviations of the outcomes


class Acquisition:
    """What a point is worth; call it with ``X`` of shape ``b x 1 x d`` to get ``b`` values.

    Args:
        improvement: the first factor, in log space (UCB: as it is, a probability of failure lowers it).
        feasibility: the second factor, if any trial has failed.
        exponentiate: whether the values are returned on their natural scale.
    """

    def __init__(
        self,
        improvement: AcquisitionFunction,
        feasibility: CrashModel | None = None,
        exponentiate: bool = False,
    ) -> None:
        self.improvement = improvement
        self.feasibility = feasibility
        self.exponentiate = exponentiate

    def __call__(self, X: Tensor) -> Tensor:
        value: Tensor = self.improvement(X)
        if self.feasibility is not None:
            value = value + RISK_AVERSION * self.feasibility.log_probability(X.squeeze(-2))
        return value.exp() if self.exponentiate else value


def make_acquisition(
    settings: Settings,
    surrogate: Surrogate,
    X: Tensor,
    X_pending: Tensor,
    feasibility: CrashModel | None,
    seed: int,
) -> Acquisition:
    """The acquisition that ``settings`` name.

    ``best_f`` is the largest posterior mean at an observed point rather than the largest observation: of two
    noisy runs the luckier one would otherwise set a bar that nothing can be expected to pass.

    Args:
        settings: the name, ``xi``, ``kappa`` and ``mc_samples``.
        surrogate: fitted to robust outcomes, larger is better.
        X: observed points, ``n x d``.
        X_pending: points being evaluated, ``m x d``; ``m`` may be 0.
        feasibility: the probability that a point works; ``None`` if nothing has failed.
        seed: of the fantasies, and of the Monte Carlo acquisitions' base samples.
    """
    name, pending = settings.acquisition, X_pending if len(X_pending) else None
    model: Prediction | Fantasies = surrogate.prediction()
    # A tensor: of a float BoTorch would make one of the default dtype.
    best_f = posterior_mean(surrogate, X).max() + settings.xi
    if pending is not None and name in ("logeqi", "logei", "ei", "logpi", "pi"):
        fantasies = Fantasies(surrogate, pending, normal_samples(settings.mc_samples, len(pending), seed).to(X))
        if name in ("logeqi", "logei", "ei"):
            best_f = fantasies.best.clamp_min(best_f)
        else:  # where a running trial passes the bar, nothing is left to be done: out of reach
            best_f = best_f + OUT_OF_REACH * (fantasies.best > best_f)
        model = fantasies
    elif pending is not None and name == "ucb":
        model = Fantasies(surrogate, pending, X.new_zeros(1, len(pending)))

    improvement: AcquisitionFunction
    if name in ("logeqi", "logei", "ei"):
        improvement = LogEI(model, best_f, surrogate.noise if name == "logeqi" else None)
    elif name in ("logpi", "pi"):
        improvement = LogProbabilityOfImprovement(model, best_f)
    elif name == "ucb":
        # BoTorch's beta is the square of the factor on the standard deviation.
        improvement = UpperConfidenceBound(model, beta=settings.kappa**2)
    else:
        sampler = SobolQMCNormalSampler(torch.Size([settings.mc_samples]), seed=seed)
        if name == "qlogei":
            improvement = qLogExpectedImprovement(model, best_f, sampler, X_pending=pending)
        else:
            # BoTorch's pruning of the baseline draws from the global random generator.
            improvement = qLogNoisyExpectedImprovement(model, X, sampler, X_pending=pending, prune_baseline=False)
    return Acquisition(improvement, feasibility, exponentiate=name in ("ei", "pi"))


def posterior_mean(surrogate: Surrogate, X: Tensor) -> Tensor:
    """The surrogate's mean at the rows of ``X`` (``n x d``); shape ``n``."""
    with torch.no_grad():
        mean: Tensor = surrogate.posterior(X).mean
    return mean.squeeze(-1)
