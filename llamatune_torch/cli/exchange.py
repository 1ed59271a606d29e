"""``export`` and ``import``: CSV for people and spreadsheets, JSON without loss, Optuna's storages."""

from __future__ import annotations

import csv
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO, TypeVar

from llamatune_torch.cli.search import reopened
from llamatune_torch.cli.spec import load_file
from llamatune_torch.errors import ParamsError, SettingsError, SpecError
from llamatune_torch.runtime.optimizer import ARGUMENTS, LlamaTune
from llamatune_torch.storage.document import from_document, restore, to_document
from llamatune_torch.storage.reader import Reader, find_study
from llamatune_torch.storage.serialization import to_json
from llamatune_torch.study import Study
from llamatune_torch.tables import read_table
from llamatune_torch.trial import Outcome, Trial, TrialState

T = TypeVar("T")


def export(options: Namespace) -> int:
    """Writes a study to a file, to standard output, or to an Optuna storage."""
    stored = Reader(options.storage).look(options.name)
    if options.optuna is not None:
        from llamatune_torch.integrations.optuna.studies import hide_password, to_optuna

        count = to_optuna(stored.study, options.optuna, stored.name)
        print(f"{count} finished trials of {stored.name!r} are now in {hide_password(options.optuna)}", file=sys.stderr)
    elif options.csv is not None:
        with _to(options.csv) as file:
            rows = stored.study.rows()
            columns = list(dict.fromkeys(column for row in rows for column in row))
            table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    else:
        with _to(options.json) as file:
            json.dump(to_document(stored), file, indent=1, allow_nan=False)
            file.write("\n")
    return 0


def import_(options: Namespace) -> int:
    """Takes in finished trials that were run elsewhere, or restores a study that ``export --json`` has written.

    What was taken in before is not taken in again.
    """
    if options.json is not None:
        archived = from_document(_read(options.json, json.load))
        name = options.name or archived.name
        stored = find_study(options.storage, name)
        if stored is not None:
            return _add(reopened(options.storage, stored), archived.study.trials, options.json)
        restore(options.storage, name, archived)
        print(f"study {name!r} is restored, with {len(archived.study.trials)} trials")
        return 0
    if options.csv is not None:
        tuner = _opened(options, options.name)
        if tuner is None:
            raise SettingsError("a table does not say what the search space is: --spec spec.py says where it stands")
        study = tuner.study
        return _add(tuner, _read(options.csv, lambda file: read_table(file, study.space, study.metric)), options.csv)

    from llamatune_torch.integrations.optuna.studies import from_optuna, hide_password, list_studies

    names = list_studies(options.optuna)
    theirs = options.optuna_name or (names[0] if len(names) == 1 else None)
    tuner = _opened(options, options.name or theirs)
    elsewhere = from_optuna(options.optuna, theirs, None if tuner is None else tuner.study.space)
    tuner = tuner or _new(options, options.name or theirs, elsewhere)
    return _add(tuner, elsewhere.trials, hide_password(options.optuna))


def _opened(options: Namespace, name: str | None) -> LlamaTune | None:
    """The study that is to take trials in; made, if it is new and ``--spec`` says what its space is.

    Without a name it is called as the file, or it is the only one there is.
    """
    spec = None if options.spec is None else load_file(options.spec.partition(":")[0])
    if name is None and spec is None:
        return reopened(options.storage, Reader(options.storage).look())
    name = name or (spec.name if spec else "")
    stored = find_study(options.storage, name)
    if stored is not None:
        return reopened(options.storage, stored)
    if spec is None:
        return None
    if spec.space is None:
        raise SpecError(f"{spec.path} has no `space`")
    search = {key: value for key, value in spec.search.items() if key in ARGUMENTS}  # tune() has more
    return LlamaTune(spec.space, **{**search, "storage": options.storage, "name": name})


def _new(options: Namespace, name: str | None, like: Study) -> LlamaTune:
    return LlamaTune(like.space, direction=like.direction, metric=like.metric, storage=options.storage, name=name)


def _add(tuner: LlamaTune, trials: Sequence[Trial], source: str) -> int:
    """Adds finished trials that fit the space, each once; each leaves a note where it is from."""
    known = {_identity(trial, trial.notes.get("from")) for trial in tuner.study.trials}
    added, before, unfit = 0, 0, []
    for trial in trials:
        origin = f"{source}, trial {trial.number}"
        if trial.state not in (TrialState.COMPLETE, TrialState.FAILED):
            continue
        try:
            canonical = replace(trial, params=tuner.study.space.validate(trial.params))
        except ParamsError as error:
            unfit.append(f"trial {trial.number}: {error}")
            continue
        if _identity(canonical, origin) in known:
            before += 1
            continue
        tuner.add_trial(trial.params, _outcome(trial, origin))
        added += 1
    print(f"{added} trials added" + (f", {before} were there already" if before else ""))
    if unfit:
        print(f"{len(unfit)} do not fit the space; the first of them, {unfit[0]}", file=sys.stderr)
    return 0 if added or before or not unfit else 1


def _identity(trial: Trial, origin: str | None) -> tuple[str | None, str, float | None]:
    """The key that tells an imported trial from others; a file of the same name may hold other trials by now."""
    return origin, to_json(trial.params), trial.value


def _outcome(trial: Trial, origin: str) -> Outcome:
    return replace(trial.outcome, notes={**trial.notes, "from": origin})


@contextmanager
def _to(name: str) -> Iterator[TextIO]:
    """A file to write, "-" for standard output."""
    if name == "-":
        yield sys.stdout
        return
    try:
        with Path(name).open("w", newline="") as file:
            yield file
    except OSError as error:
        raise SettingsError(f"{name} cannot be written: {error.strerror}") from error


def _read(name: str, read: Callable[[TextIO], T]) -> T:
    """Reads from a file, "-" for standard input."""
    try:
        if name == "-":
            return read(sys.stdin)
        with Path(name).open(newline="") as file:
            return read(file)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name} cannot be read: {error}") from error
