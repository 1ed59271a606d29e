"""Trials that allocate without end, under real limits: each is told as out of memory, and the study goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, os, resource, signal, sys
import numpy
from llamatune_torch import LlamaTune

ways, room, where, knobs = map(json.loads, sys.argv[1:])
if "torch" in ways or __name__ == "__main__":  # which asks the engine
    import torch
if room:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    most = resource.getrlimit(resource.RLIMIT_AS)[1]  # in a child its parent's, which it cannot raise
    limit = used + room if most == resource.RLIM_INFINITY else min(used + room, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

def evaluate(params):
    way, blocks, chain = params["way"], [], ()
    while way in ("torch", "numpy", "bytes", "chain"):
        if way == "torch":
            blocks.append(torch.ones(2**22))
        elif way == "numpy":
            blocks.append(numpy.ones(2**21))
        elif way == "bytes":
            blocks.append(b"x" * 2**24)
        else:
            chain = (chain,)  # of small objects: at the end nothing at all is left
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0

if __name__ == "__main__":
    points = [{"way": way} for way in ways]
    tuner = LlamaTune({"way": ways}, evaluate, len(ways), initial_points=points, progress=False, **knobs)
    tuner.optimize(**where)
    for trial in tuner.study.trials:
        print("trial", json.dumps([trial.params["way"], trial.state, trial.cause, trial.origin]))
"""

OUT_OF_MEMORY = ["failed", "out of memory", "initial"]
FINE = ["complete", None, "initial"]


def command(folder: Path, ways: list[str], room: int, where: dict[str, Any], **knobs: Any) -> list[str]:
    (folder / "program.py").write_text(PROGRAM)
    return [sys.executable, "program.py", *map(json.dumps, (ways, room, where, knobs))]


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )  # fmt: skip


def told(finished: subprocess.CompletedProcess[str]) -> list[list[Any]]:
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line.removeprefix("trial ")) for line in finished.stdout.splitlines() if line[:6] == "trial "]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is not kept elsewhere")
@pytest.mark.parametrize(
    ("where", "ways"),
    [
        ({}, ["torch", "numpy", "bytes", "chain", "none"]),
        ({"n_workers": 2}, ["torch", "numpy", "bytes", "chain", "none"]),
        ({"isolate": True}, ["bytes", "chain", "none"]),  # a process for each: whose memory it was matters no more
    ],
    ids=["alone", "n_workers", "isolate"],
)
def test_under_a_limit_of_address_space(where: dict[str, Any], ways: list[str], tmp_path: Path) -> None:
    found = told(run(command(tmp_path, ways, 2**28, where), tmp_path))
    assert found == [[way, *OUT_OF_MEMORY] for way in ways[:-1]] + [["none", *FINE]]


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with 1 GiB of memory, for processes to join."""
    root = Path("/sys/fs/cgroup")
    second = (root / "cgroup.controllers").exists()
    folder = (root if second else root / "memory") / f"llamatune-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(2**30))
    except OSError as error:
        if folder.exists():
            folder.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    folder.rmdir()


def run_in(group: Path, words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return run(["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *words], folder)


@pytest.mark.parametrize(
    ("where", "way"), [({"n_workers": 1}, "bytes"), ({"isolate": True}, "numpy")], ids=["n_workers", "isolate"]
)
def test_the_kernel_and_a_person_are_told_apart(
    where: dict[str, Any], way: str, small_group: Path, tmp_path: Path
) -> None:
    """Which library has asked for the memory does not matter to the kernel."""
    ways = ["killed", way, "none"]
    assert told(run_in(small_group, command(tmp_path, ways, 0, where), tmp_path)) == [
        ["killed", "failed", "killed", "initial"],
        ["killed", "failed", "killed", "retry"],
        [way, *OUT_OF_MEMORY],
        ["none", *FINE],
    ]


def test_alone_the_process_dies_and_the_next_start_goes_on(small_group: Path, tmp_path: Path) -> None:
    knobs = {"storage": "sqlite:///study.db", "grace": 1.0, "retries": 0}
    words = command(tmp_path, ["bytes", "none"], 0, {}, **knobs)
    assert run_in(small_group, words, tmp_path).returncode == -9
    assert told(run_in(small_group, words, tmp_path)) == [["bytes", "failed", "silent", "initial"], ["none", *FINE]]
