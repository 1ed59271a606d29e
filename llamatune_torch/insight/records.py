"""Records of what a study tells about itself: plain numbers, no tensors, no drawing.

Whatever is estimated comes with an interval. It holds the truth with a probability of ``COVERAGE``, as far as the
surrogate can be trusted (:class:`Trust`). Values are in the metric's unit and direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llamatune_torch.study import Study

COVERAGE = 0.9


class Interval(NamedTuple):
    """An estimate, and the bounds of its interval; ``low <= value <= high``."""

    value: float
    low: float
    high: float


class Importance(NamedTuple):
    """The share of the metric's variance that a parameter explains: its Sobol indices (Saltelli et al., 2010).

    name    of the parameter
    first   what it explains alone
    total   what it explains alone and together with others
    given   the condition under which it is active, such as "method = lora"; "" if it always is
    """

    name: str
    first: Interval
    total: Interval
    given: str = ""


class Interaction(NamedTuple):
    """The share of the variance that two parameters explain together, beyond what each explains alone."""

    names: tuple[str, str]
    share: Interval
    given: str = ""


class Effect(NamedTuple):
    """The metric on average over the other parameters, along one: partial dependence (Friedman, 2001).

    name          of the parameter
    values        its values: ``num_special`` special ones, then a range or choices in order
    mean          at each of them
    low, high     the bounds of the interval of the mean
    is_number     True for a range, False for choices
    is_log        True if the range is searched in its logarithm
    given         as of :class:`Importance`
    num_special   the number of leading values that are special, and no part of the range
    failing       the probability that a run fails, at each value; empty if none has failed
    """

    name: str
    values: tuple[Any, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    is_number: bool
    is_log: bool = False
    given: str = ""
    num_special: int = 0
    failing: tuple[float, ...] = ()


class Surface(NamedTuple):
    """The metric on average over the other parameters, along two.

    names           of the parameters
    values          of the first, and of the second
    mean            a row for each value of the first, a number for each of the second
    half            half the width of the interval there
    is_log          for each parameter, whether its range is searched in its logarithm
    is_number       for each parameter, whether it is a range
    """

    names: tuple[str, str]
    values: tuple[tuple[Any, ...], tuple[Any, ...]]
    mean: tuple[tuple[float, ...], ...]
    half: tuple[tuple[float, ...], ...]
    is_log: tuple[bool, bool]
    is_number: tuple[bool, bool]
    given: str = ""


class Prediction(NamedTuple):
    """The surrogate's word on a trial that it was not shown, and what came out.

    trial           its number
    value           that came out
    mean            that was expected, the median
    low, high       bounds of the interval of the value
    """

    trial: int
    value: float
    mean: float
    low: float
    high: float


class Trust(NamedTuple):
    """The surrogate's skill with trials that it was not shown: leave-one-out (Rasmussen & Williams, 2006, 5.4.2).

    inside_50, inside_90   the share of values inside the intervals of 50 % and 90 %
    rank_correlation       Spearman's, of expected and actual values; 0 where one of them does not vary
    log_density_gain       nats a trial over a constant that knows the mean and the spread of the others
    noise                  the share of the outcomes' variance that is a seed's luck
    predictions            a trial each, in the order of their numbers
    verdict                the same in a sentence
    """

    inside_50: float
    inside_90: float
    rank_correlation: float
    log_density_gain: float
    noise: float
    predictions: tuple[Prediction, ...]
    verdict: str


class Step(NamedTuple):
    """The best value known after so many trials have completed, and what random search would have by then.

    trial     the number of the trial that completed
    value     its own
    best      the best feasible one until then; nan while there is none
    random    of the best of as many random runs: the median and the interval; ``None`` where too little is known
    """

    trial: int
    value: float
    best: float
    random: Interval | None


class Progress(NamedTuple):
    """The state of the search, and what going on may bring.

    steps             a completed trial each, in the order in which they finished
    winner            the number of the recommended trial; ``None`` if there is none
    is_best           the probability that it is, on average over seeds, the best of all that were tried
    value             its value on average over seeds
    gain              by how much ten more evaluations are expected to improve on it, at least
    gain_cost         the seconds that these would take
    seconds           spent, by the state of trials
    saved             full runs that were not trained, since runs were stopped or are paused
    failures          for each reason how many failed, and the seconds they took
    """

    steps: tuple[Step, ...]
    winner: int | None
    is_best: float | None
    value: Interval | None
    gain: Interval | None
    gain_cost: float | None
    seconds: Mapping[str, float]
    saved: float
    failures: Mapping[str, tuple[int, float]]


@dataclass(frozen=True)
class Insight:
    """The sum of what a study tells about itself. A part is empty where too little is known; ``missing`` says why.

    importance, near            of parameters, over the whole space and among the best third; the largest first
    interactions                of pairs of parameters over the whole space, the largest first
    effects, effects_near       along each parameter, in the order of ``importance`` and ``near``
    surfaces                    along the strongest pairs
    trust                       in the surrogate that all this comes from
    progress                    of the search
    used                        the number of completed trials that the surrogate was given
    missing                     what is left out, by the names of the fields above, with the reason
    """

    study: Study
    progress: Progress
    importance: tuple[Importance, ...] = ()
    near: tuple[Importance, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    effects: tuple[Effect, ...] = ()
    effects_near: tuple[Effect, ...] = ()
    surfaces: tuple[Surface, ...] = ()
    trust: Trust | None = None
    used: int = 0
    missing: Mapping[str, str] = field(default_factory=dict)
