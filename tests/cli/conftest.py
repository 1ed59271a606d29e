"""The command line in this process; ``commands.py`` has it in processes of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from commands import FULL, LORA, SPACE, Cli, Result, write_spec

from llamatune_torch import LlamaTune, Outcome
from llamatune_torch.cli.main import main


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """A command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("LLAMATUNE_STORAGE", "LLAMATUNE_NAME"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: Any) -> Result:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """The name of a file to run; no two tests have the same, since modules stay loaded."""
    return write_spec(tmp_path)


@pytest.fixture
def mine(tmp_path: Path) -> LlamaTune:
    """Three trials by hand: 0.5, 0.75 and a failure."""
    made = LlamaTune(
        SPACE,
        metric="loss",
        direction="minimize",
        storage=f"sqlite:///{tmp_path}/llamatune.db",
        name="mine",
        initial_points=[FULL, LORA],
        n_initial=1000,
    )
    made.tell(made.ask(), Outcome(0.5, outcomes={"memory_gb": 7.5}, cost=12.5, notes={"value": "last evaluation"}))
    trial = made.ask()
    made.report(trial, 10, 0.875, 0.5)
    made.tell(trial, Outcome(0.75, cost=3.0))
    made.tell(made.ask(), Outcome.failure("out of memory", "Traceback\n  line 7\nMemoryError"))
    return made
