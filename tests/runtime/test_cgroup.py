"""Why a process was killed: the kernel's own count, made up and real."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamatune_torch.runtime import cgroup
from llamatune_torch.runtime.cgroup import OomKills

MEMORY = Path("/sys/fs/cgroup/memory")


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


PROGRAM = """
import os, signal, sys
from llamatune_torch import LlamaTune

def evaluate(params):
    if params["how"] == "memory":
        blocks = []
        while True:
            blocks.append(bytearray(b"x") * 2**26)
    if params["how"] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0

if __name__ == "__main__":
    points = [{"how": how} for how in ("memory", "killed", "fine")]
    tuner = LlamaTune({"how": ["memory", "killed", "fine"]}, evaluate, 3, initial_points=points, progress=False)
    tuner.optimize(isolate=True)
    for trial in tuner.study.trials:
        print("trial", trial.params["how"], trial.cause, trial.origin)
"""


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with 1 GiB of memory, for processes to join."""
    folder = MEMORY / f"llamatune-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(2**30))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    folder.rmdir()


def test_the_kernel_and_a_person_are_told_apart(small_group: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    joined = f"echo $$ > {small_group}/cgroup.procs && exec {sys.executable} program.py"
    run = subprocess.run(["sh", "-c", joined], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    told = [line.split(maxsplit=2)[1:] for line in run.stdout.splitlines() if line.startswith("trial ")]
    assert told == [
        ["memory", "out of memory initial"],
        ["killed", "killed initial"],
        ["killed", "killed retry"],
        ["fine", "None initial"],
    ]
