"""The files of an SQLite database, and the proof that the open ones are those that their names still lead to.

A file that was deleted or replaced stays open, and takes every write without an error; nobody will ever read them. So
each transaction first compares names and open files. The files are only asked for their state, never opened: closing
one would give up SQLite's locks on it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import MutableMapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from llamatune_torch.errors import StorageError


class FileState(NamedTuple):
    """The identity of a file (its device and inode) and its size in bytes."""

    identity: tuple[int, int]
    size: int


class DatabaseFiles:
    """The files of one SQLite database: itself, the log of its latest transactions (``-wal``), and the log's index.

    Each connection has notes of its own, since the last one to close deletes log and index.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._wal = file.with_name(f"{file.name}-wal")
        self._shm = file.with_name(f"{file.name}-shm")
        self._identity: tuple[int, int] | None = None

    def note(self, notes: MutableMapping[Any, Any]) -> None:
        """Notes the state of the files, at the end of a transaction of the connection with these notes."""
        states = {path: _find_state(path) for path in (self._wal, self._shm)}
        notes["files"] = {path: state for path, state in states.items() if state is not None}
        if self._identity is None and (state := _find_state(self._file)) is not None:
            self._identity = state.identity

    def check(self, notes: MutableMapping[Any, Any]) -> None:
        """Checks the files, before the next transaction of the connection with these notes.

        Raises:
            StorageError: one of them is gone, or another one has its name; or the log has lost its end.
        """
        self.check_identity()
        for path, noted in notes.get("files", {}).items():
            state = _find_state(path)
            if state is None or state.identity != noted.identity:
                raise _say_gone(path, self._file)
            if state.size >= noted.size:
                continue
            if path == self._shm:  # SQLite builds the index again from the log; to touch what is missing would kill us
                os.truncate(path, noted.size)
            elif not self._is_whole():  # a log may become shorter, by another program's checkpoint
                raise StorageError(f"{path} has lost its end, and with it what was last written to {self._file}")

    def check_identity(self) -> None:
        """Checks the database's own file, before a connection would make a new one in its place.

        Raises:
            StorageError: it is gone, or another one has its name.
        """
        state = _find_state(self._file)
        if self._identity is not None and (state is None or state.identity != self._identity):
            raise _say_gone(self._file, self._file)

    def _is_whole(self) -> bool:
        try:
            with closing(sqlite3.connect(self._file)) as connection:
                return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
        except sqlite3.DatabaseError:
            return False


def _find_state(path: Path) -> FileState | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState((found.st_dev, found.st_ino), found.st_size)


def _say_gone(path: Path, database: Path) -> StorageError:
    return StorageError(f"{path} was deleted, moved or replaced while {database} was open: nobody would read a write")
