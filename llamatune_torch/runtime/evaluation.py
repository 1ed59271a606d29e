"""The evaluation of one trial: whatever the user's code does, an ``Outcome`` comes back."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from llamatune_torch.errors import ExecutorError, LlamaTuneError, StorageError, TrainerError, TrialStateError
from llamatune_torch.parameter_base import to_python
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause, Curve, Outcome, Trial, as_number, cause_of

Evaluate = Callable[[Trial], "float | Outcome"]
#: Called with the step, the value and the share of the training run in [0, 1].
Report = Callable[[float, float, float | None], Any]

# Hears of the learning curve of the trial that this thread evaluates.
_listener: ContextVar[Report | None] = ContextVar("listener", default=None)


@dataclass(frozen=True)
class OnParams:
    """An evaluation that takes the parameters only, with the values of labels. It can be sent to another process."""

    function: Callable[[Params], float | Outcome]
    space: SearchSpace

    def __call__(self, trial: Trial) -> float | Outcome:
        return self.function(self.space.values_of(trial.params))


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
    listener = _listener.get()
    if listener is None:
        raise TrialStateError("report() was called outside of an evaluation, or from another thread than the trial's")
    listener(step, value, progress)


def run_trial(evaluate: Evaluate, trial: Trial, listener: Report | None = None) -> Outcome | LlamaTuneError:
    """Evaluates a trial in this thread and returns its outcome, with its learning curve.

    A mistake in the use of this package is returned, not raised, because executors wrap exceptions in errors of their
    own.

    Args:
        evaluate: takes the trial, returns a score or an ``Outcome``.
        trial: what to evaluate.
        listener: called with each point of the curve as soon as it is reported.
    """
    curve = Curve()

    def listen(step: float, value: float, progress: float | None = None) -> None:
        nonlocal curve
        curve = curve.reported(step, value, progress)
        if listener is not None:
            listener(step, value, progress)

    before = _listener.set(listen)
    try:
        outcome = run_guarded(evaluate, trial)
    except LlamaTuneError as error:
        return error
    finally:
        _listener.reset(before)
    return replace(outcome, curve=curve) if outcome.curve is None and len(curve) else outcome


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
        result = failure_of(error)
    cost = time.perf_counter() - started
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
    """True if an error that an evaluation raised is the failure of its trial only: others have completed.

    Errors of the place where trials run, of the storage and of the Trainer factory would hit all other trials too.
    """
    return bool(study.completed) and not isinstance(error, (ExecutorError, StorageError, TrainerError))


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
