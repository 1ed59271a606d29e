"""Top-k: as many runs as the budget allows train to the first rung, and the best of them are finished.

The simplest strategy that knows its budget, and hard to beat with few full runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llamatune_torch.decisions import Decision, Discard, Finish, Wait
from llamatune_torch.engine.strategies.strategy import best_at, own_runs, resume, spent_on_default, start
from llamatune_torch.errors import SpaceExhaustedError
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import TrialState


@dataclass(frozen=True)
class TopK:
    """The strategy "top_k".

    Args:
        rung: the share of a run at which the best are chosen.
        k: the number of runs that are finished; by default 2, 4 from a budget of 8 full runs on, 8 from 16 on.
    """

    rung: float = 0.1
    k: int | None = None

    @property
    def least(self) -> float:
        return self.rung

    def decide(self, study: Study, settings: Settings, left: float) -> Decision:
        """See ``Strategy``."""
        total = left + study.spent - spent_on_default(study)
        k = self.k or (2 if total < 8 else 4 if total < 16 else 8)
        num_runs = max(k, math.floor((total - k * (1 - self.rung)) / self.rung + 1e-6))
        runs = own_runs(study)
        if len(runs) < num_runs:
            try:
                return start(study, settings, self.rung, left)
            except SpaceExhaustedError:
                if not any(run.is_open for run in runs):
                    raise
        if any(run.state is TrialState.RUNNING and run.until <= self.rung for run in runs):
            return Wait(f"runs are still on their way to {self.rung:.0%}")
        there = best_at(study, runs, self.rung)
        for run in there[:k]:
            if run.state is TrialState.PAUSED:
                return resume(run, 1.0, left, f"among the best {k} of {len(there)} at {self.rung:.0%}")
        for run in study.paused:
            return Discard(run.number, f"not among the best {k} of {len(there)} at {self.rung:.0%}")
        return Finish(f"the best {k} of {len(there)} runs are finished")
