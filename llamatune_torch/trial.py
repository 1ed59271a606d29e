"""One trial: what was tried, what came of it. Frozen; a change makes a new record.

A ``Trial`` keeps more than the objective from the first day, because results cannot be measured afterwards:
its learning curve, other outcomes (memory, latency), its cost in seconds, its seed, why it was suggested, and
the text of its error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Self

from llamatune_torch.curve import Curve, as_plain_number
from llamatune_torch.errors import OutcomeError
from llamatune_torch.parameter_base import describe, to_python
from llamatune_torch.space import Params

Direction = Literal["maximize", "minimize"]
Origin = Literal["default", "initial", "sobol", "surrogate", "added", "retry", "confirm"]


class TrialState(StrEnum):
    """The state of a trial. A finished trial never changes; only ``Trial.is_open`` ones do."""

    RUNNING = "running"
    PAUSED = "paused"  # has trained a share of its run, and may go on from there
    COMPLETE = "complete"  # has a value
    STOPPED = "stopped"  # was paused, and never goes on; its curve stays on record
    FAILED = "failed"  # these parameters do not work: out of memory, nan, an exception, one worker after the other
    LOST = "lost"  # never got to an end (Ctrl-C, a dead machine): says nothing about its parameters


class Cause(StrEnum):
    """The kind of an end without a value. Code decides by it; ``Trial.reason`` says the same in words, for people."""

    # Of a FAILED trial.
    OUT_OF_MEMORY = "out of memory"
    DIVERGED = "diverged"  # nan or an infinity
    TIMEOUT = "timeout"
    KILLED = "killed"  # by somebody else's SIGKILL: says nothing about the parameters, which run once more
    ERROR = "error"  # anything else: an exception, a segmentation fault

    # Set by whoever keeps the study, never by an evaluation.
    SILENT = "silent"  # its worker stalled: LOST, or FAILED if its parameters stalled one worker too many
    ABANDONED = "abandoned"  # given back: LOST
    OUTSIDE = "outside"  # has ended, but does not fit the present space: shows as LOST


#: Characters of a text that are kept, half of them from its end: an exception may print a whole tensor.
MAX_TEXT = 20_000

#: Causes that an :class:`Outcome` cannot have.
KEEPERS_OWN = frozenset({Cause.SILENT, Cause.ABANDONED, Cause.OUTSIDE})

# How CUDA, HIP, cuBLAS, torch on the CPU and the operating system say that memory has run out.
_OUT_OF_MEMORY = (
    "out of memory",
    "outofmemory",
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
)


def cause_of(failure: BaseException | str) -> Cause:
    """The cause that an exception, or a reason in words, speaks of.

    A text stands for memory only in the exceptions that carry the runtime's own messages: ``RuntimeError`` and
    ``OSError``. torch's class is known by its name, so that reading a study need not load torch.

    Example:
        >>> cause_of(RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"))
        <Cause.OUT_OF_MEMORY: 'out of memory'>
    """
    try:
        text = str(failure)[:MAX_TEXT].lower()
    except Exception:  # an exception's own __str__ may raise
        text = ""
    spoken = isinstance(failure, (str, RuntimeError, OSError))
    kinds = {kind.__name__ for kind in type(failure).__mro__}
    if kinds & {"MemoryError", "OutOfMemoryError"} or (spoken and any(sign in text for sign in _OUT_OF_MEMORY)):
        return Cause.OUT_OF_MEMORY
    if isinstance(failure, FloatingPointError):
        return Cause.DIVERGED
    if isinstance(failure, str):
        if text in ("nan", "inf", "infinite", "infinity", "diverged"):
            return Cause.DIVERGED
        if text in ("timeout", "timed out"):
            return Cause.TIMEOUT
    return Cause.ERROR


@dataclass(frozen=True)
class Outcome:
    """The outcome of an evaluation: a value, or an error, and whatever else was measured.

    Args:
        value: the objective; ``None`` or nan means that the trial failed.
        std: the standard deviation of the value, where it is known beside the noise of a seed, which is learnt: of a
            score on a small sample, or of a mean of several runs.
        outcomes: other named measurements, such as ``{"memory_gb": 7.5}``.
        cost: seconds of training; measured by ``optimize`` if left out.
        curve: intermediate values; by default those reported while the trial ran.
        error: the text of what went wrong, if anything did.
        reason: that in a few words for people, the same for all failures of a kind: "out of memory", "nan".
        cause: the kind of failure, for code; by default what the reason speaks of (:func:`cause_of`).
        notes: remarks for people, such as where the value comes from.
        paused: True if the run has not come to its end, but to the share that it was started for (``trial.until``),
            and can go on from there.

    All is checked here, and kept as plain numbers and texts. A text longer than ``MAX_TEXT`` loses its middle.

    Raises:
        OutcomeError: a field is not what it should be; ``cost`` or ``std`` is negative or not finite; ``cause`` is
            none, or one that only the keeper of a study can set.
    """

    value: float | None = None
    outcomes: Mapping[str, float] = field(default_factory=dict)
    cost: float | None = None
    curve: Curve | None = None
    error: str | None = None
    reason: str | None = None
    cause: Cause | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    paused: bool = False
    std: float | None = None

    def __post_init__(self) -> None:
        cost = None if self.cost is None else as_plain_number(self.cost, "cost must be a number")
        if cost is not None and not 0 <= cost < math.inf:
            raise OutcomeError(f"cost must be a finite number of seconds >= 0, but got {cost}")
        std = None if self.std is None else as_plain_number(self.std, "std must be a number")
        if std is not None and not 0 <= std < math.inf:
            raise OutcomeError(f"std must be a finite number >= 0, but got {std}")
        if not (self.curve is None or isinstance(self.curve, Curve)):
            raise OutcomeError(f"curve must be a Curve or None, but got {describe(self.curve)}")
        if not isinstance(self.paused, bool):
            raise OutcomeError(f"paused must be True or False, but got {describe(self.paused)}")
        own = [str(cause) for cause in Cause if cause not in KEEPERS_OWN]
        if self.cause is not None and self.cause not in own:
            raise OutcomeError(f"the cause of an outcome must be one of {own}, but got {str(self.cause)!r}")
        checked = {
            "value": None if self.value is None else as_number(self.value),
            "outcomes": {
                name: as_plain_number(value, f"outcome {name!r} must be a number")
                for name, value in _items(self.outcomes, "outcomes")
            },
            "cost": cost,
            "std": std,
            "curve": self.curve,
            "error": None if self.error is None else _text(self.error, "error"),
            "reason": None if self.reason is None else _text(self.reason, "reason"),
            "cause": None if self.cause is None else Cause(self.cause),
            "notes": {name: _text(note, f"note {name!r}") for name, note in _items(self.notes, "notes")},
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # a frozen dataclass sets its fields this way

    @property
    def has_failed(self) -> bool:
        """True if it tells of an error."""
        return self.error is not None or self.reason is not None or self.cause is not None

    @classmethod
    def failure(cls, reason: str, error: str | None = None, **rest: Any) -> Self:
        """The outcome of parameters that do not work, e.g. ``Outcome.failure("out of memory")``."""
        return cls(value=None, reason=reason, error=error or reason, **{"cause": cause_of(reason), **rest})


def as_outcome(result: Any, direction: Direction) -> Outcome:
    """A checked outcome: it is paused, or has a value that can be compared, or has an error and a cause.

    nan is a failure, and so is an infinity on the good side, which no training can earn. An infinity on the
    bad side is a diverged run: a value like any other, the worst.

    Raises:
        OutcomeError: the result is neither a number nor an ``Outcome``.
    """
    outcome = result if isinstance(result, Outcome) else Outcome(value=as_number(result))
    if outcome.has_failed:
        reason = outcome.reason or outcome.cause or "error"
        cause = outcome.cause or cause_of(reason)
        error = outcome.error or str(reason)
        return replace(outcome, value=None, reason=str(reason), error=error, cause=cause, paused=False)
    if outcome.paused:
        return replace(outcome, value=None)
    if outcome.value is None:
        error = "the outcome has neither a value nor an error"
        return replace(outcome, reason="no value", error=error, cause=Cause.ERROR)
    value = as_number(outcome.value)
    if math.isnan(value):
        return replace(outcome, value=None, reason="nan", error="the value is nan", cause=Cause.DIVERGED)
    if math.isinf(value) and (value > 0) == (direction == "maximize"):
        error = f"the value is {value}, better than any score can be (direction: {direction})"
        return replace(outcome, value=None, reason="infinite", error=error, cause=Cause.DIVERGED)
    return replace(outcome, value=value)


def as_number(value: Any) -> float:
    """A float, from Python's, numpy's or torch's numbers; an integer too large for one is an infinity.

    Raises:
        OutcomeError: anything else, such as a string, ``None``, a boolean or a vector.
    """
    return as_plain_number(value, "an evaluation must return a number or an Outcome")


def _items(mapping: Any, what: str) -> list[tuple[str, Any]]:
    """The items of a dict whose keys must be texts."""
    if not isinstance(mapping, Mapping):
        raise OutcomeError(f"{what} must be a dict, but got {describe(mapping)}")
    return [(_text(name, f"a name in {what}"), value) for name, value in mapping.items()]


def _text(text: Any, what: str) -> str:
    """A plain text that can be written anywhere, of ``MAX_TEXT`` characters at most."""
    if not isinstance(text, str):
        raise OutcomeError(f"{what} must be a text, but got {describe(text)}")
    plain: str = to_python(text)
    if len(plain) > MAX_TEXT:
        half = MAX_TEXT // 2
        plain = f"{plain[:half]}\n... {len(plain) - 2 * half} characters are left out ...\n{plain[-half:]}"
    return plain.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Trial:
    """One evaluation of one set of parameters.

    In the record, ``params`` has the labels of choices that have some; ``SearchSpace.values_of`` gives their values.
    ``seed`` is the trial's own, derived from the study's seed and the number; ``cost`` is in seconds;
    ``started`` and ``finished`` are Unix times in seconds; ``origin`` says who chose the parameters. In a stored study,
    ``worker`` names the process that runs it. ``retry_of`` is the number of the first trial with these parameters and
    this seed, if that one stalled with its worker or was killed.

    ``until`` is the share of its full run, in (0, 1], that it was last started for. A run that pauses there goes on as
    the same trial: ``pauses`` counts how often it has paused, ``reached`` is the share at the last time, and
    ``resumed`` the Unix time at which it went on. A value outside of ``bounds`` says that it has broken down.
    ``std`` is the standard deviation of the value, where the outcome has told it.
    """

    number: int
    params: Params
    seed: int
    origin: Origin
    state: TrialState = TrialState.RUNNING
    value: float | None = None
    curve: Curve = field(default_factory=Curve)
    outcomes: Mapping[str, float] = field(default_factory=dict)
    cost: float | None = None
    error: str | None = None
    reason: str | None = None
    cause: Cause | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    started: float | None = None
    finished: float | None = None
    worker: str | None = None
    retry_of: int | None = None
    until: float = 1.0
    reached: float = 0.0
    pauses: int = 0
    resumed: float | None = None
    bounds: tuple[float, float] | None = None
    std: float | None = None

    @property
    def first(self) -> int:
        """The number of the first trial with these parameters, if its worker fell silent; otherwise its own."""
        return self.number if self.retry_of is None else self.retry_of

    def finished_with(self, outcome: Outcome, now: float) -> Trial:
        """The final record: all that a checked outcome tells, by the names of its fields; ``now`` in Unix seconds."""
        told = {name: getattr(outcome, name) for name in TOLD} | {"outcomes": dict(outcome.outcomes)}
        told["notes"] = {**self.notes, **outcome.notes}
        if outcome.curve is None:
            told["curve"] = self.curve
        if outcome.cost is None:
            since = self.started if self.resumed is None else self.resumed
            since = now if since is None or self.state is TrialState.PAUSED else since
            told["cost"] = max(0.0, now - since)
        if self.pauses:  # what was trained before counts too
            told["cost"] += self.cost or 0.0
        state = TrialState.FAILED if outcome.value is None else TrialState.COMPLETE
        return replace(self, **told, state=state, finished=now)

    def paused_with(self, outcome: Outcome, now: float) -> Trial:
        """The record of a run that has paused; ``now`` in Unix seconds.

        It has reached the share that it was started for, or the progress of its last report, if that is beyond. If its
        newest value is nan, it has FAILED. A trial that was given up meanwhile stays so, and one that has paused too.

        Raises:
            OutcomeError: the trial was started to train to its end.
        """
        if self.state is TrialState.PAUSED:
            return self
        if self.until >= 1:
            raise OutcomeError(f"trial {self.number} was started to train to its end: it has a value then, not a pause")
        told = self.finished_with(outcome, now)
        if self.state is not TrialState.RUNNING:
            return replace(
                told, state=self.state, cause=self.cause, reason=self.reason, error=self.error, finished=self.finished
            )
        curve, reached, last = told.curve, self.until, told.curve.last
        if last is not None and math.isnan(last.value):
            error = f"the value at step {last.step:g} is nan"
            return self.finished_with(replace(outcome, reason="nan", error=error, cause=Cause.DIVERGED), now)
        if last is not None and last.progress is None:
            curve = curve.reported(last.step, last.value, self.until)
        elif last is not None and last.progress is not None:
            reached = max(reached, last.progress)
        return replace(
            told,
            state=TrialState.PAUSED,
            curve=curve,
            worker=None,
            reached=reached,
            pauses=self.pauses + 1,
            finished=None,
        )

    def going_on(self, until: float, reason: str, bounds: tuple[float, float] | None, now: float) -> Trial:
        """The record of a paused run that goes on to a larger share; ``now`` in Unix seconds."""
        return replace(self, state=TrialState.RUNNING, until=until, reason=reason, bounds=bounds, resumed=now)

    def breakdown(self, value: float) -> str | None:
        """Says why a reported value shows that the run has broken down; ``None`` if it does not."""
        if math.isnan(value):
            return "a reported value is nan"
        if self.bounds is None or self.bounds[0] <= value <= self.bounds[1]:
            return None
        bound = self.bounds[0] if value < self.bounds[0] else self.bounds[1]
        return f"a reported value is {value:.4g}, far beyond all runs of this study (bound: {bound:.4g})"

    def stopped(self, reason: str, now: float) -> Trial:
        """The record of a paused run that never goes on; ``now`` in Unix seconds."""
        return replace(self, state=TrialState.STOPPED, reason=reason, finished=now)

    def given_up(self, cause: Cause, reason: str, now: float, error: str | None = None) -> Trial:
        """The record as LOST, by the keeper of the study; ``now`` in Unix seconds.

        A run that was given back after it had paused is PAUSED again: its checkpoint is still there.
        """
        if self.pauses and cause is Cause.ABANDONED and self.state is TrialState.RUNNING:
            return replace(self, state=TrialState.PAUSED, worker=None)
        return replace(self, state=TrialState.LOST, cause=cause, reason=reason, error=error or reason, finished=now)

    @property
    def share(self) -> float:
        """The share of a full run that it counts for in a budget: what it has trained, or may train by now."""
        if self.state is TrialState.RUNNING:
            return max(self.until, self.reached)
        return self.reached if self.state in (TrialState.PAUSED, TrialState.STOPPED) else 1.0

    @property
    def outcome(self) -> Outcome:
        """All that an outcome can tell of this trial; the inverse of :meth:`finished_with`."""
        told = {name: getattr(self, name) for name in TOLD}
        return Outcome(**(told | {"cause": None} if self.cause in KEEPERS_OWN else told))

    @property
    def is_open(self) -> bool:
        """True while its result may still come: it runs, is paused, or LOST or FAILED only because its worker stalled.

        A machine that was suspended comes back with a result that took hours: that is still worth recording.
        """
        given_up = self.state in (TrialState.LOST, TrialState.FAILED) and self.cause is Cause.SILENT
        return self.state in (TrialState.RUNNING, TrialState.PAUSED) or given_up


#: The fields that an outcome and a trial share.
TOLD = tuple(field.name for field in fields(Outcome) if field.name != "paused")


class Suggestion(NamedTuple):
    """Parameters to train next, who chose them, and notes about why."""

    params: Params
    origin: Origin
    notes: Mapping[str, str] = {}
