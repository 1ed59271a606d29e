"""Durable studies: what their tests share."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from llamatune_torch import Integer, LlamaTune, Real, Study
from llamatune_torch.storage import database
from llamatune_torch.storage.durable import DurableStore

SPACE: dict[str, Any] = {"x": Real(-1, 1), "n": Integer(1, 8)}


def hill(params: dict[str, Any]) -> float:
    return -((params["x"] - 0.3) ** 2) - 0.01 * params["n"]


def tuner(url: str, function: Callable[[dict[str, Any]], Any] | None = None, **changes: Any) -> LlamaTune:
    """By default all trials are from the Sobol sequence: no fits, so it costs nothing."""
    defaults = {"n_initial": 100, "progress": False, "storage": url, "name": "s"}
    return LlamaTune(changes.pop("space", SPACE), function, **{**defaults, **changes})


def store_of(optimizer: LlamaTune) -> DurableStore:
    assert isinstance(optimizer._store, DurableStore)
    return optimizer._store


def states(study: Study) -> list[str]:
    return [trial.state.value for trial in study.trials]


def execute(url: str, statement: str, **values: Any) -> None:
    """SQL past the package, as a test of it needs it."""
    opened = database.Database(url)
    opened.write(lambda transaction: transaction.run(statement, **values))


def fall_silent(url: str, optimizer: LlamaTune, seconds: float = 1000.0) -> None:
    """As if the optimizer's process had given no sign of life for so long."""
    worker = store_of(optimizer).worker
    statement = "UPDATE llamatune_workers SET heartbeat = heartbeat - :seconds WHERE id = :id"
    execute(url, statement, seconds=seconds, id=worker)


def everybody_falls_silent(url: str) -> None:
    execute(url, "UPDATE llamatune_workers SET heartbeat = heartbeat - 1000")


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody else writes and does not come to an end."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def unsaved(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if ".unsaved-" in path.name)
