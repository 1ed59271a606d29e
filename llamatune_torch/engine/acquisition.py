"""The acquisition: what evaluating a point is worth, given the surrogate.

One sum of logs, composed of factors instead of a class for each combination:

    log a(x) = log improvement(x) + RISK_AVERSION * log P(works | x)

Expected improvement alone would weigh P once. But improvement runs out as the search converges, while a wall of
failures keeps its one chance in twenty: with a weight of one, many runs next to a memory limit failed (a few
seeds: benchmarks/README.md), and a failed run costs time and teaches little.

``improvement`` is BoTorch's. With one point to choose and nothing running it is analytic; with points pending
it is the q-batch sibling of the same name, which knows where those points are (``X_pending``):

    name        one point                        with points pending
    logei, ei   LogExpectedImprovement           qLogExpectedImprovement
    logpi, pi   LogProbabilityOfImprovement      qLogProbabilityOfImprovement (below)
    ucb         UpperConfidenceBound             qUpperConfidenceBound
    qlogei      qLogExpectedImprovement          the same
    qlognei     qLogNoisyExpectedImprovement     the same

The improved EI (Ament et al., 2023, arXiv:2310.20708) is computed in log space, where its gradient does not
vanish. "ei" and "pi" are the exponentials of "logei" and "logpi": the same maximiser, the classic landscape.
"""

from __future__ import annotations

import torch
from botorch.acquisition import (
    AcquisitionFunction,
    LogExpectedImprovement,
    UpperConfidenceBound,
    qLogExpectedImprovement,
    qLogNoisyExpectedImprovement,
    qUpperConfidenceBound,
)
from botorch.acquisition.analytic import LogProbabilityOfImprovement
from botorch.acquisition.monte_carlo import SampleReducingMCAcquisitionFunction
from botorch.sampling import SobolQMCNormalSampler
from botorch.utils.safe_math import logmeanexp
from torch import Tensor

from llamatune_torch.engine.feasibility import Feasibility
from llamatune_torch.engine.surrogate import Surrogate
from llamatune_torch.settings import Settings

# The power of P(works | x).
RISK_AVERSION = 4.0


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
        feasibility: Feasibility | None = None,
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
    feasibility: Feasibility | None,
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
        seed: of the Monte Carlo acquisitions' base samples.
    """
    name = settings.acquisition
    pending = X_pending if len(X_pending) else None
    # A tensor: of a float BoTorch would make one of the default dtype.
    best_f = posterior_mean(surrogate, X).max() + settings.xi
    sampler = SobolQMCNormalSampler(torch.Size([settings.mc_samples]), seed=seed)
    improvement: AcquisitionFunction
    if name == "qlognei":
        # BoTorch's pruning of the baseline draws from the global random generator.
        improvement = qLogNoisyExpectedImprovement(surrogate, X, sampler, X_pending=pending, prune_baseline=False)
    elif name == "qlogei" or (name in ("logei", "ei") and pending is not None):
        improvement = qLogExpectedImprovement(surrogate, best_f, sampler, X_pending=pending)
    elif name in ("logei", "ei"):
        improvement = LogExpectedImprovement(surrogate, best_f)
    elif name in ("logpi", "pi") and pending is not None:
        improvement = qLogProbabilityOfImprovement(surrogate, best_f, sampler, pending)
    elif name in ("logpi", "pi"):
        improvement = LogProbabilityOfImprovement(surrogate, best_f)
    elif pending is not None:
        improvement = qUpperConfidenceBound(surrogate, settings.kappa**2, sampler, X_pending=pending)
    else:
        # BoTorch's beta is the square of the factor on the standard deviation.
        improvement = UpperConfidenceBound(surrogate, beta=settings.kappa**2)
    return Acquisition(improvement, feasibility, exponentiate=name in ("ei", "pi"))


class qLogProbabilityOfImprovement(SampleReducingMCAcquisitionFunction):  # noqa: N801  (the field's name)
    """``log P(max of the q points > best_f)``, smoothed: ``log E[sigmoid((max_q y_q - best_f) / tau)]``.

    The sigmoid stays in log space until the mean over the samples has been taken, so that the gradient
    survives far below ``best_f``.
    """

    def __init__(
        self,
        model: Surrogate,
        best_f: Tensor,
        sampler: SobolQMCNormalSampler,
        X_pending: Tensor | None = None,
        tau: float = 1e-2,
    ) -> None:
        super().__init__(
            model,
            sampler=sampler,
            X_pending=X_pending,
            sample_reduction=logmeanexp,
        )
        self.best_f = best_f
        self.tau = tau

    def _sample_forward(self, obj: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid((obj - self.best_f) / self.tau)


def posterior_mean(surrogate: Surrogate, X: Tensor) -> Tensor:
    """The surrogate's mean at the rows of ``X`` (``n x d``); shape ``n``."""
    with torch.no_grad():
        mean: Tensor = surrogate.posterior(X).mean
    return mean.squeeze(-1)
