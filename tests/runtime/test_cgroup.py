"""Why a process was killed: the kernel's count, made up. A real one is in ``test_memory_limits.py``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamatune_torch.runtime import cgroup
from llamatune_torch.runtime.cgroup import OomKills


def group(folder: Path, path: str, name: str) -> Path:
    """The file that counts, of a control group of this process that is made up."""
    file = folder / path.lstrip("/") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


@pytest.mark.parametrize(
    ("line", "place", "name"),
    [
        ("0::/user/job", "user/job", "memory.events"),
        ("0::/host/path/of/a/container", "", "memory.events"),
        ("4:memory:/user/job", "memory/user/job", "memory.oom_control"),
        ("4:memory:/host/path/of/a/container", "memory", "memory.oom_control"),
    ],
)
def test_kills_are_counted_from_the_start(
    line: str, place: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = group(tmp_path, place, name)
    file.write_text("oom 7\noom_kill 3\noom_group_kill 9\n")
    own = tmp_path / "own"
    own.write_text(f"9:cpu:/\n{line}\n")
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path)
    monkeypatch.setattr(cgroup, "_membership", lambda pid: own)
    kills = OomKills(os.getpid())
    assert not kills.have_risen()
    file.write_text("oom 9\noom_kill 3\noom_group_kill 9\n")
    assert not kills.have_risen()
    file.write_text("oom 9\noom_kill 4\noom_group_kill 9\n")
    assert kills.have_risen()
    file.unlink()
    assert not kills.have_risen()


def test_nothing_is_counted_where_there_is_nothing_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path)
    assert not OomKills(os.getpid()).have_risen()
    assert not OomKills(2**30).have_risen()  # no such process, as everywhere but on Linux
