"""The strategies by their names, and their decisions for several workers at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llamatune_torch.decisions import ROUNDING, Decision, Discard, Finish, Resume, Start, Wait, carried_out
from llamatune_torch.engine.breakdown import find_bounds
from llamatune_torch.engine.confirm import next_confirmation, searched
from llamatune_torch.engine.initial import untried_default
from llamatune_torch.engine.stopping import assess
from llamatune_torch.engine.strategies.asha import Asha
from llamatune_torch.engine.strategies.full import Full
from llamatune_torch.engine.strategies.halving import hyperband, successive_halving
from llamatune_torch.engine.strategies.median import Median
from llamatune_torch.engine.strategies.screen import MIN_RUNS, Screen
from llamatune_torch.engine.strategies.strategy import Strategy
from llamatune_torch.engine.strategies.top_k import TopK
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.errors import SpaceExhaustedError
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study

THIRDS = (1 / 9, 1 / 3, 1.0)  # rungs with a ratio of 3, as in the papers

#: The strategies by name, made of rungs or of ``None``.
STRATEGIES: Mapping[str, Callable[[tuple[float, ...] | None], Strategy]] = {
    "full": lambda rungs: Full(),
    "screen": lambda rungs: Screen() if rungs is None else Screen(rungs),
    "successive_halving": lambda rungs: successive_halving(rungs or THIRDS),
    "asha": lambda rungs: Asha(rungs or THIRDS),
    "hyperband": lambda rungs: hyperband(rungs or THIRDS),
    "median": lambda rungs: Median() if rungs is None else Median(rungs),
    "top_k": lambda rungs: TopK() if rungs is None else TopK(rungs[0]),
}


def find_strategy(settings: Settings, max_evals: float, can_pause: bool) -> Strategy:
    """Finds the strategy that the settings name.

    Args:
        settings: ``strategy`` and ``rungs``.
        max_evals: the budget in full runs. "auto" is "screen" from ``MIN_RUNS`` on, if runs can pause; else "full".
        can_pause: tells if the evaluations are known to be able to pause.
    """
    name: Any = settings.strategy
    if name == "auto":
        name = "screen" if can_pause and max_evals >= MIN_RUNS else "full"
    strategy: Strategy = STRATEGIES[name](settings.shares) if isinstance(name, str) else name
    return strategy


def decide(
    study: Study, settings: Settings, strategy: Strategy, n: int = 1, left: float = float("inf")
) -> list[Decision]:
    """Decides until ``n`` trials start or go on, or until nothing more can: that is said by the last decision.

    The space's default comes first, and trains to its end; a strategy decides about all other runs. A pure function:
    the same record gives the same decisions.

    Args:
        study: the record, with what runs and what is paused in it.
        settings: the knobs of the engine.
        strategy: from :func:`find_strategy`.
        n: the number of trials.
        left: the number of full runs that may still start or go on.

    Raises:
        SpaceExhaustedError: a finite space has no point left.
    """
    bounds = find_bounds(study)
    at_once = isinstance(strategy, Full) and left >= n - ROUNDING and not study.paused
    at_once = at_once and not (settings.stopping or settings.confirm)
    if at_once:  # a batch shares one fit of the surrogate
        return [Start.of(each)._replace(bounds=bounds) for each in suggest(study, settings, n)]
    decisions: list[Decision] = []
    started = 0
    decision: Decision
    while started < n:
        default = untried_default(study)
        try:
            if default is not None and left - settings.num_reserved >= 1 - ROUNDING:
                decision = Start(default, "default")
            else:
                decision = strategy.decide(study, settings, left - settings.num_reserved)
        except SpaceExhaustedError as error:
            if (started or not decisions) and not settings.confirm:
                raise
            decision = Finish(str(error))  # what is stopped is stopped all the same
        if isinstance(decision, Finish) and strategy.least < 1 and study.pending and not study.can_pause:
            decision = Wait("runs that may pause count as full ones until the first has paused")
        if isinstance(decision, Start) and settings.stopping and decision.origin != "default":
            decision = _unless_ended(decision, study, settings)
        if isinstance(decision, Finish) and settings.confirm:
            decision = next_confirmation(study, settings, left)
        if isinstance(decision, (Start, Resume)):
            decision = decision._replace(bounds=bounds)
        decisions.append(decision)
        if isinstance(decision, (Wait, Finish)):
            break
        if not isinstance(decision, Discard):
            started += 1
        trial = carried_out(study, decision, settings.seed, 0.0)
        assert trial is not None
        before, study = study, study.with_trial(trial)
        left -= study.spent - before.spent
    return decisions


def _unless_ended(start: Start, study: Study, settings: Settings) -> Decision:
    """A start, unless the search is to end before it; a result that is still to come may tell otherwise."""
    before = searched(study)
    verdict = assess(before, settings)
    if verdict is None or not verdict.ends:
        return start
    return Wait(str(verdict)) if before.pending else Finish(str(verdict))
