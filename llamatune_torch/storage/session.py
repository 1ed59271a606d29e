"""A study in a database, as one process knows it, and the one way to change it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from llamatune_torch.errors import StorageError
from llamatune_torch.storage.database import OPENING_PATIENCE, Database, Transaction
from llamatune_torch.storage.definition import open_study
from llamatune_torch.storage.serialization import as_seen_by, read_trial, write_trial
from llamatune_torch.storage.store import check_open, number_of
from llamatune_torch.study import Study
from llamatune_torch.trial import Trial

#: What ``read_trial`` needs.
COLUMNS = "number, state, origin, value, params, worker, retry_of, details"


class LockedStudy:
    """A study within one transaction, which has it for itself: the record as it is now, and what is to change."""

    def __init__(self, transaction: Transaction, id: int, known: Study, revision: int) -> None:
        rows = transaction.rows(
            "UPDATE llamatune_studies SET revision = revision + 1 WHERE id = :study "
            "RETURNING revision, direction, metric, asking, asking_until, ask_seconds",
            study=id,
        )
        if not rows:
            raise StorageError("the study has been deleted from its database")
        self.transaction = transaction
        self.row = rows[0]
        self.revision = int(self.row["revision"])
        self.known = replace(known, direction=self.row["direction"], metric=self.row["metric"] or known.metric)
        self.trials = list(known.trials)
        self.id = id
        changed = transaction.rows(
            f"SELECT {COLUMNS} FROM llamatune_trials WHERE study = :study AND revision > :known ORDER BY number",
            study=id,
            known=revision,
        )
        for row in changed:
            self._place(read_trial(row, known.space))

    @property
    def now(self) -> float:
        """Unix time in seconds, by the database's clock."""
        return self.transaction.now

    @property
    def study(self) -> Study:
        return replace(self.known, trials=tuple(self.trials))

    def recorded(self, number: int) -> Trial:
        """A trial as it was written, whether it fits the space or not."""
        rows = self.transaction.rows(
            f"SELECT {COLUMNS} FROM llamatune_trials WHERE study = :study AND number = :number",
            study=self.id,
            number=number,
        )
        return read_trial(rows[0])

    def put(self, trial: Trial) -> None:
        """Writes a trial: a new one, or in the place of its number."""
        values = {**write_trial(trial), "study": self.id, "revision": self.revision}
        if trial.number == len(self.trials):
            names = ", ".join(values)
            marks = ", ".join(f":{name}" for name in values)
            self.transaction.run(f"INSERT INTO llamatune_trials ({names}) VALUES ({marks})", **values)
        else:
            new = ", ".join(f"{name} = :{name}" for name in values if name not in ("study", "number"))
            self.transaction.run(
                f"UPDATE llamatune_trials SET {new} WHERE study = :study AND number = :number", **values
            )
        self._place(as_seen_by(trial, self.known.space))

    def _place(self, trial: Trial) -> None:
        self.trials[trial.number : trial.number + 1] = [trial]


def recover(recorded: Trial, claim: LockedStudy) -> None:
    """Writes a result that was kept elsewhere, unless it has come through already.

    Raises:
        TrialStateError: its trial has another result, or there is no such trial.
    """
    if recorded.origin == "added":
        if not any((t.params, t.started) == (recorded.params, recorded.started) for t in claim.trials):
            claim.put(replace(recorded, number=len(claim.trials)))
        return
    current = claim.recorded(number_of(recorded, len(claim.trials)))
    if write_trial(current) != write_trial(recorded):
        check_open(current, recorded)
        claim.put(recorded)


T = TypeVar("T")

PATIENCE = 60.0  # seconds for which a write that fails is tried again


class StudySession:
    """What ``DurableStore`` rests on; its arguments are those of the same name there."""

    def __init__(
        self, url: str, name: str, study: Study, settled: bool, settings: Mapping[str, Any], extend: bool
    ) -> None:
        self.name = name
        self.patience = PATIENCE
        self._database = Database(url)
        self._lock = threading.RLock()  # around a transaction and what is remembered of it
        self._revision = -1

        def work(transaction: Transaction) -> None:
            self._id, self._study, self.settings = open_study(
                transaction, self._database.display_url, name, study, settled, settings, extend
            )

        self._database.patiently(lambda: self._database.write(work, exclusive=True), "to be opened", OPENING_PATIENCE)
        self.refresh()

    @property
    def study(self) -> Study:
        """The record as this process last saw it."""
        return self._study

    def refresh(self) -> Study:
        """The record as it is now."""
        return self._write(lambda claim: claim.study, "to be read")

    def _write(
        self,
        work: Callable[[LockedStudy], T],
        what: str,
        patience: float | None = None,
        at_failure: Callable[[], object] | None = None,
        durable: bool = True,
    ) -> T:
        """Runs ``work`` in a transaction that has the study for itself; then the record here is up to date."""

        def attempt() -> T:
            claims: list[LockedStudy] = []

            def within(transaction: Transaction) -> T:
                claims.append(LockedStudy(transaction, self._id, self._study, self._revision))
                return work(claims[0])

            result = self._database.write(within, durable=durable)
            self._study, self._revision = claims[0].study, claims[0].revision  # only what was committed
            return result

        with self._lock:
            patience = self.patience if patience is None else patience
            return self._database.patiently(attempt, what, patience, at_failure)

    def _known(self, trial: Trial | int) -> Trial:
        """An open trial as this process last saw it."""
        trials = self._study.trials
        return check_open(trials[number_of(trial, len(trials))], trial)

    def _remember(self, trial: Trial) -> None:
        """What could not be written is known here at least."""
        trials = list(self._study.trials)
        trials[trial.number] = trial
        self._study = replace(self._study, trials=tuple(trials))
