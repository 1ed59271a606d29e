"""The probability of success, against the formula with scipy; luck, walls and exceptions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from scipy.stats import norm
from strategies import halton, plain_space

from llamatune_torch import Cause, Study, Trial, TrialState
from llamatune_torch.engine.crash import ERROR_AVERSION, RISK_AVERSION, SHORTEST, CrashModel, crash_factors
from llamatune_torch.engine.data import training_data
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.settings import Settings


def kernel_of(dim: int, categorical: Sequence[int] = ()) -> ProductKernel:
    return ProductKernel(Features(plain_space(dim, categorical)))


SQUARE = kernel_of(2)


def test_the_probability_is_that_of_a_positive_latent_value() -> None:
    X = halton(12, 2)
    crash = CrashModel(SQUARE, X, X[:, 0] < 0.6)
    Z = halton(30, 2)[12:]
    latent = crash.gp.posterior(Z)
    noise = crash.gp.likelihood.noise.item()
    z = latent.mean.squeeze(-1) / (latent.variance.squeeze(-1) + noise).sqrt()
    expected = norm.logcdf(z.detach().numpy())
    assert crash.log_probability(Z.unsqueeze(-2)).tolist() == pytest.approx(expected.tolist(), abs=1e-8)


def test_it_is_likelier_to_work_where_it_has_worked(device: torch.device) -> None:
    X = halton(20, 2).to(device)
    crash = CrashModel(SQUARE, X, X[:, 0] < 0.5)
    good, bad = torch.tensor([[0.2, 0.5], [0.8, 0.5]], dtype=torch.float64, device=device)
    probability = crash.log_probability(torch.stack([good, bad]).unsqueeze(-2)).exp()
    assert probability.device.type == device.type
    assert probability[0] > 0.8
    assert probability[1] < 0.2


def test_a_choice_that_always_fails_is_told_from_the_others() -> None:
    choice = torch.tensor([1, 3, 5] * 5, dtype=torch.float64) / 6
    X = torch.stack([choice, halton(15, 1).squeeze(-1)], dim=-1)
    crash = CrashModel(kernel_of(2, [0]), X, choice != 0.5)
    points = torch.tensor([[1 / 6, 0.5], [0.5, 0.5], [5 / 6, 0.5]], dtype=torch.float64)
    first, failing, last = crash.log_probability(points.unsqueeze(-2)).exp().tolist()
    assert failing < 0.25 < 0.75 < min(first, last)


def test_it_is_never_quite_sure_and_far_away_only_what_the_record_says() -> None:
    X = 0.3 * halton(20, 4)
    crash = CrashModel(kernel_of(4), X, X[:, 0] < 0.2)
    assert crash.log_probability(X.unsqueeze(-2)).exp().max() < 0.9995
    # Length scales grow with dimensions, so "far" is a kernel without memory of the points.
    crash.gp.set_theta(torch.cat([crash.gp.theta[:4] * 0 - 4.0, crash.gp.theta[4:]]))
    far = crash.log_probability(torch.ones(1, 1, 4, dtype=torch.float64)).exp().item()
    noise = crash.gp.noise.item()
    worked = int((X[:, 0] < 0.2).sum())
    assert far == pytest.approx(norm.cdf((2 * (worked + 1) / 22 - 1) / (1 + noise) ** 0.5), rel=1e-6)


def test_each_point_is_judged_by_itself_whatever_else_is_in_the_batch() -> None:
    X = halton(10, 2)
    crash = CrashModel(SQUARE, X, X[:, 1] > 0.4)
    together = crash.log_probability(X.unsqueeze(-2))
    alone = torch.cat([crash.log_probability(x.reshape(1, 1, -1)) for x in X])
    assert torch.allclose(together, alone, atol=1e-10)


def test_its_gradient_points_away_from_failures() -> None:
    X = halton(16, 1)
    crash = CrashModel(kernel_of(1), X, X[:, 0] < 0.5)
    x = torch.tensor([[0.55]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(crash.log_probability(x.unsqueeze(-2)).sum(), x)
    assert gradient.item() < 0


def test_one_of_each_kind_is_enough() -> None:
    X = torch.tensor([[0.1], [0.9]], dtype=torch.float64)
    log_probability = CrashModel(kernel_of(1), X, torch.tensor([True, False])).log_probability(X.unsqueeze(-2))
    assert log_probability.isfinite().all()
    assert log_probability[0] > log_probability[1]


# --- Luck, walls and exceptions ----------------------------------------------------------------------------------


def around(centre: torch.Tensor, n: int, radius: float, seed: int) -> torch.Tensor:
    steps = torch.rand(n, len(centre), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return centre + radius * (2 * steps - 1)


def study_of(rows: list[tuple[torch.Tensor, float | Cause]]) -> Study:
    """Trials at points of the unit square, each with its value or the cause of its failure."""
    trials = []
    for i, (x, found) in enumerate(rows):
        params = dict(zip(["x0", "x1"], x.tolist(), strict=True))
        if isinstance(found, Cause):
            ended = {"state": TrialState.FAILED, "cause": found, "reason": str(found)}
        else:
            ended = {"state": TrialState.COMPLETE, "value": float(found)}
        trials.append(Trial(i, params, 0, "surrogate", **ended))  # type: ignore[arg-type]
    return Study(plain_space(2), trials=tuple(trials))


@pytest.mark.parametrize(("dim", "radius"), [(1, 0.0), (1, 0.1), (2, 0.0), (2, 0.1), (4, 0.05)])
def test_one_unlucky_failure_among_neighbours_that_worked_forbids_nothing(dim: int, radius: float) -> None:
    for seed in range(4):
        centre = torch.full((dim,), 0.3 + 0.1 * seed, dtype=torch.float64)
        X = torch.cat([around(centre, 5, radius, seed), centre.unsqueeze(0)])
        works = torch.arange(6) < 5
        there = centre.reshape(1, 1, -1)
        crash = CrashModel(ProductKernel(Features(plain_space(dim)), SHORTEST), X, works)
        assert crash.log_probability(there).exp().item() > 0.5


def hill(x: torch.Tensor) -> float:
    return -float((x - 0.5).square().sum())


def test_the_search_goes_again_where_one_run_of_six_has_failed() -> None:
    peak = torch.tensor([0.5, 0.5], dtype=torch.float64)
    worked = [(x, hill(x)) for x in torch.cat([around(peak, 5, 0.1, 1), halton(5, 2)])]
    (advice,) = suggest(study_of([*worked, (peak, Cause.OUT_OF_MEMORY)]), Settings(n_initial=1))
    assert math.dist(advice.params.values(), peak.tolist()) < 0.15


@pytest.mark.parametrize("cause", [Cause.OUT_OF_MEMORY, Cause.DIVERGED, Cause.TIMEOUT, Cause.ERROR])
def test_a_region_that_fails_again_and_again_is_left_alone(cause: Cause) -> None:
    X = torch.cat([halton(10, 2), around(torch.tensor([0.8, 0.5], dtype=torch.float64), 4, 0.1, 0)])
    study = study_of([(x, cause if x[0] > 0.6 else float(x[0])) for x in X])
    (advice,) = suggest(study, Settings(n_initial=1))
    assert advice.origin == "surrogate"
    assert advice.params["x0"] < 0.7


def test_exceptions_have_a_model_of_their_own_with_less_weight() -> None:
    X = halton(8, 2)
    causes = [Cause.ERROR, Cause.OUT_OF_MEMORY, Cause.DIVERGED, Cause.TIMEOUT, Cause.SILENT, Cause.KILLED]
    rows: list[tuple[torch.Tensor, float | Cause]] = [*zip(X, causes, strict=False), (X[6], 0.5), (X[7], 0.7)]
    data = training_data(study_of(rows), torch.device("cpu"), [])
    assert data.is_error.tolist() == [True, False, False, False, False]  # killed: nothing at all
    works, raises = crash_factors(data)
    assert (works.name, raises.name) == ("works", "raises nothing")
    assert works.weight == RISK_AVERSION > raises.weight == ERROR_AVERSION >= 1
    without = crash_factors(data._replace(X_failed=data.X_failed[1:], is_error=data.is_error[1:]))
    Z = halton(20, 2).unsqueeze(-2)
    assert [factor.name for factor in without] == ["works"]
    assert torch.equal(without[0].log_value(Z), works.log_value(Z))  # to which exceptions are nothing
