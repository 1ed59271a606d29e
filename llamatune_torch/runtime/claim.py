"""A stored study within one transaction."""

from __future__ import annotations

from dataclasses import replace

from llamatune_torch.errors import StorageError
from llamatune_torch.runtime.records import fitted, read_trial, write_trial
from llamatune_torch.runtime.storage import Transaction
from llamatune_torch.runtime.store import checked, number_of
from llamatune_torch.study import Study, Trial

#: What ``read_trial`` needs.
COLUMNS = "number, state, origin, value, params, worker, retry_of, details"


class Claim:
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
        self._place(fitted(trial, self.known.space))

    def _place(self, trial: Trial) -> None:
        self.trials[trial.number : trial.number + 1] = [trial]


def recover(recorded: Trial, claim: Claim) -> None:
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
        checked(current, recorded)
        claim.put(recorded)
