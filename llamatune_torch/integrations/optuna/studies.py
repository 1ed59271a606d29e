"""Studies to and from Optuna: ``to_optuna(study, storage, name)`` and ``from_optuna(storage, name)``.

An Optuna parameter has the same kind of distribution in all trials, and no special values. So a special value is
written as a parameter of its own, the choice ``"weight_decay (special)"``, and the plain name is absent from that
trial. The space itself goes along as a user attribute of the study, so that what was exported comes back as it was;
for other people's studies it is inferred from the distributions.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, create_trial
    from optuna.trial import TrialState as OptunaState
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"to_optuna() and from_optuna() need {error.name}: pip install 'llamatune-torch[optuna]'", name=error.name
    ) from error

from llamatune_torch.errors import LlamaTuneError, ParamsError, SettingsError, SpaceError, StorageError
from llamatune_torch.integrations.optuna.spaces import inferred_space, scalar
from llamatune_torch.parameter_base import Parameter, type_key
from llamatune_torch.parameters import Categorical, Integer, Real
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.storage.serialization import read_space, write, write_space
from llamatune_torch.study import Study
from llamatune_torch.trial import KEEPERS_OWN, Cause, Curve, Direction, Outcome, Trial, TrialState, as_outcome, cause_of

logger = logging.getLogger(__name__)

#: What the name of the choice among a parameter's special values ends in.
SPECIAL = " (special)"

#: The study's user attribute that holds the space of an exported study.
SPACE = "llamatune_space"

FINISHED = (OptunaState.COMPLETE, OptunaState.FAIL, OptunaState.PRUNED)


def to_optuna(study: Study, storage: str, name: str) -> int:
    """Writes the COMPLETE and FAILED trials of a study as a new Optuna study; how many they were.

    Running and lost trials are left out, so Optuna's numbers may differ: ``user_attrs["number"]`` has this study's,
    next to ``seed``, ``origin``, ``outcomes``, ``cost`` (seconds), ``reason``, ``error`` and ``notes``. Learning
    curves become intermediate values; Optuna's steps are integers, so of several that round to the same one the last
    counts. Choices that Optuna would confuse (1, 1.0 and True) are written as JSON, all of that parameter's.

    Args:
        study: what to write.
        storage: a URL of Optuna's, such as "sqlite:///optuna.db"; an SQLite file is made if there is none.
        name: of the new study.

    Raises:
        SettingsError: the URL is none, or names no file; the name is empty.
        SpaceError: a parameter is of a class of the user's own, or has the name of another's special values.
        StorageError: there is an Optuna study of that name already, or the storage cannot be written; nothing is
            left behind then.

    Example:
        >>> to_optuna(tuner.study, "sqlite:///optuna.db", "gpt2")
        40
        >>> optuna.load_study(study_name="gpt2", storage="sqlite:///optuna.db").best_value
        0.93
    """
    if not isinstance(name, str) or not name:
        raise SettingsError(f"name must be a non-empty string, but got {name!r}")
    space = write_space(study.space)
    for parameter in study.space.names:
        if study.space[parameter].special and parameter + SPECIAL in study.space.names:
            raise SpaceError(f"parameter {parameter + SPECIAL!r} has the name that special values of another need")
    trials = [_exported(trial, study.space) for trial in study.in_state(TrialState.COMPLETE, TrialState.FAILED)]
    with _opened(storage, create=True) as opened:
        if name in optuna.get_all_study_names(opened):
            raise StorageError(f"{shown_url(storage)} has an Optuna study {name!r} already: choose another name")
        written = optuna.create_study(storage=opened, study_name=name, direction=study.direction)
        try:
            written.set_metric_names([study.metric])
            written.set_user_attr(SPACE, space)
            written.add_trials(trials)
        except BaseException:  # also Ctrl-C: half a study would pass for a whole one
            optuna.delete_study(study_name=name, storage=opened)
            raise
    return len(trials)


def from_optuna(storage: str, name: str | None = None, space: SearchSpace | None = None) -> Study:
    """Reads an Optuna study; the storage stays as it is.

    COMPLETE trials stay COMPLETE, failed ones are FAILED ("failed in Optuna"), pruned ones LOST ("pruned") with their
    curve, since a pruned trial has no final value and its parameters do work; others are left out. All count as
    "added", and are numbered anew from 0. The cost is the time from start to end, in seconds.

    Without a ``space``, an exported study has the one it was exported with. Otherwise it is inferred:

    - bounds that differ between trials become the smallest range that holds them all;
    - a number with a step becomes an ordered choice among its values, if there are at most ``MAX_STEPS``, else a
      range without a step; one with a single value becomes a choice among that one;
    - choices that are no JSON scalars (lists, nan) become their JSON;
    - a parameter that is absent from some trials depends on the one choice before it that explains where it is
      there: ``when={parent: values}``.

    Args:
        storage: a URL of Optuna's, such as "sqlite:///optuna.db".
        name: of the study; ``None`` if it is the only one.
        space: the space to use; trials that do not fit are left out, and a warning in the log counts them.

    Raises:
        SettingsError: the URL is none, or names no file.
        StorageError: there is no such study, it has several objectives, or the storage cannot be read.
        SpaceError: the space cannot be inferred: give one.

    Example:
        >>> study = from_optuna("sqlite:///optuna.db", "gpt2")
        >>> tuner = LlamaTune(study.space, train, direction=study.direction)
        >>> for trial in study.completed + study.failed:
        ...     tuner.add_trial(trial.params, Outcome(trial.value, cost=trial.cost, reason=trial.reason))
    """
    found = _read(storage, name)
    if space is not None:
        space = SearchSpace(space)
    else:
        space = read_space(found.space) if found.space is not None else inferred_space(found.name, found.trials)
    trials: list[Trial] = []
    misfits: list[str] = []
    for frozen in found.trials:
        try:
            trials.append(_imported(len(trials), frozen, space, found))
        except ParamsError as error:
            misfits.append(f"trial {frozen.number}: {error}")
    if misfits:
        logger.warning(
            "Optuna study %r: %d of %d trials do not fit the space and are left out; the first is %s",
            *(found.name, len(misfits), len(found.trials), misfits[0]),
        )
    return Study(space, found.direction, found.metric, trials=tuple(trials))


def optuna_names(storage: str) -> list[str]:
    """The names of the studies in an Optuna storage.

    Raises:
        SettingsError, StorageError: as :func:`from_optuna`.
    """
    with _opened(storage, create=False) as opened:
        return optuna.get_all_study_names(opened)


@dataclass(frozen=True)
class _Found:
    """What there is of an Optuna study: its finished trials, and the space if it was exported from here."""

    name: str
    direction: Direction
    metric: str
    space: str | None
    trials: Sequence[FrozenTrial]


def _read(url: str, name: str | None) -> _Found:
    with _opened(url, create=False) as opened:
        names = optuna.get_all_study_names(opened)
        if name is None and len(names) != 1:
            raise StorageError(f"{shown_url(url)} has the Optuna studies {names}: say which, by its name")
        if name is not None and name not in names:
            raise StorageError(f"{shown_url(url)} has no Optuna study {name!r}, only {names}")
        study = optuna.load_study(study_name=names[0] if name is None else name, storage=opened)
        if len(study.directions) != 1:
            raise StorageError(
                f"a study has one objective, but Optuna study {study.study_name!r} in {shown_url(url)} has "
                f"{len(study.directions)}"
            )
        return _Found(
            study.study_name,
            "maximize" if study.direction == optuna.study.StudyDirection.MAXIMIZE else "minimize",
            (study.metric_names or ["value"])[0],
            study.user_attrs.get(SPACE),
            study.get_trials(deepcopy=False, states=FINISHED),
        )


@contextmanager
def _opened(url: str, create: bool) -> Iterator[RDBStorage]:
    """Optuna's storage, quietly; every error of Optuna's, SQLAlchemy's or a driver's is a ``StorageError``."""
    _check_url(url, create)
    storage = None
    with _quiet():
        try:
            # Without its tables there is nothing to read, and reading must not make them.
            storage = RDBStorage(url, skip_table_creation=not create)
            yield storage
        except LlamaTuneError:
            raise
        except Exception as error:  # they have no class in common
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            use = "written to" if create else "read"
            raise StorageError(f"{shown_url(url)} cannot be {use} as an Optuna storage: {reason}") from error
        finally:
            if storage is not None:
                storage.remove_session()
                storage.engine.dispose()


@contextmanager
def _quiet() -> Iterator[None]:
    """No lines on stderr below a warning, and no warnings about Optuna's experimental or old parts."""
    loggers = [logging.getLogger("optuna"), logging.getLogger("alembic")]  # Optuna sets the level of both
    levels = [log.level for log in loggers]
    loggers[0].setLevel(max(levels[0], logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)


def _check_url(url: Any, create: bool) -> None:
    if not isinstance(url, str) or "://" not in url:
        raise SettingsError(f"storage must be a URL of Optuna's such as 'sqlite:///optuna.db', but got {url!r}")
    kind, _, database = url.partition("://")
    file = database.removeprefix("/").split("?")[0]
    if kind.split("+")[0] != "sqlite" or file.startswith("file:"):
        return
    if file in ("", ":memory:"):
        raise SettingsError(f"storage must name a file, as in 'sqlite:///optuna.db', but got {url!r}")
    if create and not Path(file).parent.is_dir():
        raise StorageError(f"{url} cannot be made: there is no folder {Path(file).parent}")
    if not create and not Path(file).exists():  # Optuna would make it
        raise StorageError(f"there is no {file}")


def shown_url(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def _exported(trial: Trial, space: SearchSpace) -> FrozenTrial:
    params, distributions = {}, {}
    for name, value in trial.params.items():
        name, written, distribution = _written(name, space[name], value)
        params[name], distributions[name] = written, distribution
    curve = {
        round(step): (value, progress)
        for step, value, progress in zip(trial.curve.steps, trial.curve.values, trial.curve.progress, strict=True)
        if math.isfinite(step)
    }
    complete = trial.state is TrialState.COMPLETE
    exported = create_trial(
        state=OptunaState.COMPLETE if complete else OptunaState.FAIL,
        value=trial.value if complete else None,  # infinity too: Optuna takes all but nan
        params=params,
        distributions=distributions,
        intermediate_values={step: value for step, (value, _) in curve.items()},
        user_attrs=_attributes(trial, [progress for _, progress in curve.values()]),
    )
    # Optuna wants both times; where they are unknown, the trial took what it cost and ended now.
    cost = trial.cost or 0.0
    finished = time.time() if trial.started is None else trial.started + cost
    finished = finished if trial.finished is None else trial.finished
    started = finished - cost if trial.started is None else trial.started
    exported.datetime_start, exported.datetime_complete = _datetime(started), _datetime(finished)
    return exported


def _written(name: str, parameter: Parameter, value: Any) -> tuple[str, Any, BaseDistribution]:
    """A parameter and its value by Optuna's name, as Optuna holds it, with its distribution."""
    if isinstance(parameter, Categorical):
        choices = _choices(parameter)
        number = [type_key(choice) for choice in parameter.choices].index(type_key(value))
        return name, choices[number], CategoricalDistribution(choices)
    assert isinstance(parameter, (Real, Integer))
    if value in parameter.special:
        return name + SPECIAL, value, CategoricalDistribution(parameter.special)
    log = parameter.prior == "log-uniform"
    if isinstance(parameter, Integer):
        return name, value, IntDistribution(parameter.low, parameter.high, log=log)
    return name, value, FloatDistribution(parameter.low, parameter.high, log=log)


def _choices(parameter: Categorical) -> list[Any]:
    """The choices as Optuna holds them: as JSON, if some are equal for Python, such as 1, 1.0 and True."""
    distinct = len(set(parameter.choices)) == len(parameter.choices)
    return list(parameter.choices) if distinct else [write(choice) for choice in parameter.choices]


def _attributes(trial: Trial, progress: Sequence[float | None]) -> dict[str, Any]:
    """What Optuna has no place for; only what there is."""
    attributes = {
        "number": trial.number,
        "seed": trial.seed,
        "origin": trial.origin,
        "cost": trial.cost,
        "reason": trial.reason,
        "cause": trial.cause,
        "error": trial.error,
        "outcomes": dict(trial.outcomes) or None,
        "notes": dict(trial.notes) or None,
        "progress": None if all(share is None for share in progress) else progress,
    }
    # By way of `write`, because outcomes may be numpy's or torch's numbers.
    return {key: json.loads(write(value)) for key, value in attributes.items() if value is not None}


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _imported(number: int, frozen: FrozenTrial, space: SearchSpace, found: _Found) -> Trial:
    """An Optuna trial as one of a study's.

    Raises:
        ParamsError: it does not fit the space.
    """
    params = space.validate(_params(frozen, space))
    own = found.space is not None and "seed" in frozen.user_attrs
    attributes = frozen.user_attrs if own else {}
    started, finished = (
        None if moment is None else moment.timestamp() for moment in (frozen.datetime_start, frozen.datetime_complete)
    )
    lasted = None if own or started is None or finished is None else finished - started
    outcome = _outcome(frozen, attributes, found.direction)
    state = TrialState.FAILED if outcome.value is None else TrialState.COMPLETE
    return Trial(
        number,
        params,
        seed=attributes.get("seed", 0),
        origin="added",
        state=TrialState.LOST if frozen.state == OptunaState.PRUNED else state,
        value=outcome.value,
        curve=_curve(frozen, attributes.get("progress")),
        outcomes=attributes.get("outcomes", {}),
        cost=attributes.get("cost", lasted),
        error=outcome.error,
        reason=outcome.reason,
        cause=outcome.cause,
        notes=attributes.get("notes", {}),
        started=started,
        finished=finished,
    )


def _outcome(frozen: FrozenTrial, attributes: dict[str, Any], direction: Direction) -> Outcome:
    if frozen.state == OptunaState.PRUNED:
        return Outcome.failure("pruned")
    if frozen.state == OptunaState.FAIL:
        reason = attributes.get("reason", "failed in Optuna")
        cause = attributes.get("cause")
        cause = cause_of(reason) if cause is None or cause in KEEPERS_OWN else Cause(cause)
        return Outcome.failure(reason, attributes.get("error"), cause=cause)
    return as_outcome(frozen.value, direction)  # infinities on the good side are failures here


def _curve(frozen: FrozenTrial, progress: Sequence[float | None] | None) -> Curve:
    points = sorted(frozen.intermediate_values.items())
    shares = [None] * len(points) if progress is None or len(progress) != len(points) else progress
    return Curve(tuple(float(step) for step, _ in points), tuple(value for _, value in points), tuple(shares))


def _params(frozen: FrozenTrial, space: SearchSpace) -> Params:
    """The parameters by their names in the space, special values among them; not yet checked."""
    params = {}
    for name, value in frozen.params.items():
        plain_name = name.removesuffix(SPECIAL)
        if name not in space.names and plain_name in space.names and space[plain_name].special:
            params[plain_name] = value
        elif name in space.names and isinstance(parameter := space[name], Categorical):
            params[name] = _choice(parameter, value, frozen.distributions[name])
        else:
            params[name] = value
    return params


def _choice(parameter: Categorical, value: Any, distribution: BaseDistribution) -> Any:
    """The choice that a value stands for; anything else as it is."""
    if isinstance(distribution, CategoricalDistribution):
        if [*map(type_key, distribution.choices)] == [*map(type_key, _choices(parameter))]:
            return parameter.choices[distribution.choices.index(value)]
        return scalar(value)
    # A step of a float's: Optuna's samplers differ in the last digits.
    numbers = [c for c in parameter.choices if isinstance(c, (int, float)) and not isinstance(c, bool)]
    nearest = min(numbers, key=lambda number: abs(number - value), default=None)
    if nearest is None or abs(nearest - value) > 1e-9 * (max(numbers) - min(numbers)):
        return value
    return nearest
