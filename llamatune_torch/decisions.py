"""Decisions about what happens next: a run starts, a paused one goes on or never does, or there is nothing to do.

A strategy makes these of the record alone (``engine/strategies/``); a store carries them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from llamatune_torch.seeds import derived_seed
from llamatune_torch.space import Params
from llamatune_torch.study import Study
from llamatune_torch.trial import Origin, Suggestion, Trial

#: Sums of shares miss a whole number by less than this.
ROUNDING = 1e-9


class Start(NamedTuple):
    """A run starts, and trains to a share of its full length in (0, 1]; ``bounds`` are those of ``Trial``.

    Its seed derives from the study's, unless it is given. ``notes`` say why it starts.
    """

    params: Params
    origin: Origin
    until: float = 1.0
    bounds: tuple[float, float] | None = None
    seed: int | None = None
    notes: Mapping[str, str] = {}

    @classmethod
    def of(cls, suggestion: Suggestion, until: float = 1.0) -> Start:
        """The start of a suggested run."""
        return cls(suggestion.params, suggestion.origin, until, notes=suggestion.notes)


class Resume(NamedTuple):
    """A paused trial goes on, until it has trained a larger share of its run."""

    number: int
    until: float
    reason: str = ""
    bounds: tuple[float, float] | None = None


class Discard(NamedTuple):
    """A paused trial never goes on."""

    number: int
    reason: str


class Wait(NamedTuple):
    """Nothing is to start until a running trial has ended or paused."""

    reason: str


class Finish(NamedTuple):
    """Nothing is to start any more, as far as can be seen now."""

    reason: str


Decision = Start | Resume | Discard | Wait | Finish


def start_trial(number: int, start: Start, seed: int, now: float) -> Trial:
    """Makes the record of a trial that starts ``now`` (Unix seconds); its seed derives from the study's ``seed``."""
    own = derived_seed(seed, number) if start.seed is None else start.seed
    return Trial(
        number,
        start.params,
        own,
        start.origin,
        notes=dict(start.notes),
        started=now,
        until=start.until,
        bounds=start.bounds,
    )


def carried_out(study: Study, decision: Decision, seed: int, now: float) -> Trial | None:
    """Makes the record of the trial that a decision starts or changes; ``None`` if it does neither."""
    match decision:
        case Start():
            return start_trial(len(study.trials), decision, seed, now)
        case Resume():
            return study.trials[decision.number].going_on(decision.until, decision.reason, decision.bounds, now)
        case Discard():
            return study.trials[decision.number].stopped(decision.reason, now)
        case _:
            return None
