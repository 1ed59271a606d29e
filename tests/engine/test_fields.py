"""Beliefs as functions of the cube; sums of kernels are tested with the past studies that they stand for."""

from __future__ import annotations

import math

import pytest
import torch
from test_transfer import SPACE

from llamatune_torch import Real, SearchSpace
from llamatune_torch.engine.fields import Belief
from llamatune_torch.engine.sources import fit_sources


def test_a_belief_by_hand() -> None:
    space = SearchSpace({"lr": Real(1e-5, 1e-1, prior="log-uniform", belief=(1e-3, 0.5)), "wd": Real(0, 0.3)})
    belief = Belief.of(space)
    assert belief is not None
    at = torch.tensor([[0.5, 0.1], [0.625, 0.9], [1.0, 0.9]], dtype=torch.float64)  # 0, 1 and 4 standard deviations
    assert belief(at).tolist() == pytest.approx([0.0, -math.log(1.5), -math.log(9)])
    assert Belief.of(SPACE) is None
    assert fit_sources(SPACE, (), {}) is None


def test_a_belief_says_nothing_of_what_is_off() -> None:
    space = SearchSpace(
        {
            "method": ["full", "lora"],
            "rank": Real(1, 100, prior="log-uniform", belief=(10, 0.2), when={"method": "lora"}),
            "decay": Real(1e-3, 1e-1, prior="log-uniform", special=[0.0], belief=1e-2),
        }
    )
    belief = Belief.of(space)
    assert belief is not None
    rows = [{"method": "full", "decay": 0.0}, {"method": "lora", "rank": 10.0, "decay": 1e-2}]
    assert belief(torch.from_numpy(space.encode_all(rows))).tolist() == pytest.approx([-2 * math.log(1.5), 0.0])
