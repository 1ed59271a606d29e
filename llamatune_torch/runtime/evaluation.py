"""The evaluation of one trial: whatever the user's code does, an ``Outcome`` comes back."""

from __future__ import annotations

import inspect
import os
import time
import traceback
from collections.abc import Callable, Generator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from llamatune_torch.curve import Curve
from llamatune_torch.errors import (
    ExecutorError,
    LlamaTuneError,
    OutcomeError,
    StorageError,
    TrainerError,
    TrialStateError,
)
from llamatune_torch.parameter_base import describe, to_python
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause, Outcome, Trial, as_number, cause_of

Evaluate = Callable[[Trial], "float | Outcome"]
#: Called with the step, the value and the share of the training run in [0, 1].
Report = Callable[[float, float, float | None], Any]


class _Run:
    """The trial that a thread evaluates, its curve so far, and who hears of it.

    A run that goes on begins with the curve that it had, up to the first step that it reports.
    """

    def __init__(self, trial: Trial, listener: Report | None) -> None:
        self.trial = trial
        self.curve = Curve()
        self.former = trial.curve if trial.pauses else Curve()
        self.listener = listener
        #: True once the evaluation was told to pause.
        self.pauses = False
        #: Why the run has broken down, if it has.
        self.breakdown: str | None = None

    def report(self, step: float, value: float, progress: float | None = None) -> None:
        before = self.curve if len(self.curve) else self.former.before(step)
        self.curve = before.reported(step, value, progress)
        assert self.curve.last is not None
        self.breakdown = self.trial.breakdown(self.curve.last.value)
        if self.listener is not None:
            self.listener(step, value, progress)

    @property
    def has_reached(self) -> bool:
        """True if the last report lies at or beyond the share that the trial was started for."""
        last = self.curve.last
        share = None if last is None else last.progress
        return self.trial.until < 1 and share is not None and self.trial.until - _ROUNDING <= share < 1


_ROUNDING = 1e-6  # shares are sums and quotients

_run: ContextVar[_Run | None] = ContextVar("run", default=None)


@dataclass(frozen=True)
class OnParams:
    """An evaluation that takes the parameters only, with the values of labels. It can be sent to another process.

    A function may be a generator of its learning curve; see :func:`exhausted`.
    """

    function: Callable[[Params], Any]
    space: SearchSpace

    def __call__(self, trial: Trial) -> float | Outcome:
        result = self.function(self.space.values_of(trial.params))
        return exhausted(result) if isinstance(result, Generator) else result


def can_pause(function: Any) -> bool:
    """True if a function is known to be able to pause: it is a generator."""
    return inspect.isgeneratorfunction(function)


def exhausted(points: Generator[Any, None, Any]) -> float | Outcome:
    """Runs a generator of a learning curve to the share that its trial was started for, or to its end.

    It yields ``(step, value, progress)`` for each point, as :func:`report` takes them. To pause, it is closed: a
    ``finally`` or ``except GeneratorExit`` around its ``yield`` can save what it needs to go on. Its score is what it
    returns, or the last value.

    Raises:
        OutcomeError: it yields something else, or has neither points nor a result.
    """
    value = None
    while True:
        try:
            point = next(points)
        except StopIteration as end:
            result = value if end.value is None else end.value
            if result is None:
                raise OutcomeError("the generator has yielded no points and returned no value") from None
            return result  # type: ignore[no-any-return]  # whatever it is, it is checked where all outcomes are
        if not isinstance(point, tuple) or len(point) not in (2, 3):
            raise OutcomeError(f"a generator must yield (step, value, progress), but got {describe(point)}")
        report(*point)
        value = point[1]
        if should_pause():
            points.close()
            return Outcome(paused=True)


def current_trial() -> Trial:
    """The trial that this thread evaluates: its number, its seed, its curve so far, if it goes on, and more.

    A function that pauses can name its checkpoint by ``current_trial().first``, which stays the same when the trial
    has to be run again as another one.

    Raises:
        TrialStateError: this thread evaluates none.
    """
    return _running("current_trial()").trial


def should_pause() -> bool:
    """True if the evaluation should save what it needs to go on, and return; whatever it returns then, it is paused.

    It is called after :func:`report`, whose ``progress`` decides: a run pauses at the first report at or beyond the
    share that it was started for. Later the same trial may run again, with a larger share. A run that has reported nan,
    or a value far beyond all others of the study, has broken down. It is to return too, and has failed.

    Raises:
        TrialStateError: this thread evaluates no trial.

    Example:
        >>> def evaluate(params):
        ...     state = load_if_there(folder / f"{current_trial().first}.pt") or new_state(params)
        ...     while state.epoch < 10:
        ...         accuracy = train_one_epoch(state)
        ...         report(state.epoch, accuracy, state.epoch / 10)
        ...         if should_pause():
        ...             save(state, folder / f"{current_trial().first}.pt")
        ...             break
        ...     return accuracy
    """
    run = _running("should_pause()")
    run.pauses = run.has_reached or run.breakdown is not None
    return run.pauses


def _running(what: str) -> _Run:
    run = _run.get()
    if run is None:
        raise TrialStateError(f"{what} was called outside of an evaluation, or from another thread than the trial's")
    return run


def report(step: float, value: float, progress: float | None = None) -> None:
    """Adds a point to the learning curve of the trial that is being evaluated in this thread, in whatever process.

    Args:
        step: the position in the training, in what the caller counts (steps, epochs); never less than before.
        value: the score at this step.
        progress: the share of the training that is done, in [0, 1], if known.

    Raises:
        OutcomeError: ``step`` or ``progress`` is out of its range.
        TrialStateError: this thread evaluates no trial, so the point would be lost.

    Example:
        >>> def evaluate(params):
        ...     for epoch in range(10):
        ...         accuracy = train_one_epoch(params)
        ...         report(epoch + 1, accuracy, (epoch + 1) / 10)
        ...     return accuracy
    """
    _running("report()").report(step, value, progress)


def run_trial(evaluate: Evaluate, trial: Trial, listener: Report | None = None) -> Outcome | LlamaTuneError:
    """Evaluates a trial in this thread and returns its outcome, with its learning curve.

    A mistake in the use of this package is returned, not raised, because executors wrap exceptions in errors of their
    own.

    Args:
        evaluate: takes the trial, returns a score or an ``Outcome``.
        trial: what to evaluate.
        listener: called with each point of the curve as soon as it is reported.
    """
    run = _Run(trial, listener)
    before = _run.set(run)
    try:
        outcome = run_guarded(evaluate, trial)
    except LlamaTuneError as error:
        return error
    finally:
        _run.reset(before)
    return replace(outcome, curve=run.curve) if outcome.curve is None and len(run.curve) else outcome


def run_guarded(evaluate: Evaluate, trial: Trial) -> Outcome:
    """Returns what ``evaluate(trial)`` does, or a failure with the text of its exception; measures the cost.

    Mistakes in the use of this package (``LlamaTuneError``) and Ctrl-C pass through. ``sys.exit()`` is an exception
    like any other. In a process that the evaluation has forked off, everything passes: the trial is its parent's.
    """
    started, pid = time.perf_counter(), os.getpid()
    result: Any
    try:
        result = evaluate(trial)
        if os.getpid() != pid:
            raise SystemExit(0)
        result = to_python(result)  # a tensor whose computation has failed on the GPU says so here
    except (LlamaTuneError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if os.getpid() != pid:
            raise
        if isinstance(error, MemoryError):  # its frames hold all memory that there is, and its text needs some
            traceback.clear_frames(error.__traceback__)
        result = failure_of(error)
    cost = time.perf_counter() - started
    run = _run.get()
    if run is not None and run.pauses and run.breakdown is not None:
        result = Outcome.failure("diverged", run.breakdown, cause=Cause.DIVERGED)
    # Unless it was told to pause, and has trained to its end all the same.
    elif run is not None and run.pauses and run.has_reached and not (isinstance(result, Outcome) and result.has_failed):
        result = replace(result, paused=True) if isinstance(result, Outcome) else Outcome(paused=True)
    if isinstance(result, Outcome) and result.paused and trial.until >= 1:
        raise OutcomeError(f"trial {trial.number} has paused, but was started to train to its end: return its score")
    if isinstance(result, Outcome):
        return result if result.cost is not None else replace(result, cost=cost)
    return Outcome(value=as_number(result), cost=cost)


def failure_of(error: BaseException) -> Outcome:
    """A failure with the text of an exception, and a reason that is the same for all failures of that kind.

    Only text is kept: an exception holds its frames, and those hold the model in GPU memory.
    """
    cause = cause_of(error)
    reason = type(error).__name__ if cause is Cause.ERROR else str(cause)
    return Outcome.failure(reason, "".join(traceback.format_exception(error)).strip(), cause=cause)


def is_of_one_trial(error: LlamaTuneError, study: Study) -> bool:
    """True if an error that an evaluation raised is the failure of its trial only: others have worked.

    Errors of the place where trials run, of the storage and of the Trainer factory would hit all other trials too.
    """
    return study.has_worked and not isinstance(error, (ExecutorError, StorageError, TrainerError))


def place_of(failed: Trial) -> str | None:
    """The type of the exception that a trial has failed by, and the line that raised it; ``None`` for other failures.

    Memory, divergence, time-outs, killed processes and failures that the function has returned speak of the parameters,
    not of a mistake in the code.
    """
    error = failed.error or ""
    if failed.cause is not Cause.ERROR or not error.startswith("Traceback (most recent call last):"):
        return None
    frames = [line.strip() for line in error.splitlines() if line.startswith('  File "')]
    return f"{failed.reason} at {frames[-1]}" if frames else None
