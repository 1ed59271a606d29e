"""The end of a search for decoding parameters: is the winner better than the default, on prompts that chose nothing?

A search finds a best setting in any case, also where all are alike. So some prompts are held out. Default and winner
answer them at the end, and the mean of the paired differences has an interval of 90 % (Student's t). Its lower bound is
above zero for one in twenty winners that are no better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.stats import t as student

COVERAGE = 0.9


class Verdict(NamedTuple):
    """The gain of the winner over the default on held-out prompts, larger is better, and its interval of 90 %.

    is_better   True if the whole interval is above zero
    """

    gain: float
    low: float
    high: float
    num_prompts: int

    @property
    def is_better(self) -> bool:
        return self.low > 0

    def __str__(self) -> str:
        interval = f"{self.gain:.4g} ({self.low:.4g} to {self.high:.4g}, {COVERAGE:.0%})"
        found = f"{interval} on {self.num_prompts} held-out prompts"
        if self.is_better:
            return f"better than the default by {found}"
        return f"no setting is distinguishable from the default: {found}"


def compare(winner: Sequence[float], default: Sequence[float]) -> Verdict:
    """Compares scores of the same prompts, larger is better; two at least.

    Example:
        >>> str(compare([1.0, 2.0, 3.0], [0.0, 1.1, 2.0]))
        'better than the default by 0.9667 (0.8693 to 1.064, 90%) on 3 held-out prompts'
    """
    differences = [a - b for a, b in zip(winner, default, strict=True)]
    n, mean = len(differences), fmean(differences)
    reach = float(student.ppf((1 + COVERAGE) / 2, n - 1)) * stdev(differences) / math.sqrt(n)
    return Verdict(mean, mean - reach, mean + reach, n)
