"""Locks on files, for processes on all machines that share a disk.

The kernel holds them, so a process that is killed lets go of its own at once. A disk that knows no locks (some network
disks) lets everybody in, with a warning in the log.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ModuleNotFoundError:  # Windows: nobody is kept out
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

PATIENCE = 1.0  # seconds until a lock counts as somebody else's: those who take it in the same moment are quicker
WRITE_PATIENCE = 60.0  # seconds for those inside of an exclusive lock, who only rename folders

# The open files that hold locks. A fork shares them, and a child must neither keep its parent's locks nor drop them.
_holding: set[int] = set()


class InUseError(OSError):
    """A lock is somebody else's; the message says whose."""


@contextmanager
def shared(path: Path, owner: str, about: Mapping[str, Any]) -> Iterator[None]:
    """Holds a file together with all who give the same owner; the last one removes it.

    Args:
        path: the file; a folder for it is made if need be, and removed when it is empty.
        owner: whom to share it with.
        about: told to those who are kept out.

    Raises:
        InUseError: somebody else holds it.
        OSError: the file cannot be written.
    """
    claim, holder = {"owner": owner, **about}, {}

    def take(file: int) -> bool:
        nonlocal holder
        if _lock(file, "LOCK_EX"):
            os.truncate(file, 0)
            os.pwrite(file, json.dumps(claim).encode(), 0)
        holder = _read(file)
        # Taking the shared lock may let somebody in between, so what the file says counts only after it.
        return holder.get("owner") == owner and _lock(file, "LOCK_SH") and _read(file).get("owner") == owner

    with _held(path, take, PATIENCE) as held:
        if not held:
            raise InUseError(", ".join(f"{key} {holder[key]}" for key in about if key in holder))
        yield


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds a file alone for a moment, and removes it.

    Raises:
        InUseError: somebody else holds it for a minute.
        OSError: the file cannot be written.
    """
    with _held(path, lambda file: _lock(file, "LOCK_EX"), WRITE_PATIENCE) as held:
        if not held:
            raise InUseError(f"{path} has been locked by another process for {WRITE_PATIENCE:g} s")
        yield


@contextmanager
def _held(path: Path, take: Callable[[int], bool], patience: float) -> Iterator[bool]:
    """Opens and locks a file, tries again for some seconds, and removes it at the end if nobody else holds it."""
    deadline = time.monotonic() + patience
    while (file := _open(path, take)) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        yield file is not None
    finally:
        if file in _holding:  # else this is a fork, which has closed it
            if _lock(file, "LOCK_EX"):
                with suppress(OSError):
                    path.unlink()
                    path.parent.rmdir()
            _close(file)


def _open(path: Path, take: Callable[[int], bool]) -> int | None:
    """Opens and locks a file; ``None`` if it cannot be locked now, or was removed by its last holder meanwhile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except (FileNotFoundError, FileExistsError):
        if path.parent.is_file():
            raise
        return None  # its last holder removes the folder at this moment
    _holding.add(file)
    try:
        if take(file) and os.path.samestat(os.fstat(file), path.stat()):
            return file
    except FileNotFoundError:
        pass
    except BaseException:
        _close(file)
        raise
    _close(file)
    return None


def _close(file: int) -> None:
    _holding.remove(file)
    os.close(file)


def _lock(file: int, kind: str) -> bool:
    """Takes or releases a lock at once; False if that is not possible now."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("the disk knows no locks, so other searches there are not noticed: %s", error)
    return True


def _read(file: int) -> dict[str, Any]:
    try:
        claim = json.loads(os.pread(file, 10_000, 0))
    except ValueError:
        return {}
    return claim if isinstance(claim, dict) else {}


def _let_go() -> None:
    for file in _holding:
        os.close(file)
    _holding.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
