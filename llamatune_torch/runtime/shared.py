"""A study in a database, as one process knows it, and the one way to change it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from llamatune_torch.runtime.claim import Claim
from llamatune_torch.runtime.opening import opened
from llamatune_torch.runtime.storage import OPENING_PATIENCE, Database, Transaction
from llamatune_torch.runtime.store import checked, number_of
from llamatune_torch.study import Study, Trial

T = TypeVar("T")

PATIENCE = 60.0  # seconds for which a write that fails is tried again


class SharedStudy:
    """What ``StoredStudy`` rests on; its arguments are those of the same name there."""

    def __init__(
        self, url: str, name: str, study: Study, settled: bool, settings: Mapping[str, Any], extend: bool
    ) -> None:
        self.name = name
        self.patience = PATIENCE
        self._database = Database(url)
        self._lock = threading.RLock()  # around a transaction and what is remembered of it
        self._revision = -1

        def work(transaction: Transaction) -> None:
            self._id, self._study, self.settings = opened(
                transaction, self._database.shown, name, study, settled, settings, extend
            )

        self._database.patiently(lambda: self._database.write(work, opening=True), "to be opened", OPENING_PATIENCE)
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
        work: Callable[[Claim], T],
        what: str,
        patience: float | None = None,
        at_failure: Callable[[], object] | None = None,
        durable: bool = True,
    ) -> T:
        """Runs ``work`` in a transaction that has the study for itself; then the record here is up to date."""

        def attempt() -> T:
            claims: list[Claim] = []

            def within(transaction: Transaction) -> T:
                claims.append(Claim(transaction, self._id, self._study, self._revision))
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
        return checked(trials[number_of(trial, len(trials))], trial)

    def _remember(self, trial: Trial) -> None:
        """What could not be written is known here at least."""
        trials = list(self._study.trials)
        trials[trial.number] = trial
        self._study = replace(self._study, trials=tuple(trials))
