"""A stored study as one JSON document, and back: to move it from one database to another, or to keep it.

Nothing is lost: numbers, seeds, curves, errors. The study that is read advises what the one that was written would
have. JSON has no infinity and no nan, which diverged runs do have: they are strings, "inf", "-inf" and "nan".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llamatune_torch.errors import SchemaError, StorageError
from llamatune_torch.storage.database import OPENING_PATIENCE, Database, Transaction
from llamatune_torch.storage.definition import open_study
from llamatune_torch.storage.reader import Snapshot
from llamatune_torch.storage.serialization import read_space, read_trial, write, write_space, write_trial
from llamatune_torch.storage.session import LockedStudy
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause, Trial, TrialState

FORMAT = 1


def to_document(stored: Snapshot) -> dict[str, Any]:
    """All that is known of a study, as JSON values."""
    study = stored.study
    return {
        "llamatune_study": FORMAT,
        "name": stored.name,
        "direction": study.direction,
        "metric": study.metric if stored.settled else None,
        "space": json.loads(write_space(study.space)),
        "initial_points": list(study.initial_points),
        "settings": dict(stored.settings),
        "trials": [_entry(trial) for trial in study.trials],
    }


def from_document(document: Any) -> Snapshot:
    """What :func:`to_document` wrote; trials that were running are lost, since nobody runs them here.

    Raises:
        SchemaError: it did not write this, or a newer version did.
    """
    if not isinstance(document, Mapping) or document.get("llamatune_study") != FORMAT:
        found = document.get("llamatune_study") if isinstance(document, Mapping) else None
        raise SchemaError(f"this is no study that export has written: its llamatune_study is {found!r}, not {FORMAT}")
    try:
        space = read_space(write(document["space"]))
        study = Study(
            space,
            document["direction"],
            document["metric"] or "value",
            tuple(document["initial_points"]),
            tuple(_trial(entry) for entry in document["trials"]),
        )
        settled, settings = document["metric"] is not None, dict(document["settings"])
        return Snapshot(document["name"], study, settled, settings, {}, 0.0)
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(f"the exported study cannot be read: {error!r}") from error


def restore(url: str, name: str, archived: Snapshot) -> None:
    """Writes an archived study down as a new one, with all its trials as they are, or nothing at all.

    Raises:
        StorageError: there is a study of that name already.
    """
    database = Database(url)

    def work(transaction: Transaction) -> None:
        if transaction.rows("SELECT id FROM llamatune_studies WHERE name = :name", name=name):
            raise StorageError(f"{database.display_url} has a study {name!r} already")
        empty = replace(archived.study, trials=())
        made = open_study(
            transaction, database.display_url, name, empty, archived.settled, archived.settings, extend=False
        )
        claim = LockedStudy(transaction, made[0], empty, -1)
        for trial in archived.study.trials:
            claim.put(trial)

    database.patiently(lambda: database.write(work, exclusive=True), "a study to be restored", OPENING_PATIENCE)


def strict(value: Any) -> Any:
    """The same without infinity and nan, for other programs' JSON parsers."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: strict(inner) for key, inner in value.items()}
    return [strict(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _entry(trial: Trial) -> dict[str, Any]:
    row = write_trial(trial)
    entry = {**row, "params": dict(trial.params), **json.loads(row["details"])}
    del entry["details"]
    return {key: strict(value) for key, value in entry.items()}


def _trial(entry: Mapping[str, Any]) -> Trial:
    row = {key: entry[key] for key in ("number", "state", "origin", "value", "worker", "retry_of")}
    details = {key: entry[key] for key in entry if key not in (*row, "params")}
    row["value"] = _number(row["value"])
    details |= {key: _number(details[key]) for key in ("cost", "started", "finished")}
    details["curve"] = [[_number(value) for value in values] for values in details["curve"]]
    details["outcomes"] = {name: _number(value) for name, value in details["outcomes"].items()}
    trial = read_trial({**row, "params": write(entry["params"]), "details": write(details)})
    if trial.state is TrialState.RUNNING:
        return replace(
            trial,
            state=TrialState.LOST,
            cause=Cause.ABANDONED,
            reason="running elsewhere",
            error="was running when exported",
        )
    return trial


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value
