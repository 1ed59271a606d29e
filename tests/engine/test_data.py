"""A study as tensors: each trial in its place, larger is better."""

from __future__ import annotations

import pytest
import torch
from strategies import make_trial
from test_suggest import MIXED, explored

from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.data import CUDA_FROM_TRIALS, choose_device, training_data, with_own_modes
from llamatune_torch.trial import Cause


def test_training_data_holds_each_trial_where_it_belongs(device: torch.device) -> None:
    study = explored()
    data = training_data(study, device, [study.trials[0].params])
    assert (data.X.shape, data.X_failed.shape, data.X_pending.shape) == ((5, 4), (1, 4), (2, 4))
    assert torch.equal(data.X.cpu(), Cube(MIXED).encode_all([trial.params for trial in study.completed]))
    assert torch.equal(data.X_failed[0].cpu(), Cube(MIXED).encode(study.trials[5].params))
    values = torch.tensor([trial.value for trial in study.completed])
    assert torch.equal(data.Y.cpu().argsort(), values.argsort())
    assert {tensor.dtype for tensor in data[:5]} == {torch.float64}
    assert {tensor.device.type for tensor in data[:5]} == {device.type}


def test_training_data_of_a_study_to_minimise_is_turned_around() -> None:
    one = training_data(explored(), torch.device("cpu"), [])
    other = training_data(explored("minimize", sign=-1.0), torch.device("cpu"), [])
    assert torch.equal(one.Y, other.Y)


def test_what_is_tried_is_done_failed_running_or_killed() -> None:
    study = explored()
    failed = study.trials[5]
    killed = make_trial(len(study.trials), failed.params, cause=Cause.KILLED)
    data = training_data(study.with_trial(killed), torch.device("cpu"), [])
    assert torch.equal(data.X_failed, data.X_unused)  # one of each, with the same parameters
    assert torch.equal(data.tried, torch.cat([data.X, data.X_failed, data.X_pending, data.X_unused]))
    x = torch.full((4,), 0.5, dtype=torch.float64)
    more = data.with_pending(x)
    assert torch.equal(more.X_pending, torch.cat([data.X_pending, x.unsqueeze(0)]))
    assert more.features is data.features


def test_features_are_those_of_the_space() -> None:
    data = training_data(explored(), torch.device("cpu"), [])
    assert (data.features.numeric, data.features.categorical) == (MIXED.numeric_columns, MIXED.categorical_columns)


def test_no_parameters_are_a_matrix_without_rows() -> None:
    nothing = Cube(MIXED).encode_all([])
    assert (nothing.shape, nothing.dtype) == ((0, 4), torch.float64)


def test_a_decorated_function_does_not_notice_the_default_device() -> None:
    @with_own_modes
    def made(n: int) -> torch.Tensor:
        return torch.ones(n)

    torch.set_default_device("meta")
    try:
        assert made(2).tolist() == [1.0, 1.0]  # of a tensor on the default device there are no numbers
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


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
