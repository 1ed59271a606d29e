"""The contract of a place where a study lives, and what every kind of place does alike.

``memory.py`` and ``durable.py`` have the kinds. Both are held to the contract by ``tests/contracts.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from llamatune_torch.errors import ParamsError, TrialStateError
from llamatune_torch.seeds import derived_seed
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause, Direction, Suggestion, Trial, TrialState

#: The next so many suggestions for a study.
Choose = Callable[[Study, int], list[Suggestion]]

#: A trial's next record, from its present one and the time (Unix seconds, by the clock of whoever keeps the study).
Change = Callable[[Trial, float], Trial]


class Store(Protocol):
    """One study that lives somewhere.

    ``study`` is the record as this process last saw it, ``worker`` who runs trials here, as in ``Trial.worker``.
    """

    @property
    def study(self) -> Study: ...

    @property
    def worker(self) -> str | None: ...

    def may_start(self, max_evals: int) -> bool:
        """Whether one more trial may start, as far as is known here; where others start some too, ``start`` decides."""

    def start(self, n: int, choose: Choose, seed: int, max_evals: int) -> list[Trial]:
        """Starts ``n`` trials, each knowing all that were started before, by whomever; those to run again come first.

        Raises:
            SpaceExhaustedError: from ``choose``; then nothing has started.
            BudgetSpentError: fewer than ``n`` of ``max_evals`` trials are left; only where others may start some too.
        """

    def wait_for_others(self, max_evals: int, goes_on: Callable[[], bool]) -> bool:
        """Whether there is something to do again after all, when the budget is used up and nothing runs here.

        Waits until the trials that others run have ended, have been lost, or have given a sign of life; but no longer
        than ``goes_on`` allows, which is asked every tenth of a second or so.
        """

    def change(self, trial: Trial | int, change: Change) -> Trial:
        """Puts the record that ``change`` returns in the place of an open trial's.

        Raises:
            TrialStateError: the trial is unknown, has finished, or belongs to another study.
        """

    def report(self, trial: Trial | int, change: Change) -> Trial:
        """As :meth:`change`, for what a training need not stop for if it cannot be written at once."""

    def add(self, params: Params, seed: int, finish: Change) -> Trial:
        """Records a trial that was evaluated elsewhere, started and finished at once."""

    def settle(self, metric: str, direction: Direction) -> None:
        """Names the score and its direction.

        Raises:
            TrialStateError: a trial has completed already, with the other direction.
        """


def started_trial(number: int, suggestion: Suggestion, seed: int, now: float) -> Trial:
    """The record of a trial that starts now, with a seed of its own."""
    return Trial(number, suggestion.params, derived_seed(seed, number), suggestion.origin, started=now)


def number_of(trial: Trial | int, count: int) -> int:
    """The number of a trial that is meant, of ``count``.

    Raises:
        TrialStateError: there is none of that number.
    """
    number = trial.number if isinstance(trial, Trial) else trial
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
        raise TrialStateError(f"trial {number!r} is unknown; this study has {count} trials")
    return number


def check_open(own: Trial, given: Trial | int) -> Trial:
    """A study's ``own`` trial, which is the one ``given`` and may change.

    Raises:
        TrialStateError: it has finished, or what was given belongs to another study.
    """
    if isinstance(given, Trial) and (own.params, own.seed, own.started) != (given.params, given.seed, given.started):
        raise TrialStateError(f"trial {own.number} belongs to another study: its parameters or start differ")
    if not own.is_open:
        raise TrialStateError(f"trial {own.number} has finished ({own.state}) and cannot change")
    return own


def is_settled(study: Study, own: str | None) -> bool:
    """Whether values have been read by their direction already, or workers other than ``own`` are about to."""
    complete, running = TrialState.COMPLETE, TrialState.RUNNING
    return any(t.state is complete or (t.state is running and t.worker != own) for t in study.trials)


def check_direction(study: Study, direction: Direction) -> None:
    """Refuses to turn the direction around once values have been read."""
    if study.completed and direction != study.direction:
        raise TrialStateError(f"the direction cannot become {direction!r} after a trial has completed")


def to_retry(trials: Sequence[Trial], space: SearchSpace, retries: int = 0) -> list[Trial]:
    """The trials to run again before anything new, each with its parameters and its seed; numbered on from ``trials``.

    A trial that stalled with its worker runs again up to ``retries`` times, one that somebody killed once more. Neither
    does if another trial with the same origin is running or has come to an end of its own. A retry that was given back
    (Ctrl-C) does not count as one. A trial that is FAILED because it stalled too often has come to its end, also for a
    process that allows more retries.

    Args:
        trials: the record, in the order of their numbers.
        space: the present one; parameters that do not fit it are not tried again.
        retries: how often at most, after stalled workers.
    """
    tries: dict[int, list[Trial]] = {}
    if any(trial.cause in (Cause.SILENT, Cause.KILLED) for trial in trials):
        for trial in trials:
            tries.setdefault(trial.first, []).append(trial)
    due: list[Trial] = []
    for first, same in tries.items():
        stalled = sum(trial.cause is Cause.SILENT for trial in same)
        killed = sum(trial.cause is Cause.KILLED for trial in same)
        if stalled + killed == 0 or stalled > retries or killed > 1 or not all(map(_is_inconclusive, same)):
            continue
        if same[0].origin != "added" and _fits(same[0].params, space):
            number = len(trials) + len(due)
            due.append(Trial(number, same[0].params, same[0].seed, "retry", retry_of=first))
    return due


def num_left(study: Study, max_evals: int, due: Sequence[Trial]) -> int:
    """How many trials may still start, of which ``due`` are some; what has been counted once is free."""
    counted = {trial.first for trial in study.trials if trial.state is TrialState.FAILED}
    return max_evals - study.num_counted + sum(trial.first in counted for trial in due)


def _is_inconclusive(trial: Trial) -> bool:
    """Whether an end says nothing about the parameters."""
    return trial.state is TrialState.LOST or trial.cause is Cause.KILLED


def _fits(params: Params, space: SearchSpace) -> bool:
    try:
        space.validate(params)
    except ParamsError:
        return False
    return True
