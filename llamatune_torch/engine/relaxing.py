"""The price of a limit: what the best parameters would gain if its bound were looser.

The best point under the models maximises the surrogate's mean plus the log probability that the point works and keeps
all limits. It is sought twice: with the limits as they are, and with one of them a tenth looser. The gain is the
difference of the outcomes at the two points, of which the surrogate has a joint posterior. Its samples are mapped back
to the metric's own unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llamatune_torch.constraints import Constraint
from llamatune_torch.engine.acquisition import Acquisition, Factor
from llamatune_torch.engine.candidates import maximize
from llamatune_torch.engine.crash import crash_factors
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.data import choose_device, signed_values, training_data, with_own_modes
from llamatune_torch.engine.estimates import EstimatedLimit
from llamatune_torch.engine.feasibility import LimitModel, limit_models
from llamatune_torch.engine.outcome import restore
from llamatune_torch.engine.qmc import normal_samples
from llamatune_torch.engine.suggest import find_incumbents, fit_surrogate
from llamatune_torch.seeds import derived_seed
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study

SHARE = 0.1  # of a bound, by which it is relaxed
NUM_SAMPLES = 512
INTERVAL = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Relaxation:
    """The gain of the best parameters if one limit were looser and all others as they are.

    Args:
        limit: the limit.
        relaxed: the same, with its bound a tenth looser.
        gain: the median of the gain in the metric's own unit; positive is better, whatever the direction.
        low, high: the interval that holds the gain with a probability of 90 %.
    """

    limit: Constraint
    relaxed: Constraint
    gain: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.relaxed} instead of {self.limit}: better by {self.gain:.3g} ({self.low:.3g} to {self.high:.3g})"


@with_own_modes
def relaxations(study: Study, settings: Settings | None = None) -> list[Relaxation]:
    """Says what relaxing each binding limit by a tenth would gain, a pure function of the record.

    Nothing is found while outcomes are all equal. A bound of 0 is relaxed by a tenth of the range of what is measured.
    Limits that do not bind are left out, and so are those that too few trials have measured.

    Raises:
        NoCompletedTrialError: nothing has completed yet; as NoFeasibleTrialError: nothing keeps the limits.

    Example:
        >>> tuner = LlamaTune(space, train, constraints={"memory_gb": "<= 8"})
        >>> best = tuner.optimize()
        >>> print(*relaxations(tuner.study))
        memory_gb <= 8.8 instead of memory_gb <= 8: better by 0.012 (0.004 to 0.021)
    """
    settings, binding = settings or Settings(), study.binding()
    data = training_data(study, choose_device(settings.device, len(study.completed)), [])
    if bool((data.Y == data.Y[0]).all()):  # nothing is known to be better than anything else
        return []
    values = signed_values(study).to(data.Y)
    surrogate, models = fit_surrogate(data), limit_models(study, data)
    incumbents = find_incumbents(data, surrogate, [])
    crashes = crash_factors(data)
    seed = derived_seed(settings.seed, len(study.trials), 0)
    nowhere = data.X[:0]

    def best_under(models: Sequence[LimitModel | EstimatedLimit]) -> Tensor:
        factors = [Factor("mean", lambda X: surrogate.posterior(X).mean.reshape(-1))]
        factors += [Factor("works", crash.log_value) for crash in crashes]
        factors += [Factor("limit", model.log_probability) for model in models]
        score, restarts = Acquisition(factors), settings.num_restarts
        return maximize(score, Cube(study.space), incumbents, nowhere, restarts, settings.num_screened, seed)

    now = best_under(list(models.values()))
    found = []
    for limit in (limit for limit in binding if limit in models):
        measured = [limit.value_in(trial.outcomes) for trial in study.completed]
        relaxed = relax(limit, measured)
        then = best_under([model.under(relaxed) if other == limit else model for other, model in models.items()])
        posterior = surrogate.posterior(torch.stack([now, then]))
        root = torch.linalg.cholesky(posterior.distribution.covariance_matrix)
        base = normal_samples(NUM_SAMPLES, 2, seed).to(root)
        samples = posterior.mean.reshape(-1) + base @ root.mT
        before, after = (restore(samples[:, i], values, data.Y, data.rows) for i in range(2))
        gains = after - before
        low, gain, high = gains.quantile(gains.new_tensor(INTERVAL)).tolist()
        found.append(Relaxation(limit, relaxed, gain, low, high))
    return found


def relax(limit: Constraint, measured: Sequence[float]) -> Constraint:
    """A limit with bounds looser by a tenth; those at 0, by a tenth of the range of what was ``measured``."""
    known = [value for value in measured if not math.isnan(value)]
    spread = max(known) - min(known)

    def by(bound: float) -> float:
        return SHARE * (abs(bound) or spread)

    return replace(
        limit,
        lower=None if limit.lower is None else limit.lower - by(limit.lower),
        upper=None if limit.upper is None else limit.upper + by(limit.upper),
    )
