"""The median rule (Golovin et al., 2017): a run ends where its best value so far is worse than others' median there.

The others are the finished runs, and there must be some first. All points are the engine's, which sees finished runs
alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from llamatune_torch.decisions import ROUNDING, Decision, Discard, Finish, Start
from llamatune_torch.engine.strategies.full import propose
from llamatune_torch.engine.strategies.strategy import next_rung, resume, value_at
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import Trial


@dataclass(frozen=True)
class Median:
    """The strategy "median".

    Args:
        rungs: shares of a run at which it may end, increasing; the last is 1.
        num_finished: the finished runs that it takes.
    """

    rungs: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    num_finished: int = 5

    @property
    def least(self) -> float:
        return self.rungs[0]

    def decide(self, study: Study, settings: Settings, left: float) -> Decision:
        """See ``Strategy``."""
        for trial in study.paused:
            if self._is_worse(study, trial):
                return Discard(trial.number, f"worse than the median of finished runs at {trial.reached:.0%}")
            return resume(trial, next_rung(self.rungs, trial.reached), left, "no worse than the median")
        if left < self.least - ROUNDING:
            return Finish("the budget is used up")
        proposal = propose(study, settings, 1.0)
        return proposal._replace(until=self.rungs[0]) if isinstance(proposal, Start) else proposal

    def _is_worse(self, study: Study, trial: Trial) -> bool:
        values = [value_at(other, trial.reached) for other in study.completed]
        values = [value for value in values if not math.isnan(value)]
        if len(study.completed) < self.num_finished or not values:
            return False
        own = [value for value in trial.curve.values if not math.isnan(value)]
        if not own:
            return True
        best = max(own) if study.direction == "maximize" else min(own)
        return study.better(median(values), best)
