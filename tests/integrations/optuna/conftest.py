"""A file for each test, and an Optuna that is quiet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna", reason="the extra `optuna` is not installed")


@pytest.fixture(autouse=True)
def _quiet_optuna() -> Iterator[None]:
    """What the tests themselves do with Optuna need not be read."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(level)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/optuna.db"
