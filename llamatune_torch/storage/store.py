"""The contract of a store, which keeps one study, and what all kinds of store have in common.

``memory.py`` and ``durable.py`` hold the kinds. ``tests/contracts.py`` holds each of them to the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from llamatune_torch.constraints import Estimate
from llamatune_torch.decisions import ROUNDING, Decision, carried_out
from llamatune_torch.errors import ParamsError, TrialStateError
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause, Direction, Trial, TrialState

#: Decides what happens next in a study, until so many trials start or nothing else may; the full runs that are left.
Choose = Callable[[Study, int, float], Sequence[Decision]]

#: Computes a trial's next record from its present one and the time (Unix seconds, by the clock of the store).
Change = Callable[[Trial, float], Trial]


class Store(Protocol):
    """Keeps one study, and is the only way to change it.

    Four promises hold for every kind of store. A finished trial never changes; only the late result of a stalled
    worker is still recorded. A new trial is chosen with the knowledge of all that started before it. A result counts
    once. Any number of threads may call at the same time.

    ``study`` is the record as this process last saw it. ``worker`` is the name of this process in ``Trial.worker``;
    it is ``None`` where no other process can take part. ``name`` is the study's name. ``token`` tells the study from
    all others, also from one of its name. ``retries`` is how often at most a stalled worker's trial runs again.
    """

    name: str
    token: str
    retries: int

    @property
    def study(self) -> Study: ...

    @property
    def worker(self) -> str | None: ...

    def may_start(self, max_evals: int, least: float = 1.0) -> bool:
        """Tells whether one more trial may start, as far as this process knows; :meth:`start` has the last word.

        Args:
            max_evals: the number of full runs that may count, over all processes.
            least: the share of a full run that a trial needs at least.
        """

    def start(
        self,
        n: int,
        choose: Choose,
        seed: int,
        max_evals: int,
        least: float = 1.0,
        goes_on: Callable[[], bool] = ...,
    ) -> list[Trial]:
        """Starts ``n`` trials: those to run again first, then what ``choose`` decides.

        There are fewer if what runs has to end or pause first. The list is empty also if ``goes_on()`` has become False
        while another process computed its decision.

        Args:
            n: the number of trials, at least 1.
            choose: decides for the study as it is, with what is running in it.
            seed: the study's seed, from which each new trial derives its own.
            max_evals: the number of full runs that may count, over all processes.
            least: the share of a full run that a trial needs at least.
            goes_on: tells whether trials are still wanted; called again and again during a wait.

        Raises:
            SpaceExhaustedError: from ``choose``; then nothing has started.
            BudgetSpentError: ``choose`` finds nothing to start any more, or too little is left for ``n`` trials; that
                only where other processes may start some too.
        """

    def wait_for_others(self, max_evals: int, goes_on: Callable[[], bool], least: float = 1.0) -> bool:
        """Waits for the trials of other processes when nothing is left to start; True if something is left after all.

        The wait ends when each of these trials has ended, has been lost, or has given a sign of life. It ends early
        when ``goes_on()``, which is called about ten times a second, returns False.
        """

    def change(self, trial: Trial | int, change: Change) -> Trial:
        """Replaces the record of an open trial by what ``change`` makes of it, and returns that.

        Raises:
            TrialStateError: the trial is unknown, has finished, or belongs to another study.
        """

    def report(self, trial: Trial | int, change: Change) -> Trial:
        """Does the same as :meth:`change` for a point of a curve: a failed write does not stop the training."""

    def add(self, params: Params, seed: int, finish: Change) -> Trial:
        """Records a trial that was evaluated elsewhere; it starts and finishes at once."""

    def settle(self, metric: str, direction: Direction) -> None:
        """Names the score and its direction, where both are learnt from the first trial.

        Raises:
            TrialStateError: a trial has completed already, with the other direction.
        """

    def estimate(self, estimates: Sequence[Estimate]) -> None:
        """Puts estimates on record, unless there are some."""

    def conclude(self, reason: str) -> None:
        """Writes down why the search has ended before its budget; see ``Study.ended``."""


def carry_out(
    study: Study, decisions: Sequence[Decision], seed: int, now: float, put: Callable[[Trial], Study]
) -> list[Trial]:
    """Carries out decisions one after the other, and returns the trials that run from now on.

    Args:
        study: the record.
        decisions: from ``Choose``.
        seed: the study's seed.
        now: in Unix seconds.
        put: writes a trial, and returns the record with it.
    """
    started = []
    for decision in decisions:
        trial = carried_out(study, decision, seed, now)
        if trial is not None:
            study = put(trial)
            started += [trial] if trial.state is TrialState.RUNNING else []
    return started


def check_number(trial: Trial | int, count: int) -> int:
    """Returns the number of a trial, which must be one of ``count``.

    Raises:
        TrialStateError: there is no trial of that number.
    """
    number = trial.number if isinstance(trial, Trial) else trial
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
        raise TrialStateError(f"trial {number!r} is unknown; this study has {count} trials")
    return number


def check_open(own: Trial, given: Trial | int) -> Trial:
    """Returns the study's ``own`` trial, which must be open and the same as the one ``given``.

    Raises:
        TrialStateError: it has finished, or the given one belongs to another study.
    """
    # Its parameters do not count: they are the user's copy, with values in the place of labels.
    if isinstance(given, Trial) and (own.seed, own.started) != (given.seed, given.started):
        raise TrialStateError(f"trial {own.number} belongs to another study: its seed or start differs")
    if not own.is_open:
        raise TrialStateError(f"trial {own.number} has finished ({own.state}) and cannot change")
    return own


def is_settled(study: Study, own: str | None) -> bool:
    """Tells whether values depend on the direction: a trial has worked, or runs at a worker other than ``own``."""
    return study.has_worked or any(t.state is TrialState.RUNNING and t.worker != own for t in study.trials)


def check_direction(study: Study, direction: Direction) -> None:
    """Refuses another direction for values that have been read in this one.

    Raises:
        TrialStateError: a trial has completed or paused, and ``direction`` is not the study's.
    """
    if study.has_worked and direction != study.direction:
        raise TrialStateError(f"the direction cannot become {direction!r} after a trial has completed or paused")


def to_retry(trials: Sequence[Trial], space: SearchSpace, retries: int = 0) -> list[Trial]:
    """Finds the trials to run again before anything new, each with its parameters and its seed.

    A trial that stalled with its worker runs again up to ``retries`` times; one that somebody killed runs once more.
    Neither runs again while another trial of the same origin is running, or after one has come to an end of its own.
    A retry that was given back (Ctrl-C) does not count as one. A trial that is FAILED because it stalled too often
    has come to its end, also for a process that allows more retries.

    Args:
        trials: the record, in the order of their numbers.
        space: the present space; parameters that do not fit it are not tried again.
        retries: the largest number of retries after stalled workers.

    Returns:
        New records, not started yet, numbered on from ``trials``.
    """
    tries: dict[int, list[Trial]] = {}
    if any(trial.cause in (Cause.SILENT, Cause.KILLED) for trial in trials):
        for trial in trials:
            tries.setdefault(trial.first, []).append(trial)
    due: list[Trial] = []
    for same in tries.values():
        stalled = sum(trial.cause is Cause.SILENT for trial in same)
        killed = sum(trial.cause is Cause.KILLED for trial in same)
        if stalled + killed == 0 or stalled > retries or killed > 1 or not all(map(is_inconclusive, same)):
            continue
        if same[0].origin != "added" and _fits(same[0].params, space):
            due.append(_repeated(same, len(trials) + len(due)))
    return due


def _repeated(same: Sequence[Trial], number: int) -> Trial:
    """Makes the record of a trial that runs again; if it has paused before, it goes on from there."""
    again = Trial(number, same[0].params, same[0].seed, "retry", retry_of=same[0].first, until=same[-1].until)
    last = same[-1]
    return replace(again, curve=last.curve, reached=last.reached, pauses=last.pauses) if last.pauses else again


def may_decide(study: Study, left: float, n: int, least: float) -> bool:
    """Tells whether a strategy may still find something to do, with so many full runs left for ``n`` trials.

    Without budget for another run, it may still stop paused ones. Runs count as full ones until the first has paused,
    so that there may be more left than it seems.
    """
    if left >= n * least - ROUNDING:
        return True
    return least < 1 and bool(study.paused or (study.pending and not study.can_pause))


def num_left(study: Study, max_evals: int, due: Sequence[Trial]) -> float:
    """Counts the full runs that may still start, ``due`` trials among them.

    A due trial is free if its first run has been counted already.
    """
    counted = {trial.first for trial in study.trials if trial.state is TrialState.FAILED}
    return round(max_evals - study.spent + sum(trial.first in counted for trial in due), 9)


def is_inconclusive(trial: Trial) -> bool:
    """Tells whether an end says nothing about the parameters."""
    return trial.state is TrialState.LOST or trial.cause is Cause.KILLED


def _fits(params: Params, space: SearchSpace) -> bool:
    try:
        space.validate(params)
    except ParamsError:
        return False
    return True
