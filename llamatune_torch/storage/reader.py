"""Reads stored studies without taking part in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from llamatune_torch.errors import SchemaError, StorageError
from llamatune_torch.storage.database import OPENING_PATIENCE, Database, Transaction, find_sqlite_file
from llamatune_torch.storage.definition import read_definition
from llamatune_torch.storage.heartbeat import Worker
from llamatune_torch.storage.points import read_curves
from llamatune_torch.storage.serialization import as_seen_by, read_trial
from llamatune_torch.storage.session import COLUMNS
from llamatune_torch.storage.validation import number, take
from llamatune_torch.study import Study
from llamatune_torch.trial import Trial

T = TypeVar("T")


class Snapshot(NamedTuple):
    """A stored study at one moment.

    ``settings`` are those of its last start. ``workers`` are the ones that run trials now, by name. ``now`` is the time
    in Unix seconds, by the database's clock. ``written`` are the trials that are on record otherwise than they count in
    the present space, by number.
    """

    name: str
    study: Study
    settings: Mapping[str, Any]
    workers: Mapping[str, Worker]
    now: float
    written: Mapping[int, Trial] = {}


class Reader:
    """Reads the studies in a database. Nothing in it changes, and no writer has to wait.

    Raises:
        SettingsError, SchemaError, StorageError: as ``Database``.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url, reading=True)
        #: The URL without the password.
        self.display_url = self._database.display_url

    def names(self) -> list[str]:
        """Lists the names of all studies."""
        return self._read(_list_names) if self._database.version else []

    def look(self, name: str | None = None) -> Snapshot:
        """Reads a study as it is now; by default the only one there is.

        Raises:
            StorageError: there is no such study, or more than one and no name; the message lists them.
        """

        def work(transaction: Transaction) -> Snapshot:
            names = _list_names(transaction) if self._database.version else []
            if name is None and len(names) > 1:
                raise StorageError(f"{self.display_url} has several studies, say the name of one: {names}")
            if not names or name not in (None, *names):
                wanted = "no study" if name is None else f"no study {name!r}"
                raise StorageError(f"{self.display_url} has {wanted}" + (f", only {names}" if names else ""))
            return _take_snapshot(transaction, name or names[0])

        return self._read(work)

    def _read(self, work: Callable[[Transaction], T]) -> T:
        return self._database.keep_trying(lambda: self._database.read(work), "to be read", OPENING_PATIENCE)


def find_study(url: str, name: str) -> Snapshot | None:
    """Reads a stored study as it is now; ``None`` if it, or its SQLite file, has not been made yet."""
    file = find_sqlite_file(url)
    if file is not None and not file.exists():
        return None
    reader = Reader(url)
    return reader.look(name) if name in reader.names() else None


def load_study(storage: str, name: str | None = None) -> Study:
    """Reads a stored study as it is now, while others may go on with it.

    Args:
        storage: the URL of its database, as for :class:`LlamaTune`.
        name: the study's name; not needed where there is only one.

    Raises:
        StorageError: there is no such study, or several and no name; the message lists them.

    Example:
        >>> print(load_study("sqlite:///gpt2.db", "gpt2-cls").summary())
    """
    return Reader(storage).look(name).study


def show_trials(study: Study, written: Sequence[Trial]) -> tuple[Study, dict[int, Trial]]:
    """A study with its trials as they count in its space, and those that were written otherwise, by number."""
    shown = tuple(as_seen_by(trial, study.space, study.extension) for trial in written)
    differ = {old.number: old for old, new in zip(written, shown, strict=True) if old is not new}
    return replace(study, trials=shown), differ


def _list_names(transaction: Transaction) -> list[str]:
    return [row["name"] for row in transaction.rows("SELECT name FROM llamatune_studies ORDER BY name")]


def _take_snapshot(transaction: Transaction, name: str) -> Snapshot:
    (row,) = transaction.rows("SELECT * FROM llamatune_studies WHERE name = :name", name=name)
    definition = read_definition(row, transaction)
    trials = transaction.rows(
        f"SELECT {COLUMNS} FROM llamatune_trials WHERE study = :study ORDER BY number", study=row["id"]
    )
    workers = transaction.rows(
        "SELECT w.* FROM llamatune_workers w WHERE EXISTS "
        "(SELECT 1 FROM llamatune_trials t WHERE t.study = :study AND t.state = 'running' AND t.worker = w.id)",
        study=row["id"],
    )
    now = transaction.now
    curves = read_curves(transaction, row["id"], {}, since=-1)
    read = [read_trial(trial, curve=curves.get(trial["number"])) for trial in trials]
    study, written = show_trials(definition.study, read)
    for i, trial in enumerate(study.trials):
        if trial.number != i:
            raise SchemaError(f"trial {i} is not in the database, but trial {trial.number} is")
    running = {
        w["id"]: Worker(w["id"], w["host"], w["pid"], now - take(w, "heartbeat", f"worker {w['id']}", number))
        for w in workers
    }
    return Snapshot(name, study, definition.settings, running, now, written)
