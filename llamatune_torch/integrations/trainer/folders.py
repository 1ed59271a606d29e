"""The folders of one study in an ``output_dir``, and what may be deleted in them.

::

    output_dir/
        best/                    the model that is kept (best.py)
        .llamatune/              locks, while a search runs that keeps its best model
        gpt2-cls-3fa2b1c4/       a study, by its name and its token
            trial-0007/          the Trainer's output_dir
                checkpoint-40/   written by the Trainer
                runs/            whatever callbacks put there, which stays
                .llamatune/      our marker, and the model until the trial is on record

Only checkpoints and our own folder are ever deleted, and only where the marker is this study's.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamatune_torch.errors import CheckpointWarning, SettingsError
from llamatune_torch.trial import Trial

#: Our own folder in each of these.
OURS = ".llamatune"

#: The file beside a kept model that says which study and trial it is from.
KEPT_RECORD = "trial.json"

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Folders:
    """The folders of one study.

    Args:
        output_dir: an absolute path, which a change of the working directory cannot turn into another.
        name: the study's name.
        token: tells the study from all others, also from those of its name.
    """

    output_dir: Path
    name: str
    token: str

    @property
    def best(self) -> Path:
        """The folder that the best model is kept in."""
        return self.output_dir / "best"

    @property
    def study(self) -> Path:
        """The folder of all trials."""
        name = re.sub(r"[^\w.-]+", "_", self.name)[:60]
        return self.output_dir / f"{name}-{self.token[:8]}"

    def trial(self, trial: Trial) -> Path:
        """The folder of a trial, for its checkpoints."""
        return self.study / f"trial-{trial.number:04d}"

    def model(self, trial: Trial) -> Path:
        """The folder of a trial's model, until the trial is on record."""
        return self.trial(trial) / OURS / "model"

    def check_writable(self) -> None:
        """Makes ``output_dir``, and writes to it.

        Raises:
            SettingsError: that is not possible.
        """
        failure: OSError | None = None
        for _ in range(20):  # another process may remove the empty folder between two steps
            try:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=self.output_dir).close()
                return
            except OSError as error:
                failure = error
        assert failure is not None
        raise SettingsError(f"output_dir={str(self.output_dir)!r} cannot be written: {failure.strerror}") from failure

    def create(self, trial: Trial) -> bool:
        """Makes the folder of a trial that is about to run. True if it is ours, with nothing of another trial in it.

        It is not if somebody has put a folder with something in it there, or if it cannot be written.
        """
        folder, marker = self.trial(trial), self._marker(trial)
        if self._owns(trial) and not self.holds(trial):  # of a trial that the study has lost: a backup was restored
            self.clear(trial)
        with suppress(OSError):
            if folder.is_dir() and any(folder.iterdir()) and not self._owns(trial):
                return False
            for _ in range(20):  # another process may remove the study's empty folder between two steps
                with suppress(FileNotFoundError, FileExistsError):
                    marker.parent.mkdir(parents=True, exist_ok=True)
                    marker.write_text(json.dumps(self._mark(trial)) + "\n")
                    break
        return self.holds(trial)

    def holds(self, trial: Trial) -> bool:
        """True if the trial's folder is ours, and what is in it comes from this trial."""
        return read_record(self._marker(trial)) == self._mark(trial)

    def clear(self, trial: Trial) -> None:
        """Deletes what is ours in a trial's folder, and the folders that are empty then."""
        ours = self._marker(trial).parent
        if self._owns(trial):
            self.clear_checkpoints(trial)
            delete(self.model(trial))
            delete(ours)  # last: after a kill, what is left is still known as ours
        for folder in (ours, self.trial(trial), self.study):
            with suppress(OSError):  # not empty, or gone
                folder.rmdir()

    def clear_checkpoints(self, trial: Trial) -> None:
        """Deletes the checkpoints of a trial."""
        for _, checkpoint in checkpoints_in(self.trial(trial)):
            delete(checkpoint)

    def _owns(self, trial: Trial) -> bool:
        record = read_record(self._marker(trial))
        return record is not None and record.get("token") == self.token

    def _marker(self, trial: Trial) -> Path:
        return self.trial(trial) / OURS / "trial.json"

    def _mark(self, trial: Trial) -> dict[str, Any]:
        params = repr(sorted(trial.params.items()))
        return {"study": self.name, "token": self.token, "trial": trial.number, "params": params}


def checkpoints_in(folder: Path) -> Iterator[tuple[int, Path]]:
    """The Trainer's checkpoints in a folder, with their steps; nothing else of a similar name."""
    for path in sorted(folder.glob("checkpoint-*")):
        step = step_of(path)
        if step is not None and path.is_dir() and not path.is_symlink():
            yield step, path


def step_of(checkpoint: Path) -> int | None:
    """The step of a checkpoint by its name; ``None`` if that is no checkpoint's."""
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    return None if match is None else int(match[1])


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder; those that vanish meanwhile are none."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


def delete(path: Path) -> None:
    """Deletes a folder and all that is in it, or a file or link that stands in its place; warns if it cannot."""
    try:
        if path.is_symlink() or path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path)
    except FileNotFoundError:  # not there, or another process deletes it as well
        shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        warnings.warn(f"{path} could not be deleted: {error}", CheckpointWarning, stacklevel=2)


def read_record(path: Path) -> dict[str, Any] | None:
    """A JSON record; ``None`` if there is none, or it cannot be read."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
