"""A stored study as one JSON document, to move it from one database to another or to keep it.

Nothing is lost: numbers, seeds, curves, errors. The study that is read suggests the same as the one that was written.
Diverged runs have infinity and nan, but JSON has not: they are the strings "inf", "-inf" and "nan".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llamatune_torch.errors import SchemaError, StorageError
from llamatune_torch.space import SearchSpace
from llamatune_torch.storage.database import OPENING_PATIENCE, Database, Transaction
from llamatune_torch.storage.definition import Definition, open_study, read_settings
from llamatune_torch.storage.reader import Snapshot, show_trials
from llamatune_torch.storage.serialization import (
    read_constraints,
    read_end,
    read_estimates,
    read_extension,
    read_objectives,
    read_rules,
    read_space,
    read_trial,
    to_json,
    to_strict,
    write_constraints,
    write_estimates,
    write_extension,
    write_objectives,
    write_rules,
    write_space,
    write_trial,
)
from llamatune_torch.storage.session import LockedStudy
from llamatune_torch.storage.snapshots import read_context, read_past
from llamatune_torch.storage.validation import ODD, clip, mapping, optional, sequence, take, text
from llamatune_torch.study import UNCHANGED, Goal, Study
from llamatune_torch.trial import Cause, Trial, TrialState

FORMAT = 1

#: What stands outside of the settings; and "launch", since what runs here is decided here.
STANDING_ALONE = (
    "launch", "default", "extension", "constraints", "objectives", "estimates", "rules", "end", "context", "past"
)  # fmt: skip


def to_document(stored: Snapshot) -> dict[str, Any]:
    """Writes all that is known of a study as JSON values."""
    study = stored.study
    return {
        "llamatune_study": FORMAT,
        "name": stored.name,
        "direction": study.direction,
        "metric": study.goal.metric,
        "space": json.loads(write_space(study.space)),
        "initial_points": list(study.initial_points),
        "extension": write_extension(study.extension),
        **({} if study.space.default is None else {"default": study.space.default}),
        **({"rules": write_rules(study.space.rules)} if study.space.rules else {}),
        **({"constraints": write_constraints(study.constraints)} if study.constraints else {}),
        **({"objectives": write_objectives(study.goal)} if study.goal.others else {}),
        **({} if study.end is None else {"end": list(study.end)}),
        **({"estimates": write_estimates(study.estimates)} if study.estimates else {}),
        **({"context": dict(study.context)} if study.context else {}),
        **({"past": [past.to_json() for past in study.past]} if study.past else {}),
        "settings": dict(stored.settings),
        "trials": [_to_entry(stored.written.get(trial.number, trial)) for trial in study.trials],
    }


def from_document(document: Any) -> Snapshot:
    """Reads what :func:`to_document` wrote; trials that were running are given back, since nobody runs them here.

    The code that the study was run with is left out: a document must not decide what runs here.

    Raises:
        SchemaError: the document is anything else, or of a newer version.
    """
    if not isinstance(document, Mapping) or document.get("llamatune_study") != FORMAT:
        found = document.get("llamatune_study") if isinstance(document, Mapping) else None
        raise SchemaError(f"this is no study that export has written: its llamatune_study is {found!r}, not {FORMAT}")
    place = "the exported study"
    try:
        points = take(document, "initial_points", place, sequence)
        study = Study(
            SearchSpace(
                read_space(to_json(take(document, "space", place, sequence))),
                rule=read_rules(document.get("rules", []), f"{place}: rules"),
                default=optional(mapping)(document.get("default"), f"{place}: default"),
            ),
            _read_goal(document, place),
            tuple(mapping(point, f"{place}: initial_points[{i}]") for i, point in enumerate(points)),
            extension=read_extension(document.get("extension", write_extension(UNCHANGED)), f"{place}: extension"),
            end=optional(read_end)(document.get("end"), f"{place}: end"),
            estimates=read_estimates(document.get("estimates", []), f"{place}: estimates"),
            context=read_context(document.get("context", {}), f"{place}: context"),
            past=tuple(
                read_past(past, f"{place}: past[{i}]")
                for i, past in enumerate(sequence(document.get("past", []), f"{place}: past"))
            ),
        )
        trials = [_to_trial(entry, i) for i, entry in enumerate(take(document, "trials", place, sequence))]
        for i, trial in enumerate(trials):
            if type(trial.number) is not int or trial.number != i:
                raise SchemaError(f"trials[{i}].number must be {i}, but got {trial.number!r}")
            if trial.first not in range(i + 1):
                raise SchemaError(f"trials[{i}].retry_of must be a number before it, but got {trial.retry_of!r}")
        settings = read_settings(take(document, "settings", place, mapping), place)
        for name in STANDING_ALONE:
            settings.pop(name, None)
        study, written = show_trials(study, trials)
        return Snapshot(take(document, "name", place, text), study, settings, {}, 0.0, written)
    except ODD as error:
        raise SchemaError(f"the exported study cannot be read: {clip(error)}") from error


def restore(url: str, name: str, archived: Snapshot) -> None:
    """Writes a study as a new one, with all its trials as they are, or nothing at all.

    Raises:
        StorageError: there is a study of that name already.
    """
    database = Database(url)
    given = Definition(replace(archived.study, trials=()), archived.settings)

    def work(transaction: Transaction) -> None:
        if transaction.rows("SELECT id FROM llamatune_studies WHERE name = :name", name=name):
            raise StorageError(f"{database.display_url} has a study {name!r} already")
        id, created = open_study(transaction, database.display_url, name, given, extend=False)
        locked = LockedStudy(transaction, id, created.study, -1, {})
        for trial in archived.study.trials:
            locked.put(archived.written.get(trial.number, trial))

    database.keep_trying(lambda: database.write(work, exclusive=True), "a study to be restored", OPENING_PATIENCE)


def _to_entry(trial: Trial) -> dict[str, Any]:
    row = write_trial(trial)
    entry = {**row, "params": dict(trial.params), **json.loads(row["details"])}
    del entry["details"]
    return {key: to_strict(value) for key, value in entry.items()}


def _read_goal(document: Mapping[str, Any], place: str) -> Goal:
    direction: Any = take(document, "direction", place, text)  # `Goal` checks it
    limits = read_constraints(document.get("constraints", {}), f"{place}: constraints")
    goal = Goal(direction, take(document, "metric", place, optional(text)), limits)
    return read_objectives(document.get("objectives", []), goal, f"{place}: objectives")


def _to_trial(entry: Any, number: int) -> Trial:
    """Reads a trial of a document; ``number`` is its place there."""
    try:
        return _read_entry(mapping(entry, f"trials[{number}]"))
    except ODD as error:
        raise SchemaError(f"trials[{number}] cannot be read: {clip(repr(error))}") from error


def _read_entry(entry: Mapping[str, Any]) -> Trial:
    row = {key: entry[key] for key in ("number", "state", "origin", "value", "worker", "retry_of")}
    details = {key: entry[key] for key in entry if key not in (*row, "params")}
    row["value"] = _to_number(row["value"])
    details |= {key: _to_number(details[key]) for key in ("cost", "started", "finished")}
    details["curve"] = [[_to_number(value) for value in values] for values in details["curve"]]
    if "bounds" in details:
        details["bounds"] = [_to_number(bound) for bound in details["bounds"]]
    details["outcomes"] = {name: _to_number(value) for name, value in details["outcomes"].items()}
    trial = read_trial({**row, "params": to_json(entry["params"]), "details": to_json(details)})
    if trial.state is TrialState.RUNNING:
        given_back = trial.given_up(Cause.ABANDONED, "running elsewhere", 0.0, "was running when exported")
        return replace(given_back, finished=None)
    return trial


def _to_number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value
