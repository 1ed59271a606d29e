"""The loop: asks, has the trial run somewhere, tells; one for all kinds of places where trials run."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError
from typing import Any

from llamatune_torch.errors import (
    BudgetSpentError,
    CallbackWarning,
    ExecutorError,
    LlamaTuneError,
    SpaceExhaustedError,
    TrialStateError,
)
from llamatune_torch.runtime.display import live_display, log_trial
from llamatune_torch.runtime.evaluation import Evaluate, failure_of
from llamatune_torch.runtime.interrupts import Interrupts
from llamatune_torch.runtime.runners import Job, Runner
from llamatune_torch.runtime.search import Search
from llamatune_torch.trial import Outcome, Trial, TrialState

logger = logging.getLogger(__name__)

#: Called here, before an outcome is told, with the trial and the outcome; returns the one to tell.
OnOutcome = Callable[[Trial, Outcome], Outcome]

_POLL = 0.5  # seconds between looks at jobs that cannot say by themselves that they are done


def run_loop(tuner: Search, evaluate: Evaluate, places: Runner, landed: OnOutcome) -> None:
    """Evaluates trials until the budget is used up, or until Ctrl-C, which ``tuner.interrupted`` tells of.

    As soon as one trial ends, its outcome is told and the next is asked for. ``ask``, ``tell``, ``report`` and the
    callbacks are called from this thread only.
    """
    timeout = tuner.limits.timeout
    deadline = None if timeout is None else time.monotonic() + timeout
    with live_display(tuner.limits.max_evals, tuner.num_counted(), tuner.progress) as bar, Interrupts() as interrupts:
        loop = _Loop(tuner, evaluate, places, landed, deadline, bar, interrupts)
        try:
            loop.run()
        except KeyboardInterrupt:
            tuner.interrupted = True
            if interrupts.count > 1:
                raise


class _Loop:
    def __init__(
        self,
        tuner: Search,
        evaluate: Evaluate,
        places: Runner,
        landed: OnOutcome,
        deadline: float | None,
        bar: Any,
        interrupts: Interrupts,
    ) -> None:
        self.tuner = tuner
        self.evaluate = evaluate
        self.places = places
        self.landed = landed
        self.deadline = deadline
        self.bar = bar
        self.interrupts = interrupts
        #: Running trials by number; no job yet while they are submitted.
        self.jobs: dict[int, Job | None] = {}
        # What other threads have to say: the number of a trial, the kind and the content.
        self.events: queue.SimpleQueue[tuple[int, str, Any]] = queue.SimpleQueue()
        self.thread = threading.get_ident()
        self.exhausted = self.spent = False
        self.lost_in_a_row = 0
        self.said: set[str] = set()

    def run(self) -> None:
        try:
            try:
                self.places.check(self.evaluate)
                while (started := self.start_one()) or self.jobs:
                    self.collect(wait=not started)
            finally:
                self.finish()
        except KeyboardInterrupt:
            logger.warning("interrupted after %d finished trials", len(self.tuner.study.completed))
            raise

    # --- Starting ------------------------------------------------------------------------------------------------

    def start_one(self) -> bool:
        """Starts a trial if there is room, and budget; whether there is reason to try again at once."""
        self.interrupts.check()
        if len(self.jobs) >= self.places.capacity or self.exhausted or self.spent or not self.goes_on():
            return False
        if self.lost_in_a_row > 3 * self.places.capacity:
            raise ExecutorError(
                f"{self.lost_in_a_row} trials in a row were lost with the workers of an executor: with n_workers "
                f"instead, each trial has a process of its own, and one that kills it is a failed trial"
            )
        try:
            trial = self.tuner.ask()
        except BudgetSpentError as error:
            # What others run may still be lost, and is to be run again then; while something runs here, there is time.
            if self.jobs:
                return False
            with self.interrupts.allowed():
                if self.tuner.wait_for_others(self.goes_on):
                    return True
            if self.goes_on():
                self.spent = True
                self.say(logging.INFO, str(error))
            return False
        except SpaceExhaustedError as error:
            self.exhausted = True  # unless a running trial is lost, whose point is free again then
            if not self.jobs:
                self.say(logging.INFO, f"stopped early: {error}")
            return False
        self.jobs[trial.number] = None
        try:
            with self.interrupts.allowed() if self.places.synchronous else contextlib.nullcontext():
                job = self.places.submit(self.evaluate, trial, self.post)
        except LlamaTuneError:
            raise
        except Exception as error:
            raise ExecutorError(f"the executor takes no trial: {error!r}") from error
        self.jobs[trial.number] = job
        if hasattr(job, "add_done_callback"):
            job.add_done_callback(lambda _: self.events.put((trial.number, "done", None)))
        return True

    def goes_on(self) -> bool:
        """Whether one more trial may start."""
        tuner = self.tuner
        if tuner.stopping or not tuner.may_ask():
            return False
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.say(logging.INFO, f"stopped: the timeout of {tuner.limits.timeout:g} s has passed")
            return False
        failed, most = len(tuner.study.failed), tuner.limits.max_failures
        if most is not None and failed > most:
            reasons = tuner.study.failures_by_reason()
            self.say(logging.ERROR, f"stopped: {failed} trials failed, max_failures={most}: {reasons}")
            return False
        return True

    def say(self, level: int, message: str) -> None:
        if message not in self.said:
            self.said.add(message)
            logger.log(level, "%s", message)

    # --- Hearing -------------------------------------------------------------------------------------------------

    def post(self, number: int, kind: str, content: Any) -> None:
        """What a trial has to say, from any thread; this one need not queue."""
        if threading.get_ident() == self.thread:
            self.hear(number, kind, content)
        else:
            self.events.put((number, kind, content))

    def hear(self, number: int, kind: str, content: Any) -> None:
        if kind == "report" and number in self.jobs:
            self.tuner.report(number, *content)
        elif kind == "warning" and repr(content) not in self.said:  # each process says it anew
            self.said.add(repr(content))
            warnings.warn(content, stacklevel=2)

    def collect(self, wait: bool) -> None:
        """Takes in what has happened; with ``wait``, something has, or the time for a look has come."""
        heard = []
        if wait:
            with self.interrupts.allowed(), contextlib.suppress(queue.Empty):
                heard.append(self.events.get(timeout=_POLL))
        done = self.done()  # before what they have reported, which is all there by now
        while not self.events.empty():
            heard.append(self.events.get())
        for event in heard:
            self.hear(*event)
        for number in done:
            if number in self.jobs:  # unless it went down with another
                self.land(number)

    def done(self) -> list[int]:
        return [number for number, job in self.jobs.items() if job is not None and job.done()]

    # --- Ending --------------------------------------------------------------------------------------------------

    def land(self, number: int) -> None:
        """Tells what has come of a trial."""
        job, trial = self.jobs[number], self.tuner.study.trials[number]
        assert job is not None
        try:
            result = job.result()
        except (KeyboardInterrupt, CancelledError):  # not here: there
            self.lose(number, "interrupted where it ran")
            return
        except BrokenExecutor as error:
            self.broke(error)
            return
        except LlamaTuneError:
            raise
        except Exception as error:  # what the evaluation raises does not come this way: it never got to its end
            result = failure_of(error)
        if isinstance(result, LlamaTuneError):
            raise result
        try:
            finished = self.tuner.tell(trial, self.landed(trial, result))
        except TrialStateError:
            finished = self.tuner.study.trials[number]
            if finished.is_open:
                raise
            # Somebody has told it by hand, or from another process: what is on record stays.
            logger.warning("Iteration %d: has a result already; this one is not kept: %s", number + 1, result)
        del self.jobs[number]
        self.exhausted = False
        self.lost_in_a_row = 0
        self.bar.update()
        log_trial(self.tuner.study, finished)
        self.call_back(finished)

    def broke(self, error: BrokenExecutor) -> None:
        """A worker died and took its pool along, with all trials there."""
        there = [n for n, job in self.jobs.items() if job is not None and not (job.done() and _has_result(job))]
        if len(there) == 1:
            finished = self.tuner.tell(there[0], Outcome.failure("worker died", f"its process ended abruptly: {error}"))
            del self.jobs[there[0]]
            self.bar.update()
            log_trial(self.tuner.study, finished)
            self.call_back(finished)
            return
        for number in there:  # nobody knows whose it was, so no parameters are blamed
            self.lose(number, "a worker of its pool died")

    def lose(self, number: int, reason: str) -> None:
        self.tuner.abandon(number, reason)
        del self.jobs[number]
        self.exhausted = False
        self.lost_in_a_row += 1
        logger.warning("Iteration %d: lost: %s", number + 1, reason)

    def finish(self) -> None:
        """Keeps what is done, stops the rest and gives it back: LOST, it counts for nothing."""
        done = self.done()
        try:
            for number in done:
                # What is wrong with them too has been raised already.
                with contextlib.suppress(LlamaTuneError):
                    if number in self.jobs:
                        self.land(number)
        finally:
            for job in self.jobs.values():
                getattr(job, "cancel", lambda: None)()
            for number in list(self.jobs):
                if self.tuner.study.trials[number].state is TrialState.RUNNING:
                    with contextlib.suppress(TrialStateError):  # somebody has told it by hand
                        self.tuner.abandon(number, "interrupted")
            self.jobs.clear()
            self.places.close()

    def call_back(self, trial: Trial) -> None:
        for callback in self.tuner.callbacks:
            try:
                callback(self.tuner, trial)
            except Exception as error:  # a plotting hiccup must not end a week's search
                logger.debug("callback %r failed:\n%s", callback, traceback.format_exc())
                warnings.warn(f"callback {callback!r} raised {error!r}", CallbackWarning, stacklevel=2)


def _has_result(job: Job) -> bool:
    try:
        job.result()
    except BaseException:
        return False
    return True
