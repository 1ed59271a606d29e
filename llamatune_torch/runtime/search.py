"""A search whose loop is somebody's own: ask for parameters, tell what came of them."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from llamatune_torch.constraints import Estimate
from llamatune_torch.decisions import Decision, Finish
from llamatune_torch.errors import (
    BudgetSpentError,
    ConstraintError,
    ObjectiveError,
    OutcomeError,
    SettingsError,
    StillRunningError,
    StorageError,
)
from llamatune_torch.runtime.events import Callback
from llamatune_torch.runtime.threads import one_thread
from llamatune_torch.settings import Limits, Settings
from llamatune_torch.space import SearchSpace
from llamatune_torch.storage.memory import FollowerStore, MemoryStore
from llamatune_torch.storage.store import Change, Store, check_number
from llamatune_torch.study import Study
from llamatune_torch.tables import show_value
from llamatune_torch.trial import Cause, Direction, Outcome, Trial, as_outcome

if TYPE_CHECKING:
    from llamatune_torch.engine.recommend import Recommendation
    from llamatune_torch.engine.relaxing import Relaxation
    from llamatune_torch.engine.strategies.strategy import Strategy

# The engine is imported where it is asked, and where a search is opened: torch takes seconds to load, and hundreds of
# megabytes. A trial's process, which imports the program that opens the search, does without.

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
        #: True if evaluations are known to be able to pause, so that "auto" is a strategy in which they do.
        self.can_pause = False
        #: What an evaluation is to know of the trial that starts next; rank 0's reaches the other ranks.
        self.orders: Any = None
        self._lock = threading.RLock()  # one suggestion at a time: the number of threads is torch's, not a thread's

    def __repr__(self) -> str:
        """One line: the name, the goal, the number of trials, the best value."""
        study = self.study
        none = "none feasible" if study.completed else "none complete"
        found = f"best {show_value(study.best_value)}" if study.feasible else none
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

        Of a stored study, it sees what all processes have asked for, and runs lost trials again first. A trial may be
        one that has paused, and goes on. Train it to the share ``trial.until``, then :meth:`pause` it; or tell its
        outcome, if it ends before. ``params`` are a copy, with values in the place of labels; the record in
        ``study.trials`` has the labels.

        Raises:
            SpaceError: the space was read from a database, which has no value for a label.
            SpaceExhaustedError: a finite space has fewer points left.
            BudgetSpentError: a stored study has fewer of ``max_evals`` left, for all processes together; or the
                strategy starts nothing any more.
            StillRunningError: the strategy wants the result of a running trial first.
            SettingsError: ``n`` is not a positive integer.
            StorageError: the storage cannot be reached.
        """
        if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
            raise SettingsError(f"ask(n) needs an integer n >= 1, but got {n!r}")
        self._pid = os.getpid()
        space = self.study.space
        space.require_values()
        trials = [replace(trial, params=space.values_of(trial.params)) for trial in self._start(n or 1)]
        if not trials:
            raise StillRunningError(f"nothing is to start until one of {len(self.study.pending)} running trials ends")
        return trials[0] if n is None else trials

    def ask_while(self, goes_on: Callable[[], bool]) -> Trial | None:
        """The record of the loop's next trial; ``None`` if one has to end first, or ``goes_on()`` becomes False."""
        trials = self._start(1, goes_on)
        return trials[0] if trials else None

    def decide(self, n: int = 1) -> list[Decision]:
        """The decisions that the next ``ask(n)`` would carry out, as far as this process knows the study.

        ``Start`` starts a trial and ``Resume`` lets one go on; ``Discard`` stops a paused one. ``Wait`` and
        ``Finish`` say why fewer than ``n`` start.

        Raises:
            SpaceExhaustedError: a finite space has fewer points left.
        """
        return self._choose(self.study, n, self.limits.max_evals - self.study.spent)

    @property
    def strategy(self) -> Strategy:
        """The strategy that the settings name; the default's run is none of its own."""
        from llamatune_torch.engine.decide import find_strategy

        max_evals = self.limits.max_evals - (self.study.space.default is not None)
        alone = not self.study.goal.others and not self.study.past  # with past studies, nobody has measured the others
        return find_strategy(self.settings, max_evals, self.can_pause and alone)

    def _start(self, n: int, goes_on: Callable[[], bool] = lambda: True) -> list[Trial]:
        least, last = self.strategy.least, list[Decision]()

        def choose(study: Study, n: int, left: float) -> list[Decision]:
            last[:] = decisions = self._choose(study, n, left)
            return decisions

        try:
            return self._store.start(n, choose, self.settings.seed, self.limits.max_evals, least, goes_on)
        except BudgetSpentError:
            if (self.settings.stopping or self.settings.confirm) and last and isinstance(last[-1], Finish):
                self._store.conclude(last[-1].reason)
            raise

    def tell(self, trial: Trial | int, outcome: float | Outcome) -> Trial:
        """Records what came of a trial, and returns its final record.

        nan makes it FAILED, as does an ``Outcome`` with an error; the search then steers away from such
        parameters. If ``outcome`` has no ``cost``, the seconds since ``ask`` are recorded. A paused one
        (``Outcome(paused=True)``) makes the trial PAUSED. In a forked child, a trial that its parent asked for stays as
        it is.

        Args:
            trial: what ``ask`` returned, or its number.
            outcome: a number or an :class:`Outcome`.

        Raises:
            TrialStateError: the trial is unknown, has finished, or belongs to another optimizer.
            OutcomeError: ``outcome`` is neither, or it is paused, but the trial was started to train to its end. The
                trial keeps running.
            ConstraintError: a constraint is on an outcome that neither this trial nor any other has reported.
            StorageError: it could not be written for a minute; the message has the value, and says where it is kept.
        """
        checked = as_outcome(outcome, self.study.direction)
        self._check_measured(checked)
        if checked.paused:
            return self._change(trial, lambda running, now: running.paused_with(checked, now))
        return self._change(trial, lambda running, now: running.finished_with(checked, now))

    def pause(self, trial: Trial | int) -> Trial:
        """Records that a trial has trained to the share that it was started for, and can go on from there.

        If its newest value is nan, it has FAILED instead.

        Raises:
            TrialStateError, OutcomeError, StorageError: as :meth:`tell`.
        """
        return self.tell(trial, Outcome(paused=True))

    def report(self, trial: Trial | int, step: float, value: float, progress: float | None = None) -> Trial:
        """Adds a point to the learning curve of a running trial; arguments as ``Curve.reported``.

        Raises:
            TrialStateError: as :meth:`tell`.
            OutcomeError: as ``Curve.reported``.
        """

        def add(running: Trial, now: float) -> Trial:
            # A run that goes on from a checkpoint, or has lost it, reports some steps again.
            before = running.curve.before(step) if running.pauses else running.curve
            return replace(running, curve=before.reported(step, value, progress))

        return self._store.report(trial, add)

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

        Choices may be given by label or by value.

        Raises:
            ParamsError: the parameters are not in the space.
            OutcomeError: as :meth:`tell`; or it is paused.
        """
        canonical = self.study.space.validate(params)
        checked = as_outcome(outcome, self.study.direction)
        if checked.paused:
            raise OutcomeError("a trial that was evaluated elsewhere has a value, or has failed, but is not paused")
        return self._store.add(canonical, self.settings.seed, lambda new, now: new.finished_with(checked, now))

    def recommend(self) -> Trial:
        """The finished trial to use: where outcomes are noisy, not the luckiest but the best on average.

        It is a record: where choices have labels, ``study.space.values_of(trial.params)`` gives their values.

        Raises:
            NoCompletedTrialError: nothing has completed yet.
        """
        from llamatune_torch.engine.recommend import recommend

        with self.computing(self.study):
            return recommend(self.study, self.settings)

    def recommendation(self) -> Recommendation:
        """:meth:`recommend`, and how sure that is: the interval of its value, its probability to beat others.

        Raises:
            NoCompletedTrialError: nothing has completed yet.
        """
        from llamatune_torch.engine.recommend import explain

        with self.computing(self.study):
            return explain(self.study, self.settings)

    def relaxations(self) -> list[Relaxation]:
        """Says what the best parameters would gain if each limit that binds were a tenth looser; print them.

        Raises:
            NoCompletedTrialError: nothing has completed yet; as NoFeasibleTrialError: nothing keeps the limits.
        """
        from llamatune_torch.engine.relaxing import relaxations

        with self.computing(self.study):
            return relaxations(self.study, self.settings)

    def hypervolume_trace(self) -> list[float]:
        """The hypervolume of the Pareto front after each completed trial (``engine/hypervolume.py``).

        Raises:
            ObjectiveError: the study has one objective only.
        """
        from llamatune_torch.engine.hypervolume import hypervolume_trace

        return hypervolume_trace(self.study)

    def settle_metric(self, metric: str, direction: Direction) -> None:
        """Names the score and its direction, for evaluations that learn both from their first trial.

        Raises:
            TrialStateError: a trial has completed already, so its value has been read the other way.
            StudyMismatchError: the same, of a stored study; also if its metric has another name.
        """
        self._store.settle(metric, direction)

    def estimate(self, estimates: Sequence[Estimate]) -> None:
        """Puts on record what limited outcomes are believed to be, before anything is measured.

        A study keeps the estimates that it has.
        """
        self._store.estimate(estimates)

    def follow(self, study: Study, worker: str | None, orders: Any) -> None:
        """Takes over the study and the orders of rank 0, which is ``worker``, on the other ranks under ``torchrun``."""
        self.orders = orders
        # The order is that of the stored study. The values of labels are of this process.
        known = self.study.space
        space = {name: known[name] for name in study.space.names}
        study = replace(study, space=SearchSpace(space, rule=known.rules, default=study.space.default))
        self._store = MemoryStore(study) if worker is None else FollowerStore(study, worker)

    def stop(self) -> None:
        """Lets :meth:`optimize` start no further trial; for callbacks, or from another thread."""
        self.stopping = True

    def may_ask(self) -> bool:
        """True if one more trial may start, as far as is known here. Of a stored study, only ``ask`` can say."""
        return self._store.may_start(self.limits.max_evals, self.strategy.least)

    def wait_for_others(self, goes_on: Callable[[], bool] = lambda: True) -> bool:
        """Waits for the trials of other processes, when the budget is used up and nothing runs here.

        The wait ends when those trials have ended, have been lost, or have given a sign of life. That takes seconds if
        they are alive, ``grace`` at most. It also ends as soon as ``goes_on`` returns False.

        Returns:
            True if there is something to do again after all.
        """
        return self._store.wait_for_others(self.limits.max_evals, goes_on, self.strategy.least)

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

    def _check_measured(self, outcome: Outcome) -> None:
        """Refuses an outcome without what a constraint limits, while no trial has ever measured that."""
        if outcome.value is None:
            return
        for limit in self.study.constraints:
            if limit.name not in outcome.outcomes and not any(limit.name in t.outcomes for t in self.study.trials):
                measured = sorted(outcome.outcomes) or "nothing besides its value"
                raise ConstraintError(f"{limit}: the evaluation does not report {limit.name!r}; it reports {measured}")
        for each in self.study.goal.others:
            if each.name not in outcome.outcomes and not any(each.name in t.outcomes for t in self.study.trials):
                measured = sorted(outcome.outcomes) or "nothing besides its value"
                raise ObjectiveError(f"{each}: the evaluation does not report {each.name!r}; it reports {measured}")

    def _change(self, trial: Trial | int, change: Change) -> Trial:
        """Ends a trial, unless it is the parent's, which a forked child on its way out must not end."""
        if os.getpid() != self._pid:
            known = self.study.trials[check_number(trial, len(self.study.trials))]
            logger.warning("trial %d: left as it is, since it is the trial of the parent of this process", known.number)
            return known
        return self._store.change(trial, change)

    def _choose(self, study: Study, n: int, left: float) -> list[Decision]:
        from llamatune_torch.engine.confirm import affordable
        from llamatune_torch.engine.decide import decide
        from llamatune_torch.engine.strategies.full import Full

        strategy = self.strategy
        if self.settings.confirm:
            left = min(left, affordable(study, self.limits.max_cost))
        elif isinstance(strategy, Full):
            left = math.inf  # of a study in memory, people may ask for more than the loop would
        with self.computing(study):
            return decide(study, self.settings, strategy, n, left)

    @contextmanager
    def computing(self, study: Study) -> Iterator[None]:
        """One suggestion at a time, in one thread."""
        from llamatune_torch.engine.data import choose_device

        with self._lock, one_thread(choose_device(self.settings.device, len(study.completed))):
            yield
