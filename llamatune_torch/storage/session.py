"""One process's view of a stored study, and the one way to change it.

Every change is one short transaction. It takes the study for itself first, so that changes come one after the other and
each sees those before it. Afterwards the record in this process is up to date: only newer rows have been read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from llamatune_torch.constraints import Estimate
from llamatune_torch.curve import Curve
from llamatune_torch.errors import SchemaError, StorageError
from llamatune_torch.storage.database import OPENING_PATIENCE, Database, Transaction
from llamatune_torch.storage.definition import Definition, open_study
from llamatune_torch.storage.points import read_curves, write_points
from llamatune_torch.storage.serialization import (
    as_seen_by,
    read_estimates,
    read_trial,
    to_json,
    write_estimates,
    write_trial,
)
from llamatune_torch.storage.store import check_number, check_open
from llamatune_torch.storage.validation import mapping, number, optional, parsed, take, words
from llamatune_torch.study import End, Study
from llamatune_torch.trial import Direction, Trial

T = TypeVar("T")

PATIENCE = 60.0  # seconds for which a write that fails is tried again

#: The columns that ``read_trial`` needs.
COLUMNS = "number, state, origin, value, params, worker, retry_of, details"


def check_lease(row: Mapping[str, Any], id: int) -> None:
    """Checks the columns of a study that are about the lease.

    Raises:
        SchemaError: one of them holds something else.
    """
    take(row, "lease_owner", f"study {id}", optional(words))
    for column in ("lease_until", "suggest_seconds"):
        take(row, column, f"study {id}", number)


class LockedStudy:
    """A study within one transaction, which nobody else can change meanwhile.

    ``trials`` is the record as it is now, ``row`` the study's row as it was at the start of the transaction.

    Args:
        transaction: a writing one.
        id: the study's id.
        known: the study as this process last saw it.
        revision: the revision at which it saw it; -1 if it has seen nothing yet.
        written: the curves that the database has, where this process knows more points.

    Raises:
        StorageError: the study is no longer there.
    """

    def __init__(
        self, transaction: Transaction, id: int, known: Study, revision: int, written: Mapping[int, Curve]
    ) -> None:
        rows = transaction.rows(
            "UPDATE llamatune_studies SET revision = revision + 1 WHERE id = :study "
            "RETURNING revision, direction, metric, lease_owner, lease_until, suggest_seconds",
            study=id,
        )
        if not rows:
            raise StorageError("the study has been deleted from its database")
        self.transaction = transaction
        self.id = id
        self.row = rows[0]
        check_lease(self.row, id)
        self.revision = int(self.row["revision"])
        self.space = known.space
        self.trials = list(known.trials)
        self.written = dict(written)
        self._known = replace(
            known, goal=replace(known.goal, direction=self.row["direction"], metric=self.row["metric"])
        )
        newer = transaction.rows(
            f"SELECT {COLUMNS} FROM llamatune_trials WHERE study = :study AND revision > :known ORDER BY number",
            study=id,
            known=revision,
        )
        curves = {trial.number: trial.curve for trial in self.trials} | self.written
        curves |= read_curves(transaction, id, curves, revision)
        for row in newer:
            self.written.pop(row["number"], None)
            self._place(read_trial(row, self.space, known.extension, curves.get(row["number"])))

    @property
    def now(self) -> float:
        """The time by the database's clock, in Unix seconds."""
        return self.transaction.now

    @property
    def study(self) -> Study:
        """The record as it is now."""
        return replace(self._known, trials=tuple(self.trials))

    def read(self, number: int) -> Trial:
        """Reads a trial as it was written, whether it fits the space or not."""
        rows = self.transaction.rows(
            f"SELECT {COLUMNS} FROM llamatune_trials WHERE study = :study AND number = :number",
            study=self.id,
            number=number,
        )
        return read_trial(rows[0], curve=self._written_curve(number))

    def find_open(self, trial: Trial | int) -> Trial:
        """Reads an open trial as it was written; the one given may also be as it counts in the space of now.

        Raises:
            TrialStateError: it is unknown, has finished, or belongs to another study.
        """
        written = self.read(check_number(trial, len(self.trials)))
        if isinstance(trial, Trial) and trial.params == self.as_seen(written).params:
            trial = replace(trial, params=written.params)
        return check_open(written, trial)

    def as_seen(self, trial: Trial) -> Trial:
        """A trial as it counts in the space of now."""
        return as_seen_by(trial, self.space, self._known.extension)

    def put(self, trial: Trial) -> None:
        """Writes a trial: a new one, or in the place of its number.

        Raises:
            StorageError: there is no trial of that number to replace.
        """
        values = {**write_trial(trial, with_curve=False), "study": self.id, "revision": self.revision}
        write_points(
            self.transaction, self.id, trial.number, self.revision, self._written_curve(trial.number), trial.curve
        )
        self.written.pop(trial.number, None)
        if trial.number == len(self.trials):
            names = ", ".join(values)
            marks = ", ".join(f":{name}" for name in values)
            self.transaction.run(f"INSERT INTO llamatune_trials ({names}) VALUES ({marks})", **values)
        else:
            new = ", ".join(f"{name} = :{name}" for name in values if name not in ("study", "number"))
            update = f"UPDATE llamatune_trials SET {new} WHERE study = :study AND number = :number"
            if self.transaction.run(update, **values) != 1:
                raise StorageError(f"trial {trial.number} cannot be written: the database has no such trial")
        self._place(self.as_seen(trial))

    def settle(self, metric: str, direction: Direction) -> None:
        """Writes the name of the score and its direction."""
        self.transaction.run(
            "UPDATE llamatune_studies SET metric = :metric, direction = :direction WHERE id = :study",
            study=self.id,
            metric=metric,
            direction=direction,
        )
        self._known = replace(self._known, goal=replace(self._known.goal, direction=direction, metric=metric))

    def estimate(self, estimates: Sequence[Estimate]) -> None:
        """Writes estimates among the settings, or takes over those that another process has written."""
        settings = self._read_settings()
        if "estimates" not in settings:
            settings = self._write_settings({**settings, "estimates": write_estimates(estimates)})
        known = read_estimates(settings["estimates"], f"study {self.id}: estimates")
        self._known = replace(self._known, estimates=known)

    def conclude(self, reason: str) -> None:
        """Writes why the search has ended, among the study's settings."""
        end = End(len(self.trials), reason)
        self._write_settings({**self._read_settings(), "end": list(end)})
        self._known = replace(self._known, end=end)

    def _read_settings(self) -> dict[str, Any]:
        (row,) = self.transaction.rows("SELECT settings FROM llamatune_studies WHERE id = :study", study=self.id)
        return mapping(parsed(row["settings"], f"study {self.id}"), f"study {self.id}: settings")

    def _write_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        update = "UPDATE llamatune_studies SET settings = :settings WHERE id = :study"
        self.transaction.run(update, study=self.id, settings=to_json(settings))
        return settings

    def _written_curve(self, number: int) -> Curve:
        """Returns the curve that the database has of a trial."""
        known = self.trials[number].curve if number < len(self.trials) else Curve()
        return self.written.get(number, known)

    def _place(self, trial: Trial) -> None:
        if not 0 <= trial.number <= len(self.trials):
            raise SchemaError(f"trial {len(self.trials)} is not in the database, but trial {trial.number} is")
        self.trials[trial.number : trial.number + 1] = [trial]


class StudySession:
    """One process's view of a stored study, and the one way to change it.

    ``id`` is the study's key in its database, ``settings`` are those it was opened with. ``patience`` is the number of
    seconds for which a transaction that fails is tried again.

    Args:
        url: the URL of the database.
        name: the study's name in it.
        given: the definition to open it with, or to create it from.
        extend: as of ``Place``.

    Raises:
        SettingsError, StorageError, StudyMismatchError: as ``DurableStore``.
    """

    def __init__(self, url: str, name: str, given: Definition, extend: bool | Mapping[str, Any] = False) -> None:
        self.name = name
        self.patience = PATIENCE
        self.database = Database(url)
        self._lock = threading.RLock()  # around a transaction and what is remembered of it

        def work(transaction: Transaction) -> tuple[int, Definition]:
            return open_study(transaction, self.database.display_url, name, given, extend)

        self.id, opened = self.database.keep_trying(
            lambda: self.database.write(work, exclusive=True), "to be opened", OPENING_PATIENCE
        )
        self.settings = opened.settings
        self._study, self._revision = opened.study, -1
        self._written: dict[int, Curve] = {}  # the database's, of trials that could not be written
        self.refresh()

    @property
    def study(self) -> Study:
        """The record as this process last saw it."""
        return self._study

    def refresh(self) -> Study:
        """Reads the record as it is now."""
        return self.write(lambda locked: locked.study, "to be read")

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs ``work`` in a transaction that waits for nobody and changes nothing."""
        return self.database.keep_trying(lambda: self.database.read(work), "to be read", self.patience)

    def write(
        self,
        work: Callable[[LockedStudy], T],
        what: str,
        *,
        patience: float | None = None,
        at_failure: Callable[[], object] | None = None,
        durable: bool = True,
    ) -> T:
        """Runs ``work`` in a transaction that has the study for itself; afterwards the record here is up to date.

        Args:
            work: reads and changes the locked study. It runs once an attempt, and each attempt may have come through
                although it seemed to fail: the next one must then do nothing twice.
            what: names the work in messages, as in "the end of a trial to be written".
            patience: seconds for which a transaction that fails is tried again; by default the session's.
            at_failure: called once, after the first failure that may pass.
            durable: whether the commit waits for the disk, as for ``Database.write``.

        Raises:
            StorageError: no attempt succeeded.
        """

        def run(transaction: Transaction) -> tuple[T, LockedStudy]:
            locked = LockedStudy(transaction, self.id, self._study, self._revision, self._written)
            return work(locked), locked

        def attempt() -> T:
            result, locked = self.database.write(run, durable=durable)
            self._study, self._revision, self._written = locked.study, locked.revision, locked.written  # as committed
            return result

        with self._lock:
            return self.database.keep_trying(attempt, what, self.patience if patience is None else patience, at_failure)

    def find_open(self, trial: Trial | int) -> Trial:
        """Returns an open trial as this process last saw it.

        Raises:
            TrialStateError: it is unknown, has finished, or belongs to another study.
        """
        trials = self._study.trials
        return check_open(trials[check_number(trial, len(trials))], trial)

    def remember(self, trial: Trial) -> None:
        """Puts a trial that could not be written into the record of this process at least."""
        with self._lock:
            trials = list(self._study.trials)
            self._written.setdefault(trial.number, trials[trial.number].curve)
            trials[trial.number] = trial
            self._study = replace(self._study, trials=tuple(trials))
