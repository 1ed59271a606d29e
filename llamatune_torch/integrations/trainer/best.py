"""``output_dir/best``: the best model of one study, with the record of its trial beside it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from llamatune_torch.errors import SettingsError
from llamatune_torch.integrations.trainer.folders import KEPT_RECORD, OURS, Folders, delete, read_record
from llamatune_torch.integrations.trainer.locks import InUseError, exclusive, shared
from llamatune_torch.trial import Direction, Trial

REMEDY = "choose another output_dir"


class Best:
    """The folder that a study keeps its best model in, together with all of its workers.

    Args:
        folders: those of the study.
        overwrite: True if the model of another study may be replaced.
    """

    def __init__(self, folders: Folders, overwrite: bool = False) -> None:
        self.folders = folders
        self.overwrite = overwrite
        self.path = folders.best
        # The former best model, while the next one takes its place.
        self._former = folders.study / OURS / "best"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the folder for this study while its search runs.

        Raises:
            SettingsError: another search holds it, another study has its model there, or it cannot be written.
        """
        about = {"study": self.folders.name, "process": os.getpid(), "host": socket.gethostname()}
        with ExitStack() as stack:
            try:
                stack.enter_context(shared(self._lock("search"), self.folders.token, about))
                self._recover()
            except InUseError as error:
                raise SettingsError(f"another search keeps its best model in {self.path} ({error}): {REMEDY}") from None
            except OSError as error:
                raise SettingsError(f"no model can be kept in {self.path}: {error}") from error
            self._check()
            yield

    def put(self, saved: Path, direction: Direction) -> None:
        """Moves a saved model here, unless one of this study that is as good is here by now.

        The former model stays until the new one is complete.

        Raises:
            OSError: it could not be moved, and is still where it was.
        """
        with exclusive(self._lock("best")):
            new, kept = read_record(saved / KEPT_RECORD), read_record(self.path / KEPT_RECORD)
            if new is None:  # another worker of this study has done it
                return
            if kept is not None and self.is_ours(kept) and not _beats(new, kept, direction):
                return
            if kept is None and self.path.exists():
                raise FileExistsError(f"{self.path} is no model that tune() has kept")
            if kept is not None and not self.may_replace(kept):
                raise FileExistsError(f"{self.path} has the model of another study")
            if kept is not None:
                delete(self._former)
                self._former.parent.mkdir(parents=True, exist_ok=True)
                self.path.rename(self._former)
            try:
                saved.rename(self.path)
            except OSError:
                if self._former.exists():
                    self._former.rename(self.path)
                raise
            self._delete_former()

    def is_ours(self, record: Mapping[str, Any]) -> bool:
        """True for the record of a trial of this study."""
        return record.get("token") == self.folders.token

    def holds(self, trial: Trial) -> bool:
        """True if the model here is that of a trial of this study."""
        record = read_record(self.path / KEPT_RECORD) or {}
        return self.is_ours(record) and record.get("trial") == trial.number

    def may_replace(self, record: Mapping[str, Any]) -> bool:
        """True for the record of a model that this study may replace."""
        return self.overwrite or self.is_ours(record)

    def _check(self) -> None:
        kept = read_record(self.path / KEPT_RECORD)
        if kept is not None and not self.may_replace(kept):
            of = f"the model of trial {kept.get('trial')} of study {kept.get('study', 'study')!r}"
            raise SettingsError(
                f"{self.path} has {of} ({kept.get('metric')} {kept.get('value')}), which is another search: "
                f"overwrite=True replaces it, else {REMEDY}"
            )

    def _recover(self) -> None:
        """Puts the former model back, of whatever study, if a process was killed between the steps of ``put``."""
        with exclusive(self._lock("best")):
            for former in sorted(self.folders.output_dir.glob(f"*/{OURS}/best")):
                if not self.path.exists() and read_record(former / KEPT_RECORD) is not None:
                    former.rename(self.path)

    def _delete_former(self) -> None:
        delete(self._former)
        for folder in (self._former.parent, self.folders.study):
            with suppress(OSError):  # not empty, or never made
                folder.rmdir()

    def _lock(self, what: str) -> Path:
        return self.folders.output_dir / OURS / f"{what}.lock"


def _beats(new: Mapping[str, Any], kept: Mapping[str, Any], direction: Direction) -> bool:
    better = new["value"] > kept["value"] if direction == "maximize" else new["value"] < kept["value"]
    return bool(better)
