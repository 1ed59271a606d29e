"""The values beyond which a run has broken down: learnt from the study's own curves, never from a guess.

A loss that explodes stays exploded, and its GPU hours are wasted. But only the study can tell what a large loss is:
some metrics start a hundred times above where they end. So a value has to be far out among those of finished runs. It
also has to be worse than any of them, their first steps included.
"""

from __future__ import annotations

import math
from statistics import quantiles

from llamatune_torch.study import Study
from llamatune_torch.trial import Trial

MIN_RUNS = 5  # finished ones, before anything is said
MOST_POINTS = 100  # of a curve
FAR_OUT = 20.0  # interquartile ranges beyond the worse quartile


def find_bounds(study: Study) -> tuple[float, float] | None:
    """Finds the range of values that a run may report; outside of it, it has broken down.

    Only the bad side is bounded. ``None`` while fewer than ``MIN_RUNS`` runs are finished, or all values are alike.

    Example:
        A study that minimises a loss, whose runs have reported 0.4 to 2.5, has bounds such as ``(-inf, 14.2)``.
    """
    sign = -1.0 if study.direction == "maximize" else 1.0  # from here on, larger is worse
    if len(study.completed) < MIN_RUNS:
        return None
    reported = [sign * value for trial in study.completed for value in _values(trial)]
    if len(reported) < MIN_RUNS:
        return None
    low, _, high = quantiles(reported, n=4)
    if high <= low:
        return None
    bound = max(high + FAR_OUT * (high - low), *reported)
    return (-math.inf, bound) if sign > 0 else (-bound, math.inf)


def _values(trial: Trial) -> list[float]:
    """Lists what a trial has reported; of a long curve, its extremes and every so many points."""
    curve = [value for value in trial.curve.values if math.isfinite(value)]
    ends = [min(curve), max(curve)] if curve else []
    final = [] if trial.value is None or not math.isfinite(trial.value) else [trial.value]
    return curve[:: 1 + len(curve) // MOST_POINTS] + ends + final
