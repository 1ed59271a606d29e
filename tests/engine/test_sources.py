"""Past studies as functions of the cube."""

from __future__ import annotations

import torch
from test_transfer import SPACE, loss, old

from llamatune_torch import Real, SearchSpace
from llamatune_torch.engine import sources as module
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.outcome import robust
from llamatune_torch.engine.sources import Sources, choose_evenly, correlation, fit_sources
from llamatune_torch.engine.surrogate import fit_gp
from llamatune_torch.past import PastStudy, PastTrial, fit_into


def fitted(space: SearchSpace, *past: PastStudy, **context: float) -> Sources:
    sources = fit_sources(space, past, context)
    assert sources is not None
    return sources


X = torch.rand(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_one_study_is_the_gp_that_fits_it_up_to_its_constant() -> None:
    past = old(loss(3e-3), 15)
    place = fit_into(SPACE, past)
    gp = fit_gp(ProductKernel(Features(SPACE)), torch.from_numpy(place.X), robust(torch.from_numpy(place.values)))
    sources = fitted(SPACE, past)
    expected = gp.posterior(X).mean[:, 0].detach()
    found = sources.means(X)[:, 0] * sources.spreads
    assert correlation(found, expected) > 0.9999
    assert (found - expected).std() < 0.02


def test_a_mixture_is_the_weighted_sum_and_knows_its_gradient() -> None:
    sources = fitted(SPACE, old(loss(3e-3)), old(loss(1e-4)))
    weights = torch.tensor([0.3, 0.9], dtype=torch.float64)
    field = sources.mixture(weights)
    assert torch.allclose(field(X), sources.means(X) @ weights)
    Z = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(field(Z).sum(), Z)
    Y = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad((sources.means(Y) @ weights).sum(), Y)
    assert torch.allclose(slope, expected)


def test_a_parameter_that_a_past_study_lacks_does_not_matter_to_it() -> None:
    trials = tuple(PastTrial({"lr": trial.params["lr"]}, trial.value) for trial in old(loss(3e-3)).trials)
    sources = fitted(SPACE, PastStudy("less", "minimize", trials), old(loss(3e-3)))
    moved = X.clone()
    moved[:, 1] = 0.9
    before, after = sources.means(X), sources.means(moved)
    without = [s for s in range(2) if torch.allclose(before[:, s], after[:, s])]
    assert len(without) == 1


def test_optima_move_with_sizes_only_where_sizes_tell() -> None:
    sizes = [1e7, 3e7, 1e8, 3e8]
    past = [
        PastStudy(str(size), "minimize", old(loss(1e-2 * (size / 1e7) ** -0.5), 25).trials, {"parameters": size})
        for size in sizes
    ]
    target = {"lr": 1e-2 * (3e9 / 1e7) ** -0.5, "wd": 0.1}
    x = torch.from_numpy(SPACE.encode(target))
    errors = {}
    for name, context in (("known", {"parameters": 3e9}), ("unknown", {}), ("another", {"tokens": 3e9})):
        sources = fitted(SPACE, *past, **context)
        best = sources.candidates[sources.means(sources.candidates).mean(dim=-1).argmax()]
        errors[name] = float((best - x)[0].abs())
    assert errors["known"] < 0.1
    assert errors["known"] < 0.5 * errors["unknown"]
    assert errors["another"] == errors["unknown"]


def test_only_plain_numbers_move() -> None:
    space = SearchSpace(
        {
            "method": ["full", "lora"],
            "lr": Real(1e-5, 1e-1, prior="log-uniform"),
            "decay": Real(1e-3, 1e-1, prior="log-uniform", special=[0.0]),
            "rank": Real(1, 64, when={"method": "lora"}),
        }
    )
    assert module._movable(space) == [1]


def test_studies_agree_as_far_as_they_predict_each_other() -> None:
    alike = fitted(SPACE, old(loss(3e-3)), old(loss(3e-3), seed=1)).agreement
    apart = fitted(SPACE, old(loss(1e-1)), old(loss(1e-5), seed=1)).agreement
    assert alike > 0.8
    assert apart < 0.3
    assert fitted(SPACE, old(loss(3e-3))).agreement == module.AGREE_ALONE


def test_of_many_trials_the_best_and_others_evenly_are_kept() -> None:
    Z = torch.randperm(500, generator=torch.Generator().manual_seed(0)).double()
    rows = choose_evenly(Z)
    assert len(rows) == module.MOST
    kept = Z[rows].sort(descending=True).values
    assert kept[:20].tolist() == list(range(499, 479, -1))
    assert kept[-1] == 0
    assert (rows.diff() > 0).all()


def test_what_failed_is_expected_to_fail() -> None:
    trials = tuple(PastTrial({"lr": 10**-k, "wd": 0.1 * (i % 3)}, None if k < 2 else 1.0 * k)
                   for i, k in enumerate([1, 1.2, 1.5, 1.8, 2.2, 2.5, 3, 3.5, 4, 4.5]))  # fmt: skip
    sources = fitted(SPACE, PastStudy("wall", "minimize", trials))
    assert sources.failures is not None
    expected = sources.failures(torch.tensor([[0.95, 0.3], [0.5, 0.3], [0.2, 0.3]], dtype=torch.float64))
    assert expected[0] < 0 < expected[1]
    assert expected[2] > 0.5
    assert fitted(SPACE, old(loss(3e-3))).failures is None
