"""Results that could not be written, kept in small files until they can be.

A result is worth hours of training, so its writing is tried again and again. From the first failure on it is also in a
file, which is removed as soon as the result is in the database. If that never happens, the next start finds the file.
There is one file for each result, so that processes do not get into each other's way.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from llamatune_torch.errors import SchemaError, StorageError, StorageWarning, TrialStateError
from llamatune_torch.files import replacing
from llamatune_torch.storage.serialization import is_same_record, read_trial, to_json, write_trial
from llamatune_torch.storage.session import LockedStudy, StudySession
from llamatune_torch.storage.store import Change, check_number
from llamatune_torch.storage.validation import mapping, parsed, take
from llamatune_torch.text import printable, quote
from llamatune_torch.trial import Trial, TrialState

#: Larger files are no results of ours.
MAX_BYTES = 2**28

logger = logging.getLogger(__name__)

HANGING_SECONDS = 3.0  # after so long, an attempt to write a result is no longer trusted to come to an end
AWAY_PATIENCE = 2.0  # seconds for which a write that fails is tried again, once a result waits in a file


class Once:
    """A change of a trial that is computed once, so that each attempt to write it writes the same.

    Only if the trial is another one than in the last attempt, since somebody else has changed it, a call computes the
    change again. ``result`` is what the last call returned, ``None`` before the first. Two threads may call.
    """

    def __init__(self, change: Change) -> None:
        self.result: Trial | None = None
        self._lock = threading.Lock()
        self._change = change
        self._before: Trial | None = None

    def __call__(self, current: Trial, now: float) -> Trial:
        with self._lock:
            if self.result is None or self._before is None or not is_same_record(current, self._before):
                self._before, self.result = current, self._change(current, now)
            return self.result


class UnsavedResults:
    """The files with results of a study that could not be written.

    They lie next to the database; where that disk is full, in the working directory, or in that for temporary files.
    ``waiting`` is True while this process has kept results that it has not picked up.
    """

    def __init__(self, session: StudySession) -> None:
        self.waiting = False
        self._session = session
        self._token = uuid.uuid4().hex[:8]  # tells this process's files from others'
        database, file = session.database.display_url, session.database.file
        elsewhere = f"llamatune-{_digest(f'{file or database} {session.name}')}.unsaved-"
        #: Folders, and the beginning of the names of files in them. The first does not change if the database is moved.
        self._places: list[tuple[Path, str]] = []
        if file is not None:
            self._places.append((file.parent, f"{file.name}.unsaved-{_digest(session.name)}-"))
        with suppress(FileNotFoundError):  # the working directory is gone
            self._places.append((Path.cwd(), elsewhere))
        self._places.append((Path(tempfile.gettempdir()), elsewhere))

    def write_or_keep(self, write: Callable[[LockedStudy], Trial], result: Callable[[], Trial], what: str) -> Trial:
        """Writes a result, in as many attempts as it takes; from the first failure on, the result is also in a file.

        It is in the file too as soon as the first attempt has taken ``HANGING_SECONDS``: it may never come to an end.
        While other results wait in files, the database is away, and the attempts end after ``AWAY_PATIENCE`` seconds.

        Args:
            write: writes the result within a transaction, unless an earlier attempt has come through.
            result: returns the result that the last attempt would have written; called only after a failure. It may
                have to compute it from what is known here, if the database could not even be read.
            what: names the result in messages.

        Returns:
            The result as it was written. The file is gone.

        Raises:
            StorageError: no attempt succeeded; the message has the result, and says where it is kept.
        """
        kept: list[Path | None] = []  # empty until it was tried
        lock, written = threading.Lock(), False

        def keep() -> None:
            with lock:
                if not kept and not written:
                    kept.append(self.keep(result()))

        def keep_a_hanging_one() -> None:
            with suppress(TrialStateError):  # nothing to keep: the attempt itself will say so
                keep()

        patience = min(AWAY_PATIENCE, self._session.patience) if self.waiting else None
        hanging = threading.Timer(HANGING_SECONDS, keep_a_hanging_one)
        hanging.daemon = True
        with suppress(RuntimeError):  # no new threads at the interpreter's end
            hanging.start()
        try:
            trial = self._session.write(write, what, patience=patience, at_failure=keep)
            with lock:
                written = True
        except StorageError as error:
            keep()
            self.waiting = self.waiting or kept[0] is not None
            raise StorageError(describe_unwritten(error, result(), kept[0])) from error
        finally:
            hanging.cancel()
            if hanging.is_alive():
                hanging.join()  # it holds this object
        for path in kept:
            if path is not None:
                path.unlink(missing_ok=True)
        return trial

    def keep(self, trial: Trial) -> Path | None:
        """Writes a result to the first place that takes it, and returns the file; ``None`` if none does."""
        entry = {
            "study": self._session.name,
            "database": self._session.database.display_url,
            "trial": write_trial(trial),
        }
        key = f"added-{uuid.uuid4().hex[:8]}" if trial.origin == "added" else f"{trial.number}-{self._token}"
        for folder, stem in self._places:
            path = folder / f"{stem}{key}.json"
            try:
                with replacing(path, private=True) as file:
                    file.write(to_json(entry) + "\n")
                return path
            except OSError:
                continue
        return None

    def find(self) -> list[tuple[Path, Trial]]:
        """Finds the study's results in all places, oldest first; only what can be read and is this user's own."""
        found = []
        for folder, stem in dict.fromkeys(self._places):
            for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
                if not path.name.startswith(stem):
                    continue
                try:
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid():
                        found.append((status.st_mtime, path, self._read(path)))
                except OSError:  # another process has picked it up
                    continue
                except (SchemaError, ValueError) as error:
                    _set_aside(path, error)
        return [(path, trial) for _, path, trial in sorted(found, key=lambda item: item[:2]) if trial is not None]

    def _read(self, path: Path) -> Trial | None:
        """Reads a kept result; ``None`` if it is of another study.

        Raises:
            SchemaError, UnicodeDecodeError: the file has something else in it.
        """
        with path.open("rb") as file:
            written = file.read(MAX_BYTES + 1)
        if len(written) > MAX_BYTES:
            raise SchemaError(f"it is larger than {MAX_BYTES} bytes")
        entry = mapping(parsed(written.decode(), "it"), "it")
        trial = read_trial(take(entry, "trial", "it", mapping))
        return trial if entry.get("study") == self._session.name else None

    def pick_up(self) -> None:
        """Writes the results that an earlier run could not write, and removes their files.

        A result that contradicts the record stays in a file that ends with ``.refused``, with a ``StorageWarning``.

        Raises:
            StorageError: the database cannot be written; then the files stay.
        """
        for path, trial in self.find():
            try:
                self._session.write(partial(recover, trial), "a kept result to be written")
            except TrialStateError as error:
                refused = path.rename(path.with_suffix(".refused"))
                warnings.warn(
                    f"{refused} has a result of no use ({describe_result(trial)}): {error}",
                    StorageWarning,
                    stacklevel=2,
                )
                continue
            path.unlink(missing_ok=True)
            logger.info("picked up the result of trial %d, %s, from %s", trial.number, describe_result(trial), path)
        self.waiting = False


def _set_aside(path: Path, error: Exception) -> None:
    """Renames a file that cannot be read, with a warning: it may be mended by hand, and it blocks no start."""
    with suppress(OSError):
        path = path.rename(path.with_suffix(".damaged"))
    warnings.warn(f"{path} has a result that cannot be read: {error}", StorageWarning, stacklevel=3)


def recover(kept: Trial, locked: LockedStudy) -> None:
    """Writes a result that was kept in a file, unless it has come through already.

    Raises:
        TrialStateError: its trial has another result, or there is no such trial.
    """
    if kept.origin == "added":
        if find_added(locked.trials, locked.as_seen(kept)) is None:
            locked.put(replace(kept, number=len(locked.trials)))
        return
    current = locked.read(check_number(kept, len(locked.trials)))
    if has_come_through(kept, current):
        return
    locked.find_open(kept)
    if kept.state is TrialState.PAUSED and current.state is not TrialState.RUNNING:
        raise TrialStateError(f"trial {kept.number} is {current.state} by now, so that it cannot pause")
    locked.put(kept)


def has_come_through(result: Trial, current: Trial) -> bool:
    """Tells whether a result is on record, though the attempt to write it seemed to fail.

    Since then, a trial that has paused may have gone on, perhaps elsewhere.
    """
    has_gone_on = result.state is TrialState.PAUSED and current.pauses >= result.pauses
    return has_gone_on or is_same_record(current, result)


def find_added(trials: Iterable[Trial], like: Trial) -> Trial | None:
    """Finds an added trial that an earlier attempt has written: its parameters and its start tell it from others."""
    return next((trial for trial in trials if (trial.params, trial.started) == (like.params, like.started)), None)


def describe_unwritten(error: StorageError, trial: Trial, kept: Path | None) -> str:
    """Says of a result that could not be written why, what it is, and where it has gone."""
    what = "a trial to be added" if trial.origin == "added" else f"trial {trial.number}"
    told = f"{trial.value!r}" if trial.value is not None else f"--failed {quote(trial.reason or 'unknown')}"
    how = "add_trial()" if trial.origin == "added" else f"`llamatune tell {trial.number} {told}`"
    where = (
        f"kept in {kept}, which the next start picks up"
        if kept is not None
        else f"kept nowhere: write it down, and enter it later, with {how}"
    )
    return f"{error}. The result of {what} is {describe_result(trial)} with {trial.params}; it is {where}"


def describe_result(trial: Trial) -> str:
    """Says what came of a trial in a few words, with all digits of its value."""
    return f"value={trial.value!r}" if trial.value is not None else printable(f"{trial.state}: {trial.reason}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]
