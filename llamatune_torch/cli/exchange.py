"""``export`` and ``import``: CSV for people and spreadsheets, JSON without loss, Optuna's storages."""

from __future__ import annotations

import io
import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

from llamatune_torch.cli.output import say, say_beside, standard_output
from llamatune_torch.cli.spec import load_file
from llamatune_torch.errors import ParamsError, SettingsError, SpecError, StudyMismatchError
from llamatune_torch.files import replacing
from llamatune_torch.runtime.optimizer import ARGUMENTS, LlamaTune
from llamatune_torch.space import Params
from llamatune_torch.storage.definition import compare_scores
from llamatune_torch.storage.document import from_document, restore, to_document
from llamatune_torch.storage.durable import DurableStore
from llamatune_torch.storage.reader import Reader, Snapshot, find_study
from llamatune_torch.storage.serialization import to_json
from llamatune_torch.storage.store import Change
from llamatune_torch.study import Study
from llamatune_torch.tables import decode_table, read_table, to_csv
from llamatune_torch.text import redact
from llamatune_torch.trial import Trial, TrialState, as_outcome

T = TypeVar("T")

#: Larger files are no studies of ours.
MAX_BYTES = 2**30


def export(options: Namespace) -> int:
    """Writes a study to a file, to standard output, or to an Optuna storage."""
    stored = Reader(options.storage).look(options.name)
    if options.optuna is not None:
        from llamatune_torch.integrations.optuna.studies import to_optuna

        count = to_optuna(stored.study, options.optuna, stored.name)
        say_beside(f"{count} finished trials of {stored.name!r} are now in {redact(options.optuna)}")
    elif options.csv is not None:
        with _to(options.csv) as file:
            to_csv(stored.study.rows(), file)
    else:
        with _to(options.json) as file:
            json.dump(to_document(stored), file, indent=1, allow_nan=False)
            file.write("\n")
    return 0


def import_(options: Namespace) -> int:
    """Takes in finished trials that were run elsewhere, or restores a study that ``export --json`` has written.

    What was taken in before is not taken in again. Nothing is written unless all that was read can be understood.
    """
    if options.csv is None and (options.map or options.value_column):
        raise SettingsError("--map and --value-column are about the columns of a table: they need --csv")
    if options.json is not None:
        archived = from_document(_read(options.json, json.load))
        name = options.name or archived.name
        stored = find_study(options.storage, name)
        if stored is None:
            restore(options.storage, name, archived)
            say(f"study {name!r} is restored, with {len(archived.study.trials)} trials")
            return 0
        _check_score(stored.study, archived.study, named=True)
        return _add(_reopening(options.storage, stored), archived.study.trials, options.json)
    if options.csv is not None:
        target = _target(options, options.name)
        if target is None:
            raise SettingsError("a table does not say what the search space is: --spec spec.py says where it stands")
        study, columns = target.study, _columns(options)
        try:
            text = decode_table(_read_bytes(options.csv))
        except UnicodeDecodeError as error:
            raise SettingsError(f"{options.csv} cannot be read: {error}") from error
        return _add(target, read_table([text], study.space, study.metric, columns), options.csv)

    from llamatune_torch.integrations.optuna.studies import from_optuna, list_studies

    names = list_studies(options.optuna)
    theirs = options.optuna_name or (names[0] if len(names) == 1 else None)
    target = _target(options, options.name or theirs)
    elsewhere = from_optuna(options.optuna, theirs, None if target is None else target.study.space)
    if target is None:
        arguments = {"direction": elsewhere.direction, "metric": elsewhere.metric}
        target = _making(options.storage, options.name or theirs, elsewhere.space, arguments)
    _check_score(target.study, elsewhere, named=False)
    return _add(target, elsewhere.trials, redact(options.optuna))


class _Target(NamedTuple):
    """A study that is to take trials in: its record, without trials if it is new, and how to open it for writing."""

    study: Study
    open: Callable[[], DurableStore]


def _target(options: Namespace, name: str | None) -> _Target | None:
    """The study that is to take trials in; a new one, if ``--spec`` says what its space is.

    Without a name it is called as the file, or it is the only one there is.
    """
    spec = None if options.spec is None else load_file(options.spec.partition(":")[0])
    if name is None and spec is None:
        return _reopening(options.storage, Reader(options.storage).look())
    name = name or (spec.name if spec else "")
    stored = find_study(options.storage, name)
    if stored is not None:
        return _reopening(options.storage, stored)
    if spec is None:
        return None
    if spec.space is None:
        raise SpecError(f"{spec.path} has no `space`")
    # tune() has more arguments.
    return _making(options.storage, name, spec.space, {k: v for k, v in spec.search.items() if k in ARGUMENTS})


def _reopening(url: str, stored: Snapshot) -> _Target:
    """A stored study, opened as it is: nothing in its definition changes."""
    return _Target(stored.study, lambda: DurableStore(url, stored.name, replace(stored.study, trials=())))


def _making(url: str, name: str | None, space: Any, arguments: Mapping[str, Any]) -> _Target:
    """A new study, which is made when it is opened."""
    kept = {"storage", "name", "extend", "grace", "retries"}
    study = LlamaTune(space, **{key: value for key, value in arguments.items() if key not in kept}).study

    def open_new() -> DurableStore:
        made = LlamaTune(space, **{**arguments, "storage": url, "name": name})
        return DurableStore(url, "study" if name is None else name, replace(made.study, trials=()))

    return _Target(study, open_new)


def _columns(options: Namespace) -> dict[str, str]:
    """The columns that ``--map`` and ``--value-column`` name."""
    columns = {}
    for pair in options.map or []:
        name, equals, column = pair.partition("=")
        if not equals or not name or not column:
            raise SettingsError(f"--map needs NAME=COLUMN, as in learning_rate=lr, but got {pair!r}")
        columns[name] = column
    return columns | ({} if options.value_column is None else {"value": options.value_column})


def _check_score(mine: Study, theirs: Study, named: bool) -> None:
    """Raises if the values of two studies cannot be compared; without ``named``, only the direction must agree."""
    lines = compare_scores(mine, theirs, named) if mine.is_settled and theirs.is_settled else []
    if lines:
        raise StudyMismatchError(f"these trials have another score: {'; '.join(lines)}")


def _add(target: _Target, trials: Sequence[Trial], source: str) -> int:
    """Adds finished trials that fit the space, each once, and says what became of all others.

    Each leaves a note where it is from. A stopped one has no value, but its curve.
    """
    study = target.study
    known = {_identity(trial, trial.notes.get("from")) for trial in study.trials}
    chosen: list[tuple[Params, Change]] = []
    before, stopped, unfit, left_out = 0, 0, list[str](), Counter[str]()
    for trial in trials:
        origin = f"{source}, trial {trial.number}"
        if trial.state in (TrialState.LOST, TrialState.PAUSED):
            left_out[trial.reason or str(trial.state)] += 1
            continue
        try:
            canonical = replace(trial, params=study.space.validate(trial.params))
        except ParamsError as error:
            unfit.append(f"trial {trial.number}: {error}")
            continue
        if _identity(canonical, origin) in known:
            before += 1
            continue
        stopped += trial.state is TrialState.STOPPED
        chosen.append((canonical.params, _ending(trial, origin, study)))
    if chosen:
        store = target.open()
        for params, ending in chosen:
            store.add(params, store.session.settings.get("seed") or 0, ending)
    shown = f"{len(chosen)} trials added" + (f", {before} were there already" if before else "")
    say(shown + (f"; {stopped} of them were stopped before their end" if stopped else ""))
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        say_beside(f"{left_out.total()} left out: {reasons}")
    if unfit:
        say_beside(f"{len(unfit)} do not fit the space; the first of them, {unfit[0]}")
    return 0 if chosen or before or not (unfit or left_out) else 1


def _ending(trial: Trial, origin: str, study: Study) -> Change:
    """The change that ends an added trial as another one has ended."""
    notes = {**trial.notes, "from": origin}
    if trial.state is TrialState.STOPPED:
        notes["stopped"] = "before its end, so it has no value"
        told = replace(trial, origin="added", worker=None, retry_of=None, notes=notes)
        return lambda new, now: replace(
            told, number=new.number, params=new.params, seed=new.seed, started=now, finished=now
        )
    outcome = as_outcome(replace(trial.outcome, notes=notes), study.direction)
    return lambda new, now: new.finished_with(outcome, now)


def _identity(trial: Trial, origin: str | None) -> tuple[str | None, str, float | None]:
    """The key that tells an imported trial from others; a file of the same name may hold other trials by now."""
    return origin, to_json(trial.params), trial.value


@contextmanager
def _to(name: str) -> Iterator[TextIO]:
    """A file to write, "-" for standard output. A file that was there stays until the new one is whole."""
    if name == "-":
        with standard_output(utf8=True) as file:
            yield file
        return
    try:
        with replacing(Path(name)) as file:
            yield file
    except OSError as error:
        raise SettingsError(f"{name} cannot be written: {error.strerror}") from error


def _read(name: str, read: Callable[[TextIO], T]) -> T:
    """Reads from a file, "-" for standard input."""
    try:
        return read(io.StringIO(_read_bytes(name).decode("utf-8-sig")))
    except (ValueError, RecursionError) as error:  # no JSON, no text, numbers without end, nested without end
        raise SettingsError(f"{name} cannot be read: {error}") from error


def _read_bytes(name: str) -> bytes:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{name} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise SettingsError(f"{name} cannot be read: it is larger than {MAX_BYTES} bytes")
    return data
