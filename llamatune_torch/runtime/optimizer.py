"""``LlamaTune``: ask for parameters, tell what came of them, or let it run the loop."""

from __future__ import annotations

import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args, overload

from llamatune_torch.engine.recommend import recommend
from llamatune_torch.engine.suggest import Suggestion, derived_seed, suggest
from llamatune_torch.errors import (
    CallbackWarning,
    ParamsError,
    SettingsError,
    SpaceExhaustedError,
    TrialStateError,
)
from llamatune_torch.runtime.display import live_display, log_trial, logger
from llamatune_torch.runtime.evaluation import Evaluate, as_outcome, run_guarded
from llamatune_torch.runtime.threads import one_thread
from llamatune_torch.settings import AcquisitionName, Settings
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.study import Direction, Origin, Outcome, Study, Trial, TrialState

Callback = Callable[["LlamaTune", Trial], None]


class LlamaTune:
    """Finds the parameters for which a function is best, in few evaluations.

    Args:
        param_space: ``{name: Real | Integer | Categorical}`` or a ``SearchSpace``.
        model_eval_fn: takes a dict of parameters, returns a score or an ``Outcome``. Not needed for people who
            own the loop (``ask`` and ``tell``).
        max_evals: how many trials in total, failed ones included, ``add_trial`` not.
        direction: "maximize" (scores) or "minimize" (losses).
        metric: the name of the score, for tables and messages.
        initial_points: parameters to try first.
        n_initial: trials before the surrogate takes over; by default the number of parameters plus one,
            between 4 and 10.
        acquisition: "logeqi", "logei", "ei", "logpi", "pi", "ucb", "qlogei" or "qlognei"; see ``Settings``.
        xi: the improvement that EI and PI ask for, in standard deviations of the outcomes.
        kappa: the weight of the standard deviation in UCB.
        seed: everything random follows from it: same history, same advice.
        device: where the surrogate is computed: "auto", "cpu", "cuda" ...; see ``Settings``.
        timeout: seconds after which ``optimize`` starts no further trial.
        max_failures: ``optimize`` stops once more trials than this have failed; ``None`` for never.
        callbacks: called as ``callback(optimizer, trial)`` after each finished trial; may call ``stop()``.
        progress: whether a progress bar is drawn on a terminal.

    Raises:
        SpaceError, ParamsError, SettingsError: before anything is evaluated.

    Example:
        >>> tuner = LlamaTune({"x": Real(-1, 1)}, lambda p: -(p["x"] - 0.3) ** 2, max_evals=15)
        >>> best_params, best_score = tuner.optimize()
    """

    def __init__(
        self,
        param_space: Mapping[str, Any] | SearchSpace,
        model_eval_fn: Callable[[Params], float | Outcome] | None = None,
        max_evals: int = 50,
        *,
        direction: Direction = "maximize",
        metric: str = "value",
        initial_points: Sequence[Mapping[str, Any]] = (),
        n_initial: int | None = None,
        acquisition: AcquisitionName = "logeqi",
        xi: float = 0.1,
        kappa: float = 2.576,
        seed: int = 0,
        device: str = "auto",
        timeout: float | None = None,
        max_failures: int | None = None,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
    ) -> None:
        space = SearchSpace(param_space)
        _check_budget(max_evals, timeout, max_failures)
        if direction not in get_args(Direction):
            raise SettingsError(f"direction must be 'maximize' or 'minimize', but got {direction!r}")
        for function in ([] if model_eval_fn is None else [model_eval_fn]) + list(callbacks):
            if not callable(function):
                raise SettingsError(f"model_eval_fn and callbacks must be callable, but got {function!r}")
        self.model_eval_fn = model_eval_fn
        self.max_evals = max_evals
        self.timeout = timeout
        self.max_failures = max_failures
        self.callbacks = list(callbacks)
        self.progress = progress
        self.settings = Settings(
            acquisition=acquisition, xi=xi, kappa=kappa, n_initial=n_initial, seed=seed, device=device
        )
        #: The record so far; replaced, never changed, by ``ask`` and ``tell``.
        self.study = Study(space, direction, metric, _validated(space, initial_points))
        #: Whether the last run ended by Ctrl-C.
        self.interrupted = False
        self._stop = False
        self._lock = threading.RLock()

    @overload
    def ask(self, n: None = None) -> Trial: ...
    @overload
    def ask(self, n: int) -> list[Trial]: ...
    def ask(self, n: int | None = None) -> Trial | list[Trial]:
        """The next trial to evaluate, or with ``n`` a list of ``n`` trials to evaluate at the same time.

        Raises:
            SpaceExhaustedError: a finite space has fewer points left.
            SettingsError: ``n`` is not a positive integer.
        """
        if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
            raise SettingsError(f"ask(n) needs an integer n >= 1, but got {n!r}")
        with self._lock:
            with one_thread(self.settings.torch_device(len(self.study.completed))):
                suggestions = suggest(self.study, self.settings, n or 1)
            trials = [self._started(suggestion) for suggestion in suggestions]
        return trials[0] if n is None else trials

    def tell(self, trial: Trial | int, outcome: float | Outcome) -> Trial:
        """Records what came of a trial, and returns its final record.

        nan makes it FAILED, as does an ``Outcome`` with an error; the search then steers away from such
        parameters. If ``outcome`` has no ``cost``, the seconds since ``ask`` are recorded.

        Args:
            trial: what ``ask`` returned, or its number.
            outcome: a number or an :class:`Outcome`.

        Raises:
            TrialStateError: the trial is unknown, has finished, or belongs to another optimizer.
            OutcomeError: ``outcome`` is neither; the trial keeps running.
        """
        with self._lock:
            running = self._own(trial)
            checked = as_outcome(outcome, self.study.direction)
            now = time.time()
            finished = replace(
                running,
                state=TrialState.FAILED if checked.value is None else TrialState.COMPLETE,
                value=checked.value,
                curve=running.curve if checked.curve is None else checked.curve,
                outcomes=dict(checked.outcomes),
                cost=max(0.0, now - (running.started or now)) if checked.cost is None else checked.cost,
                error=checked.error,
                reason=checked.reason,
                notes=dict(checked.notes),
                finished=now,
            )
            self.study = self.study.with_trial(finished)
        return finished

    def report(self, trial: Trial | int, step: float, value: float, progress: float | None = None) -> Trial:
        """Adds a point to the learning curve of a running trial; arguments as ``Curve.reported``.

        Raises:
            TrialStateError: as :meth:`tell`.
            OutcomeError: as ``Curve.reported``.
        """
        with self._lock:
            running = self._own(trial)
            running = replace(running, curve=running.curve.reported(step, value, progress))
            self.study = self.study.with_trial(running)
        return running

    def abandon(self, trial: Trial | int, reason: str) -> Trial:
        """Gives a trial up without blaming its parameters: it becomes LOST, and counts for nothing.

        Raises:
            TrialStateError: as :meth:`tell`.
        """
        with self._lock:
            running = self._own(trial)
            lost = replace(running, state=TrialState.LOST, reason=reason, error=reason, finished=time.time())
            self.study = self.study.with_trial(lost)
        return lost

    def add_trial(self, params: Mapping[str, Any], outcome: float | Outcome) -> Trial:
        """Records a trial that was evaluated elsewhere; it informs the search but uses up no budget.

        Raises:
            ParamsError: the parameters are not in the space.
            OutcomeError: as :meth:`tell`.
        """
        with self._lock:
            canonical = self.study.space.validate(params)
            as_outcome(outcome, self.study.direction)
            return self.tell(self._started(Suggestion(canonical, "added")), outcome)

    def optimize(self) -> tuple[Params, float]:
        """Evaluates ``model_eval_fn`` until the budget is used up; the best parameters and their score.

        An exception in ``model_eval_fn`` is a FAILED trial. Ctrl-C ends the search and returns the
        best so far; everything learnt is in ``study`` either way.

        Raises:
            NoCompletedTrialError: every trial failed; the message says why.
            OutcomeError: ``model_eval_fn`` returned something that is no score.
        """
        evaluate = self.model_eval_fn
        if evaluate is None:
            raise SettingsError("optimize() needs model_eval_fn; with ask() and tell() it is not needed")
        self.run(lambda trial: evaluate(dict(trial.params)))
        if self.interrupted and not self.study.completed:
            raise KeyboardInterrupt
        return self.study.best_params, self.study.best_value

    def recommend(self) -> Trial:
        """The finished trial to use: where outcomes are noisy, not the luckiest but the best on average.

        Raises:
            NoCompletedTrialError: nothing has completed yet.
        """
        with self._lock, one_thread(self.settings.torch_device(len(self.study.completed))):
            return recommend(self.study, self.settings)

    def run(self, evaluate: Evaluate) -> Study:
        """The loop behind :meth:`optimize`, for evaluations that want the whole ``Trial``."""
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        self._stop = self.interrupted = False
        trial: Trial | None = None
        with live_display(self.max_evals, self._num_counted(), self.progress) as bar:
            try:
                while self._goes_on(deadline):
                    try:
                        trial = self.ask()
                    except SpaceExhaustedError as error:
                        logger.info("stopped early: %s", error)
                        break
                    finished = self.tell(trial, run_guarded(evaluate, trial))
                    bar.update()
                    log_trial(self.study, finished)
                    self._call_back(finished)
            except KeyboardInterrupt:
                self.interrupted = True
                logger.warning("interrupted after %d finished trials", len(self.study.completed))
            finally:
                self._give_back(trial)
        return self.study

    def settle_metric(self, metric: str, direction: Direction) -> None:
        """Names the score and its direction, for evaluations that learn both from their first trial.

        Raises:
            TrialStateError: a trial has completed already, so its value has been read the other way.
        """
        with self._lock:
            if self.study.completed and direction != self.study.direction:
                raise TrialStateError(f"the direction cannot become {direction!r} after a trial has completed")
            self.study = replace(self.study, metric=metric, direction=direction)

    def stop(self) -> None:
        """Lets :meth:`optimize` start no further trial; for callbacks."""
        self._stop = True

    def _goes_on(self, deadline: float | None) -> bool:
        if self._stop or self._num_counted() >= self.max_evals:
            return False
        if deadline is not None and time.monotonic() >= deadline:
            logger.info("stopped: the timeout of %g s has passed", self.timeout)
            return False
        failed = len(self.study.failed)
        if self.max_failures is not None and failed > self.max_failures:
            reasons = self.study.failures_by_reason()
            logger.error("stopped: %d trials failed, max_failures=%d: %s", failed, self.max_failures, reasons)
            return False
        return True

    def _num_counted(self) -> int:
        """Trials that count against ``max_evals``."""
        return sum(t.origin != "added" and t.state is not TrialState.LOST for t in self.study.trials)

    def _started(self, suggestion: Suggestion) -> Trial:
        number = len(self.study.trials)
        origin: Origin = suggestion.origin
        trial = Trial(
            number=number,
            params=suggestion.params,
            seed=derived_seed(self.settings.seed, number),
            origin=origin,
            started=time.time(),
        )
        self.study = self.study.with_trial(trial)
        return trial

    def _own(self, trial: Trial | int) -> Trial:
        """This study's running trial that is meant."""
        number = trial.number if isinstance(trial, Trial) else trial
        trials = self.study.trials
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(trials):
            raise TrialStateError(f"trial {number!r} is unknown; this study has {len(trials)} trials")
        own = trials[number]
        if isinstance(trial, Trial) and (own.params, own.seed, own.started) != (
            trial.params,
            trial.seed,
            trial.started,
        ):
            raise TrialStateError(f"trial {number} belongs to another study: its parameters or start differ")
        if own.state is not TrialState.RUNNING:
            raise TrialStateError(f"trial {number} has finished ({own.state}) and cannot change")
        return own

    def _give_back(self, trial: Trial | None) -> None:
        """What was running when the loop ended counts for nothing; a finished trial stays as it is."""
        if trial is not None and self.study.trials[trial.number].state is TrialState.RUNNING:
            self.abandon(trial, "interrupted")

    def _call_back(self, trial: Trial) -> None:
        for callback in self.callbacks:
            try:
                callback(self, trial)
            except Exception as error:  # a plotting hiccup must not end a week's search
                logger.debug("callback %r failed:\n%s", callback, traceback.format_exc())
                warnings.warn(f"callback {callback!r} raised {error!r}", CallbackWarning, stacklevel=2)


def _check_budget(max_evals: Any, timeout: Any, max_failures: Any) -> None:
    if not isinstance(max_evals, int) or isinstance(max_evals, bool) or max_evals < 1:
        raise SettingsError(f"max_evals must be an integer >= 1, but got {max_evals!r}")
    if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
        raise SettingsError(f"timeout must be a number of seconds > 0, but got {timeout!r}")
    if max_failures is not None and not (isinstance(max_failures, int) and max_failures >= 0):
        raise SettingsError(f"max_failures must be an integer >= 0, but got {max_failures!r}")


def _validated(space: SearchSpace, points: Sequence[Mapping[str, Any]]) -> tuple[Params, ...]:
    validated = []
    for i, point in enumerate(points):
        try:
            validated.append(space.validate(point))
        except ParamsError as error:
            raise ParamsError(f"initial_points[{i}]: {error}") from None
    return tuple(validated)
