"""The number of threads that an ask computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    import torch


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One thread for a GP of tens of points on the CPU: more of them only wait for each other.

    torch has its threads and the BLAS that scipy calls has its own: without this, most of an ask is spent by L-BFGS-B
    waking them up for products of six numbers.
    """
    if device.type != "cpu":
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _blas_libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@cache
def _blas_libraries() -> ThreadpoolController:
    # Looking for them among the process's libraries takes longer than the rest; by now all are loaded.
    return ThreadpoolController()
