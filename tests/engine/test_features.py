"""What the kernels see: jumps at special values, nothing of what is inactive."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import halton, spaces, unit_points

from llamatune_torch import Categorical, Integer, Real, SearchSpace
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.outcome import standardize
from llamatune_torch.engine.surrogate import fit_gp

OFF = SearchSpace({"x": Real(0, 1), "dropout": Real(0, 0.4, special=[0.0]), "opt": ["adamw", "sgd"]})


@pytest.mark.parametrize(
    ("space", "numeric", "categorical"),
    [
        (SearchSpace({"x": Real(0, 1), "n": Integer(1, 4), "c": ["a", "b"]}), [0, 1], [2]),
        (SearchSpace({"c": ["a", "b"], "n": Integer(1, 4, when={"c": "a"})}), [1], [0]),
    ],
)
def test_points_themselves_are_the_features_of_a_space_without_special_values_and_ordered_parents(
    space: SearchSpace, numeric: list[int], categorical: list[int]
) -> None:
    X = Cube(space).snap(halton(5, space.dim))
    features = Features(space)
    assert features(X) is X  # no copy: the identity costs nothing
    assert (features.numeric, features.categorical) == (numeric, categorical)


def test_a_number_with_special_values_is_a_place_and_a_kind() -> None:
    space = SearchSpace(
        {
            "wd": Real(1e-4, 1, prior="log-uniform", special=[0.0, 1e-2, 5.0]),
            "opt": ["adamw", "sgd"],
            "warmup": Integer(1, 4, special=[0]),
        }
    )
    features = Features(space)
    rows = [
        {"wd": wd, "opt": "adamw", "warmup": warmup}
        for wd, warmup in [(0.0, 0), (1e-2, 1), (5.0, 2), (1e-4, 3), (1e-2 + 1e-4, 4), (1.0, 0)]
    ]
    F = features(Cube(space).encode_all(rows))
    assert (features.numeric, features.categorical) == ([0, 2], [1, 3, 4])
    expected = [0.5, 0.5, 0.5, 0, 0.5 + torch.tensor(1.01).log10().item() / 4, 1]
    assert torch.allclose(F[:, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-6)
    assert F[:, 2].tolist() == [1 / 2, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1 / 2]
    assert (F[:, 3] * 3).tolist() == [1, 2, 3, 0, 0, 0]
    assert F[:, 4].tolist() == [1, 0, 0, 0, 0, 1]


def test_an_ordered_parent_gets_a_label_for_each_condition_and_an_unordered_one_does_not() -> None:
    space = SearchSpace(
        {
            "layers": Integer(1, 8),
            "adapter": ["none", "lora"],
            "skip": Real(0, 1, when={"layers": [3, 4]}),
            "gate": Real(0, 1, when={"layers": [3, 4]}),
            "rank": Integer(1, 8, when={"adapter": "lora"}),
            "deep": Integer(1, 8, when={"layers": 8, "adapter": "lora"}),
        }
    )
    features = Features(space)
    rows = [{"layers": 2, "adapter": "none"}, {"layers": 3, "adapter": "none", "skip": 0.1, "gate": 0.2}]
    rows.append({"layers": 8, "adapter": "lora", "rank": 2, "deep": 3})
    F = features(Cube(space).encode_all(rows))
    assert features.categorical == [1, 6, 7]
    assert torch.equal(F[:, :6], Cube(space).encode_all(rows))
    assert F[:, 6:].tolist() == [[0, 0], [1, 0], [0, 1]]


@given(st.data())
def test_same_parameters_same_labels_and_columns_that_need_no_more_stay_as_they_are(data: st.DataObject) -> None:
    space = data.draw(spaces())
    x = torch.tensor(data.draw(unit_points(space.dim)), dtype=torch.float64)
    cube, features = Cube(space), Features(space)
    snapped = cube.snap(x)
    F = features(snapped)
    assert torch.equal(F[features.categorical], features(cube.encode(cube.decode(x)))[features.categorical])
    assert ((F >= 0) & (F <= 1)).all()
    kept = [j for j in range(space.dim) if j not in space.special_columns]
    assert torch.equal(F[kept], snapped[kept])
    varied = space.varied_columns or [0]
    labels = {*space.categorical_columns, *range(space.dim, len(F))}
    assert [j for j in sorted(labels) if j in varied or j >= space.dim] == features.categorical


def test_gradients_flow_where_values_are_ordinary_only() -> None:
    X = Cube(OFF).encode_all([{"x": 0.5, "dropout": d, "opt": "sgd"} for d in (0.0, 0.1)]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(Features(OFF)(X)[:, :2].sum(), X)
    assert torch.allclose(gradient, torch.tensor([[1, 0, 0], [1, 4 / 3, 0]], dtype=torch.float64))


def test_features_are_computed_for_batches_in_the_precision_and_on_the_device_of_the_points(
    device: torch.device,
) -> None:
    X = Cube(OFF).snap(halton(12, 3)).to(device)
    F = Features(OFF)(X.view(3, 4, 3))
    assert F.shape == (3, 4, 4)
    assert torch.equal(F.view(12, 4), Features(OFF)(X))
    assert Features(OFF)(X.float()).dtype == torch.float32
    assert F.device.type == device.type


# --- What the surrogate makes of it ------------------------------------------------------------------------------

LINE = SearchSpace({"wd": Real(0, 1, special=[0.0])})


def predicted(values: list[float], Y: torch.Tensor, at: list[float]) -> list[float]:
    X = Cube(LINE).encode_all([{"wd": value} for value in values])
    gp = fit_gp(ProductKernel(Features(LINE)), X, Y)
    mean: list[float] = gp.posterior(Cube(LINE).encode_all([{"wd": value} for value in at])).mean.squeeze(-1).tolist()
    return mean


def test_the_surrogate_sees_the_jump_at_a_special_value() -> None:
    values = [0.0, 0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
    Y = standardize(torch.tensor([1.0] + [0.1 * value for value in values[1:]], dtype=torch.float64))
    off, barely_on, on = predicted(values, Y, [0.0, 0.001, 0.05])
    assert off > Y[0] - 0.3
    assert abs(barely_on - Y[1]) < 0.3
    assert abs(on - Y[2]) < 0.3


@pytest.mark.parametrize(("jump", "low", "high"), [(0.0, 0.7, 1.0), (-3.0, 0.0, 0.5)])
def test_how_alike_off_and_on_are_is_learned(jump: float, low: float, high: float) -> None:
    space = SearchSpace({"x": Real(0, 1), "wd": Real(0, 1, special=[0.0])})
    X = Cube(space).snap(halton(24, 2))
    off = X[:, 1] < 0.25
    wd = torch.where(off, 0.0, (X[:, 1] - 0.25) / 0.75)
    Y = standardize((3 * X[:, 0]).sin() + torch.where(off, jump, (wd - 0.5).square()))
    gp = fit_gp(ProductKernel(Features(space)), X, Y)
    pair = Features(space)(Cube(space).encode_all([{"x": 0.5, "wd": 0.0}, {"x": 0.5, "wd": 0.5}]))
    assert low < gp.covar_module(pair).to_dense()[0, 1].item() < high


def test_what_an_inactive_parameter_might_have_been_changes_no_prediction() -> None:
    space = SearchSpace(
        {"method": ["full", "lora"], "x": Real(0, 1), "rank": Real(0, 1, when={"method": "lora"})}
    )  # fmt: skip
    X = Cube(space).snap(halton(16, 3))
    on = Cube(space).active(X)[:, 2]
    gp = fit_gp(ProductKernel(Features(space)), X, standardize(X[:, 1] + on * (X[:, 2] - 0.9).square()))
    U = torch.tensor([[0.25, 0.4, u] for u in (0.0, 0.3, 1.0)], dtype=torch.float64)
    mean = gp.posterior(Cube(space).snap(U)).mean.squeeze(-1)
    assert mean[0] == mean[1] == mean[2]


def test_an_integer_that_switches_a_parameter_on_makes_a_jump_in_the_surrogate() -> None:
    space = SearchSpace({"n": Integer(1, 9), "extra": Categorical([1, 2], when={"n": 5})})
    rows = [{"n": n} | ({"extra": 1} if n == 5 else {}) for n in (1, 2, 3, 4, 5, 6, 8, 9)]
    cube = Cube(space)
    X = cube.encode_all(rows)
    Y = standardize(torch.tensor([1.0 if row["n"] == 5 else 0.0 for row in rows], dtype=torch.float64))
    gp = fit_gp(ProductKernel(Features(space)), X, Y)
    mean = gp.posterior(Cube(space).encode_all([{"n": 5, "extra": 1}, {"n": 4}, {"n": 6}])).mean.squeeze(-1)
    assert mean[0] > Y.max() - 0.5
    assert (mean[1:] < Y.min() + 0.5).all()


def test_a_constant_is_no_feature() -> None:
    space = SearchSpace({"model": "gpt2", "x": (0.0, 1.0), "epochs": 3, "c": ["a", "b"]})
    features = Features(space)
    assert (features.numeric, features.categorical) == ([1], [3])
    assert ProductKernel(features).size == ProductKernel(Features(SearchSpace({"x": (0.0, 1.0), "c": ["a", "b"]}))).size
    assert Features(SearchSpace({"model": "gpt2"})).categorical == [0]  # a kernel needs a feature
