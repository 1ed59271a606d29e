"""The kernel in closed form against GPyTorch's, numbers by hand and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from strategies import halton, plain_space
from torch import Tensor

from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import MIN_LENGTH_SCALE, LogNormal, ProductKernel, matern, matern_and_slope

COLUMNS = pytest.mark.parametrize(
    ("dim", "categorical"), [(1, []), (3, []), (1, [0]), (2, [0, 1]), (2, [1]), (4, [0, 2])]
)


def kernel_of(dim: int, categorical: Sequence[int] = ()) -> ProductKernel:
    return ProductKernel(Features(plain_space(dim, categorical)))


def points(n: int, dim: int, categorical: Sequence[int]) -> Tensor:
    X = halton(n, dim)
    for j in categorical:
        X[:, j] = ((3 * X[:, j]).floor() + 0.5) / 3
    return X


def theta_of(kernel: ProductKernel) -> Tensor:
    return torch.linspace(-1.5, 0.7, kernel.size, dtype=torch.float64)


def module_at(kernel: ProductKernel, theta: Tensor) -> Any:
    """GPyTorch's kernel with the length scales of ``theta``."""
    module = kernel.to_gpytorch().double()
    scales = kernel.scales_in(module)
    for scale, log in zip(scales, theta.split([s.numel() for s in scales]), strict=True):
        scale.data = log.exp().view_as(scale)
    return module


def gradient_of(function: Callable[[Tensor], Tensor], at: Tensor, h: float = 1e-6) -> Tensor:
    """By central differences."""
    steps = h * torch.eye(len(at), dtype=at.dtype)
    return torch.stack([(function(at + step) - function(at - step)) / (2 * h) for step in steps])


# --- Values ------------------------------------------------------------------------------------------------------


@COLUMNS
def test_values_are_gpytorchs(dim: int, categorical: list[int]) -> None:
    kernel = kernel_of(dim, categorical)
    A, B = points(12, dim, categorical).split([7, 5])
    module, k = module_at(kernel, theta_of(kernel)), kernel.at(theta_of(kernel))
    expected = module(A, B).to_dense().detach()
    assert torch.allclose(k(A, B), expected, atol=1e-12)
    assert torch.allclose(k.cross_and_slope(A, B)[0], expected, atol=1e-12)
    assert torch.allclose(k.matrix_and_slope(A)[0], module(A).to_dense().detach(), atol=1e-7)  # it rounds r to 1e-15
    batched = k(torch.stack([A, A.flip(0)]), torch.stack([B, B]))
    assert torch.allclose(batched[1].flip(0), expected, atol=1e-12)


def test_the_kernel_of_two_points_worked_out_by_hand() -> None:
    kernel: Any = kernel_of(3, [2]).to_gpytorch()
    matern, overlap = kernel.kernels
    matern.lengthscale = torch.tensor([0.5, 2.0])
    overlap.lengthscale = torch.tensor([4.0])
    x = torch.tensor([[0.25, 1.0, 0.25]], dtype=torch.float64)
    z = torch.tensor([[0.75, 0.0, 0.75]], dtype=torch.float64)
    r = math.sqrt((0.5 / 0.5) ** 2 + (1.0 / 2.0) ** 2)
    expected = (1 + math.sqrt(5) * r + 5 * r**2 / 3) * math.exp(-math.sqrt(5) * r) * math.exp(-1 / 4)
    assert kernel(x, z).to_dense().item() == pytest.approx(expected, rel=1e-6)
    assert kernel(x, x).to_dense().item() == pytest.approx(1)


def test_unordered_choices_are_all_equally_far_apart() -> None:
    kernel = kernel_of(1, [0]).to_gpytorch()
    choices = torch.tensor([[1 / 6], [3 / 6], [5 / 6]], dtype=torch.float64)
    K = kernel(choices).to_dense()
    assert K[0, 1].item() == pytest.approx(K[0, 2].item())
    assert K[0, 1] < 1


@pytest.mark.parametrize("dim", [1, 4, 20])
def test_length_scales_start_at_the_mode_of_the_prior_that_grows_with_the_dimension(dim: int) -> None:
    kernel: Any = kernel_of(dim).to_gpytorch()
    loc = math.sqrt(2) + math.log(dim) / 2
    assert float(kernel.lengthscale_prior.loc) == pytest.approx(loc)
    assert float(kernel.lengthscale_prior.scale) == pytest.approx(math.sqrt(3))
    assert kernel.lengthscale.detach().flatten().tolist() == pytest.approx([math.exp(loc - 3)] * dim, rel=1e-5)


def test_the_matern_function_is_flat_where_points_coincide() -> None:
    r2 = torch.tensor([0.0, 1e-30, 0.5, 4.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(matern(r2).sum(), r2)
    assert gradient.tolist() == pytest.approx(matern_and_slope(r2.detach())[1].tolist())
    assert gradient[0].item() == pytest.approx(-5 / 6)


# --- Slopes ------------------------------------------------------------------------------------------------------


@COLUMNS
def test_slopes_in_theta_are_those_of_finite_differences(dim: int, categorical: list[int]) -> None:
    kernel = kernel_of(dim, categorical)
    X, theta = points(9, dim, categorical), theta_of(kernel)
    weights = torch.outer(X.sum(dim=-1), X.sum(dim=-1)).cos()

    def weighted(at: Tensor) -> Tensor:
        return (weights * kernel.at(at).matrix_and_slope(X)[0]).sum()

    k = kernel.at(theta)
    found = k.slopes(X, *k.matrix_and_slope(X), weights)
    assert found.tolist() == pytest.approx(gradient_of(weighted, theta).tolist(), abs=1e-7)


@COLUMNS
def test_slopes_in_points_are_those_of_finite_differences(dim: int, categorical: list[int]) -> None:
    kernel = kernel_of(dim, categorical)
    A, B = points(12, dim, categorical).split([5, 7])
    k = kernel.at(theta_of(kernel))
    weights = torch.outer(A.sum(dim=-1), B.sum(dim=-1)).cos()
    found = k.pull_back(A, B, k.cross_and_slope(A, B)[1], weights)

    def weighted(at: Tensor) -> Tensor:
        return (weights * k(at.view_as(A), B)).sum()

    numeric = [j for j in range(dim) if j not in categorical]
    expected = gradient_of(weighted, A.flatten()).view_as(A)
    assert torch.allclose(found[:, numeric], expected[:, numeric], atol=1e-7)
    assert not found[:, categorical].any()  # labels have no direction


# --- Priors ------------------------------------------------------------------------------------------------------


@COLUMNS
def test_the_log_prior_is_gpytorchs_and_its_slope_that_of_finite_differences(dim: int, categorical: list[int]) -> None:
    kernel = kernel_of(dim, categorical)
    theta, gradient = theta_of(kernel), torch.zeros(kernel.size, dtype=torch.float64)
    module = module_at(kernel, theta)
    factors = module.kernels if len(kernel.scales_in(module)) > 1 else [module]
    expected = sum(factor.lengthscale_prior.log_prob(factor.lengthscale).sum().item() for factor in factors)
    assert kernel.log_prior(theta, gradient).item() == pytest.approx(expected, abs=1e-12)
    differences = gradient_of(lambda at: kernel.log_prior(at, torch.zeros_like(at)), theta)
    assert gradient.tolist() == pytest.approx(differences.tolist(), abs=1e-8)


def test_the_slope_of_a_prior_is_added_to_what_is_there() -> None:
    prior, values = LogNormal(0.5, 2.0, 1e-3), torch.tensor([0.1, 3.0], dtype=torch.float64)
    alone, added = torch.zeros(2, dtype=torch.float64), torch.tensor([10.0, 20.0], dtype=torch.float64)
    prior.log_density(values, alone)
    prior.log_density(values, added)
    assert added.tolist() == pytest.approx((alone + torch.tensor([10.0, 20.0])).tolist())


@COLUMNS
def test_modes_medians_and_bounds_are_those_of_the_priors(dim: int, categorical: list[int]) -> None:
    kernel = kernel_of(dim, categorical)
    module = kernel.to_gpytorch()
    factors: Any = module.kernels if 0 < len(categorical) < dim else [module]
    sizes = [factor.lengthscale.numel() for factor in factors]
    priors = [factor.lengthscale_prior for factor, n in zip(factors, sizes, strict=True) for _ in range(n)]
    assert kernel.size == len(kernel.bounds) == len(priors) == dim
    assert kernel.modes == pytest.approx([prior.mode.log().item() for prior in priors])
    assert kernel.medians == pytest.approx([prior.loc.item() for prior in priors])
    assert set(kernel.bounds) == {(math.log(MIN_LENGTH_SCALE), None)}


def test_length_scales_have_a_lower_bound() -> None:
    kernel = kernel_of(2, [1])
    k = kernel.at(torch.tensor([-9.0, -9.0], dtype=torch.float64))
    assert (k.numeric_scales.item(), k.categorical_scales.item()) == (MIN_LENGTH_SCALE, MIN_LENGTH_SCALE)
