"""Filling the space: the search while the outcomes say nothing about the parameters.

A fine-tune may score the same nearly everywhere: the accuracy of the majority class, but for a window of learning
rates. All outcomes are equal, or differ by the luck of a seed. The most probable length scales are then long ones,
under which nothing is left to learn but at the ends of the space. Expected improvement goes there again and again, and
finds the window less often than a random search.

So the surrogate has to show that it knows something. As long as it explains the outcomes no better than a constant
does, the study's Sobol sequence goes on. The constant is the model ``y = e`` with noise of the outcomes' own variance,
which is 1. The comparison is one of likelihoods, without priors, so it does not depend on a threshold of the outcomes.

Failures teach all the same: points that are likely to fail are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llamatune_torch.engine.acquisition import Factor
from llamatune_torch.engine.data import TrainingData
from llamatune_torch.engine.initial import next_sobol_points
from llamatune_torch.engine.surrogate import Surrogate
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import Suggestion

# The log likelihood ratio below which the surrogate knows nothing. On noise it is near -3 from the sixth trial on. On
# the problems of ``benchmarks/regret.py`` it is hardly ever negative, and few trials say little either way.
KNOWS_NOTHING = -1.0
PASSED_OVER = 0.5  # a point's chance to work, relative to the average of the tried ones


def knows_nothing(surrogate: Surrogate) -> bool:
    """Tells whether a constant explains the outcomes better than ``surrogate``, or all of them are equal.

    One outcome alone says nothing for or against.
    """
    Y = surrogate.train_targets
    if len(Y) < 2:
        return False
    return bool((Y == Y[0]).all()) or log_likelihood_ratio(surrogate) < KNOWS_NOTHING


@torch.no_grad()
def log_likelihood_ratio(surrogate: Surrogate) -> float:
    """The log likelihood of the outcomes under ``surrogate``, less that under a constant and noise of variance 1.

    With ``r = Y - c`` it is ``-1/2 r' K^-1 r - 1/2 log|K| + 1/2 Y' Y`` (Rasmussen & Williams, 2006, eq. 2.30); the
    outcomes have zero mean.
    """
    Y, given = surrogate.train_targets, surrogate.predictor()
    explained = (Y - surrogate.constant) @ given.weights[:, 0]
    return float((Y @ Y - explained) / 2 + given.inverse_root.diagonal().log().sum())


def fill_space(
    study: Study,
    settings: Settings,
    data: TrainingData,
    further: Sequence[Factor],
    n: int,
    notes: Mapping[str, str] | None = None,
) -> list[Suggestion]:
    """The next ``n`` points of the study's Sobol sequence; those that are likely to fail come last.

    Args:
        study: the record; tells how far the sequence is.
        settings: the seed of the sequence.
        data: ``study`` as tensors; points already chosen in this batch are in ``X_pending``.
        further: the factors of the acquisition that do not depend on outcomes.
        n: how many points.
        notes: those of the suggestions.

    Raises:
        SpaceExhaustedError: a finite space has fewer than ``n`` points left.
    """

    def log_chance(X: Tensor) -> Tensor:
        with torch.no_grad():
            return sum((factor.log_value(X.unsqueeze(-2)) for factor in further), start=X.new_zeros(len(X)))

    tried = torch.cat([data.X, data.X_failed])
    usual = log_chance(tried).logsumexp(dim=0) - math.log(len(tried))

    def may_work(X: Tensor) -> Tensor:
        likely = log_chance(X.to(tried)) >= usual + math.log(PASSED_OVER)
        return likely.cpu()

    points = next_sobol_points(study, settings, data.tried.cpu(), n, may_work)
    return [Suggestion(params, "sobol", notes or {}) for params in points]
