"""One trial: what was tried, what came of it. Frozen; a change makes a new record.

A ``Trial`` keeps more than the objective from the first day, because results cannot be measured afterwards:
its learning curve, other outcomes (memory, latency), its cost in seconds, its seed, why it was suggested, and
the text of its error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from llamatune_torch.errors import OutcomeError
from llamatune_torch.space import Params

Direction = Literal["maximize", "minimize"]
Origin = Literal["initial", "sobol", "surrogate", "added", "retry"]

#: The reason of a trial whose worker fell silent, without giving it back: LOST, or FAILED if that was once too often.
SILENT = "worker silent"

#: The reason that a finished trial shows in a stored study whose space has changed since, and which it does not fit.
OUTSIDE = "outside the space"


class TrialState(StrEnum):
    """Where a trial stands. A finished trial never changes; only ``Trial.is_open`` ones do."""

    RUNNING = "running"
    COMPLETE = "complete"  # has a value
    FAILED = "failed"  # these parameters do not work: out of memory, nan, an exception, one worker after the other
    LOST = "lost"  # never got to an end (Ctrl-C, a dead machine): says nothing about its parameters


@dataclass(frozen=True)
class Curve:
    """Intermediate values of one trial, in the order they were reported.

    ``steps`` counts what the caller counts (optimizer steps), ``progress`` is the share in [0, 1] of the full
    training run at that step, ``None`` where unknown. Curves of different trials compare by progress, not by
    steps: a run of 300 steps is further at step 300 than a run of 3,000.
    """

    steps: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    progress: tuple[float | None, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    def reported(self, step: float, value: float, progress: float | None = None) -> Curve:
        """The curve with one more point; a second report at the last step replaces the first.

        Raises:
            OutcomeError: the step went backwards, or the share is not in [0, 1].
        """
        if self.steps and step < self.steps[-1]:
            raise OutcomeError(f"steps must not decrease, but got {step} after {self.steps[-1]}")
        if progress is not None and not 0 <= progress <= 1:
            raise OutcomeError(f"progress must lie in [0, 1], but got {progress}")
        kept = -1 if self.steps and step == self.steps[-1] else None
        return Curve(
            (*self.steps[:kept], float(step)),
            (*self.values[:kept], float(value)),
            (*self.progress[:kept], progress),
        )


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found: a value, or an error, and whatever else was measured.

    Args:
        value: the objective; ``None`` or nan means that the trial failed.
        outcomes: other named measurements, such as ``{"memory_gb": 7.5}``.
        cost: seconds of training; measured by ``optimize`` if left out.
        curve: intermediate values; by default those reported while the trial ran.
        error: the text of what went wrong, if anything did.
        reason: that in a few words, the same for all failures of a kind: "out of memory", "nan".
        notes: remarks for people, such as where the value comes from.
    """

    value: float | None = None
    outcomes: Mapping[str, float] = field(default_factory=dict)
    cost: float | None = None
    curve: Curve | None = None
    error: str | None = None
    reason: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def failure(cls, reason: str, error: str | None = None, **rest: Any) -> Outcome:
        """The outcome of parameters that do not work, e.g. ``Outcome.failure("out of memory")``."""
        return cls(value=None, reason=reason, error=error or reason, **rest)


@dataclass(frozen=True)
class Trial:
    """One evaluation of one set of parameters.

    ``seed`` is the trial's own, derived from the study's seed and the number; ``cost`` is in seconds;
    ``started`` and ``finished`` are Unix times in seconds; ``origin`` says who chose the parameters. Of a stored
    study, ``worker`` names who runs it, and ``retry_of`` the first trial with these parameters, with that one's
    seed, if its worker fell silent.
    """

    number: int
    params: Params
    seed: int
    origin: Origin
    state: TrialState = TrialState.RUNNING
    value: float | None = None
    curve: Curve = Curve()
    outcomes: Mapping[str, float] = field(default_factory=dict)
    cost: float | None = None
    error: str | None = None
    reason: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    started: float | None = None
    finished: float | None = None
    worker: str | None = None
    retry_of: int | None = None

    @property
    def first(self) -> int:
        """The number of the first trial with these parameters, if its worker fell silent; otherwise its own."""
        return self.number if self.retry_of is None else self.retry_of

    def finished_with(self, outcome: Outcome, now: float) -> Trial:
        """The final record, with a checked outcome; ``now`` in Unix seconds."""
        return replace(
            self,
            state=TrialState.FAILED if outcome.value is None else TrialState.COMPLETE,
            value=outcome.value,
            curve=self.curve if outcome.curve is None else outcome.curve,
            outcomes=dict(outcome.outcomes),
            cost=max(0.0, now - (self.started or now)) if outcome.cost is None else outcome.cost,
            error=outcome.error,
            reason=outcome.reason,
            notes=dict(outcome.notes),
            finished=now,
        )

    @property
    def is_open(self) -> bool:
        """Whether its result may still come: it is running, or LOST or FAILED only because its worker fell silent.

        A machine that was suspended comes back with a result that took hours: that is still worth recording.
        """
        given_up = self.state in (TrialState.LOST, TrialState.FAILED) and self.reason == SILENT
        return self.state is TrialState.RUNNING or given_up


class Suggestion(NamedTuple):
    """Parameters to train next, and who chose them."""

    params: Params
    origin: Origin
