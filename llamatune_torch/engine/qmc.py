"""Quasi-random points: scrambled Sobol sequences in the unit cube, and as draws from a normal distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from llamatune_torch.engine.cube import Cube
from llamatune_torch.errors import RuleError
from llamatune_torch.rules import name_of_rule

MAX_DRAWN = 2**16  # points among which some must keep the rules of a space
ENOUGH = 8  # times as many points as are wanted are drawn, once some have been found


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


def allowed_sobol(space: Cube, n: int, seed: int, start: int = 0, patience: int = ENOUGH) -> Tensor:
    """The first ``n`` points of a sequence from ``start`` on that keep the rules of the space.

    Fewer, if they are rare: the search ends after ``patience`` times ``n`` points with what it has found, and after
    ``MAX_DRAWN`` in any case. Without rules this is :func:`sobol`.

    Raises:
        RuleError: none of them keeps the rules.
    """
    if not space.space.rules:
        return sobol(space, n, seed, start)
    found, drawn, size = torch.zeros(0, space.dim, dtype=torch.float64), 0, n
    while len(found) < n and drawn < (min(patience * n, MAX_DRAWN) if len(found) else MAX_DRAWN):
        X = sobol(space, size, seed, start + drawn)
        found, drawn, size = torch.cat([found, X[space.allows(X)]]), drawn + size, min(2 * size, 4096)
    if len(found) == 0:
        names = ", ".join(map(name_of_rule, space.space.rules))
        raise RuleError(f"rule {names}: none of {drawn} points of the space keeps it, a share below {1 / drawn:.1g}")
    return found[:n]
