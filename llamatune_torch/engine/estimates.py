"""Limits on outcomes that are estimated beforehand, such as the memory of a fine-tune.

An estimate is off by a factor that is much the same everywhere. So the model is one of logarithms:

    log y(x) = m(x) + c + f(x) + e,        c ~ N(0, OFF^2).

``m`` is the mean of a GP through the estimates, and ``c`` a constant. ``f`` is a zero-mean GP of standard deviation
``LOCAL``, for what differs from place to place. Measurements teach ``c`` and ``f``; before the first one, a limit is
known to within ``OFF``. Of a run that was cut off, the outcome is at least what it has measured (``feasibility.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from llamatune_torch.constraints import Constraint
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.measured import Measured, expect_at_least, log_probability_between, measurements
from llamatune_torch.engine.outcome import standardize
from llamatune_torch.engine.qmc import allowed_sobol
from llamatune_torch.engine.surrogate import Surrogate, fit_gp
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.study import Study

NUM_ESTIMATES = 64  # points, through which a GP is drawn
OFF = 0.2  # of the logarithm of estimate over outcome: most estimates are within a fifth
FARTHEST = 3 * OFF  # what a measurement may say against its estimate; a process that reuses memory seems to need none
LOCAL = 0.08  # of what remains of it, once the factor is known
TINY = 1e-300
LIKELY = 0.8  # the probability from which a point of the initial design is tried before others
FEW = 4  # measurements, from which a GP says where the factor differs


class EstimatedLimit:
    """The probability that one constraint is kept, from estimates and measurements.

    Args:
        study: with estimates of the outcome.
        features: of the points.
        measured: any number of outcomes above zero.
        limit: the constraint.
    """

    def __init__(self, study: Study, features: Features, measured: Measured, limit: Constraint) -> None:
        self._limit = limit
        known = study.estimates_of(limit.name)
        X = Cube(study.space).encode_all([estimate.params for estimate in known]).to(measured.X)
        logs = torch.tensor([estimate.value for estimate in known]).to(X).log()
        self._center, spread = logs.mean(), logs.std(correction=0)
        self._spread = spread if bool(spread > 1e-9) else torch.ones_like(spread)
        self._estimated: Surrogate = fit_gp(ProductKernel(features), X, standardize(logs))
        self._offset, self._uncertain = torch.zeros_like(self._center), OFF**2
        self._local: Surrogate | None = None
        whole, seen = ~measured.at_least, measured.values.clamp_min(TINY).log()
        self._learn(features, measured.X[whole], seen[whole])
        if not bool(whole.all()):
            mean, spread = self.moments(measured.X.unsqueeze(-2))
            completed = expect_at_least(seen, mean.detach(), spread.detach())
            self._learn(features, measured.X, torch.where(whole, seen, completed))

    def _learn(self, features: Features, X: Tensor, logs: Tensor) -> None:
        if len(X) == 0:
            return
        with torch.no_grad():
            off = (logs - self._estimate(X.unsqueeze(-2))[0]).clamp(-FARTHEST, FARTHEST)
        ratio = LOCAL**2 / OFF**2
        self._offset = off.sum() / (len(off) + ratio)  # the posterior mean of c, and its variance
        self._uncertain = LOCAL**2 / (len(off) + ratio)
        if len(X) >= FEW:
            self._local = fit_gp(ProductKernel(features), X, (off - self._offset) / LOCAL, constant=0.0)

    def _estimate(self, X: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self._estimated.posterior(X)
        mean, variance = posterior.mean.reshape(-1), posterior.variance.reshape(-1)
        return self._center + self._spread * mean, self._spread**2 * variance

    def moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the outcome's logarithm at points ``b x 1 x d``; shape ``b`` each."""
        mean, variance = self._estimate(X)
        mean, variance = mean + self._offset, variance + self._uncertain
        if self._local is None:
            return mean, (variance + LOCAL**2).sqrt()
        posterior = self._local.posterior(X)
        mean = mean + LOCAL * posterior.mean.reshape(-1)
        return mean, (variance + LOCAL**2 * posterior.variance.reshape(-1)).sqrt()

    def under(self, limit: Constraint) -> EstimatedLimit:
        """The same model of the outcome under other bounds."""
        model = copy(self)
        model._limit = limit
        return model

    def log_probability(self, X: Tensor) -> Tensor:
        """``log P(the constraint is kept | x)`` of each point; ``X`` has shape ``b x 1 x d``, the result ``b``."""
        mean, spread = self.moments(X)
        # Above zero, as the outcome is; a bound that is not says nothing, or all.
        bounds = (None if b is None else math.log(max(b, TINY)) for b in (self._limit.lower, self._limit.upper))
        lower, upper = ((None if b is None else (b - mean) / spread) for b in bounds)
        return log_probability_between(lower, upper)


def points_to_estimate(space: SearchSpace, seed: int) -> list[Params]:
    """Parameters all over a space, for which outcomes are to be estimated."""
    cube = Cube(space)
    return [cube.decode(x) for x in allowed_sobol(cube, NUM_ESTIMATES, seed)]


def likely_kept(study: Study) -> Callable[[Tensor], Tensor] | None:
    """Returns a function that marks the points (``n x d``) that are ``LIKELY`` to keep the limits with estimates.

    ``None`` where nothing that is limited is estimated.
    """
    like = torch.zeros(0, study.space.dim, dtype=torch.float64)
    limits = [
        EstimatedLimit(study, Features(study.space), measurements(study, like, limit), limit)
        for limit in study.constraints
        if study.estimates_of(limit.name)
    ]

    def mark(X: Tensor) -> Tensor:
        with torch.no_grad():
            logs = [limit.log_probability(X.unsqueeze(-2)) for limit in limits]
        return torch.stack(logs).sum(dim=0) > math.log(LIKELY)

    return mark if limits else None
