"""The knobs: their defaults, their ranges, and what they say when one is turned too far."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from llamatune_torch import Settings, SettingsError
from llamatune_torch.settings import CUDA_FROM_TRIALS


def test_defaults_are_those_of_the_documentation() -> None:
    settings = Settings()
    assert (settings.acquisition, settings.kappa, settings.xi) == ("logeqi", 2.576, 0.1)
    assert (settings.seed, settings.device, settings.n_initial) == (0, "auto", None)


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ({"acquisition": "EI"}, r"acquisition must be one of \['logeqi', 'logei', .*'qlognei'\], but got 'EI'"),
        ({"xi": -0.1}, r"xi must be a finite number >= 0.0, but got -0.1"),
        ({"xi": math.nan}, r"xi must be a finite number >= 0.0, but got nan"),
        ({"xi": "0.1"}, r"xi must be a finite number >= 0.0, but got '0.1'"),
        ({"kappa": -1}, r"kappa must be a finite number >= 0.0, but got -1"),
        ({"kappa": math.inf}, r"kappa must be a finite number >= 0.0, but got inf"),
        ({"n_initial": -1}, r"n_initial must be an integer >= 0, but got -1"),
        ({"n_initial": 2.5}, r"n_initial must be an integer >= 0, but got 2.5"),
        ({"seed": -1}, r"seed must be an integer >= 0, but got -1"),
        ({"seed": None}, r"seed must be an integer >= 0, but got None"),
        ({"seed": True}, r"seed must be an integer >= 0, but got True"),
        ({"num_restarts": 0}, r"num_restarts must be an integer >= 1, but got 0"),
        ({"num_screened": 0}, r"num_screened must be an integer >= 1, but got 0"),
        ({"mc_samples": 0}, r"mc_samples must be an integer >= 1, but got 0"),
        ({"device": "gpu please"}, r"device must be 'auto' or a torch device, but got 'gpu please'"),
        ({"device": None}, r"device must be 'auto' or a torch device, but got None"),
        ({"device": "cuda:99"}, r"device 'cuda:99' is not there: torch sees \d+ CUDA devices"),
    ],
)
def test_a_knob_out_of_its_range_is_refused_with_rule_name_and_value(knob: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**knob)


def test_a_seed_that_torch_cannot_take_is_refused_before_anything_is_evaluated() -> None:
    with pytest.raises(SettingsError, match="seed"):
        Settings(seed=2**70)


def test_settings_are_frozen_and_equal_by_value() -> None:
    assert Settings(seed=3) == Settings(seed=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed = 3


@pytest.mark.parametrize(("dim", "expected"), [(1, 4), (3, 4), (4, 5), (9, 10), (40, 10)])
def test_the_start_grows_with_the_number_of_parameters_between_4_and_10(dim: int, expected: int) -> None:
    assert Settings().num_initial(dim) == expected
    assert Settings(n_initial=0).num_initial(dim) == 0
    assert Settings(n_initial=17).num_initial(dim) == 17


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
    pretend(monkeypatch, num_gpus)
    assert Settings().torch_device(n) == torch.device(expected)


def test_a_device_that_is_named_is_taken_whatever_the_number_of_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, num_gpus=2)
    for n in (0, 10**6):
        assert Settings(device="cpu").torch_device(n) == torch.device("cpu")
        assert Settings(device="cuda:1").torch_device(n) == torch.device("cuda:1")


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, num_gpus=1)
    with pytest.raises(SettingsError, match=r"device 'cuda:1' is not there: torch sees 1 CUDA devices"):
        Settings(device="cuda:1")


def pretend(monkeypatch: pytest.MonkeyPatch, num_gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
