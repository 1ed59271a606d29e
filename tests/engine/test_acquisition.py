"""Acquisitions against scipy.stats, against each other and against finite differences."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from botorch.models import SingleTaskGP
from scipy.stats import norm
from strategies import halton, plain_space
from torch import Tensor

from llamatune_torch import Settings
from llamatune_torch.engine.acquisition import (
    ANALYTIC,
    MONTE_CARLO,
    Acquisition,
    Factor,
    make_acquisition,
    posterior_mean,
)
from llamatune_torch.engine.crash import RISK_AVERSION, CrashModel
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.outcome import standardize
from llamatune_torch.engine.surrogate import Surrogate
from llamatune_torch.settings import AcquisitionName

SQUARE = ProductKernel(Features(plain_space(2)))
NAMES = get_args(AcquisitionName)
NONE = torch.empty(0, 2, dtype=torch.float64)
X = halton(8, 2)
Z = halton(68, 2)[8:]


@pytest.fixture(scope="module")
def works() -> CrashModel:
    return CrashModel(SQUARE, X, X[:, 0] < 0.6)


def acquisition(
    name: str, gp: SingleTaskGP, pending: Tensor = NONE, crash: CrashModel | None = None, **knobs: Any
) -> Acquisition:
    settings = Settings(**{"acquisition": name, "xi": 0.0, **knobs})
    return make_acquisition(settings, gp, X, pending, [] if crash is None else [crash.factor()], seed=7)


def values(acquisition: Acquisition, points: Tensor = Z) -> Tensor:
    with torch.no_grad():
        return acquisition(points.unsqueeze(-2))


def moments(gp: SingleTaskGP, points: Tensor = Z) -> tuple[Any, Any, float]:
    """Posterior mean and standard deviation at the points, and the best mean at an observed one."""
    posterior = gp.posterior(points)
    mean, variance = posterior.mean.squeeze(-1), posterior.variance.squeeze(-1)
    best_f = gp.posterior(X).mean.max().item()
    return mean.detach().numpy(), variance.sqrt().detach().numpy(), best_f


def analytic(name: str, gp: SingleTaskGP, xi: float, kappa: float) -> Any:
    mean, sd, best_f = moments(gp)
    z = (mean - best_f - xi) / sd
    ei = sd * (z * norm.cdf(z) + norm.pdf(z))
    noise = gp.likelihood.noise.item()
    sd_known = sd**2 / np.sqrt(sd**2 + noise)  # Picheny et al., 2013: of the posterior mean after one more evaluation
    z_known = (mean - best_f - xi) / sd_known
    return {
        "logeqi": np.log(sd_known * (z_known * norm.cdf(z_known) + norm.pdf(z_known))),
        "ei": np.log(ei),
        "logei": np.log(ei),
        "pi": norm.logcdf(z),
        "logpi": norm.logcdf(z),
        "ucb": mean + kappa * sd,
    }[name]


# --- Against the formulas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("xi", [0.0, 0.3])
@pytest.mark.parametrize("name", ["ei", "logei", "logeqi", "pi", "logpi"])
def test_improvement_acquisitions_are_their_formulas(name: str, xi: float, gp: SingleTaskGP) -> None:
    found = values(acquisition(name, gp, xi=xi)).numpy()
    assert found == pytest.approx(analytic(name, gp, xi, 0.0), rel=1e-5)


@pytest.mark.parametrize("kappa", [0.0, 2.576])
def test_ucb_is_the_mean_plus_kappa_standard_deviations(kappa: float, gp: SingleTaskGP) -> None:
    found = values(acquisition("ucb", gp, kappa=kappa)).numpy()
    assert found == pytest.approx(analytic("ucb", gp, 0.0, kappa), rel=1e-6)


def test_the_bar_is_not_rounded_to_single_precision(gp: SingleTaskGP) -> None:
    assert values(acquisition("logei", gp)).numpy() == pytest.approx(analytic("logei", gp, 0.0, 0.0), rel=1e-11)


def test_qlogei_of_one_point_is_close_to_the_analytic_one(gp: SingleTaskGP) -> None:
    expected = analytic("logei", gp, 0.0, 0.0)
    likely = expected > -6  # further out few of the samples improve
    found = values(acquisition("qlogei", gp, mc_samples=2048)).numpy()
    assert likely.sum() >= 5
    assert found[likely] == pytest.approx(expected[likely], abs=0.1)


def test_qlognei_ranks_points_as_the_analytic_one_does_where_noise_is_low(gp: SingleTaskGP) -> None:
    found = values(acquisition("qlognei", gp, mc_samples=512)).numpy()
    expected = analytic("logei", gp, 0.0, 0.0)
    assert np.corrcoef(found.argsort().argsort(), expected.argsort().argsort())[0, 1] > 0.8


@pytest.mark.parametrize(("mc", "analytic_name"), [("logei", "logei"), ("logpi", "logpi"), ("ucb", "ucb")])
def test_with_a_hopeless_point_pending_the_batch_sibling_is_close_to_the_analytic_one(
    mc: str, analytic_name: str, gp: SingleTaskGP
) -> None:
    mean, sd, _ = moments(gp, X)
    hopeless = X[[int((mean + 5 * sd).argmin())]]
    expected = analytic(analytic_name, gp, 0.0, 2.576)
    likely = expected > (-4 if mc != "ucb" else moments(gp, hopeless)[0] + 1)
    found = values(acquisition(mc, gp, pending=hopeless, mc_samples=2048)).numpy()
    assert likely.sum() >= 4
    assert found[likely] == pytest.approx(expected[likely], abs=0.15)


# --- Composition -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_log_probability_of_success_is_added(name: str, gp: SingleTaskGP, works: CrashModel) -> None:
    alone, together = values(acquisition(name, gp)), values(acquisition(name, gp, crash=works))
    expected = alone + RISK_AVERSION * works.log_probability(Z.unsqueeze(-2)).detach()
    assert torch.allclose(together, expected, rtol=1e-6)


def test_parts_are_the_factors_by_name_before_their_weights(gp: SingleTaskGP, works: CrashModel) -> None:
    made = acquisition("logeqi", gp, crash=works)
    parts = made.parts(Z.unsqueeze(-2))
    assert list(parts) == ["improvement", "works"]
    assert torch.equal(parts["improvement"], values(acquisition("logeqi", gp)))
    assert torch.equal(parts["works"], works.log_probability(Z.unsqueeze(-2)))
    assert not any(part.requires_grad for part in parts.values())
    assert torch.allclose(parts["improvement"] + RISK_AVERSION * parts["works"], values(made))


def test_an_acquisition_is_the_weighted_sum_of_any_factors() -> None:
    first = Factor("first", lambda X: X[:, 0, 0])
    second = Factor("second", lambda X: X[:, 0, 1], weight=-3.0)
    third = Factor("third", lambda X: X.sum(dim=(-1, -2)), weight=0.5)
    points = torch.tensor([[0.2, 0.4], [1.0, 0.0]], dtype=torch.float64)
    assert values(Acquisition([first]), points).tolist() == [0.2, 1.0]
    assert values(Acquisition([first, second, third]), points).tolist() == pytest.approx([-0.7, 1.5])


def test_every_name_of_the_settings_has_a_first_factor() -> None:
    assert sorted([*ANALYTIC, *MONTE_CARLO]) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_point_next_to_a_pending_one_is_worth_less_than_without_it(name: str, gp: SingleTaskGP) -> None:
    """By how much a pending point lowers the rest: joint values are compared to those of a far point."""
    best = Z[[int(values(acquisition("logei", gp)).argmax())]]
    near, far = best + 1e-3, Z[[int((Z - best).norm(dim=-1).argmax())]]
    before, after = acquisition(name, gp), acquisition(name, gp, pending=best)
    lead_before = values(before, near) - values(before, far)
    lead_after = values(after, near) - values(after, far)
    assert lead_after < lead_before


@pytest.mark.parametrize("name", NAMES)
def test_values_are_a_vector_of_finite_numbers_on_the_device(name: str, device: torch.device) -> None:
    points = Z.to(device)
    model = Surrogate(SQUARE, X.to(device), standardize(X[:, 0] - X[:, 1]).to(device))
    model.eval()
    for pending in (NONE.to(device), points[:2]):
        made = make_acquisition(Settings(acquisition=name), model, X.to(device), pending, [], seed=0)
        found = values(made, points[2:])
        assert found.shape == (len(points) - 2,)
        assert found.device.type == device.type
        assert found.isfinite().all()


@pytest.mark.parametrize("name", ["qlogei", "qlognei"])
def test_monte_carlo_acquisitions_follow_from_the_seed(name: str, gp: SingleTaskGP) -> None:
    settings = Settings(acquisition=name)
    one, same, other = (values(make_acquisition(settings, gp, X, NONE, [], seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# --- Gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pending", [NONE, Z[:1]], ids=["nothing pending", "one pending"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(
    name: str, pending: Tensor, gp: SingleTaskGP, works: CrashModel
) -> None:
    made = acquisition(name, gp, pending, works)
    points = Z[1:9].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(made(points.unsqueeze(-2)).sum(), points)
    h = 1e-5
    differences = torch.zeros_like(gradient)
    for j in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[j] = h
        differences[:, j] = (values(made, Z[1:9] + step) - values(made, Z[1:9] - step)) / (2 * h)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 1e-6
    assert torch.allclose(gradient, differences, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("pending", [NONE, Z[:1]], ids=["nothing pending", "one pending"])
@pytest.mark.parametrize("name", NAMES)
def test_a_prior_mean_moves_the_acquisition_and_its_gradient(name: str, pending: Tensor) -> None:
    """Where the kernel knows nothing, the prior mean says where to go."""

    def uphill(points: Tensor) -> Tensor:
        return 2 * points[:, 0]

    model = Surrogate(SQUARE, X, 2 * X[:, 0], prior_mean=uphill)  # nothing is left for the kernel to explain
    model.eval()
    points = Z[1:9].clone().requires_grad_(True)
    made = acquisition(name, model, pending)
    (gradient,) = torch.autograd.grad(made(points.unsqueeze(-2)).sum(), points)
    h = torch.tensor([1e-5, 0.0], dtype=torch.float64)
    differences = (values(made, Z[1:9] + h) - values(made, Z[1:9] - h)) / 2e-5
    assert torch.allclose(gradient[:, 0], differences, rtol=1e-2, atol=1e-5)
    assert values(made, torch.tensor([[0.95, 0.95]])) > values(made, torch.tensor([[0.05, 0.05]]))


def test_the_gradient_survives_where_an_improvement_is_all_but_impossible() -> None:
    """Where the classic EI is zero in double precision; the reason for the logarithm."""
    model = Surrogate(SQUARE, X, standardize(X[:, 0]))
    kernel: Any = model.covar_module
    kernel.lengthscale = torch.tensor([2.0, 2.0])
    model.likelihood.noise = 1e-4
    model.eval()
    x = torch.tensor([[0.3, 0.4]], dtype=torch.float64, requires_grad=True)
    h = torch.tensor([[1e-6, 0.0]], dtype=torch.float64)
    for name in ("logeqi", "logei", "logpi"):
        made = acquisition(name, model, xi=3.0)
        value = made(x.unsqueeze(-2))
        (gradient,) = torch.autograd.grad(value.sum(), x)
        difference = (values(made, x + h) - values(made, x - h)) / 2e-6
        assert value < -700  # exp of it is zero
        assert gradient[0, 0].item() == pytest.approx(difference.item(), rel=1e-2)


def test_posterior_mean_has_one_value_a_row_and_no_gradient(gp: SingleTaskGP) -> None:
    mean = posterior_mean(gp, Z)
    assert mean.shape == (len(Z),)
    assert not mean.requires_grad
    assert mean.numpy() == pytest.approx(moments(gp)[0])
