"""Log EI in closed form: against exact arithmetic's numbers, BoTorch's implementation and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from botorch.acquisition import LogExpectedImprovement
from strategies import halton

from llamatune_torch.engine.fantasies import Fantasies
from llamatune_torch.engine.improvement import FAR_BELOW, LogEI, log_h_and_slope
from llamatune_torch.engine.surrogate import Surrogate

Z = halton(40, 2)[10:]


@pytest.mark.parametrize(
    ("u", "log_h", "slope"),
    [
        # By mpmath with 60 digits: log(phi(u) + u Phi(u)), and Phi(u) / (phi(u) + u Phi(u)).
        (-10000.0, -50000019.33961931, 10000.000199999993),
        (-38.0, -730.1961834021138, 38.05252276004133),
        (-3.0, -7.869686059603029, 3.5323375176251606),
        (0.0, -0.9189385332046728, 1.2533141373155003),
        (1.0, 0.08002621884930694, 0.7766387252017393),
        (40.0, 3.6888794541139363, 0.025),
    ],
)
def test_values_and_slopes_are_those_of_exact_arithmetic(u: float, log_h: float, slope: float) -> None:
    found, found_slope = log_h_and_slope(torch.tensor([u], dtype=torch.float64))
    assert found.item() == pytest.approx(log_h, rel=1e-13)
    assert found_slope.item() == pytest.approx(slope, rel=1e-9)


def test_nothing_jumps_where_the_branches_meet() -> None:
    for edge in (FAR_BELOW, 5.0):
        u = torch.tensor([edge, math.nextafter(edge, math.inf), edge - 1e-9, edge + 1e-9], dtype=torch.float64)
        log_h, slope = log_h_and_slope(u)
        assert log_h.isfinite().all()
        assert (log_h - log_h[0]).abs().max() < 1e-5
        assert (slope / slope[0] - 1).abs().max() < 1e-7


@pytest.mark.parametrize("ensemble", [False, True], ids=["one surrogate", "fantasies"])
def test_it_is_botorchs_in_value_and_gradient(gp: Surrogate, ensemble: bool) -> None:
    samples = torch.tensor([[0.0], [1.5], [-0.7]], dtype=torch.float64)
    model = Fantasies(gp, Z[:1], samples) if ensemble else gp.prediction()
    bar = model.best if isinstance(model, Fantasies) else torch.tensor(0.3, dtype=torch.float64)
    found = []
    for kind in (LogEI, LogExpectedImprovement):
        points = Z[1:].clone().requires_grad_(True)
        values = kind(model, bar)(points.unsqueeze(-2))
        (gradient,) = torch.autograd.grad(values.sum(), points)
        found.append((values.detach(), gradient))
    (values, gradient), (expected_values, expected_gradient) = found
    assert values.shape == (len(Z) - 1,)
    assert torch.allclose(values, expected_values, rtol=1e-9)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-7, atol=1e-9)


def test_what_is_known_already_up_to_noise_is_worth_less_than_by_expected_improvement(gp: Surrogate) -> None:
    bar = torch.tensor(0.5, dtype=torch.float64)
    with torch.no_grad():
        plain = LogEI(gp.prediction(), bar)(Z.unsqueeze(-2))
        quantile = LogEI(gp.prediction(), bar, noise=torch.tensor([0.5], dtype=torch.float64))(Z.unsqueeze(-2))
        noiseless = LogEI(gp.prediction(), bar, noise=torch.tensor([0.0], dtype=torch.float64))(Z.unsqueeze(-2))
        posterior = gp.posterior(Z)
    assert (quantile < plain).all()
    assert torch.allclose(noiseless, plain, rtol=1e-9)
    # As if the variance were that of the posterior mean after one more evaluation.
    mean, variance = posterior.mean.squeeze(-1), posterior.variance.squeeze(-1)
    sigma = variance / (variance + 0.5).sqrt()
    log_h, _ = log_h_and_slope((mean - bar) / sigma)
    assert torch.allclose(quantile, log_h + sigma.log(), rtol=1e-9)
