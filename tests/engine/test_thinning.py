"""Of very many trials the models are given the best, the newest and a spread-out rest; of fewer, all."""

from __future__ import annotations

import pytest
import torch
from strategies import halton, make_study, plain_space
from test_suggest import quick

from llamatune_torch import Study
from llamatune_torch.engine import thinning
from llamatune_torch.engine.candidates import is_new
from llamatune_torch.engine.crash import crash_factors
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.data import training_data
from llamatune_torch.engine.recommend import recommend
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.engine.thinning import MAX_CONDITIONED, farthest_added, keep

CPU = torch.device("cpu")
SPACE = plain_space(2)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinning, "MAX_CONDITIONED", 40)


def many(n: int) -> Study:
    """A hill; every fifth trial fails."""
    rows = [({"x0": x, "x1": y}, -((x - 0.3) ** 2) - (y - 0.6) ** 2) for x, y in halton(n, 2).tolist()]
    return make_study(SPACE, [(params, None if i % 5 == 0 else value) for i, (params, value) in enumerate(rows)])


def test_up_to_the_cap_all_are_kept() -> None:
    X, Y = halton(MAX_CONDITIONED, 1), torch.arange(MAX_CONDITIONED)
    completed, failed = keep(X[100:], Y[100:], X[:100])
    assert (completed.tolist(), failed.tolist()) == (list(range(MAX_CONDITIONED - 100)), list(range(100)))


@pytest.mark.parametrize(
    ("n", "m", "expected"),
    [
        (20_000, 0, (1000, 0)),
        (12_000, 8_000, (600, 400)),
        (16_000, 4_000, (750, 250)),
        (20_000, 3, (997, 3)),
        (10, 20_000, (10, 990)),
        (10_000, 10_000, (500, 500)),
        (990, 20_000, (250, 750)),
    ],
)
def test_above_it_the_models_get_so_many_whatever_the_size(n: int, m: int, expected: tuple[int, int]) -> None:
    X = torch.rand(n + m, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    completed, failed = keep(X[:n], X[:n, 0], X[n:])
    assert (len(completed), len(failed)) == expected
    assert (completed.diff() > 0).all()
    assert (failed.diff() > 0).all()


@pytest.mark.usefixtures("few")
def test_the_best_and_the_newest_are_among_them() -> None:
    X = halton(200, 2)
    Y = (X[:, 0] * 97) % 1
    completed, failed = keep(X, Y, X[:0])
    assert set(Y.argsort(descending=True)[:13].tolist()) <= set(completed.tolist())
    assert set(range(187, 200)) <= set(completed.tolist())
    assert len(failed) == 0


def test_the_rest_is_spread_out() -> None:
    X = torch.linspace(0, 1, 101, dtype=torch.float64).unsqueeze(-1)
    chosen = farthest_added(X, torch.arange(101) == 0, 5)
    assert chosen.nonzero().flatten().tolist() == [0, 25, 50, 75, 100]


@pytest.mark.usefixtures("few")
def test_nothing_tried_is_forgotten() -> None:
    study = many(100)
    data = training_data(study, CPU, [])
    assert (len(data.X), len(data.X_failed), len(data.X_unused)) == (30, 10, 60)
    assert torch.equal(data.X, Cube(SPACE).encode_all([study.completed[i].params for i in data.rows.tolist()]))
    assert data.Y.mean().abs() < 1e-9
    assert data.Y.square().mean().item() == pytest.approx(1.0)
    (advice,) = suggest(study, quick())
    assert is_new(Cube(SPACE), Cube(SPACE).encode_all([advice.params]), data.tried).all()
    assert len(data.tried) == 100
    assert recommend(study) == study.best_trial


@pytest.mark.usefixtures("few")
def test_the_crash_model_is_given_no_more_either() -> None:
    (factor,) = crash_factors(training_data(many(100), CPU, []))
    assert len(factor.log_value.__self__.gp.inputs) == 40  # type: ignore[attr-defined]  # a bound method
