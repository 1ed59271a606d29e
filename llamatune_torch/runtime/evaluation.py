"""Running one trial: whatever the user's code does, an ``Outcome`` comes back."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from llamatune_torch.errors import LlamaTuneError, OutcomeError
from llamatune_torch.study import Direction, Outcome, Trial

Evaluate = Callable[[Trial], "float | Outcome"]


def run_guarded(evaluate: Evaluate, trial: Trial) -> Any:
    """What ``evaluate(trial)`` returns, or a failure with the text of its exception; the cost is measured.

    Mistakes in the use of this package (``LlamaTuneError``) and interrupts pass through: they would hit every
    other trial too.
    """
    started = time.perf_counter()
    try:
        result = evaluate(trial)
    except LlamaTuneError:
        raise
    except Exception as error:
        # Only text is kept: an exception holds its frames, and those hold the model in GPU memory.
        result = Outcome.failure(reason_of(error), "".join(traceback.format_exception(error)).strip())
    cost = time.perf_counter() - started
    if isinstance(result, Outcome):
        return result if result.cost is not None else replace(result, cost=cost)
    return Outcome(value=as_number(result), cost=cost)


def reason_of(error: BaseException) -> str:
    """The kind of a failure in a few words, the same for all failures of that kind."""
    text = str(error).lower()
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "out of memory"
    if isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text):
        return "out of memory"
    return type(error).__name__


def as_outcome(result: Any, direction: Direction) -> Outcome:
    """A checked outcome: it has a value that can be compared, or it has an error.

    nan is a failure, and so is an infinity on the good side, which no training can earn. An infinity on the
    bad side is a diverged run: a value like any other, the worst.

    Raises:
        OutcomeError: the result is neither a number nor an ``Outcome``.
    """
    outcome = result if isinstance(result, Outcome) else Outcome(value=as_number(result))
    if outcome.error is not None or outcome.reason is not None:
        reason = outcome.reason or "error"
        return replace(outcome, value=None, reason=reason, error=outcome.error or reason)
    if outcome.value is None:
        return replace(outcome, reason="no value", error="the outcome has neither a value nor an error")
    value = as_number(outcome.value)
    if math.isnan(value):
        return replace(outcome, value=None, reason="nan", error="the value is nan")
    if math.isinf(value) and (value > 0) == (direction == "maximize"):
        error = f"the value is {value}, better than any score can be (direction: {direction})"
        return replace(outcome, value=None, reason="infinite", error=error)
    return replace(outcome, value=value)


def as_number(value: Any) -> float:
    """A float, from Python's, numpy's or torch's numbers.

    Raises:
        OutcomeError: anything else, such as a string, ``None``, a boolean or a vector.
    """
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        value = item()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise OutcomeError(f"an evaluation must return a number or an Outcome, but got {value!r} ({type(value).__name__})")
