"""Studies to and from Optuna: ``to_optuna(study, storage, name)`` and ``from_optuna(storage, name)``.

An Optuna study has no space. The space of an exported study is written as a user attribute of it, so that it comes back
as it was. The space of anybody else's study is inferred from the distributions of its trials (``spaces.py``).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import optuna
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial
    from optuna.trial import TrialState as OptunaState
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"to_optuna() and from_optuna() need {error.name}: pip install 'llamatune-torch[optuna]'", name=error.name
    ) from error

from llamatune_torch.errors import LlamaTuneError, ParamsError, SettingsError, SpaceError, StorageError
from llamatune_torch.integrations.optuna.spaces import infer_space
from llamatune_torch.integrations.optuna.trials import SPECIAL, STATES, from_frozen_trial, to_frozen_trial
from llamatune_torch.space import SearchSpace
from llamatune_torch.storage.serialization import read_space, write_space
from llamatune_torch.study import Goal, Study
from llamatune_torch.text import redact
from llamatune_torch.trial import Direction, Trial

logger = logging.getLogger(__name__)

#: The user attribute of an Optuna study that holds the space of an exported study.
SPACE = "llamatune_space"

#: The states of Optuna trials that are read.
FINISHED = (OptunaState.COMPLETE, OptunaState.FAIL, OptunaState.PRUNED)


def to_optuna(study: Study, storage: str, name: str) -> int:
    """Writes the COMPLETE, STOPPED and FAILED trials of a study as a new Optuna study, and returns their number.

    STOPPED ones are PRUNED there. Running, paused and lost trials are left out, so Optuna may number the others
    differently. The user attributes of a trial
    hold its ``number`` here, its ``seed``, ``origin``, ``outcomes``, ``cost`` (seconds), ``reason``, ``cause``,
    ``error`` and ``notes``. A learning curve becomes intermediate values. Their steps are integers in Optuna, so the
    last of several points that round to the same step counts. If Optuna would confuse two choices of a parameter
    (1, 1.0 and True), all its choices are written as JSON.

    Args:
        study: the study to write.
        storage: a URL of Optuna's, such as "sqlite:///optuna.db"; an SQLite file is made if there is none.
        name: the name of the new study.

    Of several objectives Optuna gets the first as the value; the others are among the outcomes.

    Raises:
        SettingsError: ``storage`` is no URL or names no file, or ``name`` is empty.
        SpaceError: a parameter is of a class of the user's own, or has the name of another's special values.
        StorageError: there is an Optuna study of that name already, or the storage cannot be written. Nothing is left
            behind then.

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
    trials = [to_frozen_trial(trial, study.space) for trial in study.in_state(*STATES)]
    with _open_storage(storage, create=True) as there:
        if name in optuna.get_all_study_names(there):
            raise StorageError(f"{redact(storage)} has an Optuna study {name!r} already: choose another name")
        written = optuna.create_study(storage=there, study_name=name, direction=study.direction)
        try:
            written.set_metric_names([study.metric])
            written.set_user_attr(SPACE, space)
            written.add_trials(trials)
        except BaseException:  # also Ctrl-C: half a study would pass for a whole one
            optuna.delete_study(study_name=name, storage=there)
            raise
    return len(trials)


def from_optuna(storage: str, name: str | None = None, space: SearchSpace | None = None) -> Study:
    """Reads an Optuna study, and leaves the storage as it is.

    A COMPLETE trial stays COMPLETE, and a failed one is FAILED ("failed in Optuna"). A pruned one is STOPPED,
    with its curve: it has no final value, but its parameters do work. All others are left out. The origin of each is
    "added", they are numbered anew from 0, and their cost is the time from start to end, in seconds.

    Without ``space``, an exported study has the space that it was exported with. Otherwise the space is inferred:

    - bounds that differ between trials become the smallest range that holds them all;
    - an integer with a step keeps it; a float with a step becomes an ordered choice among its values, if there are at
      most ``MAX_STEPS``; steps that differ between trials count for nothing;
    - a number with a single value becomes a constant;
    - choices that are no JSON (nan) become the text of theirs;
    - a parameter that is absent from some trials depends on the one choice before it that explains its presence:
      ``when={parent: values}``.

    Args:
        storage: a URL of Optuna's, such as "sqlite:///optuna.db".
        name: the name of the study; ``None`` if it is the only one.
        space: the space to use. Trials that do not fit it are left out, and a warning in the log counts them.

    Raises:
        SettingsError: ``storage`` is no URL, or names no file.
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
        space = read_space(found.space) if found.space is not None else infer_space(found.name, found.trials)
    trials: list[Trial] = []
    misfits: list[str] = []
    for frozen in found.trials:
        try:
            trials.append(from_frozen_trial(frozen, len(trials), space, found.direction, found.space is not None))
        except ParamsError as error:
            misfits.append(f"trial {frozen.number}: {error}")
    if misfits:
        logger.warning(
            "Optuna study %r: %d of %d trials do not fit the space and are left out; the first is %s",
            *(found.name, len(misfits), len(found.trials), misfits[0]),
        )
    return Study(space, Goal(found.direction, found.metric), trials=tuple(trials))


def list_studies(storage: str) -> list[str]:
    """Lists the names of the studies in an Optuna storage.

    Raises:
        SettingsError, StorageError: as :func:`from_optuna`.
    """
    with _open_storage(storage, create=False) as there:
        return optuna.get_all_study_names(there)


@dataclass(frozen=True)
class _Found:
    """An Optuna study as far as it is read: its finished trials, and its space if it was exported from here."""

    name: str
    direction: Direction
    metric: str
    space: str | None
    trials: Sequence[FrozenTrial]


def _read(url: str, name: str | None) -> _Found:
    with _open_storage(url, create=False) as there:
        names = optuna.get_all_study_names(there)
        if name is None and len(names) != 1:
            raise StorageError(f"{redact(url)} has the Optuna studies {names}: say which, by its name")
        if name is not None and name not in names:
            raise StorageError(f"{redact(url)} has no Optuna study {name!r}, only {names}")
        study = optuna.load_study(study_name=names[0] if name is None else name, storage=there)
        if len(study.directions) != 1:
            raise StorageError(
                f"a study has one objective, but Optuna study {study.study_name!r} in {redact(url)} has "
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
def _open_storage(url: str, create: bool) -> Iterator[RDBStorage]:
    """Opens Optuna's storage quietly. Every error of Optuna's, SQLAlchemy's or a driver's is a ``StorageError``."""
    _check_url(url, create)
    storage = None
    with _silence():
        try:
            # Without its tables there is nothing to read, and reading must not make them.
            storage = RDBStorage(url, skip_table_creation=not create)
            yield storage
        except LlamaTuneError:
            raise
        except Exception as error:  # they have no class in common
            reason = str(error.__cause__ or error).replace(url, redact(url)).strip().split("\n")[0]
            use = "written to" if create else "read"
            raise StorageError(f"{redact(url)} cannot be {use} as an Optuna storage: {reason}") from error
        finally:
            if storage is not None:
                storage.remove_session()
                storage.engine.dispose()


@contextmanager
def _silence() -> Iterator[None]:
    """Lets through no log lines below a warning, and no warnings about Optuna's experimental or old parts."""
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
    shown = redact(url) if isinstance(url, str) else url
    if not isinstance(url, str) or "://" not in url:
        raise SettingsError(f"storage must be a URL of Optuna's such as 'sqlite:///optuna.db', but got {shown!r}")
    kind, _, database = url.partition("://")
    file = database.removeprefix("/").split("?")[0]
    if kind.split("+")[0] != "sqlite" or file.startswith("file:"):
        return
    if file in ("", ":memory:"):
        raise SettingsError(f"storage must name a file, as in 'sqlite:///optuna.db', but got {shown!r}")
    if create and not Path(file).parent.is_dir():
        raise StorageError(f"{shown} cannot be made: there is no folder {Path(file).parent}")
    if not create and not Path(file).exists():  # Optuna would make it
        raise StorageError(f"there is no {file}")
