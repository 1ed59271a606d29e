"""Feasibility: the probability that parameters keep the limits on what they lead to, such as memory or latency.

Each constraint has a GP of its own on the same features, fitted to what trials have measured. With mean ``mu`` and
variance ``var`` of the outcome,

    P(lower <= y(x) <= upper) = Phi((upper - mu) / sqrt(var)) - Phi((lower - mu) / sqrt(var)),

and the acquisition is multiplied by it (Gardner et al., 2014), to the power of ``CAUTION``. While no trial keeps all
limits, there is nothing to improve on, and the acquisition is that product alone.

An outcome is seen by its distance ``v`` from the bound, on a scale that is fine there and coarse far away. With the
distances' median ``s`` it is ``sign(v) log(1 + |v| / s)``, and no farther than ``FAR`` (the bilog of Eriksson &
Poloczek, 2021, section 3). So one trial that took a hundred times too long does not hide where the limit lies.

A run that did not come to its end, because it ran out of memory or of time, or is paused, has measured a part: its
outcome is *at least* that much. The model takes it for its expectation, given that, under a GP of the others (Schmee &
Hahn, 1979; Hutter et al., 2011, for algorithms that were cut off).
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from llamatune_torch.constraints import Constraint
from llamatune_torch.engine.acquisition import Factor
from llamatune_torch.engine.data import TrainingData
from llamatune_torch.engine.estimates import EstimatedLimit
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.measured import Measured, expect_at_least, log_probability_between, measurements
from llamatune_torch.engine.outcome import standardize
from llamatune_torch.engine.surrogate import Surrogate, fit_gp
from llamatune_torch.study import Study

LEAST = 2  # measured trials; from fewer nothing can be learnt

FAR = 5.0  # times the median distance from the bound

# The same with several objectives, where the limit matters all along the front: what is far from it counts for less.
# With 5 two of five searches of C2-DTLZ2 missed a part of the front, with 2 none; with a single objective 2 is worse
# (benchmarks/README.md).
FAR_ON_FRONT = 2.0

# The power of the probability in the acquisition. With 1, half of all runs next to a limit break it, and with 10 the
# search comes near it late (benchmarks/README.md); each run that breaks one is a fine-tune that nobody can use.
CAUTION = 3.0

# The same with several objectives. Where a front runs along a limit, caution keeps the search away from all of that
# part: of C2-DTLZ2 the search found half with a power of 3, and more with 1 (benchmarks/objectives.py).
CAUTION_ON_FRONT = 1.0

# The same for an outcome that is estimated beforehand. Where it lies is known so well that caution costs nothing: next
# to the walls of benchmarks/failures.py fewer runs fail than with 3, and the best ones are as good.
WALL = 10.0


class LimitModel:
    """The probability that one constraint is kept.

    Args:
        kernel: the covariance of the outcome.
        measured: at least ``LEAST`` outcomes, at least one of them of a whole run.
        limit: the constraint.
        far: times the median distance from the bound, as which farther outcomes count.
    """

    def __init__(self, kernel: ProductKernel, measured: Measured, limit: Constraint, far: float = FAR) -> None:
        self._far = far
        values = measured.values
        self._bound = limit.lower if limit.upper is None else limit.upper
        assert self._bound is not None
        distance = (values - self._bound).abs().median()
        self._scale = distance.clamp_min(1e-9 * max(1.0, abs(self._bound)))
        seen = _bilog((values - self._bound) / self._scale, far)
        whole = ~measured.at_least
        self._mean, self._spread = seen[whole].mean(), seen[whole].std(correction=0)
        self._spread = torch.where(self._spread > 1e-12, self._spread, torch.ones_like(self._spread))
        Y = (seen - self._mean) / self._spread
        self._lower, self._upper = self._as_seen(limit.lower), self._as_seen(limit.upper)
        if not bool(whole.all()):
            gp = fit_gp(kernel, measured.X[whole], standardize(Y[whole]))
            with torch.no_grad():
                posterior = gp.posterior(measured.X.unsqueeze(-2), observation_noise=True)
            completed = expect_at_least(Y, posterior.mean.reshape(-1), posterior.variance.reshape(-1).sqrt())
            Y = torch.where(whole, Y, completed)
        self.gp: Surrogate = fit_gp(kernel, measured.X, Y)

    def under(self, limit: Constraint) -> LimitModel:
        """The same model of the outcome under other bounds."""
        model = copy(self)
        model._lower, model._upper = self._as_seen(limit.lower), self._as_seen(limit.upper)
        return model

    def _as_seen(self, bound: float | None) -> Tensor | None:
        """A bound on the scale of the GP."""
        if bound is None:
            return None
        assert self._bound is not None
        seen = _bilog((torch.full_like(self._scale, bound) - self._bound) / self._scale, self._far)
        return (seen - self._mean) / self._spread

    def log_probability(self, X: Tensor) -> Tensor:
        """``log P(the constraint is kept | x)`` of each point; ``X`` has shape ``b x 1 x d``, the result ``b``."""
        posterior = self.gp.posterior(X)
        mean, spread = posterior.mean.reshape(-1), posterior.variance.reshape(-1).sqrt()
        lower, upper = ((None if b is None else (b - mean) / spread) for b in (self._lower, self._upper))
        return log_probability_between(lower, upper)


def limit_factors(study: Study, data: TrainingData) -> list[Factor]:
    """A factor for each constraint that trials have measured, or that is estimated."""
    models = limit_models(study, data)
    caution = CAUTION_ON_FRONT if study.goal.others else CAUTION
    return [
        Factor(str(limit), model.log_probability, WALL if isinstance(model, EstimatedLimit) else caution)
        for limit, model in models.items()
    ]


def limit_models(study: Study, data: TrainingData) -> dict[Constraint, LimitModel | EstimatedLimit]:
    """A model for each constraint that trials have measured, or that is estimated."""
    models: dict[Constraint, LimitModel | EstimatedLimit] = {}
    for limit in study.constraints:
        measured = measurements(study, data.X, limit)
        if study.estimates_of(limit.name):
            models[limit] = EstimatedLimit(study, data.features, measured, limit)
        elif len(measured.X) >= LEAST and not bool(measured.at_least.all()):
            far = FAR_ON_FRONT if study.goal.others else FAR
            models[limit] = LimitModel(ProductKernel(data.features), measured, limit, far)
    return models


def _bilog(distance: Tensor, far: float) -> Tensor:
    return distance.sign() * distance.abs().clamp_max(far).log1p()
