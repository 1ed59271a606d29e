"""A study on its way into the engine: on which device."""

from __future__ import annotations

import pytest
import torch

from llamatune_torch.engine.data import CUDA_FROM_TRIALS, choose_device


@pytest.mark.parametrize(
    ("num_gpus", "n", "expected"),
    [
        (0, 10**6, "cpu"),
        (1, 0, "cpu"),
        (1, CUDA_FROM_TRIALS - 1, "cpu"),
        (1, CUDA_FROM_TRIALS, "cuda"),
    ],
)
def test_auto_takes_a_gpu_once_there_is_enough_for_it_to_do(
    num_gpus: int, n: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    assert choose_device("auto", n) == torch.device(expected)


def test_a_device_that_is_named_is_taken_whatever_the_number_of_observations() -> None:
    for n in (0, 10**6):
        assert choose_device("cpu", n) == torch.device("cpu")
        assert choose_device("cuda:1", n) == torch.device("cuda:1")
