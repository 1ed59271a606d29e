"""``LlamaTune``: ask for parameters, tell what came of them, or let it run the loop."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args, overload

from llamatune_torch.engine.recommend import recommend
from llamatune_torch.engine.suggest import Suggestion, suggest
from llamatune_torch.errors import ParamsError, SettingsError
from llamatune_torch.runtime.evaluation import Evaluate, OfParams, as_outcome
from llamatune_torch.runtime.executors import Executor, Gpus, InThisThread, Places, places
from llamatune_torch.runtime.loop import Landed, run_loop
from llamatune_torch.runtime.ranks import Followed, Ranks, rank, world_size
from llamatune_torch.runtime.store import Memory, Store
from llamatune_torch.runtime.threads import one_thread
from llamatune_torch.settings import AcquisitionName, Settings
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.study import Direction, Outcome, Study, Trial, TrialState

Callback = Callable[["LlamaTune", Trial], None]


class LlamaTune:
    """Finds the parameters for which a function is best, in few evaluations.

    Args:
        param_space: ``{name: Real | Integer | Categorical}`` or a ``SearchSpace``.
        model_eval_fn: takes a dict of parameters, returns a score or an ``Outcome``. Not needed for people who
            own the loop (``ask`` and ``tell``).
        max_evals: how many trials in total, failed ones included, ``add_trial`` not.
        direction: "maximize" (scores) or "minimize" (losses).
        metric: the name of the score, for tables and messages; ``None`` if ``settle_metric`` will say.
        initial_points: parameters to try first.
        n_initial: trials before the surrogate takes over; by default the number of parameters plus one,
            between 4 and 10.
        acquisition: "logeqi", "logei", "ei", "logpi", "pi", "ucb", "qlogei" or "qlognei"; see ``Settings``.
        xi: the improvement that EI and PI ask for, in standard deviations of the outcomes.
        kappa: the weight of the standard deviation in UCB.
        seed: everything random follows from it: same history, same advice. By default 0, or a stored study's own.
        device: where the surrogate is computed: "auto", "cpu", "cuda" ...; see ``Settings``.
        timeout: seconds after which ``optimize`` starts no further trial, nor waits for those of other processes.
        max_failures: ``optimize`` stops once more trials than this have failed; ``None`` for never.
        callbacks: called as ``callback(optimizer, trial)`` after each finished trial; may call ``stop()``.
        progress: whether a progress bar is drawn on a terminal.
        storage: where the study lives: "sqlite:///file.db", or "postgresql://user@host/name" for many machines (needs
            the extra ``postgres``). Any number of processes may share it; a later start goes on where it ended, and
            ``max_evals`` is the total of all. By default it lives in memory. Under ``torchrun``, rank 0 opens it.
        name: of the study in its storage, "study" by default.
        extend: whether a stored study may be opened with other ranges and choices; old trials that do not fit any
            more stay on record and are used for nothing.
        grace: seconds without a sign of life after which the trials of another process are LOST.
        retries: how often at most the parameters of such a trial are run again. If the last time ends so too, they have
            FAILED with the reason "worker silent", which counts once, and the search steers away from them.

    Raises:
        SpaceError, ParamsError, SettingsError: before anything is evaluated.
        StorageError: the storage cannot be opened; as StudyMismatchError, because it holds another search.

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
        metric: str | None = "value",
        initial_points: Sequence[Mapping[str, Any]] = (),
        n_initial: int | None = None,
        acquisition: AcquisitionName = "logeqi",
        xi: float = 0.1,
        kappa: float = 2.576,
        seed: int | None = None,
        device: str = "auto",
        timeout: float | None = None,
        max_failures: int | None = None,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
        storage: str | None = None,
        name: str | None = None,
        extend: bool = False,
        grace: float = 120.0,
        retries: int = 2,
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
            acquisition=acquisition,
            xi=xi,
            kappa=kappa,
            n_initial=n_initial,
            seed=0 if seed is None else seed,
            device=device,
        )
        study = Study(space, direction, metric or "value", _validated(space, initial_points))
        self._store: Store
        if storage is None:
            if name is not None:
                raise SettingsError(f"name={name!r} needs a storage, such as storage='sqlite:///study.db'")
            self._store = Memory(study)
        elif rank() > 0:
            self._store = Followed(study)
        else:
            from llamatune_torch.runtime.stored import StoredStudy  # SQL takes its time to load

            known = {"acquisition": acquisition, "xi": xi, "kappa": kappa, "n_initial": n_initial, "seed": seed}
            stored = StoredStudy(
                storage,
                "study" if name is None else name,
                study,
                settled=metric is not None,
                settings={**known, "max_evals": max_evals},
                extend=extend,
                grace=grace,
                retries=retries,
            )
            self._store = stored
            self.settings = replace(self.settings, seed=stored.settings["seed"])
        #: Whether the last run ended by Ctrl-C.
        self.interrupted = False
        #: Whether ``stop()`` was called during the run.
        self.stopping = False
        self._lock = threading.RLock()  # one suggestion at a time: the number of threads is torch's, not a thread's

    @property
    def study(self) -> Study:
        """The record so far: of a stored study, as this process last saw it; each ``ask`` and ``tell`` looks again."""
        return self._store.study

    @property
    def worker(self) -> str | None:
        """Who runs the trials that this object asks for, as in ``Trial.worker``; only stored studies have others."""
        return self._store.worker

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
        trials = self._store.start(n or 1, self._choose, self.settings.seed, self.max_evals)
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
            StorageError: it could not be written for a minute; the message has the value, and says where it is kept.
        """
        checked = as_outcome(outcome, self.study.direction)
        return self._store.change(trial, lambda running, now: _finished(running, checked, now))

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
        """
        return self._store.change(
            trial,
            lambda running, now: replace(running, state=TrialState.LOST, reason=reason, error=reason, finished=now),
        )

    def add_trial(self, params: Mapping[str, Any], outcome: float | Outcome) -> Trial:
        """Records a trial that was evaluated elsewhere; it informs the search but uses up no budget.

        Raises:
            ParamsError: the parameters are not in the space.
            OutcomeError: as :meth:`tell`.
        """
        canonical = self.study.space.validate(params)
        checked = as_outcome(outcome, self.study.direction)
        return self._store.add(canonical, self.settings.seed, lambda new, now: _finished(new, checked, now))

    def optimize(
        self,
        *,
        executor: Executor | None = None,
        n_workers: int | None = None,
        gpus: Gpus | None = None,
        isolate: bool = False,
        trial_timeout: float | None = None,
    ) -> tuple[Params, float]:
        """Evaluates ``model_eval_fn`` until the budget is used up; the best parameters and their score.

        An exception in ``model_eval_fn`` is a FAILED trial. Ctrl-C and SIGTERM end the search, give back what was
        running and return the best so far, a second one ends it at once; everything learnt is in ``study`` either way.

        Without further arguments, one trial after the other runs in this thread. Several run at the same time, in
        other processes or on other machines, with ``n_workers`` or with ``executor``. As soon as one of them ends,
        the next begins. ``model_eval_fn`` must then be importable: defined at the top level of a module.

        Args:
            executor: runs the trials instead: a pool of threads or of processes (started by "spawn": torch's threads
                do not survive a fork), ``client.get_executor()`` of Dask, ``submitit.AutoExecutor``, or anything else
                with their ``submit``. It stays open. What it is running at Ctrl-C may go on there, but is not waited
                for.
            n_workers: how many processes of this machine run trials; with ``executor``, how many trials it is given
                at a time, by default as many as it has workers. One that dies is a failed trial, and is replaced.
            gpus: "auto", or a list of device numbers or names: each process of ``n_workers`` (by default as many as
                GPUs) sees only one of them, by ``CUDA_VISIBLE_DEVICES``.
            isolate: whether each trial has a fresh process, so that the next one finds all memory free.
            trial_timeout: seconds after which a trial's process is killed, and the trial has failed; the time that
                its imports take does not count (they have ten minutes).

        Raises:
            NoCompletedTrialError: every trial failed; the message says why.
            OutcomeError: ``model_eval_fn`` returned something that is no score.
            SettingsError: arguments that do not go together.
            ExecutorError: ``model_eval_fn`` cannot be sent to another process or loaded there within ten minutes, or
                the executor keeps losing trials.

        Example:
            >>> tuner = LlamaTune({"x": Real(-1, 1)}, my_module.train, max_evals=40)
            >>> best_params, best_score = tuner.optimize(gpus="auto")
        """
        if self.model_eval_fn is None:
            raise SettingsError("optimize() needs model_eval_fn; with ask() and tell() it is not needed")
        where = places(executor, n_workers, gpus, isolate, trial_timeout)
        self.run(OfParams(self.model_eval_fn), where)
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

    def run(self, evaluate: Evaluate, where: Places | None = None, landed: Landed | None = None) -> Study:
        """The loop behind :meth:`optimize`, for evaluations that want the whole ``Trial``.

        Args:
            evaluate: takes a trial, returns a score or an ``Outcome``.
            where: the trials run; by default in this thread.
            landed: called in this thread with a trial and its outcome, before that is told; returns the one to tell.

        Under ``torchrun``, all ranks evaluate each trial together. Rank 0 asks, tells and calls the callbacks; the
        others get its trials, and its study in the end.
        """
        self.stopping = self.interrupted = False
        where, landed = where or InThisThread(), landed or (lambda _, outcome: outcome)
        if world_size() > 1:
            if not isinstance(where, InThisThread):
                raise SettingsError("under torchrun all ranks run each trial together: no executor, n_workers or gpus")
            where = Ranks(self)
            if where.rank > 0:
                where.follow(evaluate)
                return self.study
        run_loop(self, evaluate, where, landed)
        return self.study

    def settle_metric(self, metric: str, direction: Direction) -> None:
        """Names the score and its direction, for evaluations that learn both from their first trial.

        Raises:
            TrialStateError: a trial has completed already, so its value has been read the other way.
            StudyMismatchError: the same, of a stored study; also if its metric has another name.
        """
        self._store.settle(metric, direction)

    def follow(self, study: Study, worker: str | None) -> None:
        """Takes over the study of rank 0, which is ``worker``, on the other ranks under ``torchrun``."""
        self._store = Memory(study) if worker is None else Followed(study, worker)

    def stop(self) -> None:
        """Lets :meth:`optimize` start no further trial; for callbacks, or from another thread."""
        self.stopping = True

    def may_ask(self) -> bool:
        """Whether one more trial may start, as far as is known here. Of a stored study, only ``ask`` can say."""
        return not isinstance(self._store, Memory) or self.num_counted() < self.max_evals

    def wait_for_others(self, goes_on: Callable[[], bool] = lambda: True) -> bool:
        """Whether there is something to do again after all, when the budget is used up and nothing runs here.

        Of a stored study, waits until the trials of other processes have ended, have been lost, or have given a sign of
        life: seconds, if those are alive, ``grace`` at most; and no longer than ``goes_on`` says yes.
        """
        return self._store.wait_for_others(self.max_evals, goes_on)

    def num_counted(self) -> int:
        """Trials that count against ``max_evals``."""
        return self.study.num_counted

    def _choose(self, study: Study, n: int) -> list[Suggestion]:
        with self._lock, one_thread(self.settings.torch_device(len(study.completed))):
            return suggest(study, self.settings, n)


def search_arguments() -> list[str]:
    """The names of what ``LlamaTune`` takes by keyword, beside a space, a function and ``max_evals``."""
    parameters = inspect.signature(LlamaTune).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _finished(running: Trial, outcome: Outcome, now: float) -> Trial:
    """The final record of a trial with a checked outcome; ``now`` in Unix seconds."""
    return replace(
        running,
        state=TrialState.FAILED if outcome.value is None else TrialState.COMPLETE,
        value=outcome.value,
        curve=running.curve if outcome.curve is None else outcome.curve,
        outcomes=dict(outcome.outcomes),
        cost=max(0.0, now - (running.started or now)) if outcome.cost is None else outcome.cost,
        error=outcome.error,
        reason=outcome.reason,
        notes=dict(outcome.notes),
        finished=now,
    )


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
