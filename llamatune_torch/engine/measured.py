"""Measured outcomes as tensors, and the probability that an outcome keeps within bounds."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from llamatune_torch.constraints import Constraint
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.thinning import keep
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause, Trial, TrialState


class Measured(NamedTuple):
    """Measurements of one outcome.

    X          n x d   points of the unit cube
    values     n       the outcome
    at_least   n       True where the run did not come to its end, and the outcome may be larger
    """

    X: Tensor
    values: Tensor
    at_least: Tensor


def measurements(study: Study, like: Tensor, limit: Constraint) -> Measured:
    """Collects the measurements of a constraint's outcome, as tensors of the dtype and the device of ``like``.

    Above the number of trials that ``thinning.py`` keeps, those nearest to the bound count as the best.
    """
    trials = [t for t in study.trials if _says_something(t) and math.isfinite(limit.value_in(t.outcomes))]
    X = Cube(study.space).encode_all([trial.params for trial in trials]).to(like)
    values = torch.tensor([limit.value_in(trial.outcomes) for trial in trials]).to(like)
    # Of a rate, or of whatever else has to be large, a part of a run says as much as the whole.
    partly = [trial.state is not TrialState.COMPLETE and limit.lower is None for trial in trials]
    excess = torch.tensor([limit.excess(limit.value_in(trial.outcomes)) for trial in trials]).to(like)
    rows, _ = keep(X, -excess.abs(), X[:0])
    return Measured(X[rows], values[rows], torch.tensor(partly, dtype=torch.bool, device=like.device)[rows])


def _says_something(trial: Trial) -> bool:
    ended = (TrialState.COMPLETE, TrialState.FAILED, TrialState.PAUSED, TrialState.STOPPED)
    return trial.state in ended and trial.cause is not Cause.KILLED


def log_ndtr(z: Tensor) -> Tensor:
    """``log Phi(z)``, with its digits where ``Phi`` vanishes."""
    value: Tensor = torch.special.log_ndtr(z)
    return value


def log_probability_between(lower: Tensor | None, upper: Tensor | None) -> Tensor:
    """``log P(lower <= z <= upper)`` of a standard normal ``z``; at least one of the bounds is given."""
    if lower is None and upper is not None:
        return log_ndtr(upper)
    assert lower is not None
    if upper is None:
        return log_ndtr(-lower)
    # On the side of the interval where both are far out, by symmetry, so that their difference keeps its digits.
    flipped = lower > 0
    low, high = torch.where(flipped, -upper, lower), torch.where(flipped, -lower, upper)
    log_high, log_low = log_ndtr(high), log_ndtr(low)
    return log_high + torch.log1p(-(log_low - log_high).exp().clamp_max(1 - 1e-15))


def expect_at_least(Y: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """``E[y | y >= Y]`` of normal ``y`` with these means and standard deviations, no less than ``Y``."""
    z = (Y - mean) / spread
    # The inverse Mills ratio phi(z) / Phi(-z), by the scaled complementary error function.
    mills = math.sqrt(2 / math.pi) / torch.special.erfcx(z / math.sqrt(2))
    return torch.maximum(Y, mean + spread * mills)
