"""``LlamaTune``: ask for parameters, tell what came of them, or let it run the loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Never, Unpack

from llamatune_torch.constraints import Constraints, Estimate, read_constraints
from llamatune_torch.errors import ConstraintError, ObjectiveError, ParamsError, PastError, SettingsError
from llamatune_torch.hints import RUNNING, describe_unknown
from llamatune_torch.objectives import Objectives, read_objectives
from llamatune_torch.partial import validate_part
from llamatune_torch.past import PastStudy, check_context, read_past
from llamatune_torch.rules import Rule
from llamatune_torch.runtime.evaluation import Evaluate, OnParams, can_pause
from llamatune_torch.runtime.events import Callback, check_callbacks
from llamatune_torch.runtime.loop import OnOutcome, run_loop
from llamatune_torch.runtime.page import LivePage
from llamatune_torch.runtime.runners import Executor, Gpus, InlineRunner, Runner, make_runner
from llamatune_torch.runtime.search import Search
from llamatune_torch.runtime.torchrun import TorchrunRunner, rank, world_size
from llamatune_torch.settings import Groups, Knobs, Limits, Settings, group, name_of_strategy, names_of
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.spaces import find_space
from llamatune_torch.storage.memory import FollowerStore, MemoryStore
from llamatune_torch.storage.store import Store
from llamatune_torch.study import Goal, Study
from llamatune_torch.trial import Direction, Outcome

logger = logging.getLogger(__name__)


class LlamaTune(Search):
    """Finds the parameters for which a function is best, in few evaluations.

    Args:
        param_space: ``{name: Real | Integer | Categorical}`` or a ``SearchSpace``, which lists the short forms; or the
            name of a ready-made one (``spaces.py``), such as "lora".
        model_eval_fn: takes a dict of parameters, returns a score or an ``Outcome``. Not needed for people who
            own the loop (``ask`` and ``tell``). A generator of ``(step, value, progress)`` may be paused.
        max_evals: how many full runs in total, failed ones included, ``add_trial`` not.
        direction: "maximize" (scores) or "minimize" (losses).
        metric: the name of the score, for tables and messages; ``None`` if ``settle_metric`` will say.
        rule: parameters are tried only where this function of them is True; ``Linear(...)``, or a list of such.
        constraints: limits on other outcomes of an evaluation: ``{"memory_gb": "<= 8"}``, or a list of
            :class:`Constraint`. The best trial keeps them; the search learns where they can be kept.
        objectives: several objectives: ``{"accuracy": "maximize", "latency_ms": ("minimize", 50)}``, with the worst
            value that is of use, or without. The first is the value of an evaluation, in the place of ``metric`` and
            ``direction``; the others are among its ``outcomes``. The search widens the Pareto front: ``study.pareto()``
            and ``study.best(latency_ms="<= 20")`` choose from it, and the best trial is that of the first objective.
        estimates: functions of parameters that say beforehand, roughly, what a limited outcome will be:
            ``{"memory_gb": lambda p: 2 + 0.1 * p["batch"]}``. The search keeps away from what will not do, and learns
            by what factor they are off. A stored study has the estimates that it began with.
        default: the parameters that you would use without a search, none left out; by default that of the space. They
            are the first trial, before ``initial_points``, trained to its end whatever the strategy. ``summary()``
            says how much better the best is, and no recommendation is worse on record. A stored study that is opened
            with another default goes on, and tries it next.
        initial_points: parameters to try first; of choices with labels, the label or the value. A point may leave some
            out, which the search then fills in.
        past: older studies to learn from, such as ``[load_study("sqlite:///small.db")]``: of smaller models, of other
            data, with other ranges or another metric. They choose the first trials, and are left out once own trials
            contradict them. Snapshots are stored with the study, so that they need not be given again.
        context: sizes that tell this study from those, such as ``{"parameters": 1.2e9, "tokens": 2e10}``: where three
            past studies or more have the same ones, optima move with them.
        callbacks: functions, called as ``callback(optimizer, trial)`` after each finished trial; and instances of
            :class:`Listener`, which also hear of started trials and of reports. They may call ``stop()``.
        progress: whether a progress bar is drawn on a terminal.
        report: a file, such as "report.html", in which one page shows all that the study tells (``Study.report``),
            written again while it runs, and in the end; or a :class:`LivePage`. Needs the extra ``report``.
        settings: all knobs of the engine in one record, instead of one by one.
        **knobs: any field of ``Settings`` (``acquisition``, ``xi``, ``kappa``, ``n_initial``, ``seed``, ``device`` and
            more), of ``Limits`` (``timeout``, ``max_failures``) and of ``Place`` (``storage``, ``name``, ``extend``,
            ``grace``, ``retries``). A study with a ``storage`` is durable: any number of processes may share it, and
            ``max_evals`` is the total of all. Under ``torchrun``, rank 0 opens it. The ``seed`` is 0 by default, or the
            stored study's own.

    Raises:
        SpaceError, ParamsError, SettingsError: before anything is evaluated.
        StorageError: the storage cannot be opened; as StudyMismatchError, because it holds another search.

    Example:
        >>> tuner = LlamaTune({"x": Real(-1, 1)}, lambda p: -(p["x"] - 0.3) ** 2, max_evals=15)
        >>> best_params, best_score = tuner.optimize()
    """

    def __init__(
        self,
        param_space: Mapping[str, Any] | SearchSpace | str,
        model_eval_fn: Callable[[Params], float | Outcome] | None = None,
        max_evals: int = 50,
        *,
        direction: Direction = "maximize",
        metric: str | None = "value",
        rule: Rule | Sequence[Rule] | None = None,
        constraints: Constraints = (),
        objectives: Objectives | None = None,
        estimates: Mapping[str, Callable[[Params], float]] | None = None,
        default: Mapping[str, Any] | None = None,
        initial_points: Sequence[Mapping[str, Any]] = (),
        past: Sequence[Study | PastStudy] = (),
        context: Mapping[str, float] | None = None,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
        report: str | Path | LivePage | None = None,
        settings: Settings | None = None,
        **knobs: Unpack[Knobs],
    ) -> None:
        import llamatune_torch.engine.decide  # noqa: F401  (all of the engine, before it is asked anything)

        space = SearchSpace(find_space(param_space), rule=rule, default=default)
        groups = group({**knobs, "max_evals": max_evals}, settings)
        if model_eval_fn is not None and not callable(model_eval_fn):
            raise SettingsError(f"model_eval_fn must be callable, but got {model_eval_fn!r}")
        check_callbacks(callbacks)
        page = report if report is None or isinstance(report, LivePage) else LivePage(report)
        if groups.settings.num_reserved >= groups.limits.max_evals:
            raise SettingsError(
                f"confirm={groups.settings.confirm} keeps {groups.settings.num_reserved} evaluations, so that "
                f"max_evals={max_evals} leaves none for the search: more of them, or confirm_evals=..."
            )
        self.model_eval_fn = model_eval_fn
        goal = _make_goal(direction, metric, constraints, objectives, groups.settings)
        if past and goal.others:
            raise PastError("past studies order trials by one metric: they do not go with several objectives")
        study = Study(
            space,
            goal,
            _validated(space, initial_points),
            context=check_context(context or {}),
            past=read_past(past, space),
        )
        store, settings = _open(groups, study)
        super().__init__(store, settings, groups.limits, callbacks, progress)
        #: The page that shows the search while it runs, if there is one.
        self.page = page
        self.can_pause = can_pause(model_eval_fn)
        if estimates and not self.study.estimates and rank() == 0:
            self.estimate(_estimated(self.study, estimates, self.settings.seed))

    def optimize(
        self,
        *,
        executor: Executor | None = None,
        n_workers: int | None = None,
        gpus: Gpus | None = None,
        isolate: bool = False,
        trial_timeout: float | None = None,
        **unknown: Never,
    ) -> tuple[Params, float]:
        """Evaluates ``model_eval_fn`` until the budget is used up; the best parameters and their score.

        An exception in ``model_eval_fn`` is a FAILED trial. Ctrl-C, SIGTERM and SIGHUP end the search, give back what
        was running and return the best so far, a second one ends it at once; everything learnt is in ``study`` either
        way.

        Without further arguments, one trial after the other runs in this thread. Several run at the same time, in
        other processes or on other machines, with ``n_workers`` or with ``executor``. As soon as one of them ends,
        the next begins. ``model_eval_fn`` may be any function, also a lambda, a closure, or the cell of a
        notebook; what it uses then goes along by value, anew for each trial.

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
            **unknown: nothing else; the error says what is meant, and where it belongs.

        Raises:
            NoCompletedTrialError: every trial failed; the message says why.
            OutcomeError: ``model_eval_fn`` returned something that is no score. Once a trial has completed, that is the
                failure of one trial.
            EvaluationError: nothing has completed, and three trials in a row raised the same exception.
            SettingsError: arguments that do not go together.
            ExecutorError: ``model_eval_fn`` cannot be sent to another process or loaded there within ten minutes, or
                the executor keeps losing trials.

        Example:
            >>> tuner = LlamaTune({"x": Real(-1, 1)}, my_module.train, max_evals=40)
            >>> best_params, best_score = tuner.optimize(gpus="auto")
        """
        for name in unknown:
            raise SettingsError(f"{describe_unknown(name, RUNNING)}; the arguments are: {', '.join(RUNNING)}")
        if self.model_eval_fn is None:
            raise SettingsError("optimize() needs model_eval_fn; with ask() and tell() it is not needed")
        runner = make_runner(executor, n_workers, gpus, isolate, trial_timeout)
        self.study.space.require_values()
        self.run(OnParams(self.model_eval_fn, self.study.space), runner)
        if self.interrupted and not self.study.completed:
            raise KeyboardInterrupt
        return self.study.best_params, self.study.best_value

    def run(self, evaluate: Evaluate, runner: Runner | None = None, on_outcome: OnOutcome | None = None) -> Study:
        """The loop behind :meth:`optimize`, for evaluations that want the whole ``Trial``.

        ``trial.params`` is the record then: where choices have labels, ``study.space.values_of`` gives their values.

        Args:
            evaluate: takes a trial, returns a score or an ``Outcome``.
            runner: runs the trials; by default in this thread.
            on_outcome: called in this thread with a trial and its outcome; returns the outcome to record.

        Under ``torchrun``, all ranks evaluate each trial together. Rank 0 asks, tells and calls the callbacks; the
        others get its trials, and its study in the end.
        """
        self.stopping = self.interrupted = False
        runner, on_outcome = runner or InlineRunner(), on_outcome or (lambda _, outcome: outcome)
        if world_size() > 1:
            if not isinstance(runner, InlineRunner):
                raise SettingsError("under torchrun all ranks run each trial together: no executor, n_workers or gpus")
            runner = TorchrunRunner(self)
            if runner.rank > 0:
                runner.follow(evaluate)
                return self.study
        self._run(evaluate, runner, on_outcome)
        if self.study.constraints and self.study.feasible and not self.interrupted:
            for relaxation in self.relaxations():
                logger.info("%s", relaxation)
        return self.study

    def _run(self, evaluate: Evaluate, runner: Runner, on_outcome: OnOutcome) -> None:
        """Runs the loop, and keeps the page up to date meanwhile."""
        if self.page is None:
            run_loop(self, evaluate, runner, on_outcome)
            return
        self.callbacks.append(self.page)  # after all others, which have more to do
        try:
            run_loop(self, evaluate, runner, on_outcome)
        finally:
            self.callbacks.remove(self.page)
            self.page.end(self)


class Arguments(Knobs, total=False):
    """The keyword arguments of ``LlamaTune`` beside the goal and ``max_evals``, for type checkers."""

    rule: Rule | Sequence[Rule] | None
    constraints: Constraints
    objectives: Objectives | None
    estimates: Mapping[str, Callable[[Params], float]] | None
    default: Mapping[str, Any] | None
    initial_points: Sequence[Mapping[str, Any]]
    past: Sequence[Study | PastStudy]
    context: Mapping[str, float] | None
    callbacks: Sequence[Callback]
    progress: bool
    report: str | Path | LivePage | None
    settings: Settings | None


#: The names of all that ``LlamaTune`` takes by keyword, beside a space and a function.
ARGUMENTS = ("max_evals", "direction", "metric", *Arguments.__annotations__)

#: The knobs that a stored study remembers for later starts.
LASTING = ("max_evals", "max_cost", *(name for name in names_of(Settings) if name != "device"))


def _open(groups: Groups, study: Study) -> tuple[Store, Settings]:
    """The place where the study lives, and the settings with its seed."""
    settings, limits, place, seeded = groups
    if place.storage is None:
        return MemoryStore(study), settings
    if rank() > 0:
        return FollowerStore(study), settings
    from llamatune_torch.storage.durable import DurableStore  # SQL takes its time to load

    lasting = {name: getattr(limits if name in names_of(Limits) else settings, name) for name in LASTING}
    lasting["strategy"] = name_of_strategy(settings.strategy)
    store = DurableStore(
        place.storage,
        "study" if place.name is None else place.name,
        study,
        settings=lasting if seeded else {**lasting, "seed": None},
        extend=place.extend,
        grace=place.grace,
        retries=place.retries,
    )
    return store, replace(settings, seed=store.settings["seed"])


def _make_goal(
    direction: Direction,
    metric: str | None,
    constraints: Constraints,
    objectives: Objectives | None,
    settings: Settings,
) -> Goal:
    """The goal that arguments spell.

    Raises:
        ObjectiveError: they contradict each other, or ask of several objectives what only a single one can have.
    """
    limits, read = read_constraints(constraints), read_objectives(objectives)
    if not read:
        return Goal(direction, metric, limits)
    first, *others = read
    if metric not in (None, "value", first.name) or direction not in ("maximize", first.direction):
        raise ObjectiveError(
            f"the first objective is the metric: objectives begin with {first}, but metric={metric!r} and "
            f"direction={direction!r}"
        )
    strategy = name_of_strategy(settings.strategy)
    for knob, given in (("stopping", settings.stopping), ("confirm", settings.confirm)):
        if given:
            raise ObjectiveError(f"{knob}={given!r} is about one best trial: it does not go with several objectives")
    if strategy not in ("auto", "full"):
        raise ObjectiveError(f"strategy={strategy!r} judges runs by one metric: several objectives need 'full'")
    return Goal(first.direction, metric and first.name, limits, tuple(others), first.reference)


def _estimated(study: Study, estimates: Mapping[str, Callable[[Params], float]], seed: int) -> list[Estimate]:
    """Calls functions that estimate outcomes at points all over the space.

    Raises:
        ConstraintError: an outcome is not limited, or a function returns no number above zero.
    """
    limited = [limit.name for limit in study.constraints]
    for name in estimates:
        if name not in limited:
            raise ConstraintError(f"an estimate is of use for an outcome with a constraint, but {name!r} has none")
    from llamatune_torch.engine.estimates import points_to_estimate  # torch takes its time to load

    points, values_of = points_to_estimate(study.space, seed), study.space.values_of
    return [Estimate(name, p, function(values_of(p))) for name, function in estimates.items() for p in points]


def _validated(space: SearchSpace, points: Sequence[Mapping[str, Any]]) -> tuple[Params, ...]:
    validated = []
    for i, point in enumerate(points):
        try:
            validated.append(validate_part(space, point))
        except ParamsError as error:
            raise ParamsError(f"initial_points[{i}]: {error}") from None
    return tuple(validated)
