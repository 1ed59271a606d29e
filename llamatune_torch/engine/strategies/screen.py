"""The page of "screen": a wide, cheap opening, then the engine on finished runs alone.

    twice:  ten new points of the initial design train to a tenth of their run;
            then the open run with the best newest value goes on, 10 -> 20 -> 40 -> 100 %, until one has finished;
            what is still open is stopped
    once:   the control, the next point of the initial design, trains to its end;
            if it beats one of those that were chosen, so do the points after it, until six runs have finished
    then:   every proposal of the engine trains to its end

A partial value tells good from bad, not the best from the good. So it decides which runs of the opening are worth
finishing, for about four full runs in all, and nothing later: the engine never sees one. Newest values are compared,
whatever share they are from, because the best at a tenth may diverge before the end.

Where curves cross, or diverge late, the opening chooses the wrong runs, and an engine that starts from those alone
searches near them for long. The control was chosen by nobody: that it is the better run tells of such curves.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace

from llamatune_torch.decisions import ROUNDING, Decision, Discard, Wait
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
        num_finals: finished runs that make an initial design by themselves; also of trials that were added.
    """

    rungs: tuple[float, ...] = (0.1, 0.2, 0.4, 1.0)
    num_batches: int = 2
    batch_size: int = 10
    max_batches: int = 4
    num_finals: int = 6

    @property
    def least(self) -> float:
        return self.rungs[0]

    def decide(self, study: Study, settings: Settings, left: float) -> Decision:
        """See ``Strategy``."""
        design = [run for run in own_runs(study) if run.origin != "surrogate"]
        full = [run for run in design if run.until >= 1 and not run.pauses]
        chosen = [run for run in design if run not in full]
        num_finals = sum(map(_is_final, study.completed))
        if num_finals < self.num_finals:
            decision = self._open(study, settings, chosen, bool(full), left)
            if decision is not None:
                return decision
        for trial in study.paused:
            return Discard(trial.number, "left over from the opening, in which others were better")
        num_expected = num_finals + sum(run.state is TrialState.RUNNING for run in full)
        if num_expected < self.num_finals and (not full or _is_misled(study, chosen, full)):
            with suppress(SpaceExhaustedError):
                return start(study, settings, 1.0, left)
        known = replace(settings, n_initial=len(study.completed)) if settings.n_initial is None else settings
        return propose(study, known if study.completed else settings, left)

    def _open(
        self, study: Study, settings: Settings, runs: list[Trial], has_control: bool, left: float
    ) -> Decision | None:
        """Decides within the opening, which has started ``runs``; ``None`` if it is over.

        A worker that is free while others run begins what has not begun. Else it takes up the next run of a batch in
        which none is on its last leg, else the control. A second run on its last leg is a spare one, and comes last.
        """
        opened: list[_Batch] = []
        for i in range(self.max_batches):
            if i >= self.num_batches and (opened or sum(map(_is_final, runs)) >= self.num_batches):
                break
            batch = _Batch(study, i, runs[i * self.batch_size : (i + 1) * self.batch_size])
            if batch.is_over:
                if batch.idle:
                    return Discard(batch.idle[0].number, f"batch {i + 1} of the opening has finished a better run")
                continue
            if len(batch.runs) < self.batch_size:
                with suppress(SpaceExhaustedError):
                    return start(study, settings, self.rungs[0], left)
            if batch.idle and not batch.running:
                return self._take_up(batch, left)
            if batch.running:
                opened.append(batch)
        for batch in opened:
            if batch.idle and not any(run.until >= 1 for run in batch.running):
                return self._take_up(batch, left)
        if opened and not has_control and left >= 1 - ROUNDING:
            with suppress(SpaceExhaustedError):
                return start(study, settings, 1.0, left)
        for batch in opened:
            if batch.idle and left >= next_rung(self.rungs, batch.idle[0].reached) - batch.idle[0].reached - ROUNDING:
                return self._take_up(batch, left)
        return Wait("runs of the opening are on their last leg") if opened else None

    def _take_up(self, batch: _Batch, left: float) -> Decision:
        run = batch.idle[0]
        reason = f"the best open run of batch {batch.number + 1} of the opening"
        return resume(run, next_rung(self.rungs, run.reached), left, reason)


class _Batch:
    """The runs of one batch: those that are ``idle``, the best first, and those that are ``running``."""

    def __init__(self, study: Study, number: int, runs: list[Trial]) -> None:
        self.number, self.runs = number, runs
        self.idle = best_first(study, [run for run in runs if run.state is TrialState.PAUSED])
        self.running = [run for run in runs if run.state is TrialState.RUNNING]
        self.is_over = any(map(_is_final, runs))


def _is_misled(study: Study, chosen: list[Trial], others: list[Trial]) -> bool:
    """True if the first finished one of the others, which nobody has chosen, beats one that was chosen."""
    control = next((run for run in others if run.state is not TrialState.FAILED), None)
    finals = [run.value for run in chosen if _is_final(run)]
    if control is None or control.value is None:
        return False
    return any(study.better(control.value, value) for value in finals if value is not None)


def _is_final(run: Trial) -> bool:
    """True for a finished run that has not diverged; an engine that knows diverged runs only is a bad one."""
    return run.state is TrialState.COMPLETE and run.value is not None and math.isfinite(run.value)
