"""A file to run, and commands in processes of their own, as a shell would start them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llamatune_torch import Categorical, Integer, Real

COUNTER = itertools.count()

#: All trials are from the Sobol sequence, which costs milliseconds.
SPEC = """
import time
from llamatune_torch import Integer, Real, report

space = {"lr": Real(1e-5, 1e-2, prior="log-uniform"), "batch": Integer(1, 8)}
search = {"max_evals": 6, "metric": "accuracy", "n_initial": 1000}

def evaluate(params):
    time.sleep(SECONDS)
    report(1, 0.5, 0.25)
    if params["batch"] == 5:
        raise MemoryError("out of memory [Errno 12]")
    return 1 - abs(params["lr"] - 3e-4) * params["batch"]
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


def write_spec(folder: Path, seconds: float = 0.0, text: str = SPEC) -> str:
    name = f"spec{next(COUNTER)}"
    (folder / f"{name}.py").write_text(text.replace("SECONDS", str(seconds)))
    return f"{name}.py"


def start(
    folder: Path, *arguments: Any, module: Sequence[str] = ("llamatune_torch",), **environment: str
) -> subprocess.Popen[str]:
    """A command in a process of its own, as from a shell: no installed script is needed."""
    command = [sys.executable, "-m", *module, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 120.0) -> Result:
    out, err = process.communicate(timeout=seconds)
    return Result(process.returncode, out, err)


# A study by hand, with choices that are hard to write.
SPACE = {
    "lr": Real(1e-5, 1e-2, prior="log-uniform"),
    "text": Categorical(["plain", "two words", "it's"]),
    "fp16": Categorical([True, False]),
    "clip": Categorical([None, 1.0]),
    "method": Categorical(["full", "lora"]),
    "rank": Integer(1, 64, when={"method": "lora"}),
}
FULL = {"lr": 3e-5, "text": "two words", "fp16": True, "clip": None, "method": "full"}
LORA = {"lr": 1e-3, "text": "it's", "fp16": False, "clip": 1.0, "method": "lora", "rank": 8}
