"""Files that are whole at any moment: the old content, or the new one."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from llamatune_torch.errors import FolderError


def working_directory(why: str) -> str:
    """Returns the working directory.

    Raises:
        FolderError: it is gone; the message says ``why`` it is needed.
    """
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise FolderError(f"the working directory is gone, and {why}: change to another one") from None


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[TextIO]:
    """Opens a file to write; the new content takes the place of the old one at the end, once it is on the disk.

    A failure, a kill or a power cut before that leaves the old file as it was. A link stays a link. A device or a pipe
    is written to directly.

    Args:
        path: the file.
        private: whether nobody but this user may read a new file.

    Raises:
        OSError: the file, or one beside it, cannot be written.

    Example:
        >>> with replacing(Path("study.json")) as file:
        ...     json.dump(document, file)
    """
    path = Path(os.path.realpath(path))
    mode = path.stat().st_mode if path.exists() else None
    if mode is not None and not stat.S_ISREG(mode):
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
        return
    if mode is not None and not os.access(path, os.W_OK):
        raise PermissionError(13, "Permission denied", str(path))  # replacing needs the folder's permission alone
    # The name is short, because that of the file may be as long as a name can be.
    beside = path.with_name(f".{uuid.uuid4().hex[:12]}.part")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            if mode is not None:
                os.chmod(beside, stat.S_IMODE(mode))
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
