"""Brackets in which the better share of the runs goes on: successive halving, and Hyperband, which plays several.

Successive halving (Jamieson and Talwalkar, 2016) starts ``n`` runs. At each rung the best of them go on, one in
``eta``, where ``eta`` is the ratio of two rungs. All runs of a rung end there before any goes on. It is the classic
staged optimisation: with ``rungs=[100, 500, 1000]``, in steps, ten runs train for 100 steps, two of them go on to
500, and one to 1,000. Hyperband (Li et al., 2018, Algorithm 1) hedges: its brackets start ever fewer runs at ever later
rungs, since nobody knows how much an early value says.

Points come from the initial design, without a model, as in the papers. When the brackets are over, they begin anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import cycle

from llamatune_torch.decisions import Decision, Discard, Wait
from llamatune_torch.engine.strategies.strategy import best_at, own_runs, resume, start
from llamatune_torch.errors import SpaceExhaustedError
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import Trial, TrialState


@dataclass(frozen=True)
class Bracket:
    """One round of successive halving.

    Args:
        num_runs: the runs at each rung, the first number for those that start.
        rungs: shares of a run, increasing; the last is 1.
    """

    num_runs: tuple[int, ...]
    rungs: tuple[float, ...]


@dataclass(frozen=True)
class Halving:
    """The strategies "successive_halving", of one bracket, and "hyperband".

    Args:
        brackets: played one after the other, again and again.
    """

    brackets: tuple[Bracket, ...]

    @property
    def least(self) -> float:
        return min(bracket.rungs[0] for bracket in self.brackets)

    def decide(self, study: Study, settings: Settings, left: float) -> Decision:
        """See ``Strategy``."""
        runs = own_runs(study)
        for bracket in cycle(self.brackets):
            own, runs = runs[: bracket.num_runs[0]], runs[bracket.num_runs[0] :]
            exhausted: SpaceExhaustedError | None = None
            if len(own) < bracket.num_runs[0]:
                try:
                    return start(study, settings, bracket.rungs[0], left)
                except SpaceExhaustedError as error:  # then the bracket is played with the runs that there are
                    exhausted = error
            decision = self._go_on(study, bracket, own, left)
            if decision is not None:
                return decision
            if exhausted is not None:
                raise exhausted
        raise AssertionError("there is no bracket")

    def _go_on(self, study: Study, bracket: Bracket, runs: list[Trial], left: float) -> Decision | None:
        """Decides within a bracket whose runs have all started; ``None`` if it is over."""
        for (rung, next_rung), n in zip(
            zip(bracket.rungs, bracket.rungs[1:], strict=False), bracket.num_runs[1:], strict=True
        ):
            if any(run.state is TrialState.RUNNING and run.until <= rung for run in runs):
                return Wait(f"runs of this rung are still on their way to {rung:.0%}")
            there = best_at(study, runs, rung)
            for run in there[n:]:
                if run.state is TrialState.PAUSED:
                    return Discard(run.number, f"not among the best {n} of {len(runs)} at {rung:.0%}")
            runs = there[:n]
            for run in runs:
                if run.state is TrialState.PAUSED and run.reached < next_rung:
                    return resume(run, next_rung, left, f"among the best {n} at {rung:.0%}")
        return None


def successive_halving(rungs: tuple[float, ...]) -> Halving:
    """One bracket in which each rung keeps as many runs as are trained further by its ratio to the next."""
    return Halving((Bracket(tuple(max(1, math.floor(1 / rung + 1e-9)) for rung in rungs), rungs),))


def hyperband(rungs: tuple[float, ...]) -> Halving:
    """The brackets of Hyperband, from all rungs to the last one alone; each costs about the same."""
    brackets, most = [], len(rungs)
    for first in range(most):
        later = rungs[first:]
        n = math.ceil(most / len(later) / later[0] - 1e-9)
        num_runs = tuple(max(1, math.floor(n * later[0] / rung + 1e-9)) for rung in later)
        brackets.append(Bracket(num_runs, later))
    return Halving(tuple(brackets))
