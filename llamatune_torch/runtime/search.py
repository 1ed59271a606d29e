"""A search whose loop is somebody's own: ask for parameters, tell what came of them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

from llamatune_torch.engine.data import choose_device
from llamatune_torch.engine.recommend import recommend
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.errors import SettingsError, StorageError
from llamatune_torch.runtime.events import Callback
from llamatune_torch.runtime.threads import one_thread
from llamatune_torch.settings import Limits, Settings
from llamatune_torch.storage.memory import FollowerStore, MemoryStore
from llamatune_torch.storage.store import Change, Store, check_number
from llamatune_torch.study import Study
from llamatune_torch.tables import show_value
from llamatune_torch.trial import Cause, Direction, Outcome, Suggestion, Trial, as_outcome

logger = logging.getLogger(__name__)


class Search:
    """A study and what decides how it goes on; ``LlamaTune`` adds the loop.

    Args:
        store: where the study lives.
        settings: the knobs of the engine.
        limits: when the search ends.
        callbacks, progress: as of ``LlamaTune``.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        limits: Limits,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
    ) -> None:
        self._store = store
        self.settings = settings
        self.limits = limits
        self.callbacks = list(callbacks)
        self.progress = progress
        #: Whether the last run ended by Ctrl-C.
        self.interrupted = False
        #: Whether ``stop()`` was called during the run.
        self.stopping = False
        self._pid = os.getpid()  # of the process whose trials these are
        #: What an evaluation is to know of the trial that starts next; rank 0's reaches the other ranks.
        self.orders: Any = None
        self._lock = threading.RLock()  # one suggestion at a time: the number of threads is torch's, not a thread's

    def __repr__(self) -> str:
        """One line: the name, the goal, the number of trials, the best value."""
        study = self.study
        found = f"best {show_value(study.best_value)}" if study.completed else "none complete"
        goal = f"{study.direction} {study.metric!r}" if study.is_settled else "no metric yet"
        return f"<{type(self).__name__} {self.name!r}: {goal}, {len(study.trials)} trials, {found}>"

    @property
    def study(self) -> Study:
        """The record so far: of a stored study, as this process last saw it; each ``ask`` and ``tell`` looks again."""
        return self._store.study

    @property
    def worker(self) -> str | None:
        """Who runs the trials that this object asks for, as in ``Trial.worker``; only stored studies have others."""
        return self._store.worker

    @property
    def name(self) -> str:
        """The study's name; "study" without a ``storage``."""
        return self._store.name

    @property
    def token(self) -> str:
        """A text that tells the study from all others, also from those of its name."""
        return self._store.token

    @property
    def retries(self) -> int:
        """The number of times that a trial runs again whose worker stalled; 0 without a ``storage``."""
        return self._store.retries

    @overload
    def ask(self, n: None = None) -> Trial: ...
    @overload
    def ask(self, n: int) -> list[Trial]: ...
    def ask(self, n: int | None = None) -> Trial | list[Trial]:
        """The next trial to evaluate, or with ``n`` a list of ``n`` trials to evaluate at the same time.

        Of a stored study, it sees what all processes have asked for, and runs lost trials again first.

        Raises:
            SpaceExhaustedError: a finite space has fewer points left.
            BudgetSpentError: a stored study has fewer of ``max_evals`` left, for all processes together.
            SettingsError: ``n`` is not a positive integer.
            StorageError: the storage cannot be reached.
        """
        if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
            raise SettingsError(f"ask(n) needs an integer n >= 1, but got {n!r}")
        self._pid = os.getpid()
        trials = self._store.start(n or 1, self._choose, self.settings.seed, self.limits.max_evals)
        return trials[0] if n is None else trials

    def ask_while(self, goes_on: Callable[[], bool]) -> Trial | None:
        """:meth:`ask` for the loop: ``None`` if ``goes_on()`` becomes False while others compute their suggestions."""
        trials = self._store.start(1, self._choose, self.settings.seed, self.limits.max_evals, goes_on)
        return trials[0] if trials else None

    def tell(self, trial: Trial | int, outcome: float | Outcome) -> Trial:
        """Records what came of a trial, and returns its final record.

        nan makes it FAILED, as does an ``Outcome`` with an error; the search then steers away from such
        parameters. If ``outcome`` has no ``cost``, the seconds since ``ask`` are recorded. In a forked child, a trial
        that its parent asked for stays as it is.

        Args:
            trial: what ``ask`` returned, or its number.
            outcome: a number or an :class:`Outcome`.

        Raises:
            TrialStateError: the trial is unknown, has finished, or belongs to another optimizer.
            OutcomeError: ``outcome`` is neither; the trial keeps running.
            StorageError: it could not be written for a minute; the message has the value, and says where it is kept.
        """
        checked = as_outcome(outcome, self.study.direction)
        return self._change(trial, lambda running, now: running.finished_with(checked, now))

    def report(self, trial: Trial | int, step: float, value: float, progress: float | None = None) -> Trial:
        """Adds a point to the learning curve of a running trial; arguments as ``Curve.reported``.

        Raises:
            TrialStateError: as :meth:`tell`.
            OutcomeError: as ``Curve.reported``.
        """
        return self._store.report(
            trial, lambda running, now: replace(running, curve=running.curve.reported(step, value, progress))
        )

    def abandon(self, trial: Trial | int, reason: str) -> Trial:
        """Gives a trial up without blaming its parameters: it becomes LOST, and counts for nothing.

        Raises:
            TrialStateError: as :meth:`tell`.
            OutcomeError: the reason is no text.
        """
        text = str(Outcome(reason=reason).reason)
        return self._change(trial, lambda running, now: running.given_up(Cause.ABANDONED, text, now))

    def add_trial(self, params: Mapping[str, Any], outcome: float | Outcome) -> Trial:
        """Records a trial that was evaluated elsewhere; it informs the search but uses up no budget.

        Raises:
            ParamsError: the parameters are not in the space.
            OutcomeError: as :meth:`tell`.
        """
        canonical = self.study.space.validate(params)
        checked = as_outcome(outcome, self.study.direction)
        return self._store.add(canonical, self.settings.seed, lambda new, now: new.finished_with(checked, now))

    def recommend(self) -> Trial:
        """The finished trial to use: where outcomes are noisy, not the luckiest but the best on average.

        Raises:
            NoCompletedTrialError: nothing has completed yet.
        """
        with self._lock, one_thread(choose_device(self.settings.device, len(self.study.completed))):
            return recommend(self.study, self.settings)

    def settle_metric(self, metric: str, direction: Direction) -> None:
        """Names the score and its direction, for evaluations that learn both from their first trial.

        Raises:
            TrialStateError: a trial has completed already, so its value has been read the other way.
            StudyMismatchError: the same, of a stored study; also if its metric has another name.
        """
        self._store.settle(metric, direction)

    def follow(self, study: Study, worker: str | None, orders: Any) -> None:
        """Takes over the study and the orders of rank 0, which is ``worker``, on the other ranks under ``torchrun``."""
        self.orders = orders
        self._store = MemoryStore(study) if worker is None else FollowerStore(study, worker)

    def stop(self) -> None:
        """Lets :meth:`optimize` start no further trial; for callbacks, or from another thread."""
        self.stopping = True

    def may_ask(self) -> bool:
        """True if one more trial may start, as far as is known here. Of a stored study, only ``ask`` can say."""
        return self._store.may_start(self.limits.max_evals)

    def wait_for_others(self, goes_on: Callable[[], bool] = lambda: True) -> bool:
        """Waits for the trials of other processes, when the budget is used up and nothing runs here.

        The wait ends when those trials have ended, have been lost, or have given a sign of life. That takes seconds if
        they are alive, ``grace`` at most. It also ends as soon as ``goes_on`` returns False.

        Returns:
            True if there is something to do again after all.
        """
        return self._store.wait_for_others(self.limits.max_evals, goes_on)

    def num_counted(self) -> int:
        """Trials that count against ``max_evals``."""
        return self.study.num_counted

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state for pickle and ``copy.deepcopy``: of a search in memory, its study and its settings.

        Raises:
            StorageError: the study is stored, so that a copy would run its trials a second time.
        """
        if type(self._store) is not MemoryStore:
            raise StorageError("a search with a storage cannot be copied: open it again, by its storage and its name")
        return {**vars(self), "_store": self.study, "_lock": None, "_pid": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _store=MemoryStore(state["_store"]), _lock=threading.RLock(), _pid=os.getpid())

    def _change(self, trial: Trial | int, change: Change) -> Trial:
        """Ends a trial, unless it is the parent's, which a forked child on its way out must not end."""
        if os.getpid() != self._pid:
            known = self.study.trials[check_number(trial, len(self.study.trials))]
            logger.warning("trial %d: left as it is, since it is the trial of the parent of this process", known.number)
            return known
        return self._store.change(trial, change)

    def _choose(self, study: Study, n: int) -> list[Suggestion]:
        with self._lock, one_thread(choose_device(self.settings.device, len(study.completed))):
            return suggest(study, self.settings, n)
