"""One thread while an ask computes, and as many as before afterwards."""

from __future__ import annotations

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from llamatune_torch.runtime.threads import one_thread


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def fails_with_one_thread() -> None:
    with one_thread(torch.device("cpu")):
        assert torch.get_num_threads() == 1
        assert blas_threads() == {1}
        raise ZeroDivisionError


def test_torch_and_blas_are_held_to_one_thread_and_let_go_even_after_an_error() -> None:
    torch_threads = torch.get_num_threads()
    with threadpool_limits(2, user_api="blas"):
        torch.set_num_threads(2)
        try:
            with pytest.raises(ZeroDivisionError):
                fails_with_one_thread()
            assert torch.get_num_threads() == 2
            assert blas_threads() == {2}
        finally:
            torch.set_num_threads(torch_threads)


def test_on_a_gpu_nothing_is_changed() -> None:
    before = torch.get_num_threads(), blas_threads()
    with one_thread(torch.device("cuda")):
        assert (torch.get_num_threads(), blas_threads()) == before
