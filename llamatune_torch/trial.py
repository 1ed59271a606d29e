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
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Self

from llamatune_torch.errors import OutcomeError
from llamatune_torch.parameter_base import describe, to_python
from llamatune_torch.space import Params

Direction = Literal["maximize", "minimize"]
Origin = Literal["initial", "sobol", "surrogate", "added", "retry"]


class TrialState(StrEnum):
    """The state of a trial. A finished trial never changes; only ``Trial.is_open`` ones do."""

    RUNNING = "running"
    COMPLETE = "complete"  # has a value
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

# Sums of shares miss 1 by this at most.
_ROUNDING = 1e-6

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
class Curve:
    """Intermediate values of one trial, in the order they were reported.

    ``steps`` counts what the caller counts, such as optimizer steps. ``progress`` is the share in [0, 1] of the full
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
            OutcomeError: one of them is no number, the step went backwards, or the share is not in [0, 1].
        """
        point = _point(step, value, progress)
        if self.steps and point[0] < self.steps[-1]:
            raise OutcomeError(f"steps must not decrease, but got {step} after {self.steps[-1]}")
        kept = -1 if self.steps and point[0] == self.steps[-1] else None
        return Curve(
            (*self.steps[:kept], point[0]),
            (*self.values[:kept], point[1]),
            (*self.progress[:kept], point[2]),
        )

    def checked(self) -> Curve:
        """The same curve in plain numbers.

        Raises:
            OutcomeError: the columns differ in length, or a point cannot be (:meth:`reported`).
        """
        columns = (self.steps, self.values, self.progress)
        if not all(isinstance(column, (tuple, list)) and len(column) == len(self.steps) for column in columns):
            raise OutcomeError(
                f"steps, values and progress of a curve must be tuples of one length, but got {describe(self)}"
            )
        points = [_point(*point) for point in zip(*columns, strict=True)]
        for before, after in pairwise(points):
            if after[0] < before[0]:
                raise OutcomeError(f"steps must not decrease, but got {after[0]} after {before[0]}")
        return Curve(*zip(*points, strict=True)) if points else Curve()


def _point(step: Any, value: Any, progress: Any) -> tuple[float, float, float | None]:
    """A point of a curve in plain numbers; a share that is beyond 0 or 1 by rounding alone is that bound."""
    step, value = _number(step, "a step must be a number"), _number(value, "a value must be a number")
    if not math.isfinite(step):
        raise OutcomeError(f"a step must be finite, but got {step}")
    if progress is None:
        return step, value, None
    share = _number(progress, "progress must be a number")
    if not -_ROUNDING <= share <= 1 + _ROUNDING:
        raise OutcomeError(f"progress must lie in [0, 1], but got {progress}")
    return step, value, min(max(share, 0.0), 1.0)


@dataclass(frozen=True)
class Outcome:
    """The outcome of an evaluation: a value, or an error, and whatever else was measured.

    Args:
        value: the objective; ``None`` or nan means that the trial failed.
        outcomes: other named measurements, such as ``{"memory_gb": 7.5}``.
        cost: seconds of training; measured by ``optimize`` if left out.
        curve: intermediate values; by default those reported while the trial ran.
        error: the text of what went wrong, if anything did.
        reason: that in a few words for people, the same for all failures of a kind: "out of memory", "nan".
        cause: the kind of failure, for code; by default what the reason speaks of (:func:`cause_of`).
        notes: remarks for people, such as where the value comes from.

    All is checked here, and kept as plain numbers and texts. A text longer than ``MAX_TEXT`` loses its middle.

    Raises:
        OutcomeError: a field is not what it should be; ``cost`` is negative or not finite; ``cause`` is none, or one
            that only the keeper of a study can set.
    """

    value: float | None = None
    outcomes: Mapping[str, float] = field(default_factory=dict)
    cost: float | None = None
    curve: Curve | None = None
    error: str | None = None
    reason: str | None = None
    cause: Cause | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cost = None if self.cost is None else _number(self.cost, "cost must be a number")
        if cost is not None and not 0 <= cost < math.inf:
            raise OutcomeError(f"cost must be a finite number of seconds >= 0, but got {cost}")
        if not (self.curve is None or isinstance(self.curve, Curve)):
            raise OutcomeError(f"curve must be a Curve or None, but got {describe(self.curve)}")
        own = [str(cause) for cause in Cause if cause not in KEEPERS_OWN]
        if self.cause is not None and self.cause not in own:
            raise OutcomeError(f"the cause of an outcome must be one of {own}, but got {str(self.cause)!r}")
        checked = {
            "value": None if self.value is None else as_number(self.value),
            "outcomes": {
                name: _number(value, f"outcome {name!r} must be a number")
                for name, value in _items(self.outcomes, "outcomes")
            },
            "cost": cost,
            "curve": None if self.curve is None else self.curve.checked(),
            "error": None if self.error is None else _text(self.error, "error"),
            "reason": None if self.reason is None else _text(self.reason, "reason"),
            "cause": None if self.cause is None else Cause(self.cause),
            "notes": {name: _text(note, f"note {name!r}") for name, note in _items(self.notes, "notes")},
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # a frozen dataclass sets its fields this way

    @classmethod
    def failure(cls, reason: str, error: str | None = None, **rest: Any) -> Self:
        """The outcome of parameters that do not work, e.g. ``Outcome.failure("out of memory")``."""
        return cls(value=None, reason=reason, error=error or reason, **{"cause": cause_of(reason), **rest})


def as_outcome(result: Any, direction: Direction) -> Outcome:
    """A checked outcome: it has a value that can be compared, or it has an error and a cause.

    nan is a failure, and so is an infinity on the good side, which no training can earn. An infinity on the
    bad side is a diverged run: a value like any other, the worst.

    Raises:
        OutcomeError: the result is neither a number nor an ``Outcome``.
    """
    outcome = result if isinstance(result, Outcome) else Outcome(value=as_number(result))
    if outcome.error is not None or outcome.reason is not None or outcome.cause is not None:
        reason = outcome.reason or outcome.cause or "error"
        cause = outcome.cause or cause_of(reason)
        return replace(outcome, value=None, reason=str(reason), error=outcome.error or str(reason), cause=cause)
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
    return _number(value, "an evaluation must return a number or an Outcome")


def _number(value: Any, rule: str) -> float:
    try:
        plain = to_python(value)
    except Exception as error:  # a tensor without data, or one whose computation has failed
        raise OutcomeError(f"{rule}, but {describe(value)} cannot be read: {error}") from error
    if not isinstance(plain, (int, float)) or isinstance(plain, bool):
        raise OutcomeError(f"{rule}, but got {describe(plain)}")
    try:
        return float(plain)
    except OverflowError:
        return math.inf if plain > 0 else -math.inf


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
    cause: Cause | None = None
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
        """The final record: all that a checked outcome tells, by the names of its fields; ``now`` in Unix seconds."""
        told = {name: getattr(outcome, name) for name in TOLD} | {"outcomes": dict(outcome.outcomes)}
        told["notes"] = dict(outcome.notes)
        if outcome.curve is None:
            told["curve"] = self.curve
        if outcome.cost is None:
            told["cost"] = max(0.0, now - (self.started or now))
        state = TrialState.FAILED if outcome.value is None else TrialState.COMPLETE
        return replace(self, **told, state=state, finished=now)

    def given_up(self, cause: Cause, reason: str, now: float, error: str | None = None) -> Trial:
        """The record as LOST, by the keeper of the study; ``now`` in Unix seconds."""
        return replace(self, state=TrialState.LOST, cause=cause, reason=reason, error=error or reason, finished=now)

    @property
    def outcome(self) -> Outcome:
        """All that an outcome can tell of this trial; the inverse of :meth:`finished_with`."""
        told = {name: getattr(self, name) for name in TOLD}
        return Outcome(**(told | {"cause": None} if self.cause in KEEPERS_OWN else told))

    @property
    def is_open(self) -> bool:
        """True while its result may still come: it is running, or LOST or FAILED only because its worker stalled.

        A machine that was suspended comes back with a result that took hours: that is still worth recording.
        """
        given_up = self.state in (TrialState.LOST, TrialState.FAILED) and self.cause is Cause.SILENT
        return self.state is TrialState.RUNNING or given_up


#: The fields that an outcome and a trial share.
TOLD = tuple(field.name for field in fields(Outcome))


class Suggestion(NamedTuple):
    """Parameters to train next, and who chose them."""

    params: Params
    origin: Origin
