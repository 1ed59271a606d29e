"""Past studies in the database: snapshots by the hash of their content, which studies name among their settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_args

from llamatune_torch.errors import PastError, SchemaError
from llamatune_torch.past import PastStudy, PastTrial, check_context
from llamatune_torch.storage.database import Transaction
from llamatune_torch.storage.serialization import to_json
from llamatune_torch.storage.validation import clip, mapping, number, optional, parsed, refuse, sequence, take, text
from llamatune_torch.study import Study
from llamatune_torch.trial import Direction


def write_snapshots(transaction: Transaction, study: Study) -> None:
    """Writes the past studies that are not there yet."""
    for past in study.past:
        if not transaction.rows("SELECT key FROM llamatune_past WHERE key = :key", key=past.key):
            transaction.run(
                "INSERT INTO llamatune_past (key, document) VALUES (:key, :document)",
                key=past.key,
                document=to_json(past.to_json()),
            )


def read_snapshots(transaction: Transaction, keys: Sequence[str], place: str) -> tuple[PastStudy, ...]:
    """Reads past studies by the hashes of their content.

    Raises:
        SchemaError: one of them is not there, or cannot be read.
    """
    found = []
    for key in keys:
        rows = transaction.rows("SELECT document FROM llamatune_past WHERE key = :key", key=key)
        if not rows:
            raise SchemaError(f"{place}: the database has no past study {key!r}")
        found.append(read_past(parsed(rows[0]["document"], place), place))
    return tuple(found)


def read_past(written: Any, place: str) -> PastStudy:
    """Reads the snapshot of a past study from ``PastStudy.to_json``; ``place`` names it in errors.

    Raises:
        SchemaError: it is anything else.
    """
    entry, trials = mapping(written, place), []
    for pair in take(entry, "trials", place, sequence):
        if len(fields := sequence(pair, place)) != 2:
            raise refuse(place, "parameters and a value", pair)
        value = float(fields[1]) if fields[1] in ("inf", "-inf") else fields[1]
        trials.append(PastTrial(mapping(fields[0], place), optional(number)(value, place)))
    direction = take(entry, "direction", place, text)
    if direction not in get_args(Direction):
        raise refuse(f"{place}: direction", f"one of {list(get_args(Direction))}", direction)
    context = read_context(take(entry, "context", place, mapping), place)
    return PastStudy(take(entry, "name", place, text), cast(Direction, direction), tuple(trials), context)


def read_context(written: Any, place: str) -> dict[str, float]:
    """Reads the sizes of a study; ``place`` names it in errors.

    Raises:
        SchemaError: it is anything else.
    """
    try:
        return check_context(mapping(written, place))
    except PastError as error:
        raise SchemaError(f"{place}: {clip(error)}") from error
