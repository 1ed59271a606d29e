"""What the tests with a real Trainer share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _quick_collections() -> Iterator[None]:
    """Takes all that the imports left behind out of the garbage collector's sight.

    tune() collects after each trial, which takes longer than a tiny trial with half a million objects of
    torch and transformers to go through.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
