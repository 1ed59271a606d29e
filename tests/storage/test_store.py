"""Each kind of store keeps the contract."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from contracts import SPACE, StoreContract

from llamatune_torch import LlamaTune


def making(url: str | None) -> StoreContract.Make:
    """Builds optimizers, each on a study of its own, whose trials are from the Sobol sequence by default."""
    numbers = itertools.count()

    def make(space: Any = None, function: Any = None, **changes: Any) -> LlamaTune:
        place = {} if url is None else {"storage": url, "name": f"study {next(numbers)}"}
        return LlamaTune(space or SPACE, function, **{"n_initial": 100, "progress": False, **place, **changes})

    return make


class TestMemory(StoreContract):
    @pytest.fixture
    def make(self) -> StoreContract.Make:
        return making(None)


class TestSQLite(StoreContract):
    @pytest.fixture
    def make(self, sqlite_url: str) -> StoreContract.Make:
        return making(sqlite_url)


class TestPostgreSQL(StoreContract):
    @pytest.fixture
    def make(self, postgres_url: str) -> StoreContract.Make:
        return making(postgres_url)
