"""The confirmed winner: parameters that were trained again on fresh seeds, and what these runs gave.

Runs on fresh seeds had no part in choosing the candidates, so that their mean flatters nobody. The candidate with the
most of them has outlived the others (``engine/confirm.py``); the best mean decides among equals.

All candidates are taken to be equally noisy: ``s`` is the standard deviation of their values around their own means, on
``f`` degrees of freedom. Let a candidate have ``n`` values of mean ``m``. With a probability of 90 %, a run of it on
another seed lies within ``m +- t s sqrt(1 + 1 / n)``. ``t`` is the 95 % quantile of Student's distribution.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from llamatune_torch.trial import Direction, Origin, Trial, TrialState

# The 95 % quantiles of Student's distribution with 1, 2, ... degrees of freedom. SciPy has them too, but takes longer
# to load than a look at a study may take.
STUDENT = (6.3138, 2.9200, 2.3534, 2.1318, 2.0150, 1.9432, 1.8946, 1.8595, 1.8331, 1.8125)
NORMAL = 1.6449


class Confirmed(NamedTuple):
    """The winner on fresh seeds.

    trial       the trial of the search that found its parameters
    mean        of the values on fresh seeds
    std         their standard deviation, over all candidates; nan if nobody has two
    low, high   a run on another seed lies between them with a probability of 90 %; infinite without ``std``
    num_seeds   the number of fresh seeds
    """

    trial: Trial
    mean: float
    std: float
    low: float
    high: float
    num_seeds: int

    def __str__(self) -> str:
        spread = "" if math.isnan(self.std) else f" +- {self.std:.2g}"
        return f"{self.mean:.6g}{spread} over {self.num_seeds} fresh seeds"


def is_confirmation(trial: Trial, trials: Sequence[Trial]) -> bool:
    """True if a trial of a record trains a candidate again, also as a retry of one that does."""
    return origin_of(trial, trials) == "confirm"


def origin_of(trial: Trial, trials: Sequence[Trial]) -> Origin:
    """The origin of a trial of a record; of a retry, that of the trial that it repeats."""
    first = trial.first if 0 <= trial.first < len(trials) else trial.number  # a damaged record may name any
    return trials[first].origin


def searched_trials(trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    """The trials on record up to the last one that is no confirmation."""
    last = max((trial.number for trial in trials if not is_confirmation(trial, trials)), default=-1)
    return trials[: last + 1]


def runs_of(trials: Sequence[Trial]) -> dict[str, dict[int, Trial]]:
    """The confirmations on record by parameters and seed; lost ones count for nothing."""
    runs: dict[str, dict[int, Trial]] = {}
    for trial in trials:
        if is_confirmation(trial, trials) and trial.state is not TrialState.LOST:
            runs.setdefault(repr(trial.params), {})[trial.seed] = trial
    return runs


def find_winner(trials: Sequence[Trial], feasible: Sequence[Trial], direction: Direction) -> Confirmed | None:
    """The winner among the candidates that have worked, and kept all limits, on each fresh seed; ``None`` without one.

    Args:
        trials: the record.
        feasible: the completed trials in it that keep the limits.
        direction: of the study.
    """
    good, groups = {trial.number for trial in feasible}, dict[str, list[float]]()
    for params, runs in runs_of(trials).items():
        ended = [trial for trial in runs.values() if trial.state is not TrialState.RUNNING]
        if ended and all(trial.number in good for trial in ended):
            groups[params] = [trial.value or 0.0 for trial in ended]
    found = {repr(trial.params): trial for trial in reversed(feasible) if not is_confirmation(trial, trials)}
    groups = {params: values for params, values in groups.items() if params in found}
    if not groups:
        return None
    sign = 1.0 if direction == "maximize" else -1.0
    params = max(groups, key=lambda params: (len(groups[params]), sign * statistics.fmean(groups[params])))
    mean, n = statistics.fmean(groups[params]), len(groups[params])
    freedom = sum(len(values) - 1 for values in groups.values())
    if freedom == 0:
        return Confirmed(found[params], mean, math.nan, -math.inf, math.inf, n)
    squares = ((value - statistics.fmean(values)) ** 2 for values in groups.values() for value in values)
    std = math.sqrt(math.fsum(squares) / freedom)
    half = student(freedom) * std * math.sqrt(1 + 1 / n)
    return Confirmed(found[params], mean, std, mean - half, mean + half, n)


def student(freedom: int) -> float:
    """The 95 % quantile of Student's distribution; beyond the table to three digits (Fisher's expansion)."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
