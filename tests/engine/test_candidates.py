"""The maximiser of an acquisition, on functions whose maximum is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import halton, spaces
from torch import Tensor

from llamatune_torch import Categorical, Integer, Real, SearchSpace, SpaceExhaustedError
from llamatune_torch.engine.candidates import (
    CHUNK,
    MAX_ENUMERATED,
    around,
    ascend,
    choose_starts,
    climb,
    evaluate,
    is_new,
    maximize,
    neighbours,
)
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.qmc import sobol
from llamatune_torch.space import RESOLUTION

Score = Callable[[Tensor], Tensor]


def cube(parameters: dict[str, Any]) -> Cube:
    return Cube(SearchSpace(parameters))


def nothing(space: Cube, device: torch.device | str = "cpu") -> Tensor:
    return torch.empty(0, space.dim, dtype=torch.float64, device=device)


def peak_at(space: Cube, params: Mapping[str, Any]) -> Score:
    """A smooth hill with its top at ``params``; a wrong unordered choice costs the same wherever it stands."""
    top = space.encode(params)

    def score(X: Tensor) -> Tensor:
        distance = X.squeeze(-2) - top.to(X)
        for j in space.categorical_columns:
            distance = distance.clone()
            distance[:, j] = 0.3 * (distance[:, j].abs() > 1e-9)
        return -distance.square().sum(dim=-1)

    return score


def best(space: Cube, score: Score, avoid: Tensor | None = None, **changes: Any) -> Tensor:
    knobs: dict[str, Any] = {"num_restarts": 4, "num_screened": 256, "seed": 3, **changes}
    none = nothing(space)
    return maximize(score, space, knobs.pop("incumbents", none), none if avoid is None else avoid, **knobs)


SPACES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "real": ({"x": Real(0, 1), "y": Real(0, 1)}, {"x": 0.3, "y": 0.7071}),
    "log real": ({"lr": Real(1e-6, 1e-2, prior="log-uniform")}, {"lr": 3e-5}),
    "corner": ({"x": Real(-5, 5), "y": Real(-5, 5)}, {"x": -5.0, "y": 5.0}),
    "integer": ({"i": Integer(1, 100_000)}, {"i": 31_416}),
    "log integer": ({"i": Integer(1, 1_000_000, prior="log-uniform"), "j": (0, 9)}, {"i": 27, "j": 8}),
    "categorical": ({name: list("abcde") for name in "pqrstu"}, dict(zip("pqrstu", "abcdea", strict=True))),
    "finite": ({"i": Integer(8, 32), "c": ["a", None, True, 1]}, {"i": 16, "c": 1}),
    "one choice": ({"only": ["x"], "y": Real(0, 1)}, {"only": "x", "y": 0.25}),
    "mixed": (
        {
            "lr": Real(1e-5, 1e-3, prior="log-uniform"),
            "batch": Integer(1, 512, prior="log-uniform"),
            "opt": ["adamw", "sgd", "lion"],
            "size": Categorical(["small", "base", "large"], ordered=True),
            "epochs": Integer(1, 20),
        },
        {"lr": 2e-4, "batch": 48, "opt": "lion", "size": "base", "epochs": 17},
    ),
    "off": (
        {
            "wd": Real(1e-4, 1, prior="log-uniform", special=[0.0]),
            "dropout": Real(0, 0.5, special=[0.0, 0.1]),
            "warmup": Integer(10, 100_000, special=[0]),
        },
        {"wd": 0.0, "dropout": 0.1, "warmup": 0},
    ),
    "on": (
        {"wd": Real(1e-4, 1, prior="log-uniform", special=[0.0]), "warmup": Integer(10, 100_000, special=[0])},
        {"wd": 1e-3, "warmup": 31_416},
    ),
    "conditional": (
        {
            "rank": Integer(1, 256, prior="log-uniform", when={"method": ["lora", "dora"]}),
            "method": ["full", "lora", "dora"],
            "lr": Real(1e-5, 1e-2, prior="log-uniform", when={"method": "full"}),
            "adapter_lr": Real(1e-5, 1e-2, prior="log-uniform", when={"method": ["lora", "dora"]}),
            "decay": Real(0, 1, special=[0.0], when={"method": "dora"}),
            "schedule": Categorical(["linear", "cosine"], when={"decay": 0.0}),
        },
        {"rank": 4, "method": "dora", "adapter_lr": 4e-3, "decay": 0.0, "schedule": "cosine"},
    ),
    "conditional, off": (
        {"method": ["full", "lora"], "lr": Real(0, 1, when={"method": "full"}), "rank": Real(0, 1)},
        {"method": "full", "lr": 0.9, "rank": 0.2},
    ),
}
ALL_SPACES = pytest.mark.parametrize("name", SPACES)


def problem(name: str) -> tuple[Cube, dict[str, Any], Score]:
    definition, top = SPACES[name]
    space = cube(definition)
    return space, top, peak_at(space, top)


# --- It finds the top --------------------------------------------------------------------------------------------


@ALL_SPACES
def test_the_top_of_a_hill_is_found(name: str, device: torch.device) -> None:
    space, top, score = problem(name)
    x = best(space, score, nothing(space, device))
    assert x.device.type == device.type
    assert (x.cpu() - space.encode(top)).abs().max() < 1e-4
    for parameter, value in top.items():
        if space.space[parameter].size is not None or value in space.space[parameter].special:
            assert space.decode(x)[parameter] == value


def test_the_higher_of_two_hills_is_found_though_it_is_narrower() -> None:
    space = cube({"x": Real(0, 1), "y": Real(0, 1)})

    def score(X: Tensor) -> Tensor:
        X = X.squeeze(-2)
        wide = torch.exp(-10 * (X - 0.2).square().sum(-1))
        narrow = 1.5 * torch.exp(-200 * (X - 0.8).square().sum(-1))
        return wide + narrow

    assert best(space, score).tolist() == pytest.approx([0.8, 0.8], abs=1e-3)


def test_the_best_real_value_is_found_for_the_best_choice_where_they_interact() -> None:
    space = cube({"opt": ["adamw", "sgd"], "lr": Real(0, 1), "n": Integer(0, 5000)})

    def score(X: Tensor) -> Tensor:
        is_sgd = X[..., 0, 0] > 0.5
        top = torch.where(is_sgd, 0.9, 0.1)
        return is_sgd * 0.1 - (X[..., 0, 1] - top).square() - (X[..., 0, 2] - 0.25).square()

    params = space.decode(best(space, score))
    assert params["opt"] == "sgd"
    assert params["lr"] == pytest.approx(0.9, abs=1e-3)
    assert params["n"] == 1250


def test_a_needle_beside_an_incumbent_is_found_and_without_the_incumbent_is_not() -> None:
    space = cube({f"x{j}": Real(0, 1) for j in range(6)})
    top = torch.full((6,), 0.37, dtype=torch.float64)

    def score(X: Tensor) -> Tensor:
        return torch.exp(-3e3 * (X.squeeze(-2) - top).square().sum(-1))

    incumbent = (top + 0.02).unsqueeze(0)
    assert (best(space, score, incumbents=incumbent) - top).abs().max() < 1e-3
    assert (best(space, score) - top).abs().max() > 1e-2


def test_the_ascent_goes_beyond_the_best_of_the_screen() -> None:
    space, _, score = problem("mixed")
    screened = sobol(space, 256, seed=3)
    assert score(best(space, score).reshape(1, 1, -1)) > evaluate(score, screened).max()


def test_climbing_never_ends_below_its_start() -> None:
    space, _, score = problem("mixed")
    starts = sobol(space, 16, seed=0)
    climbed = climb(score, space, starts)
    assert (evaluate(score, climbed) >= evaluate(score, starts)).all()


def test_what_an_ascending_parent_turns_off_stands_in_the_middle_for_the_acquisition_too() -> None:
    space = Cube(SearchSpace({"x": Real(0, 1), "y": Real(0, 1, when={"x": "> 0.5"})}))
    assert space.compared_columns == [0]
    seen: list[Tensor] = []

    def score(X: Tensor) -> Tensor:
        seen.append(X.detach().squeeze(-2))
        return -((X[..., 0, 0] - 0.2) ** 2) - (X[..., 0, 1] - 0.9) ** 2

    (reached,) = ascend(score, space, space.encode_all([{"x": 0.7, "y": 0.3}]))
    assert reached.tolist() == pytest.approx([0.2, 0.5], abs=1e-3)
    X = torch.cat(seen)
    off = X[:, 0] <= 0.5
    assert off.any()
    assert (X[off, 1] == 0.5).all()


def test_ascending_moves_what_is_active_and_ordinary_and_holds_the_rest() -> None:
    space = cube(
        {
            "method": ["full", "lora"],
            "x": Real(0, 1),
            "wd": Real(0, 1, special=[0.0]),
            "lr": Real(0, 1, when={"method": "full"}),
        }
    )

    def score(X: Tensor) -> Tensor:
        return -X[..., 1:].sum(dim=(-1, -2))

    rows = [
        {"method": "full", "x": 0.5, "wd": 0.5, "lr": 0.5},
        {"method": "full", "x": 0.5, "wd": 0.0, "lr": 0.5},
        {"method": "lora", "x": 0.5, "wd": 0.5},
    ]
    reached = space.decode_all(ascend(score, space, space.encode_all(rows)))
    nearly_off = pytest.approx(RESOLUTION)  # the smallest value that is not the same as zero
    assert reached == [
        {"method": "full", "x": 0.0, "wd": nearly_off, "lr": 0.0},
        {"method": "full", "x": 0.0, "wd": 0.0, "lr": 0.0},
        {"method": "lora", "x": 0.0, "wd": nearly_off},
    ]


def test_a_special_value_that_is_better_than_any_other_is_found_and_so_is_one_that_is_worse() -> None:
    space = cube({"x": Real(0, 1), "wd": Real(0, 1, special=[0.0])})
    for better in (True, False):

        def score(X: Tensor, better: bool = better) -> Tensor:
            x, wd = X[..., 0, 0], X[..., 0, 1]
            off = wd < 0.25
            # Where it is on, the best is at the far end; the jump at zero is up or down.
            return -(x - 0.3).square() + torch.where(off, 2.0 if better else -2.0, wd)

        params = space.decode(best(space, score, num_restarts=1, num_screened=8))
        assert params["wd"] == (0.0 if better else pytest.approx(1.0))
        assert params["x"] == pytest.approx(0.3, abs=1e-3)


# --- What it proposes can be trained ----------------------------------------------------------------------------


@ALL_SPACES
def test_the_acquisition_is_asked_for_points_of_the_space_only(name: str) -> None:
    """No rounding afterwards that the acquisition has not seen."""
    space, _, score = problem(name)

    def watched(X: Tensor) -> Tensor:
        assert torch.equal(space.snap(X.detach()), X.detach())
        assert ((X >= 0) & (X <= 1)).all()
        return score(X)

    x = best(space, watched)
    assert torch.equal(space.snap(x), x)


@settings(max_examples=15)
@given(spaces(max_dim=3).map(Cube), st.integers(0, 10))
def test_whatever_the_space_a_valid_new_point_of_it_is_proposed(space: Cube, seed: int) -> None:
    def score(X: Tensor) -> Tensor:
        return torch.sin(7 * X).sum(dim=(-1, -2))

    done = space.snap(halton(1, space.dim))
    if space.size == 1:
        with pytest.raises(SpaceExhaustedError):
            best(space, score, done, seed=seed, num_screened=32)
        return
    x = best(space, score, done, seed=seed, num_screened=32)
    assert space.space.validate(space.decode(x)) == space.decode(x)
    assert is_new(space, x.unsqueeze(0), done).all()


@ALL_SPACES
def test_a_point_that_is_taken_is_not_proposed_again(name: str) -> None:
    space, top, score = problem(name)
    taken = space.encode(top).unsqueeze(0)
    for _ in range(3):
        x = best(space, score, taken)
        assert is_new(space, x.unsqueeze(0), taken).all()
        assert space.decode(x) not in space.decode_all(taken)
        taken = torch.cat([taken, x.unsqueeze(0)])


def test_the_second_best_point_of_a_finite_space_follows_the_best() -> None:
    space = cube({"i": Integer(1, 9)})
    score = peak_at(space, {"i": 4})
    taken = space.encode_all([{"i": 4}, {"i": 5}])
    assert space.decode(best(space, score, taken)) == {"i": 3}


def test_a_finite_space_is_used_up_to_its_last_point_and_then_exhausted() -> None:
    space = cube({"i": (1, 3), "c": ["a", "b"]})
    score = peak_at(space, {"i": 2, "c": "a"})
    grid = space.grid()
    for i in range(6):
        others = torch.cat([grid[:i], grid[i + 1 :]])
        assert torch.equal(best(space, score, others), grid[i])
    with pytest.raises(SpaceExhaustedError, match=r"all 6 points of the space are done or running"):
        best(space, score, grid)


def test_the_last_values_of_a_long_logarithmic_range_are_different_points() -> None:
    space = cube({"i": Integer(1, 4000, prior="log-uniform")})
    assert space.size is not None
    assert space.size <= MAX_ENUMERATED
    taken = space.encode_all([{"i": i} for i in range(1, 4001) if i != 3999])
    assert space.decode(best(space, peak_at(space, {"i": 4000}), taken)) == {"i": 3999}


def test_an_acquisition_that_is_nan_in_places_is_maximised_elsewhere() -> None:
    space = cube({"x": Real(0, 1)})

    def score(X: Tensor) -> Tensor:
        x = X[..., 0, 0]
        return torch.where(x > 0.5, math.nan, x)

    assert 0.45 < best(space, score).item() <= 0.5


# --- The same every time -----------------------------------------------------------------------------------------


def test_the_seed_decides_everything() -> None:
    space, _, _ = problem("mixed")

    def rough(X: Tensor) -> Tensor:
        return torch.sin(40 * X).sum(dim=(-1, -2))

    def run(seed: int) -> Tensor:
        return best(space, rough, seed=seed, incumbents=sobol(space, 2, seed=9), num_restarts=2, num_screened=32)

    state = torch.get_rng_state()
    one, same, other = run(1), run(1), run(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# --- The parts ---------------------------------------------------------------------------------------------------


def test_points_around_centres_are_in_the_space_near_and_far() -> None:
    space, top, _ = problem("mixed")
    centre = space.encode(top).unsqueeze(0)
    points = around(space, centre, 200, torch.Generator().manual_seed(0))
    assert points.shape == (200, space.dim)
    assert torch.equal(space.snap(points), points)
    for j, parameter in enumerate(space):
        distance = (points - centre)[:, j].abs()
        assert (distance < 0.02).any()
        assert (distance > 0.2).any()
        if parameter.size is None:
            assert ((distance > 0.001) & (distance < 0.1)).sum() > 20
    assert len(around(space, centre[:0], 200, torch.Generator())) == 0


def test_new_means_further_than_the_smallest_distance_in_some_column() -> None:
    avoid = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    step = torch.tensor([RESOLUTION, 0.0], dtype=torch.float64)
    X = torch.cat([avoid, avoid + 0.5 * step, avoid + 2 * step, avoid + 0.1])
    square = cube({"x": Real(0, 1), "y": Real(0, 1)})
    assert is_new(square, X, avoid).tolist() == [False, False, True, True]
    assert is_new(square, X, avoid[:0]).all()


def test_many_points_are_evaluated_in_chunks_with_the_same_result() -> None:
    sizes = []

    def score(X: Tensor) -> Tensor:
        sizes.append(len(X))
        return torch.where(X[..., 0, 0] < 0.1, math.nan, X[..., 0, 0])

    X = torch.linspace(0, 1, CHUNK + 10, dtype=torch.float64).unsqueeze(-1)
    values = evaluate(score, X)
    assert sizes == [CHUNK, 10]
    assert not values.requires_grad
    assert torch.equal(values, torch.where(X[:, 0] < 0.1, -math.inf, X[:, 0]))


@pytest.mark.parametrize(
    "values",
    [
        torch.linspace(0, 1, 50, dtype=torch.float64),
        torch.zeros(50, dtype=torch.float64),
        torch.full((50,), -math.inf, dtype=torch.float64),
        torch.tensor([-math.inf] * 48 + [0.0, 1.0], dtype=torch.float64),
        torch.linspace(-1e5, 0, 50, dtype=torch.float64),
    ],
)
def test_starts_are_different_points_and_the_best_are_among_them(values: Tensor) -> None:
    chosen = choose_starts(values, 8, torch.Generator().manual_seed(0))
    assert len(chosen.unique()) == 8
    assert values[chosen].max() == values.max()
    assert len(choose_starts(values[:3], 8, torch.Generator())) == 3


def test_neighbours_differ_in_one_discrete_column_and_lead_to_every_choice() -> None:
    space, top, _ = problem("mixed")
    x = space.encode(top)
    options = neighbours(space, x.unsqueeze(0))[0]
    assert torch.equal(space.snap(options), options)
    changed = (options - x).abs() > 1e-9
    assert (changed.sum(dim=-1) <= 1).all()
    assert not changed[:, space.real_columns].any()
    around_top = space.decode_all(options)
    assert {p["opt"] for p in around_top} == {"adamw", "sgd", "lion"}
    assert {p["size"] for p in around_top} == {"small", "base", "large"}
    # Steps of 1, 2, ..., 256, at most to a bound.
    assert {1, 46, 47, 49, 50, 304} <= {p["batch"] for p in around_top}


def test_neighbours_include_each_special_value_and_the_ways_back() -> None:
    space = cube({"wd": Real(0, 1, special=[0.0, 2.0]), "steps": Integer(10, 1000, special=[0])})
    rows = [{"wd": 0.0, "steps": 0}, {"wd": 0.5, "steps": 500}]
    for row, options in zip(rows, neighbours(space, space.encode_all(rows)), strict=True):
        assert torch.equal(space.snap(options), options)
        found = space.decode_all(options)
        assert all((p["wd"] == row["wd"]) + (p["steps"] == row["steps"]) >= 1 for p in found)
        assert {0.0, 2.0, 0.125, 0.375, 0.625, 0.875} <= {p["wd"] for p in found}
        assert 0 in {p["steps"] for p in found}
        for share in (0.125, 0.375, 0.625, 0.875):
            assert min(abs(p["steps"] - (10 + 990 * share)) for p in found) < 5


def test_parameters_that_become_active_start_at_several_places() -> None:
    definition, _ = SPACES["conditional"]
    space = cube(definition)
    x = space.encode({"method": "full", "lr": 1e-3})
    options = neighbours(space, x.unsqueeze(0))[0]
    assert torch.equal(space.snap(options), options)
    found = space.decode_all(options)
    lora = [p for p in found if p["method"] == "lora"]
    dora = [p for p in found if p["method"] == "dora"]
    for group in (lora, dora):
        assert len({p["rank"] for p in group}) >= 6
        assert len({p["adapter_lr"] for p in group}) >= 6
    assert {p["decay"] == 0.0 for p in dora} == {True, False}
    assert {p["decay"] == 0.0 for p in dora if "schedule" in p} == {True}
    assert all(p == {"method": "full", "lr": 1e-3} for p in found if p["method"] == "full")


def test_points_around_a_centre_visit_other_choices_with_all_that_they_need() -> None:
    definition, top = SPACES["conditional"]
    space = cube(definition)
    points = around(space, space.encode(top).unsqueeze(0), 400, torch.Generator().manual_seed(0))
    assert torch.equal(space.snap(points), points)
    found = space.decode_all(points)
    rates = [p["lr"] for p in found if p["method"] == "full"]
    assert len(rates) > 10
    assert min(rates) < 1e-4 < 1e-3 < max(rates)
    assert {p["decay"] == 0.0 for p in found if p["method"] == "dora"} == {True, False}


def test_what_differs_only_where_it_is_inactive_is_not_new() -> None:
    definition, _ = SPACES["conditional"]
    space = cube(definition)
    done = space.encode({"method": "full", "lr": 1e-3}).unsqueeze(0)
    other = done.clone()
    other[0, [0, 3, 4, 5]] = torch.tensor([0.1, 0.2, 0.1, 0.3], dtype=torch.float64)
    assert is_new(space, other, done).tolist() == [False]
    other[0, 1] = 0.5
    assert is_new(space, other, done).tolist() == [True]
