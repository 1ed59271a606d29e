"""Quasi-random points: scrambled Sobol sequences in the unit cube, and as draws from a normal distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from llamatune_torch.engine.cube import Cube


def sobol(space: Cube, n: int, seed: int, start: int = 0) -> Tensor:
    """Points ``start .. start + n - 1`` of a scrambled Sobol sequence, snapped to the space; ``n x d``."""
    return space.snap(quasi_random(space.dim, n, seed, start))


def quasi_random(dim: int, n: int, seed: int, start: int = 0) -> Tensor:
    """Points ``start .. start + n - 1`` of a scrambled Sobol sequence in the unit cube; ``n x dim``, float64."""
    engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
    first = engine.quasi.to(torch.float64) / 2**engine.MAXBIT
    if start:
        engine.fast_forward(start)
    X = engine.draw(n, dtype=torch.float64)
    if start == 0:
        X[:1] = first  # which torch rounds to the default dtype
    return X


def normal_samples(n: int, m: int, seed: int) -> Tensor:
    """Quasi-random draws from a standard normal distribution, ``n x m``, from a scrambled Sobol sequence."""
    if m > torch.quasirandom.SobolEngine.MAXDIM:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(n, m, generator=generator, dtype=torch.float64, device=generator.device)
    samples: Tensor = torch.special.ndtri(quasi_random(m, n, seed).clamp(1e-10, 1 - 1e-10))
    return samples
