"""Results that could not be stored, kept in small files until they can be.

One file a result, so that processes do not get into each other's way.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llamatune_torch.errors import StorageError
from llamatune_torch.storage.serialization import write
from llamatune_torch.trial import Trial


class Journal:
    """Files next to a study's database; where that disk is full, in the working directory, or for temporary files.

    Args:
        study: the name of the study.
        database: what tells its database from others.
        file: the database, if it is a file.
    """

    def __init__(self, study: str, database: str, file: Path | None) -> None:
        elsewhere = f"llamatune-{_digest(f'{file or database} {study}')}.unsaved-"
        #: Folders, and how the files in them begin. The first name does not change if the database is moved.
        self._places: list[tuple[Path, str]] = []
        if file is not None:
            self._places.append((file.parent, f"{file.name}.unsaved-{_digest(study)}-"))
        self._places += [(Path.cwd(), elsewhere), (Path(tempfile.gettempdir()), elsewhere)]

    def keep(self, key: str, entry: Mapping[str, Any]) -> Path | None:
        """Writes an entry where that is possible, and returns where that was."""
        for folder, stem in self._places:
            path = folder / f"{stem}{key}.json"
            try:
                with path.open("w") as file:
                    file.write(write(entry) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                return path
            except OSError:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
        return None

    def entries(self) -> list[tuple[Path, dict[str, Any]]]:
        """Everything that was kept and can be read, oldest first; only what is this user's own."""
        found = []
        for folder, stem in dict.fromkeys(self._places):
            for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
                if path.name.startswith(stem):
                    found.append(path)
        entries = []
        for path in found:
            try:
                if path.stat().st_uid == os.getuid():
                    entries.append((path.stat().st_mtime, path, json.loads(path.read_text())))
            except (OSError, ValueError):  # another process has picked it up, or was killed while it wrote
                continue
        return [(path, entry) for _, path, entry in sorted(entries, key=lambda item: item[:2])]


def unwritten(error: StorageError, trial: Trial, kept: Path | None) -> str:
    """What to say of a result that could not be stored: why, what it is, and where it has gone."""
    what = "a trial to be added" if trial.origin == "added" else f"trial {trial.number}"
    told = f"{trial.value!r}" if trial.value is not None else f"--failed {trial.reason!r}"
    how = "add_trial()" if trial.origin == "added" else f"`llamatune tell {trial.number} {told}`"
    where = (
        f"kept in {kept}, which the next start picks up"
        if kept is not None
        else f"kept nowhere: write it down, and enter it later, with {how}"
    )
    return f"{error}. The result of {what} is {result_of(trial)} with {trial.params}; it is {where}"


def result_of(trial: Trial) -> str:
    """The result of a trial in a few words, with all its digits."""
    return f"value={trial.value!r}" if trial.value is not None else f"{trial.state}: {trial.reason}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]
