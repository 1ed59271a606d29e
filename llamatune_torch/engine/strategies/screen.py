"""The page of "screen": a wide, cheap opening, then the engine on finished runs alone.

    twice:  ten new points of the initial design train to a tenth of their run;
            then the open run with the best newest value goes on, 10 -> 20 -> 40 -> 100 %, until one has finished
    then:   what is still open is stopped, and every proposal of the engine is trained to its end

A partial value tells good from bad, not the best from the good. So it decides which runs of the opening are worth
finishing, for about four full runs in all, and nothing later: the engine never sees one. Newest values are compared,
whatever share they are from, because the best at a tenth may diverge before the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from llamatune_torch.decisions import Decision, Discard, Wait
from llamatune_torch.engine.strategies.full import propose
from llamatune_torch.engine.strategies.strategy import best_first, next_rung, own_runs, resume, start
from llamatune_torch.errors import SpaceExhaustedError
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import Trial, TrialState

MIN_RUNS = 4.0  # full runs: with fewer, nothing but the opening would fit


@dataclass(frozen=True)
class Screen:
    """The strategy "screen".

    Args:
        rungs: shares of a run, increasing; the last is 1.
        num_batches: how often the opening is played.
        batch_size: new runs in each batch.
        max_batches: batches at most, where runs of earlier ones ended without a finite value.
    """

    rungs: tuple[float, ...] = (0.1, 0.2, 0.4, 1.0)
    num_batches: int = 2
    batch_size: int = 10
    max_batches: int = 4

    @property
    def least(self) -> float:
        return self.rungs[0]

    def decide(self, study: Study, settings: Settings, left: float) -> Decision:
        """See ``Strategy``."""
        runs = own_runs(study)
        opening = [run for run in runs if run.origin != "surrogate"]
        batches = [opening[i : i + self.batch_size] for i in range(0, len(opening), self.batch_size)]
        is_running = False
        for i in range(self.max_batches):
            if i >= self.num_batches and sum(map(_is_final, runs)) >= self.num_batches:
                break
            batch = batches[i] if i < len(batches) else []
            if any(map(_is_final, batch)):
                continue
            if len(batch) < self.batch_size:
                try:
                    return start(study, settings, self.rungs[0], left)
                except SpaceExhaustedError:
                    pass
            idle = best_first(study, [run for run in batch if run.state is TrialState.PAUSED])
            if idle:
                until = next_rung(self.rungs, idle[0].reached)
                return resume(idle[0], until, left, f"the best open run of batch {i + 1} of the opening")
            is_running |= any(run.state is TrialState.RUNNING for run in batch)
        if is_running and not study.completed:
            return Wait("the opening has not finished a run yet")
        for trial in study.paused:
            return Discard(trial.number, "left over from the opening, in which others were better")
        known = replace(settings, n_initial=len(study.completed)) if settings.n_initial is None else settings
        return propose(study, known if study.completed else settings, left)


def _is_final(run: Trial) -> bool:
    """True for a finished run that has not diverged; an engine that knows diverged runs only is a bad one."""
    return run.state is TrialState.COMPLETE and run.value is not None and math.isfinite(run.value)
