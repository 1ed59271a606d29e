"""Regions: the whole space, and what good trials span."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from strategies import spaces

from llamatune_torch import Categorical, Integer, Real, SearchSpace
from llamatune_torch.engine.cube import Cube
from llamatune_torch.insight.region import Region, given

SPACE = SearchSpace(
    {
        "method": ["full", "lora", "qlora"],
        "rate": Real(1e-5, 1e-1, prior="log-uniform"),
        "dropout": Real(0, 0.4, special=[0.0]),
        "rank": Integer(1, 64, when={"method": ["lora", "qlora"]}),
        "alpha": Integer(1, 64, when={"rank": "> 8"}),
    }
)
GOOD = [
    {"method": "lora", "rate": 1e-3, "dropout": 0.0, "rank": 4},
    {"method": "lora", "rate": 1e-2, "dropout": 0.2, "rank": 8},
    {"method": "full", "rate": 3e-3, "dropout": 0.1},
]


@examples(spaces())
@settings(max_examples=40, deadline=None)
def test_weights_add_up_to_one_and_nodes_stand_for_values(space: SearchSpace) -> None:
    region = Region(space)
    U, weights = region.quadrature(list(range(space.dim)))
    assert torch.allclose(weights.sum(dim=-1), torch.ones(space.dim, dtype=torch.float64))
    assert bool((weights >= 0).all())
    for parameter, row in zip(space, U, strict=True):
        assert len(parameter.decode(row.numpy())) == len(row)


def test_a_quadrature_has_the_moments_of_random_search() -> None:
    region = Region(SPACE)
    points = region.place(torch.from_numpy(np.random.default_rng(0).random((20000, SPACE.dim))))
    for j in range(3):
        u, weights = region.nodes(j)
        assert float(weights @ u) == pytest.approx(float(points[:, j].mean()), abs=0.01)
        assert float(weights @ u.square()) == pytest.approx(float(points[:, j].square().mean()), abs=0.01)


def test_good_trials_span_what_they_have() -> None:
    region = Region(SPACE, Cube(SPACE).encode_all(GOOD))
    drawn = [SPACE.decode(x) for x in region.draw(256, seed=0).numpy()]
    assert {params["method"] for params in drawn} == {"full", "lora"}
    assert all(1e-3 * 0.999 <= params["rate"] <= 1e-2 * 1.001 for params in drawn)
    off = sum(params["dropout"] == 0 for params in drawn) / 256
    assert off == pytest.approx(1 / 3, abs=0.02)
    assert all(0.1 - 1e-6 <= params["dropout"] <= 0.2 + 1e-6 for params in drawn if params["dropout"])
    assert all(4 <= params["rank"] <= 8 for params in drawn if "rank" in params)
    assert [region.varies(j) for j in range(4)] == [True] * 4


def test_a_value_that_all_good_trials_have_does_not_vary() -> None:
    region = Region(SPACE, Cube(SPACE).encode_all(GOOD[:2]))
    assert not region.varies(0)
    assert region.varies(1)


def test_places_along_a_parameter() -> None:
    region = Region(SPACE)
    decoded = [SPACE.parameters[name].decode(region.along(j, 5)) for j, name in enumerate(SPACE.names)]
    assert decoded[0] == ["full", "lora", "qlora"]
    assert decoded[1] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert decoded[2] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])  # off, and the ordinary range
    near = Region(SPACE, Cube(SPACE).encode_all(GOOD))
    assert SPACE.parameters["method"].decode(near.along(0, 5)) == ["full", "lora"]


@pytest.mark.parametrize(("name", "said"), [("rate", ""), ("rank", "method = lora or qlora"), ("alpha", "rank > 8")])
def test_conditions_in_words(name: str, said: str) -> None:
    assert given(SPACE, name) == said


def test_a_constant_is_drawn_as_it_is() -> None:
    space = SearchSpace({"x": (0.0, 1.0), "kind": Categorical(["only"])})
    assert {params["kind"] for params in map(space.decode, Region(space).draw(8, 0).numpy())} == {"only"}
