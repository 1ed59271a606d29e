"""The loop: asks for a trial, has it run somewhere, records its outcome. It is the same for all runners."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError
from typing import Any

from llamatune_torch.errors import (
    BudgetSpentError,
    EvaluationError,
    ExecutorError,
    LlamaTuneError,
    SettingsError,
    SpaceExhaustedError,
    StorageError,
    TrialStateError,
)
from llamatune_torch.runtime.display import advance, live_display, log_resumed, log_stopped, log_trial
from llamatune_torch.runtime.evaluation import Evaluate, failure_of, is_of_one_trial, place_of
from llamatune_torch.runtime.events import notify
from llamatune_torch.runtime.interrupts import Interrupts
from llamatune_torch.runtime.runners import Job, Runner
from llamatune_torch.runtime.search import Search
from llamatune_torch.study import Study
from llamatune_torch.trial import Outcome, Trial, TrialState

logger = logging.getLogger(__name__)

#: Called in the loop's thread with a trial and its outcome; returns the outcome to record.
OnOutcome = Callable[[Trial, Outcome], Outcome]

#: The same exception in so many trials in a row is a mistake in the code, unless something has worked.
SAME_ERRORS = 3

#: So many times an outcome is put off, each after the patience of the storage, which is a minute.
MOST_PUT_OFFS = 10

_OUTAGE = 30.0  # seconds until the next attempt to start a trial, while the storage is away and others still run
_POLL = 0.5  # seconds between looks at jobs that cannot say by themselves that they are done


def run_loop(search: Search, evaluate: Evaluate, runner: Runner, on_outcome: OnOutcome) -> None:
    """Evaluates trials until the budget is used up or Ctrl-C is pressed, which sets ``search.interrupted``.

    As soon as one trial ends, its outcome is recorded and the next one is asked for. ``ask``, ``tell``, ``report`` and
    the callbacks are called from this thread only.
    """
    timeout, max_evals = search.limits.timeout, search.limits.max_evals
    deadline = None if timeout is None else time.monotonic() + timeout
    with live_display(max_evals, search.study.trained, search.progress) as bar, Interrupts() as interrupts:
        loop = _Loop(search, evaluate, runner, on_outcome, deadline, bar, interrupts)
        try:
            loop.run()
        except KeyboardInterrupt:
            search.interrupted = True
            if interrupts.count > 1:
                raise


class _Loop:
    def __init__(
        self,
        search: Search,
        evaluate: Evaluate,
        runner: Runner,
        on_outcome: OnOutcome,
        deadline: float | None,
        bar: Any,
        interrupts: Interrupts,
    ) -> None:
        self.search = search
        self.evaluate = evaluate
        self.runner = runner
        self.on_outcome = on_outcome
        self.deadline = deadline
        self.bar = bar
        self.interrupts = interrupts
        #: Running trials by number. A trial has no job yet while it is being submitted.
        self.jobs: dict[int, Job | None] = {}
        # Messages from other threads: the number of a trial, the kind and the content.
        self.messages: queue.SimpleQueue[tuple[int, str, Any]] = queue.SimpleQueue()
        self.thread, self.pid = threading.get_ident(), os.getpid()
        self.exhausted = self.spent = False
        self.lost_in_a_row = 0
        #: How often the same exception has come, with nothing else between and nothing that worked.
        self.repeated: Counter[str] = Counter()
        self.said: set[str] = set()
        #: How often the outcome of a finished trial could not be taken.
        self.put_offs: Counter[int] = Counter()
        #: Why the storage could not be written last; ``None`` once it was written again.
        self.outage: StorageError | None = None
        self.outage_until = 0.0

    def run(self) -> None:
        try:
            try:
                self.runner.check(self.evaluate)
                while (started := self.start_trial()) or self.jobs:
                    self.collect(wait=not started)
            finally:
                self.shut_down()
        except KeyboardInterrupt:
            logger.warning("interrupted after %d finished trials", len(self.search.study.completed))
            raise

    # --- Starting ------------------------------------------------------------------------------------------------

    def start_trial(self) -> bool:
        """Starts a trial if there is room and budget. True if it makes sense to try again at once."""
        self.interrupts.check()
        if self.outage is not None and not self.jobs:
            raise self.outage
        if self.outage is not None and time.monotonic() < self.outage_until:
            return False
        if len(self.jobs) >= self.runner.capacity or self.exhausted or self.spent or not self.may_start():
            return False
        if self.lost_in_a_row > 3 * self.runner.capacity:
            raise ExecutorError(
                f"{self.lost_in_a_row} trials in a row were lost with the workers of an executor: with n_workers "
                f"instead, each trial has a process of its own, and one that kills it is a failed trial"
            )
        before = self.search.study
        try:
            trial = self.search.ask_while(lambda: not self.interrupts.count and self.may_start())
        except BudgetSpentError as error:
            # Trials of other processes may still be lost and run again. While something runs here, there is time.
            if self.jobs:
                return False
            with self.interrupts.allowed():
                if self.search.wait_for_others(self.may_start):
                    return True
            if self.may_start():
                self.spent = True
                log_stopped(self.search.study, before)
                self.log_once(logging.INFO, str(error))
            return False
        except SpaceExhaustedError as error:
            self.exhausted = True  # until a running trial is lost, which frees its point
            if not self.jobs:
                self.log_once(logging.INFO, f"stopped early: {error}")
            return False
        except StorageError as error:
            if not self.jobs:
                raise
            self.bear(error)
            return False
        self.outage = None
        log_stopped(self.search.study, before)
        if trial is None:
            return self.wait_for_a_result()
        self.jobs[trial.number] = None
        log_resumed(trial)
        notify(self.search.callbacks, "on_start" if trial.resumed is None else "on_resume", self.search, trial)
        job = self.submit(trial)
        self.jobs[trial.number] = job
        if hasattr(job, "add_done_callback"):
            job.add_done_callback(lambda _: self.messages.put((trial.number, "done", None)))
        return True

    def wait_for_a_result(self) -> bool:
        """Waits where nothing starts before a running trial has ended. True if it makes sense to try again at once."""
        if self.interrupts.count or not self.may_start():  # seen when it tries again
            return True
        if not self.jobs:  # what runs, runs in other processes
            if not self.search.study.pending:
                raise SettingsError(f"the strategy {self.search.strategy!r} waits, but no trial is running")
            with self.interrupts.allowed():
                time.sleep(_POLL)
            return True
        return False

    def bear(self, error: StorageError) -> None:
        """Goes on without the storage while trials run: each is worth hours. Their results are kept in files."""
        logger.error("the storage is away; %d running trials go on: %s", len(self.jobs), error)
        self.outage, self.outage_until = error, time.monotonic() + _OUTAGE

    def submit(self, trial: Trial) -> Job:
        try:
            with self.interrupts.allowed() if self.runner.synchronous else contextlib.nullcontext():
                return self.runner.submit(self.evaluate, trial, self.post)
        except LlamaTuneError:
            raise
        except Exception as error:
            raise ExecutorError(f"the executor takes no trial: {error!r}") from error

    def may_start(self) -> bool:
        """True if one more trial may start."""
        search = self.search
        if search.stopping or not search.may_ask():
            return False
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.log_once(logging.INFO, f"stopped: the timeout of {search.limits.timeout:g} s has passed")
            return False
        most_cost, study = search.limits.max_cost, search.study
        if most_cost is not None and (cost := study.cost + self.running_cost(study)) >= most_cost:
            self.log_once(logging.INFO, f"stopped: max_cost={most_cost:g} is reached, with {cost:.4g} s of all runs")
            return False
        failed, most = len(search.study.failed), search.limits.max_failures
        if most is not None and failed > most:
            reasons = search.study.failures_by_reason()
            self.log_once(logging.ERROR, f"stopped: {failed} trials failed, max_failures={most}: {reasons}")
            return False
        return True

    def running_cost(self, study: Study) -> float:
        """Seconds that trials have been running for which are running now."""
        now = time.time()
        return sum(max(0.0, now - (trial.resumed or trial.started or now)) for trial in study.pending)

    def log_once(self, level: int, message: str) -> None:
        if message not in self.said:
            self.said.add(message)
            logger.log(level, "%s", message)

    # --- Listening to what runs ----------------------------------------------------------------------------------

    def post(self, number: int, kind: str, content: Any) -> None:
        """Takes a message of a trial, from any thread. The loop's own thread handles its messages at once."""
        if threading.get_ident() == self.thread:
            self.handle(number, kind, content)
        else:
            self.messages.put((number, kind, content))

    def handle(self, number: int, kind: str, content: Any) -> None:
        if kind == "report" and number in self.jobs:
            trial = self.search.report(number, *content)
            notify(self.search.callbacks, "on_report", self.search, trial)
        elif kind == "warning" and repr(content) not in self.said:  # each process gives it anew
            self.said.add(repr(content))
            warnings.warn(content, stacklevel=2)

    def collect(self, wait: bool) -> None:
        """Handles messages and records finished trials. With ``wait``, blocks until there is a message or ``_POLL``."""
        messages = []
        if wait:
            with self.interrupts.allowed(), contextlib.suppress(queue.Empty):
                messages.append(self.messages.get(timeout=_POLL))
        # Finished jobs are listed before the queue is emptied: all that they have reported is in it by then.
        finished = self.list_finished()
        while not self.messages.empty():
            messages.append(self.messages.get())
        for message in messages:
            self.handle(*message)
        for number in finished:
            if number in self.jobs:  # a broken pool takes several trials with it
                self.settle(number)

    def list_finished(self) -> list[int]:
        return [number for number, job in self.jobs.items() if job is not None and job.done()]

    # --- Ending --------------------------------------------------------------------------------------------------

    def settle(self, number: int) -> None:
        """Records the outcome of a trial whose job is done."""
        job, trial = self.jobs[number], self.search.study.trials[number]
        assert job is not None
        try:
            result = job.result()
        except (KeyboardInterrupt, CancelledError):  # raised where the trial ran, not here
            self.lose(number, "interrupted where it ran")
            return
        except BrokenExecutor as error:
            self.settle_broken_pool(error)
            return
        except LlamaTuneError:
            raise
        except Exception as error:  # not the evaluation's own, which comes as an outcome: it never got to its end
            result = failure_of(error)
        if isinstance(result, LlamaTuneError):
            if not is_of_one_trial(result, self.search.study):
                raise result
            result = failure_of(result)
        try:
            outcome = self.on_outcome(trial, result)
        except StorageError as error:
            self.put_off(number, error)
            return
        try:
            finished = self.record(trial, outcome)
        except TrialStateError:
            finished = self.search.study.trials[number]
            if finished.is_open:
                raise
            # Somebody has told it by hand, or from another process: the result on record stays.
            logger.warning("trial %d: has a result already; this one is not kept: %s", number, result)
        self.exhausted = False
        self.lost_in_a_row = 0
        self.announce(finished)

    def put_off(self, number: int, error: StorageError) -> None:
        """Leaves a finished trial for the next look, while the study cannot be read or written to take its outcome.

        Raises:
            StorageError: the study is another one, or it has been away too often for this trial.
        """
        self.put_offs[number] += 1
        if type(error) is not StorageError or self.put_offs[number] == MOST_PUT_OFFS:
            raise error
        self.bear(error)

    def record(self, trial: Trial | int, outcome: Outcome) -> Trial:
        """Records an outcome: in the storage, or in a file until the storage is back."""
        number = trial if isinstance(trial, int) else trial.number
        try:
            finished = self.search.tell(trial, outcome)
        except StorageError as error:
            finished = self.search.study.trials[number]
            if finished.state is TrialState.RUNNING:  # not even here
                raise
            self.bear(error)
            return finished
        self.outage = None
        return finished

    def announce(self, finished: Trial) -> None:
        del self.jobs[finished.number]
        advance(self.bar, self.search.study.trained)
        log_trial(self.search.study, finished)
        is_over = finished.state is not TrialState.PAUSED
        notify(self.search.callbacks, "on_finish" if is_over else "on_pause", self.search, finished)
        self.check_repeated(finished)

    def check_repeated(self, finished: Trial) -> None:
        """Raises an exception that comes from the same line in each trial, before it has cost the whole budget."""
        place = place_of(finished)
        if place is None or self.search.study.has_worked:
            return
        self.repeated = Counter({place: self.repeated[place] + 1})
        if self.repeated[place] == SAME_ERRORS:
            raise EvaluationError(
                f"the search ends, because nothing has completed and {SAME_ERRORS} trials in a row raised the same "
                f"{finished.reason}. Parameters that cannot work are Outcome.failure(reason), which does not count. "
                f"The last of them, trial {finished.number}:\n{finished.error}"
            )

    def settle_broken_pool(self, error: BrokenExecutor) -> None:
        """Settles the trials of a pool that broke because one of its workers died."""
        there = [n for n, job in self.jobs.items() if job is not None and not (job.done() and _has_result(job))]
        if len(there) == 1:
            died = Outcome.failure("worker died", f"its process ended abruptly: {error}")
            self.announce(self.record(there[0], died))
            return
        for number in there:  # any of them may have killed the worker, so none is blamed
            self.lose(number, "a worker of its pool died")

    def lose(self, number: int, reason: str) -> None:
        try:
            self.search.abandon(number, reason)
        except StorageError as error:
            self.bear(error)
        del self.jobs[number]
        self.exhausted = False
        self.lost_in_a_row += 1
        logger.warning("trial %d: lost: %s", number, reason)

    def shut_down(self) -> None:
        """Records what is done, stops the rest and gives it back: a LOST trial counts for nothing."""
        if os.getpid() != self.pid:  # an evaluation has forked, and its child unwinds: all of this is the parent's
            return
        try:
            for number in self.list_finished():
                # A mistake that shows in several trials has been raised once already.
                with contextlib.suppress(LlamaTuneError):
                    if number in self.jobs:
                        self.settle(number)
        finally:
            for job in self.jobs.values():
                getattr(job, "cancel", lambda: None)()
            try:
                self.give_back()
            finally:
                self.jobs.clear()
                self.runner.close()

    def give_back(self) -> None:
        """Gives back what is running; where that cannot be written, its worker falls silent."""
        for number in list(self.jobs):
            if self.search.study.trials[number].state is TrialState.RUNNING:
                try:
                    self.search.abandon(number, "interrupted")
                except TrialStateError:  # somebody has told it by hand
                    continue
                except StorageError as error:
                    logger.warning("trial %d could not be given back: %s", number, error)


def _has_result(job: Job) -> bool:
    try:
        job.result()
    except BaseException:
        return False
    return True
