"""The protocol of a strategy, and what several of them need: runs that repeat each other as one, and their order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from llamatune_torch.confirmed import origin_of
from llamatune_torch.decisions import ROUNDING, Decision, Finish, Resume, Start
from llamatune_torch.engine.initial import initial_suggestions, untried_default
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import Trial, TrialState


class Strategy(Protocol):
    """Decides what happens next in a search.

    A strategy is a pure function of the record: the same study gives the same decision, in every process and after
    every restart. It is asked again after each of its decisions has been carried out, until one trial runs.

    ``least`` is the smallest share of a full run that it starts or adds.

    Example:
        >>> @dataclass(frozen=True)
        ... class OneMoreLook:
        ...     least: float = 0.5
        ...     def decide(self, study, settings, left):
        ...         for trial in study.paused:
        ...             return Resume(trial.number, 1.0, "all go on")
        ...         return start(study, settings, 0.5, left)
    """

    @property
    def least(self) -> float: ...

    def decide(self, study: Study, settings: Settings, left: float) -> Decision:
        """Decides for a study.

        Args:
            study: the record, with what runs and what is paused in it.
            settings: the knobs of the engine.
            left: the number of full runs that may still start or go on; what runs has its share already.
        """


def start(study: Study, settings: Settings, until: float, left: float) -> Decision:
    """Starts the next point of the initial design, if there is budget for its first share.

    Raises:
        SpaceExhaustedError: a finite space has no point left.
    """
    if left < until - ROUNDING:
        return Finish(f"of the budget, {left:.2g} full runs are left, but the next run takes {until:.2g}")
    n = 1 if untried_default(study) is None else 2  # the default is no strategy's to start
    suggestions = initial_suggestions(study, replace(settings, n_initial=2**31), n)
    return Start.of(suggestions[-1], until)


def resume(trial: Trial, until: float, left: float, reason: str) -> Decision:
    """Lets a paused trial go on, if there is budget for its next share."""
    needed = until - trial.reached
    if left < needed - ROUNDING:
        return Finish(f"of the budget, {left:.2g} full runs are left, but trial {trial.number} takes {needed:.2g} more")
    return Resume(trial.number, until, reason)


def own_runs(study: Study) -> list[Trial]:
    """The runs that a strategy has started, in the order in which they began; a retry stands for what it repeats.

    Lost ones count for nothing, nor do trials that were evaluated elsewhere, the default's, nor confirmations.
    """
    runs: dict[int, Trial] = {}
    for trial in study.trials:
        own = origin_of(trial, study.trials) not in ("added", "confirm", "default")
        if own and trial.state is not TrialState.LOST:
            runs[trial.first] = trial
    return [runs[first] for first in sorted(runs)]


def spent_on_default(study: Study) -> float:
    """The number of full runs that were the default's, and no strategy's."""
    own = [trial for trial in study.trials if origin_of(trial, study.trials) == "default"]
    return float(len({trial.first for trial in own if trial.state is not TrialState.LOST}))


def best_first(study: Study, trials: Iterable[Trial]) -> list[Trial]:
    """Trials in the order of their newest values, the best first, and the oldest among equals.

    Those that exceed a constraint already come last.
    """
    sign = -1.0 if study.direction == "maximize" else 1.0

    def key(trial: Trial) -> tuple[bool, float, int]:
        value = trial.value if trial.value is not None else newest(trial)
        return (study.exceeds(trial), math.inf if math.isnan(value) else sign * value, trial.number)

    return sorted(trials, key=key)


def best_at(study: Study, runs: Iterable[Trial], share: float) -> list[Trial]:
    """The runs that have got to a share, the best value there first.

    Those without one come last, after those that exceed a constraint already.
    """
    sign = -1.0 if study.direction == "maximize" else 1.0

    def key(run: Trial) -> tuple[bool, float]:
        value = value_at(run, share)
        return (math.isnan(value) or study.exceeds(run), math.inf if math.isnan(value) else sign * value)

    return sorted((run for run in runs if _is_at(run, share)), key=key)


def _is_at(run: Trial, share: float) -> bool:
    return run.reached >= share - 1e-6 or not math.isnan(value_at(run, share))


def newest(trial: Trial) -> float:
    """The value that a trial has reported last; nan if there is none."""
    return math.nan if trial.curve.last is None else trial.curve.last.value


def value_at(trial: Trial, share: float) -> float:
    """The value at the first report at or beyond a share of the run; nan if there is none."""
    for point in trial.curve:
        if point.progress is not None and point.progress >= share - 1e-6:
            return point.value
    return trial.value if trial.value is not None and share >= 1 else math.nan


def next_rung(rungs: Sequence[float], reached: float) -> float:
    """The first rung beyond a share that has been reached."""
    return next(rung for rung in rungs if rung > reached + 1e-6)
