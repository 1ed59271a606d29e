"""Where a study lives: what ``LlamaTune`` needs of it, and the simplest kind, which lives in memory.

``storage.py`` has the durable kind. Both are held to the same contract (``tests/contracts.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llamatune_torch.errors import TrialStateError
from llamatune_torch.seeds import derived_seed
from llamatune_torch.space import Params
from llamatune_torch.study import Study
from llamatune_torch.trial import Direction, Suggestion, Trial, TrialState

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

    def start(self, n: int, choose: Choose, seed: int, max_evals: int) -> list[Trial]:
        """Starts ``n`` trials, each knowing all that were started before, by whomever.

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
