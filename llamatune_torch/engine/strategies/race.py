"""The race: a run is a mean over many cases, the same ones in the same order for all, and stops once it will not win.

The learning curve has a score for each case, one a step. Two runs that have seen the same cases compare case by case:
easy and hard ones cancel, and what is left is a difference of settings and a sampler's luck. After each share a run
goes on while it may still be better than the best that has seen all cases,

    P(mean difference > 0) = Phi(m / se) >= LEAST,      se^2 = s^2 / k (1 - k / n),

with ``m`` and ``s`` the mean and the standard deviation of the differences in ``k`` of ``n`` cases. Of few cases, ``s``
is drawn to what differences are elsewhere. A run that stops has taught something all the same: the surrogate sees its
mean over all cases, as far as it can be told, with that standard error (:func:`with_partial_runs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean

from llamatune_torch.decisions import ROUNDING, Decision, Discard, Finish, Start
from llamatune_torch.engine.strategies.strategy import resume
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.errors import SettingsError
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import Trial, TrialState

LEAST = 0.1  # the probability to be better than the best, below which a run stops
WEIGHT = 4.0  # cases that the usual spread of differences counts for
GROWTH = 2.0  # times as many cases at each share as before
TINY = 1e-9


@dataclass(frozen=True)
class Race:
    """A strategy for runs that are means over ``num_cases`` cases.

    Args:
        num_cases: that a full run sees.
        first: cases that a run sees before it is compared for the first time.

    Raises:
        SettingsError: they are no positive integers.
    """

    num_cases: int
    first: int = 8

    def __post_init__(self) -> None:
        for name in ("num_cases", "first"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingsError(f"{name} of a race must be a positive integer, but got {value!r}")

    @property
    def least(self) -> float:
        return min(1.0, self.first / self.num_cases)

    def decide(self, study: Study, settings: Settings, left: float) -> Decision:
        """See ``Strategy``."""
        for trial in study.paused:
            chance = chance_to_win(study, trial, self.num_cases)
            if chance < LEAST:
                return Discard(trial.number, f"better than the best with {chance:.0%} after {len(trial.curve)} cases")
            reason = f"better than the best with {chance:.0%}"
            return resume(trial, min(1.0, GROWTH * trial.reached), left, reason)
        if left < self.least - ROUNDING:
            return Finish("the budget is used up")
        return Start.of(suggest(with_partial_runs(study, self.num_cases), settings)[0], self.least)


def chance_to_win(study: Study, trial: Trial, num_cases: int) -> float:
    """The probability that a paused run is better than the best completed one, over all cases; 1 without one."""
    if not study.feasible:
        return 1.0
    sign = study.objectives[0].signed(1.0)
    differences = [sign * d for d in differences_of(trial.curve.values, study.best_trial.curve.values)]
    mean, error = mean_and_error(differences, num_cases, usual_variance(study))
    return NormalDist().cdf(mean / max(error, TINY))


def with_partial_runs(study: Study, num_cases: int) -> Study:
    """The study as the surrogate sees it: partial runs have completed, with an estimated value and its standard error.

    Each case counts as hard as it was for the runs that have seen all cases.
    """
    full = [trial.curve.values for trial in study.completed if len(trial.curve) >= num_cases]
    if not full:
        return study
    hardness = [fmean(scores) for scores in zip(*full, strict=True)]
    level, usual = fmean(hardness), usual_variance(study)

    def seen(trial: Trial) -> Trial:
        if trial.state not in (TrialState.STOPPED, TrialState.PAUSED) or not len(trial.curve):
            return trial
        mean, error = mean_and_error(differences_of(trial.curve.values, hardness), num_cases, usual)
        return replace(trial, state=TrialState.COMPLETE, value=level + mean, std=error)

    return replace(study, trials=tuple(map(seen, study.trials)))


def differences_of(scores: Sequence[float], others: Sequence[float]) -> list[float]:
    """The differences in the cases that both have seen."""
    return [a - b for a, b in zip(scores, others, strict=False)]


def mean_and_error(differences: Sequence[float], num_cases: int, usual: float) -> tuple[float, float]:
    """The mean of differences in some cases, and the standard error of the mean over all of them.

    Args:
        differences: in ``k`` cases of ``num_cases``.
        num_cases: all of them.
        usual: the variance that differences usually have, which counts for ``WEIGHT`` cases.
    """
    k = len(differences)
    if k == 0:
        return 0.0, math.inf
    mean = fmean(differences)
    variance = (math.fsum((d - mean) ** 2 for d in differences) + WEIGHT * usual) / (k - 1 + WEIGHT)
    return mean, math.sqrt(variance / k * max(0.0, 1 - k / num_cases))


def usual_variance(study: Study) -> float:
    """The mean variance of the differences between each run and the first that has completed; 1 without any."""
    completed = [trial for trial in study.completed if len(trial.curve)]
    if not completed:
        return 1.0
    first, found = completed[0], []
    for trial in study.trials:
        differences = differences_of(trial.curve.values, first.curve.values)
        if trial is not first and len(differences) >= 2:
            mean = fmean(differences)
            found.append(math.fsum((d - mean) ** 2 for d in differences) / (len(differences) - 1))
    scores = first.curve.values
    own = fmean([(score - fmean(scores)) ** 2 for score in scores])
    return max(fmean(found), TINY) if found else max(own, TINY)
