"""``LlamaTune``: ask for parameters, tell what came of them, or let it run the loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from llamatune_torch.errors import ParamsError, SettingsError
from llamatune_torch.runtime.evaluation import Evaluate, OnParams
from llamatune_torch.runtime.loop import OnOutcome, run_loop
from llamatune_torch.runtime.runners import Executor, Gpus, InlineRunner, Runner, make_runner
from llamatune_torch.runtime.search import Callback, Search
from llamatune_torch.runtime.torchrun import TorchrunRunner, rank, world_size
from llamatune_torch.settings import AcquisitionName, Settings
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.storage.memory import FollowerStore, MemoryStore
from llamatune_torch.storage.store import Store
from llamatune_torch.study import Study
from llamatune_torch.trial import Direction, Outcome


class LlamaTune(Search):
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
        settings = Settings(
            acquisition=acquisition,
            xi=xi,
            kappa=kappa,
            n_initial=n_initial,
            seed=0 if seed is None else seed,
            device=device,
        )
        study = Study(space, direction, metric or "value", _validated(space, initial_points))
        store: Store
        if storage is None:
            if name is not None:
                raise SettingsError(f"name={name!r} needs a storage, such as storage='sqlite:///study.db'")
            store = MemoryStore(study)
        elif rank() > 0:
            store = FollowerStore(study)
        else:
            from llamatune_torch.storage.durable import DurableStore  # SQL takes its time to load

            known = {"acquisition": acquisition, "xi": xi, "kappa": kappa, "n_initial": n_initial, "seed": seed}
            store = DurableStore(
                storage,
                "study" if name is None else name,
                study,
                settled=metric is not None,
                settings={**known, "max_evals": max_evals},
                extend=extend,
                grace=grace,
                retries=retries,
            )
            settings = replace(settings, seed=store.settings["seed"])
        super().__init__(store, settings, max_evals, timeout, max_failures, callbacks, progress)

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
        where = make_runner(executor, n_workers, gpus, isolate, trial_timeout)
        self.run(OnParams(self.model_eval_fn), where)
        if self.interrupted and not self.study.completed:
            raise KeyboardInterrupt
        return self.study.best_params, self.study.best_value

    def run(self, evaluate: Evaluate, where: Runner | None = None, landed: OnOutcome | None = None) -> Study:
        """The loop behind :meth:`optimize`, for evaluations that want the whole ``Trial``.

        Args:
            evaluate: takes a trial, returns a score or an ``Outcome``.
            where: the trials run; by default in this thread.
            landed: called in this thread with a trial and its outcome, before that is told; returns the one to tell.

        Under ``torchrun``, all ranks evaluate each trial together. Rank 0 asks, tells and calls the callbacks; the
        others get its trials, and its study in the end.
        """
        self.stopping = self.interrupted = False
        where, landed = where or InlineRunner(), landed or (lambda _, outcome: outcome)
        if world_size() > 1:
            if not isinstance(where, InlineRunner):
                raise SettingsError("under torchrun all ranks run each trial together: no executor, n_workers or gpus")
            where = TorchrunRunner(self)
            if where.rank > 0:
                where.follow(evaluate)
                return self.study
        run_loop(self, evaluate, where, landed)
        return self.study


def search_arguments() -> list[str]:
    """The names of what ``LlamaTune`` takes by keyword, beside a space, a function and ``max_evals``."""
    parameters = inspect.signature(LlamaTune).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


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
