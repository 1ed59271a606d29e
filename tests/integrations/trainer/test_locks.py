"""Locks among processes: held by the living only."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from llamatune_torch.integrations.trainer import locks
from llamatune_torch.integrations.trainer.locks import InUseError, exclusive, shared

HOLDER = """
import os, sys, time
from pathlib import Path
from llamatune_torch.integrations.trainer.locks import shared
with shared(Path(sys.argv[1]), "theirs", {"study": "theirs"}):
    if sys.argv[2] == "forks" and os.fork() == 0:
        sys.stdout.close()
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.2)


@contextmanager
def holder(path: Path, how: str = "alone") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the file, in a group of its own with what it forks."""
    command = [sys.executable, "-c", HOLDER, str(path), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_file_is_shared_with_the_same_owner_and_with_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with shared(path, "mine", {}), shared(path, "mine", {}), pytest.raises(InUseError), shared(path, "yours", {}):
        pass
    with shared(path, "yours", {}), pytest.raises(InUseError), shared(path, "mine", {}):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_last_of_several_holders_keeps_others_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = shared(path, "mine", {}), shared(path, "mine", {})
    first.__enter__()
    with second:
        first.__exit__(None, None, None)
        with pytest.raises(InUseError), shared(path, "yours", {}):
            pass
    with shared(path, "yours", {}):
        pass


def test_another_process_keeps_this_one_out_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as other:
        with pytest.raises(InUseError, match="study theirs"), shared(path, "mine", {"study": "mine"}):
            pass
        with shared(path, "theirs", {}):
            pass
        other.kill()
        other.wait()
        with shared(path, "mine", {}):
            pass


def test_what_a_killed_process_has_forked_holds_nothing(tmp_path: Path) -> None:
    """A data loader's processes live on for some seconds."""
    path = tmp_path / "lock"
    with holder(path, "forks") as other:
        other.kill()
        other.wait()
        with shared(path, "mine", {}):
            pass


def test_an_exclusive_lock_is_waited_for(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", []

    def other() -> None:
        with exclusive(path):
            order.append("other")

    with exclusive(path):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.1)
        order.append("this")
    thread.join()
    assert order == ["this", "other"]


def test_one_at_a_time_is_inside_although_each_removes_the_file(tmp_path: Path) -> None:
    inside, most = 0, []

    def work() -> None:
        nonlocal inside
        for _ in range(50):
            with exclusive(tmp_path / "new" / "lock"):
                inside += 1
                most.append(inside)
                time.sleep(0.0001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (150, 1)
    assert list(tmp_path.iterdir()) == []


def test_an_exclusive_lock_is_not_waited_for_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WRITE_PATIENCE", 0.1)
    with (
        exclusive(tmp_path / "lock"),
        pytest.raises(InUseError, match=r"locked by another process for 0\.1 s"),
        exclusive(tmp_path / "lock"),
    ):
        pass


def test_a_disk_without_locks_lets_everybody_in_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with caplog.at_level(logging.WARNING), shared(tmp_path / "lock", "mine", {}), shared(tmp_path / "lock", "your", {}):
        pass
    assert "the disk knows no locks" in caplog.text


def test_a_file_with_something_else_in_it_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for content in (b"[1, 2", b"\xff\x00" * 20_000):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        with shared(path, "mine", {}):
            pass
