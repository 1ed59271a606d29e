"""Past studies by the URLs of their storages: this package's own, or Optuna's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamatune_torch.errors import LlamaTuneError
from llamatune_torch.past import PastStudy
from llamatune_torch.storage.reader import Reader


def load_all(given: Sequence[Any]) -> list[Any]:
    """The studies that ``past`` names: URLs are read, anything else stays as it is."""
    return [load(each) if isinstance(each, str) else each for each in given]


def load(url: str) -> PastStudy:
    """Reads a past study from ``sqlite:///old.db``, or from ``sqlite:///old.db:name`` if there are several.

    Raises:
        SettingsError, StorageError: there is no such storage or study, or several and no name.
    """
    place, name = split_name(url)
    try:
        stored = Reader(place).look(name)
    except LlamaTuneError as error:
        theirs = _load_optuna(place, name)
        if theirs is None:
            raise error
        return theirs
    return stored.study.as_past(stored.name)


def _load_optuna(place: str, name: str | None) -> PastStudy | None:
    """Reads a study of Optuna's; ``None`` if the storage has none, or Optuna is not there."""
    try:
        from llamatune_torch.integrations.optuna.studies import from_optuna, list_studies

        names = list_studies(place)
    except (LlamaTuneError, ModuleNotFoundError):
        return None
    if not names:
        return None
    return from_optuna(place, name).as_past(name or names[0])


def split_name(url: str) -> tuple[str, str | None]:
    """The URL of a storage, and the name of a study behind it.

    Example:
        >>> split_name("sqlite:///old.db:124M"), split_name("postgresql://me@host:5432/tunes")
        (('sqlite:///old.db', '124M'), ('postgresql://me@host:5432/tunes', None))
    """
    place, colon, name = url.rpartition(":")
    return (place, name) if colon and "/" not in name and "/" in place else (url, None)
