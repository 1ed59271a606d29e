"""The space in tensors: the same points as in arrays, with the device and dtype of what comes in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import halton, spaces, spaces_with_params, unit_points

from llamatune_torch import Categorical, Integer, Real, SearchSpace
from llamatune_torch.engine.cube import Cube, inner, special_of, to_numpy
from llamatune_torch.parameters import Number

SPACE = SearchSpace(
    {
        "method": ["full", "lora"],
        "rank": Integer(1, 64, prior="log-uniform", when={"method": "lora"}),
        "decay": Real(1e-4, 1, prior="log-uniform", special=[0.0, 0.01]),
        "size": Categorical(["small", "large"], ordered=True),
    }
)


@given(st.data())
def test_points_are_those_of_the_space(data: st.DataObject) -> None:
    space = data.draw(spaces())
    cube, x = Cube(space), torch.tensor(data.draw(unit_points(space.dim)), dtype=torch.float64)
    X = x.expand(2, 3, -1)
    for name in ("snap", "active", "resolved"):
        for points in (x, X):
            found = getattr(cube, name)(points)
            assert np.array_equal(found.numpy(), getattr(space, name)(points.numpy())), name
            assert found.shape == points.shape
    assert cube.decode(x) == space.decode(x.tolist())
    assert cube.decode_all(X[0]) == space.decode_all(X[0].tolist())


@given(spaces_with_params())
def test_parameters_are_those_of_the_space(drawn: tuple[SearchSpace, dict[str, object]]) -> None:
    space, params = drawn
    x = Cube(space).encode(params)
    assert x.dtype == torch.float64
    assert x.tolist() == space.encode(params).tolist()
    assert Cube(space).encode_all([space.validate(params)] * 2).tolist() == [x.tolist()] * 2


def test_no_parameter_sets_at_all_are_no_points() -> None:
    assert Cube(SPACE).encode_all([]).shape == (0, 4)
    assert Cube(SPACE).encode_all([]).dtype == torch.float64


def test_the_grid_is_that_of_the_space() -> None:
    finite = SearchSpace({"i": (1, 3), "c": Categorical(["a", "b"], when={"i": 2})})
    assert Cube(finite).grid().tolist() == finite.grid().tolist()


def test_points_come_back_in_their_own_precision_and_on_their_own_device(device: torch.device) -> None:
    cube, X = Cube(SPACE), halton(12, 4)
    for dtype in (torch.float64, torch.float32):
        points = X.to(device, dtype)
        for found in (cube.snap(points), cube.resolved(points)):
            assert (found.dtype, found.device) == (dtype, points.device)
        for found in (cube.active(points), cube.is_special(points)):
            assert (found.dtype, found.device) == (torch.bool, points.device)
    assert torch.allclose(cube.snap(X.float()).double(), cube.snap(X))
    assert cube.decode_all(X.to(device)) == cube.decode_all(X)


def test_points_with_gradients_are_read_as_they_are() -> None:
    cube = Cube(SearchSpace({"a": (0.0, 1.0), "b": (1, 4)}))
    x = torch.tensor([0.5, 0.9], dtype=torch.float32, requires_grad=True)
    assert cube.decode(x) == {"a": 0.5, "b": 4}
    assert cube.snap(x).tolist() == [0.5, 0.875]


def test_on_the_cpu_nothing_is_copied() -> None:
    X = halton(3, 2)
    assert np.shares_memory(to_numpy(X), X.numpy())


# --- Special values ----------------------------------------------------------------------------------------------


def test_special_values_are_found_wherever_they_stand() -> None:
    cube = Cube(SPACE)
    inside = 0.25 + 0.75 * 0.5  # 0.01 in the ordinary range
    X = torch.tensor([[0.1, 0.1, u, 0.1] for u in (0.0, 0.2, 0.25, inside, inside + 1e-6)], dtype=torch.float64)
    assert cube.is_special(X)[:, 2].tolist() == [True, True, False, True, False]
    assert not cube.is_special(X)[:, [0, 1, 3]].any()


@given(st.data())
def test_in_torch_snapped_points_are_of_the_same_kind_and_at_the_same_place(data: st.DataObject) -> None:
    space = data.draw(spaces().filter(lambda space: bool(space.special_columns)))
    X = Cube(space).snap(torch.tensor([data.draw(unit_points(space.dim)) for _ in range(4)], dtype=torch.float64))
    for j, parameter in enumerate(space):
        if isinstance(parameter, Number) and parameter.special:
            U, kind = X[:, j], special_of(parameter, X[:, j])
            assert kind.tolist() == parameter.special_of(U.numpy()).tolist()
            ordinary = U[kind < 0]
            assert torch.allclose(0.25 + 0.75 * inner(ordinary), ordinary, rtol=0, atol=1e-15)


def test_the_centre_is_in_the_middle_of_what_is_ordinary() -> None:
    space = SearchSpace(
        {
            "lr": Real(1e-5, 1e-3, prior="log-uniform"),
            "dropout": Real(0.0, 0.4, special=[0.0]),
            "layers": Integer(1, 9),
            "optimizer": ["adamw", "lion", "muon"],
        }
    )
    params = Cube(space).decode(Cube(space).centre())
    expected = {"lr": 1e-4, "dropout": 0.2, "layers": 5}
    assert {name: params[name] for name in expected} == pytest.approx(expected)
    assert params["optimizer"] == "lion"
