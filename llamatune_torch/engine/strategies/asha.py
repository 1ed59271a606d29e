"""ASHA (Li et al., 2020, Algorithm 2): successive halving that waits for nobody.

A free worker looks for the highest rung with a run that has not gone on yet, and is among the best of those there, one
in ``eta``. That run goes on; where there is none, a new one starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from llamatune_torch.decisions import Decision
from llamatune_torch.engine.strategies.strategy import best_at, best_first, next_rung, own_runs, resume, start
from llamatune_torch.errors import SpaceExhaustedError
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import TrialState


@dataclass(frozen=True)
class Asha:
    """The strategy "asha".

    Args:
        rungs: shares of a run, increasing; the last is 1. ``eta`` is the ratio of two of them.
    """

    rungs: tuple[float, ...] = (1 / 9, 1 / 3, 1.0)

    @property
    def least(self) -> float:
        return self.rungs[0]

    def decide(self, study: Study, settings: Settings, left: float) -> Decision:
        """See ``Strategy``."""
        runs = own_runs(study)
        for rung, above in reversed(list(pairwise(self.rungs))):
            there = best_at(study, runs, rung)
            best = there[: math.floor(len(there) * rung / above + 1e-9)]
            for run in best:
                if run.state is TrialState.PAUSED and run.reached < above:
                    return resume(run, above, left, f"among the best {len(best)} of {len(there)} at {rung:.0%}")
        try:
            return start(study, settings, self.rungs[0], left)
        except SpaceExhaustedError:
            for run in best_first(study, study.paused):
                return resume(run, next_rung(self.rungs, run.reached), left, "the best, since nothing new is left")
            raise
